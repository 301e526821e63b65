"""The benchmark of variant scores at toy size: it compares before it times, and reports rates and their spread."""

import importlib
import json

import numpy as np
import pytest
import torch
from oracles import BENCHMARKS

from hyenadna.progress import set_quiet


@pytest.fixture
def score_speed(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("side_by_side"), "_cpu_seconds_of_others", lambda: 0.0)
    set_quiet(False)
    yield importlib.import_module("score_speed")
    torch.set_num_threads(threads)


def test_rates_and_differences_are_reported(score_speed, tmp_path, capsys):
    cases = [
        score_speed.Case("dense", None, 6, 1, 3, 1.0, window=32, repetitions=2),
    ]
    out = tmp_path / "score_speed.json"
    assert score_speed.main(["-o", str(out), "--threads", "1"], cases) == 0
    report = json.loads(out.read_text())
    assert {"commit", "machine", "threads", "load"} <= set(report) and len(report["cases"]) == 1
    for case in report["cases"]:
        assert case["largest_difference_nats"] < 1e-4
        assert case["variants_per_s"]["ours"]["n"] == case["variants_per_s"]["two_passes"]["n"] == case["repetitions"]
        assert case["bar_met"] == (case["ratio"] >= 1.0) and case["ratio_of_turns"]["min"] > 0
    assert "variants/s, two full passes" in capsys.readouterr().err


def test_contenders_that_differ_are_not_timed(score_speed, monkeypatch, capsys):
    monkeypatch.setattr(score_speed.Scoring, "two_passes", lambda self: np.full(len(self.some), 99.0))
    case = score_speed.Case("dense", "tiny-1k", 3, 1, 3, 1.0, window=32, repetitions=1)
    assert score_speed.main(["--threads", "1"], [case]) == 1
    assert "dense: scores differ by" in capsys.readouterr().err
