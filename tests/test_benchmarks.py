"""The CPU benchmarks at toy sizes: they run, compare before they time, and keep silent on a busy machine."""

import importlib
import json
import subprocess
import sys
import time

import pytest
import torch
from oracles import BENCHMARKS

from hyenadna.progress import set_quiet


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    set_quiet(False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quiet(monkeypatch):
    """A machine on which nobody else does anything."""
    side_by_side = importlib.import_module("side_by_side")
    monkeypatch.setattr(side_by_side, "_cpu_seconds_of_others", lambda: 0.0)
    return side_by_side


@pytest.fixture
def busy(monkeypatch):
    """A machine on which others use one CPU."""
    side_by_side = importlib.import_module("side_by_side")
    monkeypatch.setattr(side_by_side, "_cpu_seconds_of_others", side_by_side.time.perf_counter)
    return side_by_side


def test_forward(quiet, tmp_path, capsys):
    forward = importlib.import_module("forward")
    out = tmp_path / "forward.json"
    assert forward.main(["-o", str(out), "--threads", "1"], [forward.Case("tiny-1k", 100, 3, 2.0)]) == 0
    report = json.loads(out.read_text())
    (case,) = report["cases"]
    assert case["largest_difference"] < 1e-4
    assert case["ours"]["seconds"]["n"] == case["textbook"]["seconds"]["n"] == 3
    assert 0.05 < case["ours"]["peak_memory_gb"] < 3
    assert case["bar_met"] == (case["ratio"] >= 2.0)
    assert case["floor"]["ratio"] > 0 and case["floor"]["copy_gb_per_s"] > 0
    assert {"commit", "machine", "threads", "load"} <= set(report)
    assert report["threads"] == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "tiny-1k at 100" in printed.err


@pytest.mark.parametrize("units", [True, False])
def test_forward_in_bfloat16_where_the_cpu_has_units_for_it(quiet, capsys, monkeypatch, units):
    forward = importlib.import_module("forward")
    monkeypatch.setattr(forward, "has_bfloat16_units", lambda: units)
    exact = forward.Case("tiny-1k", 100, 3, 2.0)
    assert forward.main(["--threads", "1"], [exact, exact._replace(dtype=torch.bfloat16)]) == 0
    printed = capsys.readouterr()
    cases = json.loads(printed.out)["cases"]
    assert [case["dtype"] for case in cases] == ["float32"] + ["bfloat16"] * units
    assert all(abs(case["bits_per_base_difference"]) < forward.BITS_PER_BASE for case in cases)
    assert ("no bfloat16 cases" in printed.err) == (not units)


def test_embed(quiet, capsys):
    embed = importlib.import_module("embed")
    case = embed.Case("ragged", 6, 5, 40, 4, 2.0)
    assert embed.main(["--threads", "1"], [case]) == 0
    printed = capsys.readouterr()
    (measured,) = json.loads(printed.out)["cases"]
    assert measured["largest_difference"] < embed.TOLERANCE and measured["sequences"] == 6
    assert 30 <= measured["bases"] <= 240 and measured["peak_memory_gb_twice_the_sequences"] > 0
    assert measured["bar_met"] == (measured["ratio"] >= 2.0) and "ragged" in printed.err


def test_train_step(quiet, capsys):
    train_step = importlib.import_module("train_step")
    assert train_step.main(["--threads", "1"], [train_step.Case(64, 2, 2)]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["largest_difference"] < 1e-4 and case["ratio"] > 0
    assert case["largest_difference_of_losses"] < 1e-4
    assert case["bar"] == 1.25 and case["bar_met"] == (case["ratio"] >= 1.25)


def test_train_memory(quiet, capsys):
    train_memory = importlib.import_module("train_memory")
    assert train_memory.main(["--threads", "1"], [train_memory.Case("tiny-1k", 2048)]) == 0
    printed = capsys.readouterr()
    (case,) = json.loads(printed.out)["cases"]
    for name in train_memory.CONTENDERS:
        assert case[name]["peak_gb"] > 0
        assert case[name]["at_a_million_gb"] == pytest.approx(case[name]["peak_gb"] * 1e6 / 2048)
        assert name in printed.err


def test_every_contender_of_train_memory_has_the_same_gradients():
    train_memory = importlib.import_module("train_memory")
    case = train_memory.Case("tiny-1k", 65)
    tokens = torch.randint(7, 11, (1, 66), generator=torch.Generator().manual_seed(0))
    weights = train_memory.contender("ours", case).state_dict()
    gradients = []
    for name in train_memory.CONTENDERS:
        model = train_memory.contender(name, case)
        parameters = {key.replace(".block.", "."): parameter for key, parameter in model.named_parameters()}
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(weights[key])
        train_memory.step(model, tokens)
        gradients.append(torch.cat([parameters[key].grad.flatten() for key in weights]))
    for other in gradients[1:]:
        assert (other - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


def test_generate(quiet, capsys, monkeypatch):
    generate = importlib.import_module("generate")
    monkeypatch.setattr(generate, "_TOGETHER", 50)
    assert generate.main(["--threads", "1"], [generate.Case("tiny-1k", 64, 2, (64, 128), 2)]) == 0
    printed = capsys.readouterr()
    (case,) = json.loads(printed.out)["cases"]
    assert case["largest_difference"] < 1e-4
    assert [window["from"] for window in case["windows"]] == [64, 128]
    for window, against in zip(case["windows"], case["against"], strict=True):
        seconds = window["seconds_per_token"]
        assert seconds["median"] <= seconds["worst"] and seconds["mean"] <= seconds["worst"]
        step = against["seconds"]["forward"]["median"] / against["times_as_fast_as"]["forward"]
        assert step == pytest.approx(seconds["mean"]) and against["bar_met"]
        assert 0 < window["state_mb_at_its_end"] < 1
    assert case["flat"] == (case["dearest_over_cheapest"] <= 2)
    assert "tiny-1k,    128 to    256 tokens" in printed.err


def test_loader(quiet, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path))
    loader = importlib.import_module("loader")
    monkeypatch.setattr(loader, "BATCHES", 2)
    assert loader.main(["--threads", "1"], [loader.Case(64, 2, 2)]) == 0
    printed = capsys.readouterr()
    (case,) = json.loads(printed.out)["cases"]
    assert case["nt_per_s"]["loading"]["median"] > 0
    assert "64 nt: loading" in printed.err


def test_a_busy_machine_gets_no_report(busy, capsys):
    forward = importlib.import_module("forward")
    assert forward.main(["--wait", "0"], [forward.Case("tiny-1k", 100, 3, 2.0)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "other processes use 1.0 CPUs, 0.5 are allowed" in printed.err


def test_a_disturbed_repetition_is_done_again(monkeypatch):
    side_by_side = importlib.import_module("side_by_side")
    readings = iter([(1.0, 0.9), (1.0, 0.0), (2.0, 0.1)])  # the work, a look at the machine, the work again
    monkeypatch.setattr(side_by_side, "_with_others", lambda work: next(readings))
    machine = side_by_side.QuietMachine(1.0)
    assert machine.timed(lambda: None) == 2.0
    assert machine.discarded == 1 and machine.others == [0.1]


def test_another_process_is_seen():
    side_by_side = importlib.import_module("side_by_side")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            _, others = side_by_side._with_others(lambda: time.sleep(1))
        finally:
            other.kill()
    assert others > 0.3


def test_contenders_that_differ_are_not_timed(quiet):
    with pytest.raises(quiet.ContendersDiffer, match=r"tiny: ours and the textbook differ by 0.5 of the largest"):
        quiet.check_same("tiny", torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]), 1e-4)


def test_spread():
    side_by_side = importlib.import_module("side_by_side")
    assert side_by_side.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "min": 1.0, "max": 5.0, "iqr": 2.0, "n": 5}
    assert side_by_side.spread([2.0])["iqr"] == 0.0
