"""`hyena bench`: what is trained, and the table, the plot and the numbers that come of it."""

import csv
import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
from class_folders import write_classes
from finetuning import base, leave_out_the_slow, planted
from pretraining import hyena

from hyenadna.data.genomic_benchmarks import NAMES
from hyenadna.errors import UsageError
from hyenadna.finetune import bench_report
from hyenadna.finetune import finetune as module
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.bench import BenchConfig, runs
from hyenadna.finetune.bench_report import Entry
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.recipe import Recipe, Suite
from hyenadna.finetune.train import Trainer

SET = "human_nontata_promoters"


@pytest.mark.parametrize("suite", get_args(Suite))
def test_recipes_are_valid_and_name_sets_that_can_be_read(suite):
    recipe = Recipe.read(suite)
    assert recipe.metric in bench_report._METRICS and recipe.sets
    FinetuneConfig(**recipe.settings)  # known fields, allowed values
    for name, published in recipe.sets.items():
        assert name in NAMES or (suite == "gue" and "/" in name)
        assert all(0 < value <= 100 for value in published.values())
    with pytest.raises(UsageError, match=f"{recipe.title} has no set 'nothing'; it has {next(iter(recipe.sets))}"):
        recipe.chosen(("nothing",))
    assert recipe.chosen(()) == tuple(recipe.sets)


def test_controls_are_of_full_and_head():
    config = BenchConfig(sets=(SET,), methods=("lora", "head"), control=True, seeds=2, epochs=4, max_train_rows=50)
    made = [run for _, run in runs(Recipe.read("genomic-benchmarks"), config)]
    assert [(run.method, run.init) for run in made] == [
        ("lora", "pretrained"), ("head", "pretrained"), ("head", "random"),
    ]  # fmt: skip
    assert len({run.out for run in made}) == 3 and {run.out.parent for run in made} == {made[0].out.parent}
    assert {(run.seeds, run.epochs, run.max_train_rows) for run in made} == {(2, 4, 50)}


def entry(name, values, best):
    """An entry whose models have these accuracies, and of which the report compares with `best` by auroc."""

    def estimates(value):
        return {metric: {"value": value, "low": value - 0.1, "high": value + 0.1} for metric in ("accuracy", "auroc")}

    test = {
        "rows": 10,
        "best": best,
        "models": {model: estimates(value) for model, value in values.items()},
        "differences": {m: estimates(values["language model"] - v) for m, v in values.items() if m != "language model"},
    }
    tests = {"full": test, "deduplicated": test | {"rows": 7}}
    settings = {"rows": {"train": 5, "test": 10}}
    report = {"tests": tests, "settings": settings, "runs": [{}], "baselines": {"0": []}}
    return Entry(name, "full", "pretrained", "hyena finetune x", 2.0, report)


def test_the_best_simple_model_is_so_by_the_metric_that_is_shown():
    recipe = Recipe.read("genomic-benchmarks")
    found = entry(SET, {"language model": 0.8, "GC": 0.7, "k-mers": 0.9}, best="GC")
    row = dict(zip(bench_report._HEADER, bench_report._row(recipe, found), strict=True))
    assert (row["best_baseline"], row["baseline"], row["copies_in_train"]) == ("k-mers", 0.9, 3)
    assert row["difference"] == pytest.approx(-0.1) and row["mcc"] is None and "CNN 84.6" in row["published"]
    said = bench_report.text(recipe, [found])
    assert "80.0 [70.0, 90.0]" in said and "-10.0 [-20.0, +0.0]" in said
    assert "best simple model: k-mers, 90.0 [80.0, 100.0]" in said and "3 have a copy in train" in said


def test_a_set_is_trained_told_and_continued(tmp_path, monkeypatch):
    leave_out_the_slow(monkeypatch)
    calls = []

    def even(task, train, test, **how):
        calls.append(len(test))
        return [Baseline("even", np.full((len(test), 2), 0.5), 0.1)]

    monkeypatch.setattr(module, "baselines", even)
    base().save_pretrained(tmp_path / "base")
    for part, seed in (("train", 1), ("test", 2)):
        rows = planted(20, 20, seed=seed)
        classes = {name: {f"{row}.txt": s for row, (s, label) in enumerate(rows) if label == name}
                   for name in ("motif", "none")}  # fmt: skip
        write_classes(tmp_path / "data" / SET / part, classes)
    out = tmp_path / "out"
    words = ("bench", "genomic-benchmarks", "--sets", SET, "--methods", "head", "--control", "--data-dir",
             tmp_path / "data", "-m", tmp_path / "base", "-o", out, "--seeds", "1", "--epochs", "1",
             "--threads", "1")  # fmt: skip
    code, said, err = hyena(*words)
    assert code == 0, err
    assert SET in said and "HyenaDNA 96.6" in said and "50.0" in said and len(calls) == 1
    lines = [line for line in (out / "bench.tsv").read_text().splitlines() if not line.startswith("#")]
    row, control = csv.DictReader(lines, delimiter="\t")
    assert (row["weights"], control["weights"]) == ("pretrained", "random") and control["best_baseline"] == "even"
    report = json.loads((out / SET / "head-pretrained/report.json").read_text())
    accuracy = report["tests"]["full"]["models"]["language model"]["accuracy"]["value"]
    assert float(row["accuracy"]) == pytest.approx(accuracy) and row["best_baseline"] == "even"
    assert row["test_rows"] == "20" and row["trainings"] == "1" and row["command"].startswith("hyena finetune")
    stored = json.loads((out / "bench.json").read_text())
    assert stored["suite"] == "genomic-benchmarks" and stored["machine"] and len(stored["entries"]) == 2
    assert set(stored["entries"][0]) == {field.name for field in dataclasses.fields(Entry)}
    assert (out / "bench.png").exists()

    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("a finished run was trained again"))
    code, again, _ = hyena(*words)
    assert code == 0 and again == said and len(calls) == 1


def test_an_unknown_set_is_one_line_and_leaves_nothing(tmp_path):
    code, out, err = hyena("bench", "gue", "--sets", "nothing", "-o", tmp_path / "out")
    assert code == 2 and out == "" and err.splitlines()[-1].startswith("hyena: GUE has no set 'nothing'; it has prom/")
    assert not (tmp_path / "out").exists()
