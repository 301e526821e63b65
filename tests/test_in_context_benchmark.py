"""The benchmark of in-context learning: its control at full size, marked slow, and its loop with toy trainings."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import BENCHMARKS

from hyenadna.data.in_context_tasks import WordTask


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("in_context")
    sys.modules.pop("in_context", None)


def test_the_benchmark_goes_on_where_it_stopped_and_draws(benchmark, monkeypatch, tmp_path) -> None:
    recipe = (benchmark.Phase(WordTask(length=1), 2, 1),)
    monkeypatch.setattr(benchmark, "RECIPES", {"motif": recipe})
    monkeypatch.setattr(benchmark, "SEEDS", (0,))
    monkeypatch.setattr(benchmark, "SHOTS", (1, 2))
    monkeypatch.setattr(benchmark, "EPISODES", 4)
    monkeypatch.setattr(benchmark, "LAYERS", ("S",))
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["in_context.py", "control", "--threads", "1", "--out", str(out)])
    benchmark.main()
    report = json.loads(out.read_text())
    (point,) = report["control"]
    assert (point["layers"], point["task"], point["seed"]) == ("S", "motif", 0) and "commit" in point
    assert len(point["true"]["accuracy"]) == 2 and point["true"]["gain"]["low"] <= point["true"]["gain"]["high"]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(benchmark, "control", lambda *wanted: pytest.fail("measured again"))
    benchmark.main()
    assert json.loads(out.read_text()) == report


def test_tunings_are_tried_once_each(benchmark, monkeypatch, tmp_path) -> None:
    asked = []

    def finetune(config):
        asked.append((config.layout, config.lr, config.method, config.shots))
        return SimpleNamespace(report={"tasks": {}})

    monkeypatch.setattr(benchmark.in_context, "finetune", finetune)
    monkeypatch.setattr(benchmark, "TUNINGS", ({}, {"layout": "suited"}, {"method": "lora", "lr": 1e-2}))
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["in_context.py", "tuning", "--threads", "1", "--out", str(out)])
    for _ in range(2):
        benchmark.main()
    assert asked == [(None, None, "full", 16), ("suited", None, "full", 16), (None, 1e-2, "lora", 16)]
    report = json.loads(out.read_text())
    assert [point["departs"] for point in report["tuning"]] == list(benchmark.TUNINGS) and report["control"] == []


@pytest.mark.slow
def test_positive_control_of_motifs(benchmark) -> None:
    """From 1 to 32 examples of each class the answers get better, and not where the labels are shuffled."""
    recipe = benchmark.RECIPES["motif"]
    model = benchmark.trained("HS", recipe, 0)
    true, shuffled = (
        benchmark.measured(model, recipe[-1].task, shuffled=chance, episodes=30) for chance in (False, True)
    )
    assert true.gain(2, 64).low > 0
    found = shuffled.gain(2, 64)
    assert found.low < 0 < found.high
    np.testing.assert_allclose(shuffled.accuracy(64).value, 0.5, atol=0.12)
