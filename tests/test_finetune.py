import json

import numpy as np
import pytest
import torch
from finetuning import base, labelled, leave_out_the_slow, planted, trainer, write_table

from hyenadna.data.tokenizer import IGNORE, decode
from hyenadna.errors import (
    CheckpointError,
    InputError,
    Interrupted,
    NotFiniteError,
    RunFolderError,
    SequenceTooLong,
    UsageError,
)
from hyenadna.finetune import adapter
from hyenadna.finetune import finetune as module
from hyenadna.finetune.apply import apply
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.examples import Examples, epoch_batches, subset
from hyenadna.finetune.finetune import finetune
from hyenadna.finetune.metrics import point
from hyenadna.finetune.plan import dry_run
from hyenadna.finetune.run_folder import Run, read_metrics
from hyenadna.finetune.task import Task
from hyenadna.finetune.train import Trainer
from hyenadna.finetune.validation import Validation

ROWS, VALID = planted(24, 20, seed=1), planted(12, 20, seed=2)


def test_an_epoch_shows_every_row_once_in_batches_of_alike_lengths():
    lengths = np.random.default_rng(0).integers(1, 1000, 1000)
    one = epoch_batches(lengths, 8, reverse_complement=True, seed=1, epoch=2)
    same, other = (epoch_batches(lengths, 8, reverse_complement=True, seed=1, epoch=epoch) for epoch in (2, 3))
    rows = np.concatenate([rows for rows, _ in one])
    assert sorted(rows) == list(range(1000)) and {len(rows) for rows, _ in one} == {8}
    assert all(np.array_equal(a, b) for pair in zip(one, same, strict=True) for a, b in zip(*pair, strict=True))
    assert not np.array_equal(rows, np.concatenate([rows for rows, _ in other]))
    padding = sum(len(rows) * lengths[rows].max() for rows, _ in one) / lengths.sum()
    assert padding < 1.1  # at random it would be 1.8
    assert 400 < np.concatenate([flipped for _, flipped in one]).sum() < 600
    plain = epoch_batches(lengths, 8, reverse_complement=False, seed=1, epoch=2)
    assert not any(flipped.any() for _, flipped in plain)


def test_a_subset_keeps_the_shares_of_the_classes_and_lies_within_a_larger_one():
    labels = ["a"] * 900 + ["b"] * 95 + ["c"] * 5
    small, large = (subset(labels, rows, by_class=True, seed=3) for rows in (10, 100))
    assert [sum(labels[row] == name for row in large) for name in "abc"] == [90, 10, 1]
    assert set(small) <= set(large) and [sum(labels[row] == name for row in small) for name in "abc"] == [9, 1, 1]
    assert len(subset([str(x) for x in range(50)], 7, by_class=False, seed=0)) == 7
    assert not np.array_equal(large, subset(labels, 100, by_class=True, seed=4))


def test_labels_of_bases_turn_round_with_their_strand():
    task = Task("nucleotide", ("0", "1"))
    examples = Examples.of(labelled([("ACGTN", "00111"), ("AAC", "001")]), task, base().config)
    tokens, lengths, targets = examples.batch(np.array([0, 1]), np.array([False, True]), torch.device("cpu"))
    assert [decode(row[:n]) for row, n in zip(tokens.numpy(), lengths, strict=True)] == ["ACGTN", "GTT"]
    assert targets.tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, IGNORE, IGNORE]]
    assert examples.weight(np.array([0, 1])) == 8
    assert examples.batch(np.array([1]), np.array([False]), torch.device("cpu"))[2].tolist() == [[0, 0, 1]]
    with pytest.raises(InputError, match="r1 has 3 bases but 2 labels; a nucleotide task takes one letter for each"):
        Examples.of(labelled([("A", "0"), ("ACG", "01")]), task, base().config)


@pytest.mark.parametrize(
    ("task", "targets", "predictions", "loss"),
    [
        (Task("multiclass", ("a", "b", "c")), [0, 2], [[0.5, 0.25, 0.25], [0.5, 0.4, 0.1]], -np.log([0.5, 0.1]).mean()),
        (Task("regression", ("v",), 9.0, 2.0), [1.0, 5.0], [[3.0], [5.0]], 0.5),
        (Task("multilabel", ("a", "b")), [[0.0, 1.0]], [[0.2, 0.7]], -np.log([0.8, 0.7]).mean()),
        (Task("nucleotide", ("0", "1")), [[1, IGNORE]], [[[0.4, 0.6], [np.nan, np.nan]]], -np.log(0.6)),
    ],
)
def test_validation_losses(task, targets, predictions, loss):
    assert Validation.of(task, np.array(targets), np.array(predictions)).loss == pytest.approx(loss)


@pytest.mark.parametrize("method", ["full", "lora", "soft-prompt", "head"])
def test_every_method_fits_its_rows_and_a_continued_run_is_the_same_bit_for_bit(method, tmp_path):
    fields = {"method": method, "epochs": 2, "dropout": 0.2, "batch_size": 8, "prompt_length": 3, "pool": "max"}
    fields |= {"reverse_complement": True, "lr": 0.003, "head_lr": 0.01, "prompt_init": "sequence"}
    whole = trainer(ROWS, VALID, **fields)
    before = {name: value.clone() for name, value in whole.model.learnt().items()}
    rows = [whole.epoch() for _ in range(2)]
    assert rows[-1]["epoch"] == 2 and whole.done
    assert all(not torch.equal(value, before[name]) for name, value in whole.model.learnt().items() if value.ndim > 1)

    run = Run(tmp_path, 0, 0)
    begun = trainer(ROWS, VALID, **fields)
    begun.epoch()
    run.save(begun.state, "origin")
    state = run.saved("origin")
    continued = trainer(ROWS, VALID, **fields)
    continued.restore(state)
    continued.epoch()
    assert continued.state.best == whole.state.best and continued.state.step == whole.state.step == 6
    for name, value in whole.model.learnt().items():
        assert torch.equal(value, continued.model.learnt()[name]), name
    for name, value in whole.state.best_learnt.items():
        assert torch.equal(value, continued.state.best_learnt[name]), name


