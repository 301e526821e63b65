"""Where a variant is read: its window on either strand, and both haplotypes in it.

Windows of W bases lie on a fixed grid with step W / 4, on '+' from base 0 of the contig. A variant uses the one in
which its first base falls in [W / 2, 3 W / 4). Of both haplotypes W / 4 bases and as many more as the longer allele has
are scored, from the variant on; the haplotype of the shorter allele reaches as much further into the reference.
On '-' the same windows are read the other way round: all this holds of the reverse complement, with the variant's last
base in the place of its first. So a variant is read in one window a strand, whatever else is read.

A haplotype is never longer than W: what a long allele at the end of its range has too many, the window lacks at its
beginning, and of context at least W / 2 remain (as no allele is longer than W / 4).

Positions count in reading direction: base p of '+' is base -1 - p of '-', which begins at minus the contig's length.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.alphabet import reverse_complement
from hyenadna.errors import UsageError

Sign = Literal["+", "-"]


class Place(NamedTuple):
    """Where one strand of a variant is read."""

    contig: str
    sign: Sign
    start: int
    """First base that is read, in reading direction."""
    cut: int
    """Bases of the window before it that the contig does not have."""
    offset: int
    """Bases that are read before the variant."""
    scored: int
    """Bases of each haplotype from the variant on; 0 where the contig has none for one of them."""
    near_edge: bool
    """Whether the contig's ends took context, or bases behind the variant."""

    @property
    def window(self) -> "Place":
        """What the places of one window have in common."""
        return self._replace(offset=0, scored=0, near_edge=False)


def check_window(window: int, context: int) -> None:
    """Nothing, if a model of so much context can read windows of so many bases.

    Raises
    ------
    UsageError              not a multiple of 4, under 8, or more than the context
    """
    if window < 8 or window % 4:
        raise UsageError(
            f"a window of {window:,} bases was asked for; it must be a multiple of 4 and at least 8, since half of it "
            "is context and a quarter is scored"
        )
    if window > context:
        raise UsageError(
            f"a window of {window:,} bases was asked for; this model reads up to {context:,}: the largest window is "
            f"{context - context % 4:,}, or take a model with a longer context"
        )


def longest_allele(window: int) -> int:
    """Bases of the longest allele, once normalised, that is scored in such windows: W / 4."""
    return window // 4


def place(variant: Variant, sign: Sign, window: int, length: int) -> Place:
    """The one place where a strand of a variant is read.

    Parameters
    ----------
    variant : Variant
        Normalised, within its contig, no allele longer than `longest_allele`.
    sign : {'+', '-'}
    window : int
        W.
    length : int
        Of the contig in bases.

    Examples
    --------
    >>> place(Variant("20", 700, "C", "T"), "+", 1024, 5000)
    Place(contig='20', sign='+', start=0, cut=0, offset=700, scored=257, near_edge=False)
    >>> place(Variant("20", 768, "C", "T"), "+", 1024, 5000).start
    256
    """
    contig, start, ref, alt = variant
    first, begin, end = start, 0, length
    if sign == "-":
        first, begin, end = -start - len(ref), -length, 0
    quarter = window // 4
    longer, shorter = sorted((len(ref), len(alt)), reverse=True)
    whole = quarter + longer
    scored = min(whole, shorter + end - first - len(ref))
    grid = (first // quarter - 2) * quarter
    grid += max(0, first + whole - grid - window)
    cut = max(0, begin - grid)
    return Place(contig, sign, grid + cut, cut, first - grid - cut, scored, cut > 0 or scored < whole)


def window_letters(at: Place, window: int, genome: BaseSource) -> NDArray[np.uint8]:
    """The whole window as the genome has it, ASCII in reading direction, up to (W - cut,)."""
    length = genome.lengths[at.contig]
    begin, end = at.start, at.start - at.cut + window
    if at.sign == "+":
        letters = genome.fetch(at.contig, begin, min(end, length))
    else:
        letters = reverse_complement(genome.fetch(at.contig, max(0, -end), -begin))
    return np.frombuffer(letters.encode(), dtype=np.uint8)


def haplotypes(
    variant: Variant, at: Place, genome: BaseSource, *, look_back: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What is read with the reference allele and with the alternative one, both up to the last scored base.

    Parameters
    ----------
    variant : Variant
        As it was given to `place`.
    at : Place
        Of this variant.
    genome : BaseSource
    look_back : int
        Bases before the window that come first, as many of them as the contig has.

    Returns
    -------
    uint8 arrays (look back + offset + scored,)
        ASCII in reading direction.
    """
    contig, start, ref, alt = variant
    length, end = genome.lengths[contig], start + len(ref)
    before, after = at.offset + look_back, at.scored
    if at.sign == "+":
        left = genome.fetch(contig, max(0, start - before), start)
        right = genome.fetch(contig, end, min(length, end + after))
    else:
        left = reverse_complement(genome.fetch(contig, end, min(length, end + before)))
        right = reverse_complement(genome.fetch(contig, max(0, start - after), start))
        ref, alt = reverse_complement(ref), reverse_complement(alt)
    both = ((left + allele + right)[: len(left) + after].encode() for allele in (ref, alt))
    reference, alternative = (np.frombuffer(letters, dtype=np.uint8) for letters in both)
    return reference, alternative
