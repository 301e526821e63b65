"""SNVs by trinucleotide change, and where the ratio of one lies among those of others of its change."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.alphabet import BASES, reverse_complement

LEAST = 20
"""Of a change with fewer SNVs no percentile is given."""


@dataclasses.dataclass(frozen=True)
class Background:
    """Ratios of evenly spread SNVs, by trinucleotide change."""

    ratios: Mapping[str, NDArray[np.float64]]
    """Of each change, such as 'ACG>T' (the reference with a base on each side, the new middle base), ascending."""
    folded: bool
    """Whether a change stands for its reverse complement too, under the name that comes first in the alphabet."""
    where: str
    """Of which sequence the SNVs are, and how many, in words."""

    def percentile(self, change: str, llr: float) -> float:
        """The share in percent of the change's ratios below `llr`, and half of those equal to it.

        NaN where fewer than `LEAST` are known.

        Examples
        --------
        >>> background = Background({"ACG>T": np.arange(100.0)}, folded=True, where="")
        >>> background.percentile("ACG>T", 25.5), background.percentile("CGT>A", 25.0)
        (26.0, 25.5)
        """
        known = self.ratios.get(folded_change(change) if self.folded else change)
        if known is None or len(known) < LEAST:
            return math.nan
        return 50.0 * float(np.searchsorted(known, llr, "left") + np.searchsorted(known, llr, "right")) / len(known)


def trinucleotide_change(variant: Variant, genome: BaseSource) -> str | None:
    """The class of an SNV, such as 'ACG>T'; None for other variants, at a contig's ends, and beside other letters."""
    contig, start, ref, alt = variant
    if not (len(ref) == len(alt) == 1 and 0 < start < genome.lengths[contig] - 1):
        return None
    around = genome.fetch(contig, start - 1, start + 2)
    change = f"{around[0]}{ref}{around[2]}>{alt}"
    return change if set(change) <= set(BASES + ">") else None


def folded_change(change: str) -> str:
    """The name of a change and its reverse complement."""
    before, after = change.split(">")
    return min(change, f"{reverse_complement(before)}>{reverse_complement(after)}")
