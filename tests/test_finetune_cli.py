"""`hyena finetune` as it is typed: the table in, a report out, and what a killed command leaves."""

import json
import signal

import numpy as np
import pytest
from finetuning import base, leave_out_the_slow, planted, write_table
from pretraining import Command, hyena, wait_for_step

from hyenadna.finetune.config import FinetuneConfig
from hyenadna.pretrain.configured_folder import command, read_yaml, to_yaml


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    base().save_pretrained(folder / "base")
    write_table(folder / "my.csv", planted(60, 20, seed=4))
    return folder


@pytest.fixture
def small(files, tmp_path):
    common = ("--threads", "1", "--device", "cpu", "--no-baselines", "--epochs", "2", "--split-by", "row")
    return (files / "my.csv", "-m", files / "base", "-o", tmp_path / "run", *common)


def test_a_table_in_a_report_out(small, tmp_path, monkeypatch):
    code, out, err = hyena("finetune", *small, "--method", "head")
    assert code == 0 and "language model" in out and f"next      hyena predict NEW.csv -m {tmp_path / 'run'}" in out
    for words in (
        "sequences in column 'sequence'",
        "task      binary, 2 classes",
        "alone     AUROC",
        "method    head",
    ):
        assert words in err
    leave_out_the_slow(monkeypatch)
    code, out, _ = hyena("finetune", *small, "--method", "head", "--json")
    assert code == 0 and json.loads(out)["report"]["main_metric"] == "auroc"
    code, out, _ = hyena("finetune", *small, "--method", "head", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["seconds"] > 0
    # the written configuration runs again, under another name
    again = tmp_path / "again"
    code, out, _ = hyena("finetune", "--config", tmp_path / "run/finetune.yaml", "--out", again, "--quiet")
    assert code == 0
    with np.load(tmp_path / "run/test.npz") as one, np.load(again / "test.npz") as other:
        assert np.array_equal(one["predictions"], other["predictions"])


def test_a_killed_command_continues_and_a_signal_ends_it(small, tmp_path, monkeypatch):
    leave_out_the_slow(monkeypatch)
    words = ("finetune", *small, "--method", "full", "--lr", "1e-4", "--batch-size", "4", "--patience", "100")
    words, run = [word if word != "2" else "500" for word in words], tmp_path / "run"
    killed = Command(*words, fork=True)
    wait_for_step(run, 2, killed)
    killed.send(signal.SIGKILL)
    killed.finish()
    before = (run / "metrics.csv").read_text().splitlines()
    ended = Command(*words, fork=True)
    wait_for_step(run, len(before) + 1, ended)
    ended.send(signal.SIGTERM)
    code, out, err = ended.finish()
    said = f"hyena: interrupted; the same command continues after the last epoch saved in {run}\n"
    assert code == 143 and out == "" and "continued after epoch" in err and err.endswith(said)
    assert not [path for path in run.glob(".*") if path.name != ".lock"]
    after = (run / "metrics.csv").read_text().splitlines()
    epochs = [int(line.split(",")[0]) for line in after[1:]]
    assert epochs == list(range(1, len(epochs) + 1))
    assert [line.split(",")[:4] for line in before[:-2]] == [line.split(",")[:4] for line in after[: len(before) - 2]]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--label-col", "klass"), 2, "klass"),
        (("--method", "lora", "--lora-projections", "wq"), 2, "lora_projections"),
        (("--folds", "3", "--splits", "2"), 2, "both --splits and --folds"),
        (("--task", "regression"), 3, "row 1 has the target"),
        (("--config", "none.yaml"), 2, "cannot be read"),
    ],
)
def test_failures_are_one_line(small, tmp_path, flags, code, said):
    ended, out, err = hyena("finetune", *small, *flags)
    last = err.splitlines()[-1]
    assert ended == code and out == "" and last.startswith("hyena: ") and said in last
    assert not (tmp_path / "run").exists()


def test_a_configuration_survives_yaml_and_its_command_names_all_that_changes_the_model(tmp_path):
    config = FinetuneConfig(
        data="x y.csv", method="lora", lora_projections=("fc1", "fc2"), lr=1.23456789e-4, folds=3, baselines=False
    )
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert read_yaml(tmp_path / "a.yaml", FinetuneConfig) == config
    assert command(config) == (
        "hyena finetune 'x y.csv' --method lora --lora-projections fc1 fc2 --folds 3 --lr 0.000123456789"
    )


def test_help_says_where_inherited_flags_come_from():
    text = " ".join(hyena("finetune", "--help")[1].split())
    assert "[DATA]" in text and "-m, --model" in text and "--data " not in text
    for words in ("Column of the sequences.", "Rank of the weight updates of LoRA.", "Most passes over the training"):
        assert words in text
