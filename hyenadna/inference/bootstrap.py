"""Block bootstrap: how far sums over a genome would move on another sample of the genome.

Neighbouring bases are alike (genes, repeats, composition), so that single bases must not be resampled: whole blocks are
drawn with replacement, the same ones for all columns, which pairs the models that are compared.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_DRAWN_AT_ONCE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    """On the data as they are; NaN if they hold nothing to measure it on."""
    low: float
    """2.5 % quantile over the resamples; NaN if fewer than two blocks hold data."""
    high: float
    """97.5 % quantile."""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Sums over blocks, and the same sums over resampled blocks."""

    blocks: NDArray[np.float64]
    """(blocks, columns): what each block adds to each sum."""
    resampled: NDArray[np.float64]
    """(resamples, columns): the sums over as many blocks, drawn with replacement."""

    @classmethod
    def of(cls, blocks: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> "Bootstrap":
        """Draw the resamples.

        Parameters
        ----------
        blocks : float64 array (blocks, columns)
            What each block adds to each sum.
        resamples : int
            How often to draw.
        seed : int
            Of the draws: the same blocks give the same intervals.
        """
        random = np.random.default_rng(seed)
        n = len(blocks)
        at_once = max(1, _DRAWN_AT_ONCE // n)
        sums = []
        for first in range(0, resamples, at_once):
            drawn = random.integers(n, size=(min(at_once, resamples - first), n))
            times = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
            sums.append(times @ blocks)
        return cls(blocks, np.concatenate(sums))

    def estimate(self, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], bases: int = 0) -> Estimate:
        """The value and interval of a statistic of the sums.

        Parameters
        ----------
        statistic : callable
            From sums (n, columns) to values (n,); NaN where a resample has nothing to measure.
        bases : int
            The column that counts what the statistic is a mean over.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(statistic(self.blocks.sum(axis=0)[None])[0])
            values = statistic(self.resampled)
        if np.count_nonzero(self.blocks[:, bases]) < 2:
            return Estimate(value, float("nan"), float("nan"))
        low, high = np.nanquantile(values, (0.025, 0.975))
        return Estimate(value, float(low), float(high))
