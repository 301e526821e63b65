"""The benchmarks of fine-tuning, with trainings that are made up: what they ask for, write and draw."""

import importlib
import json
from types import SimpleNamespace

import pytest
from oracles import BENCHMARKS

from hyenadna.errors import SequenceTooLong
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.finetune import finetune


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def trainings(monkeypatch):
    """Replaces `finetune` of a script; the configurations that it was called with."""
    asked = []

    def put_into(script):
        def finetune(config, **_):
            asked.append(config)
            if config.prompt_length > 500:
                raise SequenceTooLong("too long")
            folder = SimpleNamespace(path=config.out, adapter=config.out / "adapter")
            folder.adapter.mkdir(parents=True)
            (folder.adapter / "adapter.safetensors").write_bytes(b"x" * 10)
            (config.out / "metrics.csv").write_text("epoch,seconds\n1,2.0\n2,4.0\n")
            estimate = {"value": 0.8 if config.init == "pretrained" else 0.7, "low": 0.6, "high": 0.9}
            models = {"language model": {"auroc": estimate}, "k-mers": {"auroc": estimate | {"value": 0.65}}}
            report = {
                "main_metric": "auroc",
                "tests": {"full": {"best": "k-mers", "models": models}},
                "settings": {"rows": {"train": config.max_train_rows, "valid": 5, "test": 9}},
            }
            (config.out / "report.json").write_text(json.dumps(report))
            return SimpleNamespace(folder=folder)

        monkeypatch.setattr(script, "finetune", finetune)
        return asked

    return put_into


def test_label_efficiency(scripts, trainings, tmp_path, monkeypatch):
    script = importlib.import_module("label_efficiency")
    asked = trainings(script)
    out = tmp_path / "labels.json"
    words = ["label_efficiency", "a", "b", "--max-train-rows", "1000", "--runs", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    script.main()
    points = json.loads(out.read_text())["points"]
    assert [point["rows"]["train"] for point in points[:10:2]] == [10, 30, 100, 300, 1000]
    assert {(point["set"], point["init"]) for point in points} == {(s, i) for s in "ab" for i in script.INITS}
    assert [point["models"]["language model"]["value"] for point in points[:2]] == [0.8, 0.7]
    assert len({config.out for config in asked}) == 20 and out.with_suffix(".png").stat().st_size > 10_000


def test_soft_prompts(scripts, trainings, tmp_path, monkeypatch):
    script = importlib.import_module("soft_prompts")
    trainings(script)
    monkeypatch.setattr(script, "in_fresh_process", lambda work, n: ({"prompt_length": n}, 3e9))
    out = tmp_path / "prompts.json"
    monkeypatch.setattr("sys.argv", ["soft_prompts", "a", "--runs", str(tmp_path), "--out", str(out)])
    script.main()
    report = json.loads(out.read_text())
    assert report["medium-160k"] == {"prompt_length": 32_768, "peak_memory_gb": 3.0}
    assert [point["prompt_length"] for point in report["points"]] == [0, 2, 8, 32, 128, None]  # 512 did not fit
    assert {(point["adapter_bytes"], point["epoch_seconds"]) for point in report["points"]} == {(10, 3.0)}
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_the_longest_prompt_takes_a_step(scripts, monkeypatch):
    script = importlib.import_module("soft_prompts")
    monkeypatch.setattr(script, "named_size", lambda _: importlib.import_module("hyenadna.model.config").HyenaConfig(
        d_model=8, d_inner=16, layers="H", filter_length=1_100, embed_dropout=0.0))  # fmt: skip
    found = script.longest_prompt(20)
    assert found["parameters"] == 160 and found["step_seconds"] > 0


def test_splice(scripts, tmp_path, monkeypatch):
    script = importlib.import_module("splice")
    run, out = tmp_path / "run", tmp_path / "splice.json"
    settings = {"method": "head", "splits": 2, "max_train_rows": 40, "epochs": 2, "baselines": False, "threads": 1}
    finetune(FinetuneConfig(**settings, out=run))
    monkeypatch.setattr(script, "TREES", 5)
    monkeypatch.setattr("sys.argv", ["splice", str(run), "--out", str(out)])
    script.main()
    found, report = json.loads(out.read_text()), json.loads((run / "report.json").read_text())
    accuracy = report["tests"]["full"]["models"]["language model"]["accuracy"]["value"]
    assert float(found["accuracy"]["run"].split()[0]) == pytest.approx(accuracy, abs=1e-4)
    difference = accuracy - float(found["accuracy"]["random forest"].split()[0])
    assert float(found["run_minus"]["random forest"].split()[0]) == pytest.approx(difference, abs=2e-4)
