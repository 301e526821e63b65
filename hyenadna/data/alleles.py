"""Alleles of variants: trimmed, and moved as far left as the reference allows, so that one change has one spelling."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

_STRETCH = 64
_LONGEST_STRETCH = 1 << 16


class Variant(NamedTuple):
    """One alternative allele at one place of a genome; letters in upper case."""

    contig: str
    """Name of the contig, as the genome has it."""
    start: int
    """The first base of `ref`, counted from 0; with an empty `ref`, the base before which `alt` is inserted."""
    ref: str
    """The bases that `alt` replaces, '' for an insertion whose anchor base was trimmed."""
    alt: str
    """The bases that stand there instead, '' for a deletion whose anchor base was trimmed."""


class BaseSource(Protocol):
    """What gives the bases of a genome: `hyenadna.data.reference_check.Genome`, or a fake in tests."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """Length of every contig in bases."""

    def fetch(self, contig: str, start: int, end: int) -> str:
        """The bases from `start` up to `end` (0-based, half-open) in upper case; the stretch is within the contig."""


def trimmed(variant: Variant) -> Variant:
    """The same change without the bases that both alleles end with, then without those that both begin with.

    Either allele may become ''. Equal alleles both do.

    Examples
    --------
    >>> trimmed(Variant("20", 99, "CTTA", "CTA"))
    Variant(contig='20', start=100, ref='T', alt='')
    >>> trimmed(Variant("20", 99, "ACA", "ATA"))
    Variant(contig='20', start=100, ref='C', alt='T')
    """
    contig, start, ref, alt = variant
    shorter = min(len(ref), len(alt))
    suffix = next((n for n in range(shorter) if ref[-1 - n] != alt[-1 - n]), shorter)
    ref, alt = ref[: len(ref) - suffix], alt[: len(alt) - suffix]
    shorter -= suffix
    prefix = next((n for n in range(shorter) if ref[n] != alt[n]), shorter)
    return Variant(contig, start + prefix, ref[prefix:], alt[prefix:])


def normalized(variant: Variant, source: BaseSource) -> Variant:
    """The one spelling of a change: trimmed, and an insertion or deletion as far left as the reference allows.

    Two variants of one contig, both with the `ref` that the genome holds, give the same result exactly if they make the
    same haplotype. Tan et al. 2015 (vt normalize, bcftools norm), section 2, with one departure: the anchor base that
    VCF puts before an insertion or deletion is removed, so that `start` is the first base that changes. A variant that
    replaces bases by others (neither allele is empty once trimmed) has nowhere to move.

    Cost: one pass over the bases that it moves, fetched in stretches that double, so that a long repeat is not
    quadratic.

    Parameters
    ----------
    variant : Variant
        Within its contig: `0 <= start` and `start + len(ref) <= source.lengths[contig]`.
    source : BaseSource

    Examples
    --------
    A deletion of one CA of a (CA)n repeat is that of its first, however it was written:

    >>> from types import SimpleNamespace
    >>> bases = "GGCACACATT"
    >>> genome = SimpleNamespace(lengths={"1": 10}, fetch=lambda contig, start, end: bases[start:end])
    >>> normalized(Variant("1", 5, "ACA", "A"), genome)
    Variant(contig='1', start=2, ref='CA', alt='')
    """
    variant = trimmed(variant)
    if bool(variant.ref) == bool(variant.alt):
        return variant
    contig, start = variant.contig, variant.start
    unit, stretch = variant.ref or variant.alt, _STRETCH
    while start:
        left = source.fetch(contig, max(0, start - stretch), start)
        moved = _common_suffix(left, left + unit)
        start, unit = start - moved, (left + unit)[len(left) - moved : len(left) - moved + len(unit)]
        if moved < len(left):
            break
        stretch = min(2 * stretch, _LONGEST_STRETCH)
    return Variant(contig, start, unit, "") if variant.ref else Variant(contig, start, "", unit)


def _common_suffix(left: str, longer: str) -> int:
    """How many bases both end with, by halving: comparing slices is far quicker than comparing letters."""
    if longer.endswith(left):
        return len(left)
    same, other = 0, len(left)  # the last `same` bases are equal, the last `other` are not
    while other - same > 1:
        middle = (same + other) // 2
        if longer.endswith(left[len(left) - middle :]):
            same = middle
        else:
            other = middle
    return same
