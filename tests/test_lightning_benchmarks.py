"""The benchmarks of lightning attention at toy sizes: agreement before times, and the task of memory by hand."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import BENCHMARKS

from hyenadna.data.tokenizer import IGNORE, SEP, A, N, T


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """A machine on which nobody else does anything."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("side_by_side"), "_cpu_seconds_of_others", lambda: 0.0)
    yield
    torch.set_num_threads(threads)


def test_times_by_length(monkeypatch, tmp_path):
    lightning = importlib.import_module("lightning_attention")
    monkeypatch.setattr(lightning, "AT_LEAST", 0.0)
    monkeypatch.setattr(lightning, "LINEAR_FROM", 64)
    monkeypatch.setitem(lightning.LONGEST, "masked", 64)
    cases = [lightning.Case("inference", 64, 1), lightning.Case("inference", 128, 1), lightning.Case("training", 64, 1)]
    out = tmp_path / "lightning_attention.json"
    assert lightning.main(["-o", str(out), "--threads", "1"], cases) == 0
    short, long, training = json.loads(out.read_text())["cases"]
    assert set(short["contenders"]) == set(training["contenders"]) == {"ours", "softmax", "masked"}
    assert set(long["contenders"]) == set(long["times_that_of_half_the_length"]) == {"ours", "softmax"}
    assert short["bar_met"] is None and training["bar_met"] is None
    grown = long["times_that_of_half_the_length"]["ours"]
    assert grown > 0 and long["bar_met"] == (1.5 <= grown <= 2.5)


def test_what_differs_is_not_timed(monkeypatch, capsys):
    lightning = importlib.import_module("lightning_attention")
    monkeypatch.setattr(lightning, "lightning_attention", lambda q, k, v, slopes: 2 * v)
    assert lightning.main(["--threads", "1"], [lightning.Case("inference", 64, 1)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "inference at 64: ours and the textbook differ" in printed.err


def test_every_answer_is_what_was_announced_so_many_bases_before():
    slopes = importlib.import_module("slopes")
    distances = (16, 16, 500, 1_000)
    tokens, targets, _ = slopes.announced(distances, np.random.default_rng(0))
    assert tokens.shape == targets.shape == (4, slopes.CONTEXT)
    for distance, row, target in zip(distances, tokens, targets, strict=True):
        asked = (row == SEP).nonzero().flatten()
        assert torch.equal((target != IGNORE).nonzero().flatten(), asked) and len(asked) >= 1
        told = (row < A) & (row != SEP)
        assert torch.equal(told.nonzero().flatten(), asked - distance)
        bases = {token: A + number for number, token in enumerate(slopes.ANNOUNCING.tolist())}
        assert [bases[token] for token in row[told].tolist()] == target[asked].tolist() == row[asked + 1].tolist()
        assert int(row.max()) <= T


def test_the_loss_is_the_mean_over_answers_or_over_rows():
    slopes = importlib.import_module("slopes")
    random = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 5, 16, generator=random), torch.full((2, 5), IGNORE)
    targets[0, :3], targets[1, 4] = A, T
    nats = -logits.log_softmax(-1)
    first, second = nats[0, :3, A].tolist(), float(nats[1, 4, T])
    for by_row, expected in ((False, (sum(first) + second) / 4), (True, (sum(first) / 3 + second) / 2)):
        batch = slopes.Batch(torch.zeros(2, 5), targets, by_row)
        assert float(slopes.loss_of(lambda _: SimpleNamespace(logits=logits), batch)) == pytest.approx(expected)


def test_windows_of_training_and_of_test_share_no_base(monkeypatch):
    slopes = importlib.import_module("slopes")
    monkeypatch.setattr(slopes, "BLOCK", 4_000)
    genome, tokens = np.arange(80_000) % 4 + A, []
    genome[20_000:24_000] = N
    for held_out in (False, True):
        place = np.arange(80_000) + 100  # every base tells where it lies
        place[genome == N] = N
        rows, following, _ = slopes.windows(place, held_out, 20, np.random.default_rng(0))
        assert torch.equal(following[:, :-1], rows[:, 1:]) and not bool((rows == N).any())
        tokens.append(set(rows.flatten().tolist()))
    assert not tokens[0] & tokens[1]


def test_the_families_from_a_fasta(monkeypatch, tmp_path):
    slopes = importlib.import_module("slopes")
    for name, value in {"BLOCK": 500, "CONTEXT": 128, "DISTANCES": (16, 100)}.items():
        monkeypatch.setattr(slopes, name, value)
    bases = np.random.default_rng(0).choice(list("ACGT"), 12_000)
    (tmp_path / "x.fa").write_text(">x\n" + "".join(bases) + "\n")
    fasta, out = str(tmp_path / "x.fa"), tmp_path / "slopes.json"
    assert slopes.main(["--quick", "--threads", "1", "--fasta", fasta, "--layers", "L", "-o", str(out)]) == 0
    dna, memory = json.loads(out.read_text())["cases"]
    assert set(memory["means"]) == set(dna["means"]) == {"context", "alibi", "linear"}
    assert set(memory["means"]["context"]) == {"16", "100", "mean"}
    for case in (memory, dna):
        assert set(case["over_context"]) == {"alibi", "linear"}
        difference = case["bits"]["alibi"][0]["mean"] - case["bits"]["context"][0]["mean"]
        assert case["over_context"]["alibi"]["median"] == pytest.approx(difference)
