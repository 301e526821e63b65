import json

import numpy as np
import pytest
import torch
from finetuning import base, labelled, leave_out_the_slow, planted, write_table

from hyenadna.errors import (
    CheckpointError,
    InputError,
    Interrupted,
    RunFolderError,
    SequenceTooLong,
    UsageError,
)
from hyenadna.finetune import adapter
from hyenadna.finetune import finetune as module
from hyenadna.finetune.apply import apply
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.examples import Examples
from hyenadna.finetune.finetune import finetune
from hyenadna.finetune.metrics import point
from hyenadna.finetune.plan import Plan, dry_run, resolved
from hyenadna.finetune.train import Trainer
from hyenadna.pretrain.metrics_file import read_metrics

ROWS, VALID = planted(24, 20, seed=1), planted(12, 20, seed=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small model, and a table with given parts."""
    folder = tmp_path_factory.mktemp("files")
    base().save_pretrained(folder / "base")
    write_table(folder / "train.csv", planted(60, 20, seed=4))
    write_table(folder / "test.csv", planted(30, 20, seed=5))
    return folder


@pytest.fixture
def quick(monkeypatch):
    leave_out_the_slow(monkeypatch)


def config(files, out, **fields):
    usual = {"data": str(files / "train.csv"), "model": str(files / "base"), "threads": 1, "device": "cpu"}
    usual |= {"epochs": 3, "batch_size": 16, "split_by": "row", "baselines": False}
    return FinetuneConfig(out=out, **usual | fields)


def answer_of(model):
    tokens = Examples.of(labelled(VALID), model.task, model.base.config).tokens
    return apply(model, tokens, batch_tokens=1000, reverse_complement=False)


def predictions(folder):
    with np.load(folder / "test.npz") as arrays:
        return arrays["predictions"]


def test_the_folder_of_one_run(files, tmp_path, capfd, quick):
    run = finetune(config(files, tmp_path / "run", test=files / "test.csv"))
    said = capfd.readouterr().err
    for words in (
        "binary, 2 classes: motif",
        "parameters are learnt",
        "longest sequence 20 bases of 78",
        "1 of 3 epochs",
    ):
        assert words in said
    folder = tmp_path / "run"
    present = {path.name for path in folder.iterdir()}
    assert present >= {"finetune.yaml", "check.json", "metrics.csv", "training.png", "report.json", "report.txt",
                       "predictions.tsv", "README.md", "adapter", "state.ckpt", "test.npz"}  # fmt: skip
    rows = read_metrics(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3] and {"train_loss", "valid_loss", "valid_auroc"} < set(rows[0])
    model = adapter.load(folder)
    examples = Examples.of(labelled(planted(30, 20, seed=5)), model.task, model.base.config)
    again = apply(model, examples.tokens, batch_tokens=100, reverse_complement=False)
    np.testing.assert_allclose(again, predictions(folder), atol=1e-6)
    written = json.loads((folder / "report.json").read_text())
    auroc = point(model.task, examples.targets, again)["auroc"]
    assert written["tests"]["full"]["models"]["language model"]["auroc"]["value"] == pytest.approx(auroc)
    assert "hyena finetune" in (folder / "README.md").read_text() == (folder / "adapter/README.md").read_text()
    assert run.result()["adapter"] == str(folder / "adapter")


def test_a_run_that_died_continues_and_a_finished_one_trains_no_more(files, tmp_path, monkeypatch, quick):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune(config(files, whole, method="head", dropout=0.3))
    epoch = Trainer.epoch

    def dies(self, advance):
        if self.state.epoch == 2:
            raise Interrupted(9, "killed")
        return epoch(self, advance)

    monkeypatch.setattr(Trainer, "epoch", dies)
    with pytest.raises(Interrupted, match="killed"):
        finetune(config(files, broken, method="head", dropout=0.3))
    assert not (broken / "test.npz").exists() and not (broken / "report.json").exists()
    # as if killed while it wrote: a line beyond the state, half a line, a file half-written
    with (broken / "metrics.csv").open("a") as file:
        file.write("3,9,0.1,0.1,0.1,0.1,0.1,0.1\n4,1")
    (broken / ".state.ckpt.0123456789ab.tmp").write_text("half")
    monkeypatch.setattr(Trainer, "epoch", epoch)
    finetune(config(files, broken, method="head", dropout=0.3))
    np.testing.assert_array_equal(predictions(whole), predictions(broken))
    assert (whole / "adapter/adapter.safetensors").read_bytes() == (broken / "adapter/adapter.safetensors").read_bytes()
    kept = [[row[name] for name in ("epoch", "step", "train_loss", "valid_loss")] for path in (whole, broken)
            for row in read_metrics(path / "metrics.csv")]  # fmt: skip
    assert kept[:3] == kept[3:] and not list(broken.glob(".*.tmp"))

    def never(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Trainer, "epoch", never)
    report = (whole / "report.json").read_bytes()
    finetune(config(files, whole, method="head", dropout=0.3))
    assert (whole / "report.json").read_bytes() == report


def test_a_folder_takes_one_run_only(files, tmp_path, quick):
    folder = tmp_path / "run"
    finetune(config(files, folder, method="head"))
    with pytest.raises(RunFolderError, match=r"differs in lr \(0\.01 there, 0\.5 now\); give the same, .* --overwrite"):
        finetune(config(files, folder, method="head", lr=0.5))
    (files / "other").mkdir(exist_ok=True)
    table = write_table(files / "other/train.csv", planted(60, 20, seed=9))
    held = (files / "train.csv").read_bytes()
    try:
        (files / "train.csv").write_bytes(table.read_bytes())
        with pytest.raises(RunFolderError, match="a run on other rows or from another model"):
            finetune(config(files, folder, method="head"))
    finally:
        (files / "train.csv").write_bytes(held)
    (folder / "state.ckpt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"state\.ckpt cannot be read as the state of a run"):
        finetune(config(files, folder, method="head"))
    (folder / "mine.txt").write_text("kept")
    (folder / "mine.tsv").write_text("kept")
    finetune(config(files, folder, method="head", lr=0.5), overwrite=True)
    assert (
        (folder / "mine.txt").exists()
        and (folder / "mine.tsv").exists()
        and "lr: 0.5" in (folder / "finetune.yaml").read_text()
    )
    other = tmp_path / "full"
    other.mkdir()
    (other / "thesis.doc").write_text("")
    with pytest.raises(RunFolderError, match=r"holds thesis\.doc and no run"):
        finetune(config(files, other))
    with pytest.raises(RunFolderError, match=r"train\.csv is a file; name a folder"):
        finetune(config(files, files / "train.csv"))


def test_several_splits_and_seeds(files, tmp_path, quick, monkeypatch):
    calls = []

    def one_baseline(task, train, test, **how):
        calls.append(len(test))
        return [Baseline("even", np.full((len(test), 2), 0.5), 1.0, "known"), Baseline("none", None, 0.0, "no")]

    monkeypatch.setattr(module, "baselines", one_baseline)
    folder = tmp_path / "run"
    several = config(files, folder, method="head", splits=2, seeds=2, epochs=2, baselines=True)
    run = finetune(several)
    names = [f"split-{split}-seed-{seed}" for split in (0, 1) for seed in (0, 1)]
    assert sorted(path.name for path in folder.glob("split-*")) == names
    losses = {name: min(row["valid_loss"] for row in read_metrics(folder / name / "metrics.csv")) for name in names}
    assert run.best.path.name == min(losses, key=losses.get)
    best = (run.best.path / "adapter/adapter.safetensors").read_bytes()
    assert (folder / "adapter/adapter.safetensors").read_bytes() == best
    report = json.loads((folder / "report.json").read_text())
    assert [(r["split"], r["seed"]) for r in report["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert report["tests"]["full"]["models"]["even"]["auroc"]["value"] == 0.5 and len(calls) == 2
    assert not np.array_equal(predictions(folder / names[0]), predictions(folder / names[1]))
    assert finetune(several).report.to_json() == run.report.to_json() and len(calls) == 2  # they were kept


def test_folds_test_every_row_once(files, tmp_path, capfd, quick):
    run = finetune(config(files, tmp_path / "run", method="head", folds=3, epochs=1, train_share=0.5))
    assert "18 of 36 rows, drawn so that classes keep their shares" in capfd.readouterr().err
    tested = [name for test in run.report.runs for name in test.test.ids]
    assert sorted(tested) == sorted(map(str, range(1, 61)))
    assert run.report.settings["rows"]["train"] == 18


def test_seeds_see_the_same_subset_and_splits_others(files, tmp_path, quick):
    """The baselines are trained once a split: all its runs must have seen the rows that they saw."""
    table = write_table(tmp_path / "numbers.csv", [(s, str(s.count("A") + 0.01 * i)) for i, (s, _) in enumerate(ROWS)])
    plan = Plan.of(resolved(config(files, tmp_path, data=str(table), task="regression", splits=2, max_train_rows=8)))
    trainers = [plan.trainer(split, seed) for split in (0, 1) for seed in (0, 1)]
    seen = [made.train.ids for made in trainers]
    assert seen[0] == seen[1] != seen[2] == seen[3] and len(seen[0]) == 8
    assert "8 of 17 rows, drawn at random" in plan.describe(trainers[0])
    # what a regression is standardised by is of these rows, not of those held out
    for made in trainers:
        assert made.model.task.mean == pytest.approx(made.train.targets.mean())


def test_the_test_rows_change_nothing_that_is_learnt(files, tmp_path, monkeypatch, quick):
    """Same rows to learn from, other rows to test on: the same weights; and they are predicted once."""
    write_table(files / "test2.csv", planted(20, 20, seed=6))
    seen = []
    monkeypatch.setattr(
        module, "apply", lambda model, tokens, **how: seen.append(len(tokens)) or apply(model, tokens, **how)
    )
    for name in ("test", "test2"):
        finetune(config(files, tmp_path / name, method="head", test=files / f"{name}.csv"))
    one, two = ((tmp_path / name / "adapter/adapter.safetensors").read_bytes() for name in ("test", "test2"))
    assert one == two and seen == [30, 20]


def test_random_weights_are_a_control_that_can_be_loaded(files, tmp_path, quick):
    finetune(config(files, tmp_path / "run", init="random", method="lora", epochs=1))
    model = adapter.load(tmp_path / "run")
    assert not torch.equal(model.base.embedding.weight, base().embedding.weight)
    assert model.base.config == base().config
    # its own weights are not those whose SHA-256 the pretrained model has
    assert Plan.of(resolved(config(files, tmp_path))).base_sha256 not in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_that_was_moved_is_found_from_anywhere(method, files, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(files)
    several = {"method": method, "seeds": 2, "epochs": 1, "model": "base"}
    finetune(config(files, tmp_path / "run", **several))
    before = answer_of(adapter.load(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "run").rename(tmp_path / "other/moved")
    monkeypatch.chdir(tmp_path / "other")
    assert np.array_equal(answer_of(adapter.load("moved")), before)


def test_rows_that_cannot_be_learnt_from(files, tmp_path, quick):
    long = write_table(tmp_path / "long.csv", planted(40, 79))
    with pytest.raises(
        SequenceTooLong, match=r"1 has 79 bases; .* takes up to 78: shorten the sequences, or take a model"
    ):
        finetune(config(files, tmp_path / "a", data=str(long)))
    with pytest.raises(
        SequenceTooLong, match=r"with a prompt of 60 takes up to 18: shorten the sequences or the prompt"
    ):
        finetune(config(files, tmp_path / "b", method="soft-prompt", prompt_length=60))
    one = write_table(tmp_path / "one.csv", [(sequence, "x") for sequence, _ in planted(20, 20)])
    with pytest.raises(InputError, match="there is one class only, 'x'"):
        finetune(config(files, tmp_path / "c", data=str(one)))
    few = write_table(tmp_path / "few.csv", planted(2, 20))
    with pytest.raises(InputError):
        finetune(config(files, tmp_path / "c", data=str(few)))
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"splits": 2, "folds": 3}, "both --splits and --folds are given"),
        ({"max_train_rows": 2, "train_share": 0.3}, "both --max-train-rows and --train-share"),
        ({"folds": 1}, "--folds is 1; it must be at least 2"),
        ({"lr": 0.0}, "--lr is 0.0; it must be a finite number above 0"),
        ({"valid_share": 0.5, "test_share": 0.5}, "--valid-share 0.5 and --test-share 0.5 leave no rows to train on"),
        ({"train_share": 1.5}, "--train-share is 1.5; it must be above 0, at most 1"),
        ({"lora_rank": 0}, "lora_rank is 0"),
    ],
)
def test_a_configuration_refuses(fields, said):
    with pytest.raises(UsageError, match=said):
        FinetuneConfig(**fields)


def test_a_rehearsal_writes_nothing(files, tmp_path, quick):
    for method in ("full", "head"):
        said = dry_run(config(files, tmp_path / "run", method=method))
        assert said["seconds"] > 0 and said["nt_per_second"] > 0 and said["memory_bytes"] > 1 << 20
        assert "rate" in said["text"] and "nothing was written" in said["text"]
    assert not (tmp_path / "run").exists()
