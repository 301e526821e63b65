import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.special import expit, softmax

from hyenadna.data.label_kinds import MANY
from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import InputError
from hyenadna.finetune.task import Task

NUMBERS = [f"{value / 8}" for value in range(MANY + 1)]


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["b", "a", "b"], "binary", ("a", "b")),
        (["1", "0"], "binary", ("0", "1")),
        (["10", "9", "8"], "multiclass", ("10", "8", "9")),
        (["x;y", "", "z; x"], "multilabel", ("x", "y", "z")),
        (NUMBERS, "regression", ("value",)),
        (NUMBERS[:-1], "multiclass", tuple(sorted(NUMBERS[:-1]))),
        ([*NUMBERS, "n"], "multiclass", tuple(sorted([*NUMBERS, "n"]))),
    ],
)
def test_labels_say_the_task(labels, kind, names):
    for order in (labels, labels[::-1]):
        task = Task.of(order)
        assert (task.kind, task.labels, task.outputs) == (kind, names, len(names))
    assert Task.from_json(task.to_json()) == task


def test_what_the_user_says_comes_first():
    assert Task.of(["1", "2", "4"], "regression", name="dose") == Task(
        "regression", ("dose",), 7 / 3, math.sqrt(14 / 9)
    )
    assert Task.of(["a", "b"], "multiclass").kind == "multiclass"
    assert Task.of(["010", "112"], "nucleotide").labels == ("0", "1", "2")
    assert Task.of(["x", ""], "multilabel").labels == ("x",)


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (["a", "a"], None, "one class only, 'a'; a classifier needs two"),
        (["a", "", "b", ""], None, "2 rows have no label, the first is row 2"),
        ([], None, "there are no labels"),
        (["a", "b", "c"], "binary", r"3 classes \('a', 'b', 'c'\) are not binary"),
        (["1", "x"], "regression", "row 2 has the target 'x'; a regression takes finite numbers"),
        (["1", "nan"], "regression", "row 2 has the target 'nan'"),
        (["inf", "1"], "regression", "row 1 has the target 'inf'"),
        (["2", "2.0"], "regression", "all targets are 2; a regression needs at least two"),
        (["", ""], "multilabel", "there are no labels"),
        (["000", "00"], "nucleotide", "one class only, '0'"),
    ],
)
def test_labels_that_are_no_task(labels, kind, said):
    with pytest.raises(InputError, match=said):
        Task.of(labels, kind)


def test_targets():
    assert Task("multiclass", ("a", "b", "c")).targets(["c", "a"]).tolist() == [2, 0]
    assert Task("multilabel", ("a", "b", "c")).targets(["c;a", "", " b ;"]).tolist() == [
        [1, 0, 1],
        [0, 0, 0],
        [0, 1, 0],
    ]
    assert Task("regression", ("value",), 5.0, 2.0).targets(["7", "-1e3"]).tolist() == [7, -1000]
    assert Task("nucleotide", ("0", "1")).targets(["011", "1"]).tolist() == [[0, 1, 1], [1, IGNORE, IGNORE]]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "nucleotide"])
def test_a_label_that_training_has_not_seen(kind):
    with pytest.raises(InputError, match="row 2 has the label 'z'; the training rows have 'a', 'b', 'c'"):
        Task(kind, ("a", "b", "c")).targets(["a", "z"])


def outputs(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(0, 3, shape))


def test_losses_are_sklearns():
    scores = outputs(5, 3)
    targets = torch.tensor([0, 2, 1, 1, 0])
    cross_entropy = Task("multiclass", ("a", "b", "c")).loss(scores, targets)
    expected = sklearn.metrics.log_loss(targets, softmax(scores.numpy(), axis=1), labels=[0, 1, 2])
    assert cross_entropy.item() == pytest.approx(expected, rel=1e-5)

    present = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float64)
    each = [sklearn.metrics.log_loss(present[:, k], expit(scores[:, k].numpy()), labels=[0, 1]) for k in range(3)]
    assert Task("multilabel", ("a", "b", "c")).loss(scores, present).item() == pytest.approx(np.mean(each), rel=1e-5)

    values = torch.tensor([1.0, 5.0, -2.0, 0.0, 9.0], dtype=torch.float64)
    task = Task("regression", ("value",), 2.0, 4.0)
    error = sklearn.metrics.mean_squared_error(values, task.predictions(scores[:, :1])[:, 0]) / 16
    assert task.loss(scores[:, :1], values).item() == pytest.approx(error, rel=1e-5)


def test_a_nucleotide_loss_leaves_the_pads_out():
    task, scores = Task("nucleotide", ("0", "1")), outputs(2, 3, 2)
    targets = torch.from_numpy(task.targets(["011", "1"]))
    kept = softmax(np.concatenate([scores[0].numpy(), scores[1, :1].numpy()]), axis=1)
    assert task.loss(scores, targets).item() == pytest.approx(sklearn.metrics.log_loss([0, 1, 1, 1], kept), rel=1e-5)


def test_predictions():
    scores = outputs(4, 3)
    classes = Task("multiclass", ("a", "b", "c")).predictions(scores.float())
    assert classes.dtype == torch.float64
    np.testing.assert_allclose(classes, softmax(scores.numpy(), axis=1), atol=1e-6)
    np.testing.assert_allclose(classes.sum(dim=1), 1, atol=1e-12)
    np.testing.assert_allclose(
        Task("multilabel", ("a", "b", "c")).predictions(scores), expit(scores.numpy()), atol=1e-12
    )
    assert Task("regression", ("v",), 10.0, 2.0).predictions(torch.tensor([[-1.0]])).tolist() == [[8.0]]
