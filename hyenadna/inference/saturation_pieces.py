"""Regions in pieces whose substitutions are scored together, and the tables of one number for each of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.alphabet import BASES
from hyenadna.data.intervals import Region

_TOGETHER = 256
"""Bases that are scored between two writes: some seconds of a model's work on two CPUs."""


class Piece(NamedTuple):
    """Some bases of a region that are scored together."""

    number: int
    """Of the region, from 0."""
    region: Region
    start: int
    """On the contig, 0-based."""
    letters: str
    """The reference, upper case."""

    @property
    def variants(self) -> list[Variant]:
        """All substitutions of its A, C, G and T, from left to right, the alternatives in alphabetical order."""
        return [
            Variant(self.region.interval.contig, start, ref, alt)
            for start, ref in enumerate(self.letters, self.start)
            if ref in BASES
            for alt in BASES
            if alt != ref
        ]


def pieces(genome: BaseSource, regions: Sequence[Region]) -> Iterator[Piece]:
    """The regions in pieces, whose borders depend on the region alone."""
    for number, region in enumerate(regions):
        contig, first, end = region.interval.contig, region.interval.start, region.interval.end
        for start in range(first, end, _TOGETHER):
            yield Piece(number, region, start, genome.fetch(contig, start, min(start + _TOGETHER, end)))


def by_base(letters: str, values: Sequence[float], reference: float = 0.0) -> NDArray[np.float64]:
    """The values of all substitutions, (L, 4) for A, C, G, T.

    Parameters
    ----------
    letters : str
        L letters in upper case.
    values : sequence of float
        Of each substitution, in the order of `Piece.variants`.
    reference : float
        What stands for the reference's own base; NaN stands where the letter is not A, C, G or T.

    Examples
    --------
    >>> by_base("CN", [1.0, 2.0, 3.0]).tolist()
    [[1.0, 0.0, 2.0, 3.0], [nan, nan, nan, nan]]
    """
    own = np.array(list(letters))[:, None] == np.array(list(BASES))
    table = np.where(own, reference, np.nan)
    table[own.any(axis=1, keepdims=True) & ~own] = values
    return table