def test_features_computed_once_give_what_the_model_gives():
    made = trainer(ROWS, VALID, method="head", dropout=0.0, reverse_complement=True)
    rows, flipped = np.array([3, 0, 7]), np.array([True, False, True])
    once, _ = made._outputs(rows, flipped)
    tokens, lengths, _ = made.train.batch(rows, flipped, made.device)
    torch.testing.assert_close(once, made.model(tokens, lengths))
    both = apply(made.model, made.valid.tokens, batch_tokens=100, reverse_complement=True)
    np.testing.assert_allclose(made._valid_predictions(), both, atol=1e-6)


def test_a_batch_in_parts_has_the_gradients_of_the_whole():
    mixed = [(sequence[: 5 + row % 14], label) for row, (sequence, label) in enumerate(ROWS)]
    gradients = []
    for batch_tokens in (10_000, 40):
        made = trainer(mixed, VALID, batch_tokens=batch_tokens, dropout=0.0)
        loss = made._backward(np.arange(16), np.zeros(16, dtype=bool))
        gradients.append([loss, *(p.grad.clone() for p in made.model.learnt().values() if p.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_ends_when_nothing_gets_better_and_the_best_epoch_is_kept():
    made = trainer(ROWS, VALID, epochs=50, patience=2, lr=0.05, batch_size=8)
    losses, states = [], []
    while not made.done:
        losses.append(made.epoch()["valid_loss"])
        states.append(made.state.learnt)
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 50 and made.state.best_epoch == best + 1
    made.take_best()
    assert all(torch.equal(value, states[best][name]) for name, value in made.model.learnt().items())
    assert made.validate().loss == pytest.approx(losses[best])


def test_a_loss_that_is_no_number_names_its_rows():
    made = trainer(ROWS, VALID, batch_size=3)
    with torch.no_grad():
        made.model.head.linear.weight.fill_(torch.nan)
    with pytest.raises(
        NotFiniteError, match=r"the loss of the rows r\d+, r\d+, r\d+ is nan.* in epoch 1; .* a lower --lr"
    ):
        made.epoch()


@pytest.mark.parametrize("kind", ["regression", "multilabel", "nucleotide", "multiclass"])
def test_other_tasks_are_learnt(kind):
    label = {
        "regression": lambda s: str(100 + 10 * s.count("A")),
        "multilabel": lambda s: ";".join(x for x in "AC" if s.count(x) > 5),
        "nucleotide": lambda s: "".join("01"[x in "GC"] for x in s),
        "multiclass": lambda s: "abc"[(s.count("A") > 4) + (s.count("A") > 5)],
    }[kind]
    rows, valid = ([(s, label(s)) for s, _ in planted(n, 20, seed=n)] for n in (64, 32))
    task = Task.of([y for _, y in rows], kind)
    made = trainer(rows, valid, task=task, epochs=6, lr=0.01, head_lr=0.02, dropout=0.0, batch_size=16)
    losses = [made.epoch()["valid_loss"] for _ in range(6)]
    assert min(losses) < 0.97 * losses[0]


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
    finetune(config(files, folder, method="head", lr=0.5), overwrite=True)
    assert (folder / "mine.txt").exists() and "lr: 0.5" in (folder / "finetune.yaml").read_text()
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


def test_folds_test_every_row_once(files, tmp_path, quick):
    run = finetune(config(files, tmp_path / "run", method="head", folds=3, epochs=1, train_share=0.5))
    tested = [name for test in run.report.runs for name in test.test.ids]
    assert sorted(tested) == sorted(map(str, range(1, 61)))
    assert "drawn by class" not in run.report.text() and run.report.settings["rows"]["train"] == 18


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


@pytest.mark.slow
def test_a_planted_motif_is_found_by_the_methods_that_can_and_not_by_those_that_cannot():
    """The order is named here, before: on random weights only what reaches into the model learns a new motif.

    full and lora see it (AUROC over 0.95); a head on random features sees something of it, but at least 0.05 less than
    both; a soft prompt, which moves random features without making new ones, is between: not below the head by more
    than 0.02, and below full.
    """
    rows, valid, test = planted(1200, 32, seed=1), planted(300, 32, seed=2), planted(600, 32, seed=3)
    methods = {
        "full": {"lr": 5e-3, "head_lr": 5e-3, "epochs": 12},
        "lora": {"lr": 2e-2, "epochs": 12, "lora_projections": ("in_proj", "out_proj", "fc1", "fc2")},
        "head": {"epochs": 60},
        "soft-prompt": {"lr": 3e-2, "epochs": 12, "prompt_length": 8},
    }
    auroc = {}
    for method, fields in methods.items():
        made = trainer(rows, valid, model=base(32), method=method, pool="max", dropout=0.0, **fields)
        while not made.done:
            made.epoch()
        made.take_best()
        examples = Examples.of(labelled(test), made.model.task, made.model.base.config)
        predicted = apply(made.model, examples.tokens, batch_tokens=10_000, reverse_complement=False)
        auroc[method] = point(made.model.task, examples.targets, predicted)["auroc"]
    assert min(auroc["full"], auroc["lora"]) > 0.95
    assert 0.6 < auroc["head"] < min(auroc["full"], auroc["lora"]) - 0.05
    assert auroc["head"] - 0.02 < auroc["soft-prompt"] < auroc["full"]
