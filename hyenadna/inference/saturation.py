"""All single-base substitutions of the regions of a BED file, scored as variants: in-silico saturation.

The numbers are those that `VariantScorer.score` gives for the same variants in a VCF, always of the genome's forward
strand; the strand of a BED line is kept beside them and changes none of them. Regions may overlap: each has all of its
own substitutions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.intervals import Region
from hyenadna.errors import UsageError
from hyenadna.inference.saturation_files import saturation_file
from hyenadna.inference.saturation_pieces import Piece, by_base, pieces
from hyenadna.inference.variant_scores import VariantScore
from hyenadna.progress import notice, progress

MOST_PLOTTED = 400
"""Bases of a region that is drawn."""


class Scorer(Protocol):
    """What scores variants, as `VariantScorer` does."""

    @property
    def genome(self) -> BaseSource:
        """The reference."""

    def score(self, variants: Sequence[Variant]) -> list[VariantScore]:
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
    UsageError              as `check_places`; or a TSV was begun by another job
    InputError              a TSV was begun with other regions
    WriteError              the disk is full
    """
    check_places(regions, out, plot, overwrite=overwrite)
    drawn = list[tuple[Piece, NDArray[np.float64]]]()
    substitutions = earlier = 0
    bases = sum(len(region.interval) for region in regions)
    with saturation_file(out, about, overwrite=overwrite) as file, progress("saturation", bases) as job:
        for piece in pieces(scorer.genome, regions):
            variants = piece.variants
            substitutions += len(variants)
            there, to_draw = file.holds(piece), plot is not None and piece.number == 0
            if there:
                earlier += len(variants)
            if not there or to_draw:
                scores = scorer.score(variants)
                if not there:
                    file.append(piece, scores)
                if to_draw:
                    drawn.append((piece, by_base(piece.letters, [score.llr for score in scores])))
            job.advance(len(piece.letters), str(piece.region.interval))
        file.finish()
    if plot is not None:
        _plot(drawn, regions, plot, str(about.get("model", "")))
    return Saturated(len(regions), substitutions, earlier)


def check_places(regions: Sequence[Region], out: Path | None, plot: Path | None, *, overwrite: bool = False) -> None:
    """See before any work is done that its results have a place.

    Raises
    ------
    UsageError              a file exists and may not be replaced; OUT is to be compressed; the first region is too long
                            to plot, or the plot's name does not end in .png
    """
    for flag, path in (("-o", out), ("--plot", plot)):
        if path is not None and path.exists() and not overwrite:
            raise UsageError(f"{flag} {path} exists; give another name, or --overwrite to replace it")
    if out is not None and out.suffix.lower() == ".gz":
        raise UsageError(f"-o {out}: substitutions of regions are written plain, or as HDF5; name a .tsv or a .h5")
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: the plot is a PNG file; give a name that ends in .png")
    if len(first := regions[0].interval) > MOST_PLOTTED:
        raise UsageError(
            f"--plot draws the first region, {first}, which has {len(first):,} bases; it takes up to {MOST_PLOTTED}: "
            "put a shorter one first, or leave --plot out"
        )


def _plot(
    drawn: Sequence[tuple[Piece, NDArray[np.float64]]], regions: Sequence[Region], path: Path, model: str
) -> None:
    from hyenadna.inference.saturation_plots import saturation_figure
    from hyenadna.plots import write_png

    letters = "".join(piece.letters for piece, _ in drawn)
    interval, name, _ = regions[0]
    ratios = np.concatenate([own for _, own in drawn])
    said = (name if name != "." else "", str(interval), f"by {model}" if model else "")
    title = ", ".join(part for part in said if part)
    write_png(saturation_figure(interval, letters, ratios, title=title), path)
    if len(regions) > 1:
        notice(f"{path} shows the first of {len(regions):,} regions, {interval}")
