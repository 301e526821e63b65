"""Scores of in-context answers: probabilities of classes, calibration, and how sure one may be of an accuracy.

Queries are asked behind prompts of several seeds, so that a share of right answers moves with both: with the queries,
which are a sample, and with the seeds, which choose and order the examples. Answers to one query are alike, and so are
answers behind one prompt. So seeds and queries are both drawn with replacement, as wholes (Owen 2007, the pigeonhole
bootstrap), and what is compared is drawn together: the same seeds and queries on both sides.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.inference.bootstrap import RESAMPLES, Estimate

_BINS = 10
_TIED = 1e-9
_Z = 1.959963984540054  # of 95 %


def normalised(log_likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (..., C) of the classes, of a sum of 1, by the log-likelihoods (..., C) of their words."""
    likely = np.exp(log_likelihoods - log_likelihoods.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = likely / likely.sum(axis=-1, keepdims=True)
    return shares


def calibrated(probabilities: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (..., C) divided by those that the prompt alone gives (..., C), of a sum of 1 again.

    Examples
    --------
    >>> calibrated(np.array([[0.9, 0.1]]), np.array([0.9, 0.1])).tolist()
    [[0.5, 0.5]]
    """
    # a class that the prompt excludes altogether would be divided by nothing
    quotient = probabilities / np.maximum(prior, np.finfo(np.float64).tiny)
    shares: NDArray[np.float64] = quotient / quotient.sum(axis=-1, keepdims=True)
    return shares


def share_correct(probabilities: NDArray[np.float64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the likeliest of the classes (..., C) is the right one (...); as likely ones share it, 1/2 for two."""
    # calibration leaves what is as likely different in the last digits
    ties = probabilities >= (1 - _TIED) * probabilities.max(axis=-1, keepdims=True)
    hit: NDArray[np.float64] = _of_answer(ties, answers) / ties.sum(axis=-1)
    return hit


def negative_log_likelihood(probabilities: NDArray[np.float64], answers: NDArray[np.int64]) -> float:
    """Mean of -ln p(right class), in nats."""
    return float(-np.log(np.maximum(_of_answer(probabilities, answers), np.finfo(np.float64).tiny)).mean())


def _of_answer(table: NDArray[Any], answers: NDArray[np.int64]) -> NDArray[Any]:
    wanted = np.broadcast_to(answers, table.shape[:-1])[..., None]
    return np.take_along_axis(table, wanted, axis=-1)[..., 0]


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n independent trials (Wilson 1927), also where none or all succeed.

    Examples
    --------
    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    if n == 0:
        return math.nan, math.nan
    share, spread = right / n, _Z * _Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(probabilities: NDArray[np.float64], answers: NDArray[np.int64]) -> float:
    """The expected calibration error: mean of |accuracy - confidence| over ten bins of confidence, by their answers.

    Guo et al. 2017, eq. 3. The confidence of an answer is the probability of the likeliest class.
    """
    confidence, right = probabilities.max(axis=1), share_correct(probabilities, answers)
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(answers))


def mean_over(values: NDArray[np.float64], *, crossed: bool = True, seed: int = 0) -> Estimate:
    """The mean of values (S, Q) of seeds and queries, with its 95 % interval.

    Parameters
    ----------
    values : float64 array (S, Q)
        Such as 1 for a right answer; for what is compared, the differences.
    crossed : bool
        Whether query q is the same for all seeds, so that queries are drawn too. Otherwise seeds alone are, each with
        its queries.
    seed : int
        Of the draws.
    """
    S, Q = values.shape
    of_seeds, of_queries = _draws(S, Q if crossed else 0, seed)
    drawn = ((of_seeds @ values) * (of_queries if crossed else 1 / Q)).sum(axis=1)
    value = float(values.mean())
    if S * Q < 2 or (not crossed and S < 2):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _draws(S: int, Q: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each seed and each query was drawn, as shares: (resamples, S) and (resamples, Q)."""
    random = np.random.default_rng(seed)
    shares = [random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in (S, Q) if n]
    return shares[0], shares[-1]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's rank correlation of two columns (n,), and the p-value of there being none; NaN where one is constant.

    The p-value takes the rows to be independent, which cells of the same queries are not: it is a lower bound.
    """
    from scipy.stats import spearmanr

    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan, math.nan
    found = spearmanr(one, other)
    return float(found.statistic), float(found.pvalue)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Right answers of an arm or of a simple model, by number of examples a class."""

    by_shots: dict[int, dict[int, NDArray[np.float64]]]
    """Number of examples to seed to (Q,): 1 for a right answer."""

    def accuracy(self, k: int) -> Estimate:
        """Over seeds and queries."""
        return mean_over(np.stack(list(self.by_shots[k].values())))
