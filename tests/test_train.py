"""One training: batches, subsets, losses, the choice of the epoch, and that it continues bit for bit."""

import numpy as np
import pytest
import torch
from finetuning import base, labelled, planted, trainer

from hyenadna.data.tokenizer import IGNORE, decode
from hyenadna.errors import InputError, NotFiniteError
from hyenadna.finetune import train
from hyenadna.finetune.apply import apply
from hyenadna.finetune.examples import Examples, epoch_batches, subset
from hyenadna.finetune.run_folder import Run
from hyenadna.finetune.task import Task
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
def test_every_method_changes_what_it_learns_and_a_continued_run_is_the_same_bit_for_bit(method, tmp_path):
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
    ranks, states = [], []
    while not made.done:
        row = made.epoch()
        ranks.append((row["valid_auroc"], -row["valid_loss"]))
        states.append(made.state.averaged)
    best = ranks.index(max(ranks))
    assert len(ranks) == best + 3 < 50 and made.state.best_epoch == best + 1
    made.take_best()
    assert all(torch.equal(value, states[best][name]) for name, value in made.model.learnt().items())
    assert made.validate().loss == pytest.approx(-ranks[best][1])


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
    before = made.validate().loss
    losses = [made.epoch()["valid_loss"] for _ in range(6)]
    assert min(losses) < 0.9 * before


def test_features_too_large_to_keep_are_computed_again_to_the_same_result(monkeypatch):
    kept = trainer(ROWS, VALID, method="head", dropout=0.0, epochs=2)
    computed = trainer(ROWS, VALID, method="head", dropout=0.0, epochs=2)
    for _ in range(2):
        one = kept.epoch()
        with monkeypatch.context() as few:
            few.setattr(train, "_KEPT_BYTES", 0)
            other = computed.epoch()
        assert computed._features is None
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-5)


def test_what_is_validated_and_kept_is_the_average_of_the_weights():
    made = trainer(ROWS, VALID, epochs=3, dropout=0.0, batch_size=8)
    steps, step = [], made._step

    def noted(*arguments):
        loss = step(*arguments)
        steps.append({name: p.detach().double().clone() for name, p in made.model.learnt().items()})
        return loss

    made._step = noted
    first = {name: p.detach().double().clone() for name, p in made.model.learnt().items()}
    made.epoch()
    for name, start in first.items():
        expected = start
        for number, weights in enumerate(steps):
            share = max(1 / 100, 9 / (10 + number))
            expected = (1 - share) * expected + share * weights[name]
        torch.testing.assert_close(made.state.averaged[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(made.state.learnt[name].double(), steps[-1][name])  # training goes on from here
    made.take_best()
    for name, value in made.model.learnt().items():
        assert torch.equal(value, made.state.averaged[name])


@pytest.mark.parametrize(("method", "share"), [("full", 0.3), ("head", 0.0)])
def test_letters_are_left_out_only_where_the_model_itself_learns(method, share):
    made = trainer(ROWS, VALID, method=method, dropout=0.3)
    made.model.train()
    assert made.model.base.backbone.dropout.p == share
