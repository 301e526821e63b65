"""What the log-likelihood ratios of all possible SNVs are like, by trinucleotide change: percentiles of HYENA_PCT."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource
from hyenadna.data.intervals import Interval

if TYPE_CHECKING:
    from hyenadna.inference.variant_scores import VariantScorer

PER_CLASS = 64
"""SNVs of each trinucleotide change that are scored."""
LEAST = 20
"""Of a change with fewer SNVs no percentile is given."""


@dataclasses.dataclass(frozen=True)
class Background:
    """Ratios of evenly spread SNVs, by trinucleotide change."""

    ratios: Mapping[str, NDArray[np.float64]]
    """Of each change, such as 'ACG>T' (the reference with a base on each side, the new middle base), ascending."""
    where: str
    """Which sequence the SNVs are of, in words."""

    def percentile(self, change: str, llr: float) -> float:
        """The share in percent of the change's ratios below `llr`, and half of those equal to it; NaN if few are known.
        """
        raise NotImplementedError


def held_out(split: Path, lengths: Mapping[str, int]) -> tuple[Interval, ...] | None:
    """The test part of a model's split.json that is one of this genome (same contigs, same lengths), if there is one.

    Raises
    ------
    InputError              the file is there, and cannot be read as splits
    """
    raise NotImplementedError


def background_of(
    scorer: "VariantScorer", intervals: Sequence[Interval] | None = None, *, fingerprint: str | None = None
) -> Background:
    """The background of a scorer: its model, genome, window, strand and dtype; from the cache folder if it is there.

    Parameters
    ----------
    scorer : VariantScorer
        It is left as it is; `scorer.background = background_of(scorer, ...)` makes it give percentiles.
    intervals : sequence of Interval, optional
        Where the SNVs lie: `held_out`. Default: the whole genome.
    fingerprint : str, optional
        Names the genome in the cache: `Genome.fingerprint`. Without it nothing is kept.
    """
    raise NotImplementedError
