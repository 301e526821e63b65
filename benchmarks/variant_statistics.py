"""What the variant benchmarks measure with: AUROC and Spearman on rows drawn in groups, and the rhythm of a series.

A statistic is a function of the rows' weights, so that all scores are measured on the same resamples, and a difference
of two is paired. Rows of a group (all variants of a position) are drawn together or not at all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.finetune import metrics
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import Bootstrap, Estimate

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""From weights of the rows (resamples, n) to values (resamples,); NaN where it is not defined."""
NEIGHBOURS = 30
"""Frequencies on either side with which that of the period is compared, less the nearest one on either side."""
_BINARY = Task("binary", ("negative", "positive"))
_REGRESSION = Task("regression", ("value",))


def auroc(positive: NDArray[np.bool_], score: Floats) -> Statistic:
    """How probable it is that a positive row scores higher than a negative one; ties count half."""
    if not len(score):
        return _undefined
    of = metrics.scorer(_BINARY, np.asarray(positive, dtype=np.int64), np.stack((-score, score), axis=1))
    return lambda weights: of(weights)["auroc"]


def spearman(values: Floats, score: Floats) -> Statistic:
    """The correlation of the ranks; ties have their mean rank."""
    if not len(score):
        return _undefined
    of = metrics.scorer(_REGRESSION, values, score[:, None])
    return lambda weights: of(weights)["spearman"]


def auroc_within(positive: NDArray[np.bool_], score: Floats, strata: Sequence[Any] | NDArray[Any]) -> Statistic:
    """AUROC over those pairs alone whose two rows are of one stratum: strata cannot be told apart by their own means.

    The mean of the strata's AUROC, each weighted by its pairs of a positive and a negative row.
    """
    number = np.unique(np.asarray(strata), return_inverse=True)[1]
    parts = []
    for stratum in range(int(number.max(initial=-1)) + 1):
        rows = np.flatnonzero(number == stratum)
        if positive[rows].any() and not positive[rows].all():
            parts.append((rows, positive[rows], auroc(positive[rows], score[rows])))

    def statistic(weights: Floats) -> Floats:
        total, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for rows, true, area in parts:
            own = weights[:, rows]
            count = own[:, true].sum(axis=1) * own[:, ~true].sum(axis=1)
            total += np.where(count > 0, count * np.nan_to_num(area(own)), 0.0)
            pairs += count
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, total / np.where(pairs > 0, pairs, 1), np.nan)

    return statistic


def mean(values: Floats) -> Statistic:
    """The mean of a number of each row."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics: of models that differ in their seed alone."""
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def estimates(
    statistics: Mapping[str, Statistic],
    groups: Sequence[Any] | NDArray[Any],
    differences: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each statistic, and each difference of two, with its 95 % bootstrap interval over groups of rows.

    Parameters
    ----------
    statistics : mapping of Statistic
        By name; all of the same rows.
    groups : sequence (n,)
        Rows of a group are drawn together.
    differences : sequence of pairs of names
        Reported as 'a - b', on the same resamples.
    seed : int
        Of the draws.

    Returns
    -------
    dict of Estimate            NaN for what the rows do not define
    """
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    n, units = len(unit), int(unit.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    once = {name: statistic(np.ones((1, n))) for name, statistic in statistics.items()}
    chunks = []
    for resamples in metrics.resample_chunks(n) if units > 1 else ():
        weights = metrics.drawn(units, resamples, random)[:, unit]
        chunks.append({name: statistic(weights) for name, statistic in statistics.items()})
    nothing = np.full(1, np.nan)
    drawn = {name: np.concatenate([chunk[name] for chunk in chunks]) if chunks else nothing for name in statistics}
    for a, b in differences:
        once[f"{a} - {b}"], drawn[f"{a} - {b}"] = once[a] - once[b], drawn[a] - drawn[b]
    return {name: metrics.estimate(float(once[name][0]), drawn[name]) for name in once}


def power(values: Floats) -> Floats:
    """The power spectrum of each row less its mean, float64 (n, L // 2 + 1): frequency k / L at place k."""
    centred = values - values.mean(axis=1, keepdims=True)
    return np.asarray(np.abs(np.fft.rfft(centred, axis=1)) ** 2 / values.shape[1], dtype=np.float64)


def rhythm(values: Floats, period: int = 3) -> tuple[Floats, Floats]:
    """Of each row, the power at the frequency 1 / period, and the mean power at the frequencies around it.

    Parameters
    ----------
    values : float64 array (n, L)
        L is a multiple of the period, so that the frequency is one of those of the spectrum.
    period : int
        In places of the row.
    """
    spectrum, k = power(values), values.shape[1] // period
    near = np.arange(2, NEIGHBOURS + 1)
    # the two next to it are left out: a rhythm that comes and goes leaks into them
    return spectrum[:, k], spectrum[:, np.concatenate((k - near, k + near))].mean(axis=1)


def rhythms(series: Mapping[str, Floats], differences: Sequence[tuple[str, str]] = ()) -> dict[str, Estimate]:
    """Power at a period of 3 over that around it, of all rows together, with the 95 % bootstrap interval over rows.

    Parameters
    ----------
    series : mapping of float64 arrays (n, L)
        By name; row i of each is of the same place, and they are drawn together.
    differences : sequence of pairs of names
        Reported as 'a - b': of the natural logarithms of the two ratios.
    """
    blocks = np.concatenate([np.stack(rhythm(values), axis=1) for values in series.values()], axis=1)
    boot = Bootstrap.of(blocks)
    ratios = {name: _quotient(2 * i, 2 * i + 1) for i, name in enumerate(series)}
    found = {name: boot.estimate(ratio) for name, ratio in ratios.items()}
    for a, b in differences:
        found[f"{a} - {b}"] = boot.estimate(_log_of_quotient(ratios[a], ratios[b]))
    return found


def block_means(
    columns: Mapping[str, Floats], block: int, differences: Sequence[tuple[str, str]] = ()
) -> dict[str, Estimate]:
    """The mean of each column, and of the difference of two, with the 95 % bootstrap interval over blocks of places.

    Parameters
    ----------
    columns : mapping of float64 arrays (L,)
        By name, along a sequence.
    block : int
        Places that are drawn together.
    differences : sequence of pairs of names
    """
    values = np.stack([*columns.values(), np.ones(len(next(iter(columns.values()))))], axis=1)
    boot = Bootstrap.of(np.add.reduceat(values, np.arange(0, len(values), block), axis=0))
    means = {name: _quotient(i, -1) for i, name in enumerate(columns)}
    found = {name: boot.estimate(each) for name, each in means.items()}
    for a, b in differences:
        found[f"{a} - {b}"] = boot.estimate(_difference(means[a], means[b]))
    return found


def _undefined(weights: Floats) -> Floats:
    """Of no rows."""
    return np.full(len(weights), np.nan)


def _quotient(above: int, below: int) -> Statistic:
    """Of sums (n, columns), one column over another."""
    return lambda sums: np.asarray(sums[:, above] / sums[:, below])


def _difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda sums: a(sums) - b(sums)


def _log_of_quotient(a: Statistic, b: Statistic) -> Statistic:
    return lambda sums: np.log(a(sums) / b(sums))
