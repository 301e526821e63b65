"""All single-base substitutions of the regions of a BED file, scored as variants: in-silico saturation.

The numbers are those that `VariantScorer.score` gives for the same variants in a VCF, always of the genome's forward
strand; the strand of a BED line is kept beside them and changes none of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from hyenadna.data.intervals import Region

if TYPE_CHECKING:
    from hyenadna.data.alleles import BaseSource, Variant
    from hyenadna.inference.variant_scores import VariantScore


class Scorer(Protocol):
    """What scores variants, as `VariantScorer` does."""

    @property
    def genome(self) -> "BaseSource":
        """The reference."""

    def score(self, variants: "Sequence[Variant]") -> "list[VariantScore]":
        """The scores of variants, in their order."""


class Saturated(NamedTuple):
    """What a job came to."""

    regions: int
    substitutions: int
    """In the file."""
    earlier: int
    """Of these, scored by an earlier run of the same job."""


def saturate(
    scorer: Scorer,
    regions: Sequence[Region],
    out: Path | None,
    about: Mapping[str, Any],
    *,
    plot: Path | None = None,
    overwrite: bool = False,
) -> Saturated:
    """Score all substitutions of each region into a file, in the order of the regions.

    Parameters
    ----------
    scorer : Scorer
        A built `VariantScorer`.
    regions : sequence of Region
        As `hyenadna.data.intervals.read_bed` gives them, checked against the genome's contigs. They may overlap.
    out : Path, optional
        NAME.h5 or NAME.hdf5 for HDF5, which is put into its place when it is whole; any other name for TSV, which grows
        as NAME.partial and is continued by the same job after an interruption. None: TSV to stdout.
    about : mapping
        Where the numbers come from: model, genome, window, strand, `command` and so on, written into the header; a TSV
        is continued if all of it but the `command` is the same.
    plot : Path, optional
        NAME.png for a logo and heat-map of the first region.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    UsageError              `out` or `plot` exists, or was begun by another job; the first region is too long to plot
    WriteError              the disk is full
    """
    raise NotImplementedError
