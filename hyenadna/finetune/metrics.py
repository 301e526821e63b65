"""How good predictions are: the metrics of each kind of task, with bootstrap intervals over rows or groups of rows.

Every metric is computed on weighted rows, all resamples of a bootstrap at once: a row drawn twice has weight 2. With
weights of 1 the numbers are those of scikit-learn and scipy, ties included.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import NotFiniteError, ShapeError
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import RESAMPLES, Estimate

Scores = dict[str, NDArray[np.float64]]
Score = Callable[[NDArray[np.float64]], Scores]
"""From weights of the rows (resamples, n) to each metric (resamples,); NaN where it is not defined."""
_WEIGHTS_AT_ONCE = 1 << 22


def metric_names(task: Task) -> tuple[str, ...]:
    """The metrics of a task, in the order of the reports."""
    match task.kind:
        case "binary" | "multiclass":
            return ("accuracy", "mcc", "f1", "auroc", "auprc")[: 5 if task.kind == "binary" else 4]
        case "multilabel":
            return ("auroc", "auprc", "f1")
        case "regression":
            return ("pearson", "spearman", "rmse", "r2")
        case _:
            return ("accuracy", "mcc", "f1")


def main_metric(task: Task) -> str:
    """The metric that models are chosen and compared by; greater is better.

    Binary and multilabel: auroc, which needs no threshold, does not move with the share of positives, and is what the
    benchmarks of the field are compared by. Multiclass and nucleotide: mcc, which gives 0 to whoever always says the
    commonest class, where accuracy would praise it. Regression: spearman, which a few extreme targets cannot carry.
    """
    match task.kind:
        case "binary" | "multilabel":
            return "auroc"
        case "regression":
            return "spearman"
        case _:
            return "mcc"


def measure(
    task: Task,
    targets: NDArray[Any],
    predictions: NDArray[np.float64],
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each metric of the task with its 95 % bootstrap interval over rows; over sequences for nucleotide.

    Parameters
    ----------
    task : Task
    targets : array             as `Task.targets` gives them
    predictions : float64 array (n, K)
        As `Task.predictions` gives them; (n, L, K) for nucleotide, anything behind the end of a sequence.
    groups : sequence, optional
        One a row: rows of a group are drawn together.
    seed : int
        Of the draws.

    Returns
    -------
    dict of Estimate
        NaN for what the rows do not define: everything but accuracy and f1 when they hold one class only. The interval
        is NaN with fewer than two rows or groups.

    Raises
    ------
    ShapeError              numbers of rows that differ
    NotFiniteError          predictions that are no numbers
    """
    score = scorer(task, targets, predictions)
    return _estimates(score, len(targets), groups, seed)


