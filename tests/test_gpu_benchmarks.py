"""The benchmarks that are meant for a GPU, at toy sizes on the CPU: every branch that needs no GPU."""

import importlib
import importlib.machinery
import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from oracles import BENCHMARKS

from hyenadna.errors import KernelError
from hyenadna.progress import set_quiet


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The scripts as modules, on a machine on which nobody else does anything."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("side_by_side"), "_cpu_seconds_of_others", lambda: 0.0)
    set_quiet(False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fft_conv(monkeypatch):
    script = importlib.import_module("fft_conv")
    monkeypatch.setattr(script, "copy_rate", lambda device, timer: 10e9)
    return script


@pytest.fixture
def others():
    return importlib.import_module("convolution_opponents")


@pytest.fixture
def gpu_model():
    return importlib.import_module("gpu_model")


ON_CPU = ("--device", "cpu", "--threads", "1")


def test_fft_conv(fft_conv, tmp_path, capsys):
    # 514 doubles to 4 x 257; 1,024 is friendly itself
    cases = [
        fft_conv.Case("inference", "exact", 514, 1, 4, 2, 1e-9),
        fft_conv.Case("inference", "exact", 1024, 1, 4, 2, 1e9),
        fft_conv.Case("training", "exact", 1024, 3, 4, 2),
    ]
    assert fft_conv.main(["-o", str(tmp_path / "conv.json"), *ON_CPU], cases) == 0
    awkward, friendly, training = json.loads((tmp_path / "conv.json").read_text())["cases"]
    assert set(awkward["contenders"]) == {"ours", "textbook", "friendly"}
    assert set(friendly["contenders"]) == {"ours", "textbook"}
    assert awkward["bar_met"] is True and friendly["bar_met"] is False and training["bar_met"] is None
    assert awkward["gb_to_move"] == pytest.approx((4 * 4 + 8) * 4 * 514 / 1e9)
    assert training["gb_to_move"] == pytest.approx((11 * 4 * 3 + 12) * 4 * 1024 / 1e9)
    for case in (awkward, friendly, training):
        assert case["contenders"]["ours"]["error"] < 1e-6 and case["contenders"]["ours"]["seconds"]["n"] == 2
        assert case["floor_s"] == pytest.approx(case["gb_to_move"] / 10)
    assert (tmp_path / "conv_exact.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().err
    assert "inference exact        514 x 4" in printed and "bar 1e-09 met" in printed and "bar 1e+09 MISSED" in printed


def test_fft_conv_in_half_precision(fft_conv):
    """What a GPU is asked for with `fast`; the rounding of what is returned as bfloat16 is no fault of the kernels."""
    case = fft_conv.Case("training", "fast", 300, 1, 4, 2)
    inputs = fft_conv.Inputs.of(case, torch.device("cpu"))
    _, found, _ = fft_conv.contenders(case, inputs, fft_conv.OPPONENTS)
    assert inputs.v.dtype == torch.bfloat16 and inputs.h.dtype == torch.float32
    # the gradients of h and of skip are float32
    assert [1e-3 < error < 3e-3 for error in found["rounding"]] == [True, True, False, False, True, True]
    assert max(found["ours"]) < 5e-3


@pytest.mark.parametrize(
    ("precision", "ours", "kept"),
    [("fast", 2.6e-3, True), ("fast", 2.8e-3, False), ("exact", 2.7e-3, True), ("exact", 4.7e-3, False)],
)
def test_promises(fft_conv, precision, ours, kept):
    """fast: 1e-3 and the rounding; exact: twice the textbook's error, if that is more than 1e-6, and the rounding."""
    found = {"ours": [0.0, ours], "rounding": [0.0, 1.7e-3], "textbook": [0.0, 1.4e-3]}
    refused = fft_conv.broken_promise(fft_conv.Case("training", precision, 300, 1, 4, 2), found)
    assert (refused is None) == kept
    assert kept or refused.startswith(f"relative error {ours:.2g} of gradient of v; {precision} promises 0.00")


def test_a_convolution_worse_than_promised_is_refused(fft_conv, monkeypatch, capsys):
    honest = fft_conv.fft_conv_spectrum
    monkeypatch.setattr(fft_conv, "fft_conv_spectrum", lambda *args: honest(*args).mul_(1 + 1e-5))
    assert fft_conv.main(ON_CPU, [fft_conv.Case("inference", "exact", 300, 1, 4, 2, 1.0)]) == 1
    printed = capsys.readouterr()
    (case,) = json.loads(printed.out)["cases"]
    assert case["refused"].startswith("relative error 1e-05 of y; exact promises 1") and "contenders" not in case
    assert "REFUSED" in printed.err


def test_a_kernel_that_fails_costs_its_own_case_alone(fft_conv, monkeypatch, capsys):
    def failing(*_):
        raise KernelError("no such instruction")

    cases = [fft_conv.Case(kind, "exact", 300, 1, 4, 2) for kind in ("inference", "training")]
    monkeypatch.setattr(fft_conv, "filter_spectrum", failing)
    assert fft_conv.main(ON_CPU, cases) == 1
    inference, training = json.loads(capsys.readouterr().out)["cases"]
    assert inference["refused"] == "no such instruction" and training["contenders"]["ours"]["seconds"]["median"] > 0


def test_an_opponent_that_fails_is_left_out(fft_conv, capsys):
    def limited(length, dtype):
        raise RuntimeError("H must be a multiple of 16\nand more")

    case = fft_conv.Case("inference", "exact", 300, 1, 4, 2)
    _, found, left_out = fft_conv.contenders(
        case, fft_conv.Inputs.of(case, torch.device("cpu")), fft_conv.OPPONENTS | {"FlashFFTConv": limited}
    )
    assert left_out == {"FlashFFTConv": "H must be a multiple of 16"} and set(found) > {"ours", "textbook"}
    assert "FlashFFTConv is left out at 300: H must be a multiple of 16\n" in capsys.readouterr().err


def test_opponents_of_a_gpu_that_are_not_installed_are_named(others, capsys):
    assert set(others.opponents(torch.device("cuda"))) == {"textbook", "friendly", "torch.compile"}
    assert "FlashFFTConv is left out: flashfftconv is not installed" in capsys.readouterr().err


class _Textbook:
    """In the place of another project's convolution, with that project's arguments."""

    def __init__(self, size, dtype):
        self.size = size

    def cuda(self):
        return self

    def __call__(self, v, h, pre_gate, post_gate):
        script = importlib.import_module("convolution_opponents")
        assert self.size >= 2 * v.shape[-1] and self.size & (self.size - 1) == 0
        return script.textbook(v, h, torch.zeros(h.shape[0]), pre_gate, post_gate)


def test_the_skip_of_other_projects_convolutions_is_a_tap(fft_conv, others, monkeypatch):
    """Their adapters compute what ours does, gradients included."""

    def module(name, **members):
        made = type(importlib)(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def plain(v, h):
        ones = torch.ones_like(v)
        return others.textbook(v, h.float(), torch.zeros(h.shape[0]), ones, ones)

    module("flashfftconv", FlashFFTConv=_Textbook)
    module("subquadratic_ops_torch")
    module("subquadratic_ops_torch.fft_causal_conv1d", fft_causal_conv1d=plain)
    case = fft_conv.Case("training", "fast", 300, 1, 4, 2)
    which = others.opponents(torch.device("cuda"))
    assert set(which) == {"textbook", "friendly", *others.ON_CUDA}
    del which["torch.compile"]  # needs a compiler
    _, found, left_out = fft_conv.contenders(case, fft_conv.Inputs.of(case, torch.device("cpu")), which)
    assert left_out == {} and max(found["FlashFFTConv"] + found["subquadratic-ops"]) < 1e-2
    assert others.flash_fft_conv(300, torch.float32) is None
    assert others.compiled(300, torch.bfloat16) is None and others.compiled(1_024, torch.float32) is None


def test_cases_of_a_gpu(fft_conv):
    cases = fft_conv.cases_of(torch.device("cuda"))
    assert len(cases) == len(set(cases)) == 2 * 2 * 10
    bars = {(c.kind, c.precision, c.length): (c.bar, c.stretch) for c in cases}
    assert bars["inference", "fast", 1_024] == (6.0, 12.0)
    assert bars["inference", "fast", 163_840] == bars["inference", "fast", 1_048_576] == (4.0, 12.0)
    assert bars["inference", "fast", 1_000_002] == (8.0, 20.0)
    assert bars["training", "fast", 160_002] == (3.5, 9.0)
    assert bars["training", "exact", 8_192] == (3.0, None)
    assert {c.batch for c in cases if c.length == 1_024} == {1, 256}


def test_cases_of_a_cpu(fft_conv):
    cases = fft_conv.cases_of(torch.device("cpu"), [1_024, 1_000_002])
    assert [(c.kind, c.length, c.channels, c.bar) for c in cases] == [
        ("inference", 1_024, 256, 1.8),
        ("inference", 1_000_002, 16, 3.0),
        ("training", 1_024, 256, None),
        ("training", 1_000_002, 16, None),
    ]


def test_model(gpu_model, capsys):
    Bar, Case = gpu_model.Bar, gpu_model.Case
    cases = [
        Case("training", "tiny-1k", 64, 2, 2, ratio=Bar(1e-9, 1e9)),
        Case("training", "tiny-1k", 64, 2, 2, checkpointed=True, gigabytes=Bar(60, 20)),
        Case("forward", "tiny-1k", 64, 2, 2, milliseconds=Bar(1e9, 1e-9)),
    ]
    assert gpu_model.main(ON_CPU, cases) == 0
    printed = capsys.readouterr()
    training, checkpointed, forward = json.loads(printed.out)["cases"]
    assert training["ratio"]["must_met"] and not training["ratio"]["stretch_met"]
    assert forward["milliseconds"]["must_met"] and not forward["milliseconds"]["stretch_met"]
    assert checkpointed["gigabytes"] == {"value": None}  # a CPU's memory is measured by train_step.py
    assert 0 < training["ours"]["error"] < 0.05 and training["ours"]["seconds"]["n"] == 2
    assert "forward  tiny-1k         2 x 64" in printed.err and "(bar 1e+09 met)" in printed.err


@pytest.mark.parametrize("name", ["ours", "textbook"])
def test_recomputing_blocks_changes_no_gradient(gpu_model, name):
    plain = gpu_model.Case("training", "tiny-1k", 64, 2, 2)
    cpu = torch.device("cpu")
    first, _ = gpu_model.examined(name, plain, cpu, torch.float32)
    second, _ = gpu_model.examined(name, plain._replace(checkpointed=True), cpu, torch.float32)
    assert torch.equal(first, second)


def test_ours_recomputes_where_the_textbook_does(gpu_model):
    plain, cpu = gpu_model.Case("training", "tiny-1k", 64, 2, 2), torch.device("cpu")
    for case in (plain, plain._replace(checkpointed=True)):
        contender = gpu_model.Contender("ours", case, cpu, torch.float32)
        assert contender.model.backbone.checkpoint_activations == case.checkpointed


def test_a_model_that_computes_something_else_is_refused(gpu_model, monkeypatch, capsys):
    honest = gpu_model.HyenaDNA.forward
    monkeypatch.setattr(gpu_model.HyenaDNA, "forward", lambda *args: honest(*args).logits * 1.2)
    assert gpu_model.main(ON_CPU, [gpu_model.Case("forward", "tiny-1k", 64, 2, 2)]) == 1
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["refused"].startswith("ours is 0.2 off the textbook in float32; 0.0") and "ours" not in case


def test_want_of_memory_costs_its_own_case_alone(gpu_model, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(gpu_model, "measured", full)
    assert gpu_model.main(ON_CPU, gpu_model.CASES) == 1
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert len(cases) == 6
    assert {case["refused"] for case in cases} == {"CUDA out of memory. Tried to allocate 2 GiB"}


def toy_cases(fft_conv, gpu_model):
    return [
        gpu_model.Case("training", "tiny-1k", 64, 2, 2),
        fft_conv.Case("inference", "fast", 64, 1, 4, 2),
        fft_conv.Case("training", "exact", 64, 1, 4, 2),
    ]


def test_warm_up(fft_conv, gpu_model, capsys):
    """In processes of their own."""
    warm_up = importlib.import_module("warm_up")
    assert warm_up.main(["--device", "cpu", "--processes", "1"], toy_cases(fft_conv, gpu_model)) == 0
    printed = capsys.readouterr().err
    assert [printed.count(f"s  {what}") for what in ("tiny-1k training", "fast inference", "exact training")] == [
        1,
        1,
        1,
    ]


def test_a_case_that_cannot_be_warmed_up_costs_none_of_the_others(fft_conv, gpu_model, capsys):
    warm_up = importlib.import_module("warm_up")
    model, *convolutions = toy_cases(fft_conv, gpu_model)
    cases = [model._replace(size="none"), convolutions[0]]
    assert warm_up.main(["--device", "cpu", "--processes", "1"], cases) == 1
    printed = capsys.readouterr().err
    assert "FAILED  none training" in printed and "s  fast inference at 64" in printed


def test_what_is_warmed_up_is_what_is_measured(fft_conv, gpu_model):
    """With a few channels, but where a batch fills the GPU: how it is divided depends on their number."""
    warm_up = importlib.import_module("warm_up")
    cases = warm_up.cases_of(torch.device("cuda"))
    assert set(gpu_model.CASES) <= set(cases)
    convolutions = [case for case in cases if isinstance(case, fft_conv.Case)]
    measured = fft_conv.cases_of(torch.device("cuda"))
    assert {case._replace(channels=256) for case in convolutions} == set(measured)
    assert {(case.batch, case.channels) for case in convolutions} == {(1, 16), (256, 256)}


STUB = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in *"{failing}"*) exit 3 ;; esac
"""


def gpu_sh(tmp_path, python, **environment):
    return subprocess.run(
        [BENCHMARKS / "gpu.sh", tmp_path / "out"],
        env=os.environ | {"PYTHON": str(python), "CALLS": str(tmp_path / "calls")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def stub(tmp_path, failing):
    python = tmp_path / "python"
    python.write_text(STUB.format(failing=failing))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_later_parts_run_though_an_earlier_one_fails(tmp_path):
    ended = gpu_sh(tmp_path, stub(tmp_path, "benchmarks/fft_conv.py"))
    assert ended.returncode == 1, ended.stderr
    assert "== fft_conv FAILED with status 3" in ended.stdout and "failed: fft_conv\n" in ended.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1] == "benchmarks/warm_up.py --device cuda"
    assert any("pytest -n 8 tests/triton" in call for call in calls)
    names = {"gpu_model": "model", "packed_matmul": "packed_matmul", "lightning_attention": "lightning_attention"}
    assert calls[-3:] == [
        f"benchmarks/{script}.py --device cuda -o {tmp_path}/out/{name}.json" for script, name in names.items()
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"doctor.log", "tests.log", "fft_conv.log"}


def test_without_pytest_the_benchmarks_run_alone(tmp_path):
    ended = gpu_sh(tmp_path, stub(tmp_path, "import pytest"))
    assert ended.returncode == 0 and "== tests are left out: pytest, pytest-timeout" in ended.stdout
    assert "failed: none" in ended.stdout and not (tmp_path / "out" / "tests.log").exists()


def test_the_time_limits_fit_one_call_of_ten_minutes():
    words = [line.split() for line in (BENCHMARKS / "gpu.sh").read_text().splitlines() if " part " in f" {line} "]
    limits = [int(seconds) for line in words for seconds in [line[line.index("part") + 2]] if seconds.isdigit()]
    assert len(limits) == 7 and sum(limits) <= 590


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_nothing_is_run(tmp_path):
    ended = gpu_sh(tmp_path, sys.executable)
    assert ended.returncode == 1 and "torch sees no CUDA device" in ended.stderr and "==" not in ended.stdout
