import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import NotFiniteError, ShapeError
from hyenadna.finetune import metrics
from hyenadna.finetune.task import Task

BINARY = Task("binary", ("no", "yes"))
THREE = Task("multiclass", ("a", "b", "c"))
LABELS = Task("multilabel", ("x", "y", "z"))
NUMBER = Task("regression", ("value",))
BASES = Task("nucleotide", ("c", "n"))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def binary(random, n, ties):
    truth = random.integers(2, size=n)
    said = np.clip(0.25 + 0.5 * truth + random.normal(scale=0.4, size=n), 0, 1)
    if ties:
        said = np.round(said, 1)
    return truth, np.stack((1 - said, said), axis=1)


def expected(task, truth, said, rows):
    """scikit-learn and scipy on the rows themselves, drawn ones repeated."""
    truth, said = truth[rows], said[rows]
    if task.kind == "regression":
        return {
            "pearson": stats.pearsonr(truth, said[:, 0])[0],
            "spearman": stats.spearmanr(truth, said[:, 0])[0],
            "rmse": oracle.root_mean_squared_error(truth, said[:, 0]),
            "r2": oracle.r2_score(truth, said[:, 0]),
        }
    if task.kind == "multilabel":
        return {
            "auroc": np.mean([oracle.roc_auc_score(truth[:, k], said[:, k]) for k in range(3)]),
            "auprc": np.mean([oracle.average_precision_score(truth[:, k], said[:, k]) for k in range(3)]),
            "f1": oracle.f1_score(truth, said > 0.5, average="micro"),
        }
    called = said.argmax(axis=1)
    found = {"accuracy": oracle.accuracy_score(truth, called), "mcc": oracle.matthews_corrcoef(truth, called)}
    if task.kind == "binary":
        return found | {
            "f1": oracle.f1_score(truth, called),
            "auroc": oracle.roc_auc_score(truth, said[:, 1]),
            "auprc": oracle.average_precision_score(truth, said[:, 1]),
        }
    return found | {
        "f1": oracle.f1_score(truth, called, average="macro"),
        "auroc": np.mean([oracle.roc_auc_score(truth == k, said[:, k]) for k in range(said.shape[1])]),
    }


def example(task, random, n, ties=False):
    if task.kind == "binary":
        return binary(random, n, ties)
    if task.kind == "regression":
        truth = random.normal(size=n) * 3 + 100
        said = truth + random.normal(size=n)
        return (np.round(truth), np.round(said)[:, None]) if ties else (truth, said[:, None])
    if task.kind == "multilabel":
        truth = random.integers(2, size=(n, 3)).astype(float)
        said = np.clip(0.3 + 0.4 * truth + random.normal(scale=0.3, size=(n, 3)), 0, 1)
        return truth, np.round(said, 1) if ties else said
    truth = random.integers(3, size=n)
    raw = random.random((n, 3)) + np.eye(3)[truth] * 0.5
    raw = np.round(raw, 1) if ties else raw
    return truth, raw / raw.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("task", [BINARY, THREE, LABELS, NUMBER], ids=lambda task: task.kind)
def test_weights_are_repeated_rows(task, ties):
    random = np.random.default_rng(3)
    truth, said = example(task, random, 67, ties)
    found = metrics.point(task, truth, said)
    assert found == pytest.approx(expected(task, truth, said, np.arange(67)), abs=1e-12)
    assert tuple(found) == metrics.metric_names(task) and metrics.main_metric(task) in found
    score = metrics.scorer(task, truth, said)
    for _ in range(6):
        rows = random.integers(67, size=67)
        weights = np.bincount(rows, minlength=67)[None].astype(float)
        at_once = {name: values[0] for name, values in score(weights).items()}
        assert at_once == pytest.approx(expected(task, truth, said, rows), abs=1e-12)


def test_nucleotides_are_counted_by_base_and_drawn_by_sequence():
    random = np.random.default_rng(0)
    truth = random.integers(2, size=(40, 30))
    for row, length in enumerate(random.integers(1, 31, size=40)):
        truth[row, length:] = IGNORE
    said = random.random((40, 30, 2))
    said[truth == IGNORE] = np.nan
    known = truth != IGNORE
    with np.errstate(invalid="ignore"):
        called = said.argmax(axis=2)
    found = metrics.measure(BASES, truth, said)
    assert found["accuracy"].value == pytest.approx(oracle.accuracy_score(truth[known], called[known]))
    assert found["mcc"].value == pytest.approx(oracle.matthews_corrcoef(truth[known], called[known]))
    assert found["f1"].value == pytest.approx(oracle.f1_score(truth[known], called[known], average="macro"))
    # every base of a sequence right or wrong together: the interval is that of 40 coins, not of 1,200
    truth = np.zeros((40, 30), dtype=np.int64)
    said = np.zeros((40, 30, 2))
    said[..., 0], said[:20, :, 1] = 0.5, 1
    width = metrics.measure(BASES, truth, said)["accuracy"]
    assert (width.high - width.low) / 3.92 == pytest.approx(0.5 / np.sqrt(40), rel=0.1)