def paired(
    task: Task,
    metric: str,
    targets: NDArray[Any],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> Estimate:
    """The metric of predictions `a` minus that of `b` on the same rows, with its paired bootstrap interval.

    Parameters are those of `measure`; the same rows are drawn for both predictions.
    """
    of_a, of_b = scorer(task, targets, a), scorer(task, targets, b)
    both = _estimates(
        lambda weights: {metric: of_a(weights)[metric] - of_b(weights)[metric]}, len(targets), groups, seed
    )
    return both[metric]


def scorer(task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> Score:
    """The metrics of one set of predictions as a function of the rows' weights; what can be, is prepared once.

    Raises
    ------
    ShapeError              numbers of rows that differ
    NotFiniteError          predictions that are no numbers
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    _check(task, targets, predictions)
    match task.kind:
        case "binary":
            classes = _class_score(targets, predictions.argmax(axis=1), 2, positive=1)
            areas = _areas(targets == 1, predictions[:, 1])
            return lambda weights: {**classes(weights), **areas(weights)}
        case "multiclass":
            return _multiclass_score(targets, predictions)
        case "multilabel":
            return _multilabel_score(targets, predictions)
        case "regression":
            return lambda weights: _regression_scores(targets, predictions[:, 0], weights)
        case _:
            return _class_score(targets, predictions.argmax(axis=2), task.outputs)


def point(task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> dict[str, float]:
    """Each metric without an interval."""
    found = scorer(task, targets, predictions)(np.ones((1, len(targets))))
    return {name: float(found[name][0]) for name in metric_names(task)}


def drawn(units: int, resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    """How often each of `units` is drawn when as many are drawn with replacement: (resamples, units)."""
    numbers = random.integers(units, size=(resamples, units))
    numbers += np.arange(resamples)[:, None] * units
    return np.bincount(numbers.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def resample_chunks(units: int) -> Iterator[int]:
    """Numbers of resamples to draw at once, so that their weights fit into memory; together RESAMPLES."""
    at_once = max(1, _WEIGHTS_AT_ONCE // max(units, 1))
    for first in range(0, RESAMPLES, at_once):
        yield min(at_once, RESAMPLES - first)


def estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """A value with the 2.5 and 97.5 % quantiles of its resamples; those on which it is not defined are left out."""
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(resampled):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _estimates(score: Score, n: int, groups: Sequence[Any] | None, seed: int) -> dict[str, Estimate]:
    if groups is not None and len(groups) != n:
        raise ShapeError(f"{n} rows but {len(groups)} groups; each row needs one")
    unit = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max(initial=-1)) + 1
    values = {name: float(found[0]) for name, found in score(np.ones((1, n))).items()}
    if units < 2:
        return {name: Estimate(value, float("nan"), float("nan")) for name, value in values.items()}
    random = np.random.default_rng(seed)
    chunks = [score(drawn(units, resamples, random)[:, unit]) for resamples in resample_chunks(n)]
    return {name: estimate(value, np.concatenate([chunk[name] for chunk in chunks])) for name, value in values.items()}


def _check(task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> None:
    if len(targets) != len(predictions) or predictions.shape[-1] != task.outputs:
        raise ShapeError(
            f"predictions of shape {predictions.shape} do not fit {len(targets)} rows with {task.outputs} outputs each"
        )
    if task.kind == "nucleotide":
        if predictions.shape[:2] != targets.shape:
            raise ShapeError(f"predictions of shape {predictions.shape} do not fit targets of shape {targets.shape}")
        predictions = predictions[targets != IGNORE]
    wrong = int((~np.isfinite(predictions)).sum())
    if wrong:
        raise NotFiniteError(f"{wrong:,} predictions are not finite numbers; the model has diverged: lower its --lr")


def _class_score(truth: NDArray[np.int64], said: NDArray[np.int64], classes: int, positive: int | None = None) -> Score:
    """Accuracy, mcc and f1, which is macro without `positive`; truth and said are (n,), or (n, bases) with IGNORE."""
    from scipy.sparse import csr_matrix

    cells = np.where(truth == IGNORE, -1, truth * classes + said).reshape(len(truth), -1)
    row, place = np.nonzero(cells >= 0)
    counted = csr_matrix((np.ones(len(row)), (row, cells[row, place])), shape=(len(truth), classes**2))

    def score(weights: NDArray[np.float64]) -> Scores:
        table = np.asarray((counted.T @ weights.T).T).reshape(len(weights), classes, classes)
        right, true, called = (np.einsum(path, table) for path in ("rkk->rk", "rkj->rk", "rjk->rk"))
        total = true.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread_true, spread_called = (total**2 - (margin**2).sum(axis=1) for margin in (true, called))
            mcc = (right.sum(axis=1) * total - (true * called).sum(axis=1)) / np.sqrt(spread_true * spread_called)
            # who calls one class only has shown nothing; rows of one class can show nothing
            mcc = np.where(spread_true == 0, np.nan, np.where(spread_called == 0, 0.0, mcc))
            f1 = 2 * right / (true + called)
            return {
                "accuracy": right.sum(axis=1) / total,
                "mcc": mcc,
                "f1": _mean_known(f1) if positive is None else f1[:, positive],
            }

    return score


def _multiclass_score(targets: NDArray[np.int64], predictions: NDArray[np.float64]) -> Score:
    classes = _class_score(targets, predictions.argmax(axis=1), predictions.shape[1])
    areas = [_areas(targets == number, predictions[:, number]) for number in range(predictions.shape[1])]

    def score(weights: NDArray[np.float64]) -> Scores:
        auroc = np.stack([area(weights)["auroc"] for area in areas], axis=1)
        return {**classes(weights), "auroc": _mean_known(auroc)}

    return score


def _multilabel_score(targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> Score:
    said = predictions > 0.5
    areas = [_areas(targets[:, number] > 0, predictions[:, number]) for number in range(predictions.shape[1])]
    right = (said & (targets > 0)).sum(axis=1).astype(np.float64)
    given = said.sum(axis=1) + targets.sum(axis=1)

    def score(weights: NDArray[np.float64]) -> Scores:
        found = [area(weights) for area in areas]
        means = {name: _mean_known(np.stack([one[name] for one in found], axis=1)) for name in ("auroc", "auprc")}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {**means, "f1": 2 * (weights @ right) / (weights @ given)}

    return score


def _areas(truth: NDArray[np.bool_], said: NDArray[np.float64]) -> Score:
    """auroc, and auprc as the average precision (the step function, not the trapezoids)."""
    order = np.argsort(-said, kind="stable")
    positive, said = truth[order], said[order]
    starts = np.flatnonzero(np.concatenate([[True], said[1:] != said[:-1]])) if len(said) else order

    def score(weights: NDArray[np.float64]) -> Scores:
        everything = weights[:, order]
        hits = everything * positive
        if len(starts) < len(order):  # rows with equal predictions are called together
            everything, hits = (np.add.reduceat(rows, starts, axis=1) for rows in (everything, hits))
        misses = everything - hits
        above, called = hits.cumsum(axis=1), everything.cumsum(axis=1)
        positives, negatives = hits.sum(axis=1), misses.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = ((above - hits / 2) * misses).sum(axis=1) / (positives * negatives)
            auprc = (hits * above / np.maximum(called, 1)).sum(axis=1) / positives
        one_class = (positives == 0) | (negatives == 0)
        return {"auroc": np.where(one_class, np.nan, auroc), "auprc": np.where(one_class, np.nan, auprc)}

    return score


def _regression_scores(targets: NDArray[np.float64], said: NDArray[np.float64], weights: NDArray[np.float64]) -> Scores:
    total = weights.sum(axis=1)
    squared = weights @ (targets - said) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = targets[None] - (weights @ targets / total)[:, None]
        spread = (weights * centred**2).sum(axis=1)
        return {
            "pearson": _correlation(targets[None], said[None], weights),
            "spearman": _correlation(_ranks(targets, weights), _ranks(said, weights), weights),
            "rmse": np.sqrt(squared / total),
            "r2": np.where(_nothing(spread, total, centred), np.nan, 1 - squared / spread),
        }


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum(axis=1, keepdims=True)
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    x, y = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (x, y))
    covariance, of_x, of_y = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
    flat = _nothing(of_x, total[:, 0], x) | _nothing(of_y, total[:, 0], y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, covariance / np.sqrt(of_x * of_y))


def _nothing(spread: NDArray[np.float64], total: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a sum of squares is no more than rounding: resamples of equal values."""
    size = np.abs(values).max(axis=-1, initial=0.0)
    return np.asarray(spread <= 1e-24 * total * size**2)


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-ranks of each row among the weighted rows: (resamples, n)."""
    _, number = np.unique(values, return_inverse=True)
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: NDArray[np.float64] = (equal.cumsum(axis=1) - (equal - 1) / 2)[:, number]
    return ranks


def _mean_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)
    return mean
