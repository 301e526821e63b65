"""Where a variant is read: its window, and both haplotypes, on either strand."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant

Strand = Literal["+", "-"]


class Place(NamedTuple):
    """Where one strand of a variant is read. Positions count in reading direction: base p of '+' is -1 - p on '-'."""

    contig: str
    strand: Strand
    start: int
    """First base of the window."""
    offset: int
    """Bases of the window before the variant."""
    scored: int
    """Bases of each haplotype that are scored, from the variant on; 0 if the contig ends there."""
    near_edge: bool
    """Whether the contig's end took context, or bases after the variant."""


def check_window(window: int, context: int) -> None:
    """Nothing, if windows of so many bases can be read.

    Raises
    ------
    UsageError              not a multiple of 4, under 8, or more than the context
    """
    raise NotImplementedError


def longest_allele(window: int) -> int:
    """Bases of the longest allele, once normalised, that is scored in such windows: W / 4."""
    return window // 4


def place(variant: Variant, strand: Strand, window: int, length: int) -> Place:
    """The one place where a strand of a variant is read.

    Parameters
    ----------
    variant : Variant
        Normalised, its alleles no longer than `longest_allele`.
    strand : {'+', '-'}
    window : int
        W.
    length : int
        Of the contig.
    """
    raise NotImplementedError


def haplotypes(
    variant: Variant, place: Place, genome: BaseSource, *, look_back: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The window with the reference allele and with the alternative one, ASCII in reading direction, of one length.

    Parameters
    ----------
    look_back : int
        Bases before the window that come first, as far as the contig has them.

    Returns
    -------
    uint8 arrays (look back + offset + scored,)
    """
    raise NotImplementedError