def test_interval_of_accuracy_is_that_of_the_binomial():
    truth, said = binary(np.random.default_rng(1), 2000, False)
    found = metrics.measure(BINARY, truth, said)["accuracy"]
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 2000)
    assert found.low == pytest.approx(found.value - half, abs=0.004)
    assert found.high == pytest.approx(found.value + half, abs=0.004)
    again = metrics.measure(BINARY, truth, said)
    assert again["accuracy"] == found and metrics.measure(BINARY, truth, said, seed=1)["accuracy"] != found


def test_groups_widen_the_interval_of_copies():
    truth, said = binary(np.random.default_rng(1), 100, False)
    ten = [np.repeat(array, 10, axis=0) for array in (truth, said)]
    alone, copies = metrics.measure(BINARY, truth, said), metrics.measure(BINARY, *ten)
    grouped = metrics.measure(BINARY, *ten, groups=[str(row // 10) for row in range(1000)])
    for name in ("accuracy", "auroc", "mcc"):
        width = [found[name].high - found[name].low for found in (alone, copies, grouped)]
        assert width[1] < 0.45 * width[0] and width[2] == pytest.approx(width[0], rel=0.15)
    with pytest.raises(ShapeError, match="1000 rows but 3 groups"):
        metrics.measure(BINARY, *ten, groups=["a", "b", "c"])


def test_the_difference_is_paired():
    random = np.random.default_rng(0)
    truth, a = binary(random, 500, False)
    same = metrics.paired(BINARY, "auroc", truth, a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    b = np.clip(a + random.normal(scale=0.05, size=(500, 1)) * [-1, 1], 0, 1)
    gap = metrics.paired(BINARY, "auroc", truth, a, b)
    alone = metrics.measure(BINARY, truth, a)["auroc"]
    assert gap.value == pytest.approx(alone.value - metrics.point(BINARY, truth, b)["auroc"])
    assert gap.low < gap.value < gap.high and gap.high - gap.low < 0.3 * (alone.high - alone.low)


def test_one_class_leaves_undefined_metrics_nan():
    said = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    found = metrics.measure(BINARY, np.array([1, 1, 1]), said)
    assert found["accuracy"].value == pytest.approx(2 / 3) and found["f1"].value == pytest.approx(0.8)
    assert all(np.isnan(found[name].value) for name in ("mcc", "auroc", "auprc"))
    # a classifier that always says the same has an mcc of 0, as in scikit-learn
    assert metrics.point(BINARY, np.array([0, 1, 1]), said[[0, 0, 0]])["mcc"] == 0
    flat = metrics.measure(NUMBER, np.array([1.0, 2.0, 4.0]), np.full((3, 1), 2.0))
    assert np.isnan(flat["pearson"].value) and np.isnan(flat["spearman"].value) and flat["r2"].value < 0
    labels = np.array([[1.0, 0, 1], [1, 1, 0], [1, 0, 0]])
    found = metrics.point(LABELS, labels, np.array([[0.1, 0.2, 0.9], [0.2, 0.9, 0.1], [0.3, 0.1, 0.1]]))
    assert found["auroc"] == 1 and found["auprc"] == 1  # of the two labels that both occur and miss
    # two of three classes in the test: the macro averages are those of what is there
    found = metrics.point(THREE, np.array([0, 1, 1]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]]))
    assert found["auroc"] == 1 and found["f1"] == 1


@pytest.mark.parametrize("n", [1, 2])
def test_few_rows(n):
    found = metrics.measure(BINARY, np.array([1, 0])[:n], np.array([[0.2, 0.8], [0.9, 0.1]])[:n])
    assert found["accuracy"].value == 1 and np.isnan(found["accuracy"].low) == (n == 1)


def test_wrong_input():
    with pytest.raises(ShapeError, match=r"shape \(3, 2\) do not fit 2 rows with 2 outputs"):
        metrics.measure(BINARY, np.array([0, 1]), np.zeros((3, 2)))
    with pytest.raises(NotFiniteError, match="1 predictions are not finite"):
        metrics.measure(BINARY, np.array([0, 1]), np.array([[0.5, np.nan], [0.5, 0.5]]))
    with pytest.raises(ShapeError, match="do not fit targets of shape"):
        metrics.measure(BASES, np.zeros((2, 5), dtype=int), np.zeros((2, 6, 2)))


def test_five_thousand_rows_are_quick():
    truth, said = binary(np.random.default_rng(1), 5000, True)
    start = time.process_time()
    metrics.measure(BINARY, truth, said)
    assert time.process_time() - start < 2
