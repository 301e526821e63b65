"""Files of in-silico saturation: a table with a line for each substitution, and HDF5 with a row for each base.

The table has the columns of the one that a VCF gives, `id` being the name of the region and `pos` 1-based, and the
region's strand behind them; bases other than A, C, G, T have no lines.

HDF5 holds, for all N bases of all regions end to end: `reference` (N,), letters; `llr`, `llr_markov` (N, 4) in nats and
`percentile` (N, 4), float64 for A, C, G, T on the forward strand, the ratios 0 and the percentile NaN for the
reference's own base, all NaN where that is not A, C, G or T; `flags` (N, 4) uint8, of which each bit is a flag that the
attribute `flags` names, the lowest first. Of the n regions: `contigs`, `starts`, `ends` (0-based, half-open), `names`,
`strands`, each (n,), and `offsets` (n + 1,), where each begins in the others. The other attributes say where the
numbers come from.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import BASES
from hyenadna.files import atomic_write
from hyenadna.inference.line_file import LineFile, cell, table_header
from hyenadna.inference.saturation_pieces import Piece, by_base
from hyenadna.inference.score_lines import COLUMNS, texts
from hyenadna.inference.variant_scores import Flag, VariantScore

FLAGS: tuple[Flag, ...] = get_args(Flag)
_HDF5 = (".h5", ".hdf5")
_KEY = 5
"""The first columns of a table, which say what was scored: contig, pos, id, ref, alt."""
_ROWS = 1 << 12
"""Of a chunk of HDF5."""


class SaturationFile(AbstractContextManager["SaturationFile"], Protocol):
    """A file to which pieces and the scores of their variants are added in order."""

    def holds(self, piece: Piece) -> bool:
        """Whether an earlier run wrote this piece."""

    def append(self, piece: Piece, scores: Sequence[VariantScore]) -> None:
        """Write a piece behind all others."""

    def finish(self) -> None:
        """Complete the file; without this it stays incomplete or is not put into its place."""


def saturation_file(path: Path | None, about: Mapping[str, Any], *, overwrite: bool = False) -> SaturationFile:
    """The file to write, by its suffix: HDF5, or a table; None is a table to stdout.

    Parameters
    ----------
    path : Path, optional
        A table grows as NAME.partial, and is continued by the same job after an interruption; HDF5 is put into its
        place when it is whole.
    about : mapping
        Where the numbers come from.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    UsageError              a table exists, or was begun by another job
    """
    if path is not None and path.suffix.lower() in _HDF5:
        return _Hdf5(path, about)
    return _Table(path, about, overwrite)


class SaturationLines:
    """One line a substitution, named by its first columns."""

    as_json = False

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the numbers come from, and the names of the columns."""
        return table_header({"pos": "1-based", "alleles": "of the forward strand"} | dict(about), (*COLUMNS, "strand"))

    def line(self, name: str, values: tuple[VariantScore, str]) -> str:
        """The line of one substitution: its scores and the strand of its region."""
        score, strand = values
        return "\t".join((name, *texts(score), strand)) + "\n"

    def name(self, line: str) -> str:
        """What was scored in a line."""
        return "\t".join(line.split("\t", _KEY)[:_KEY])


class _Table:
    def __init__(self, path: Path | None, about: Mapping[str, Any], overwrite: bool) -> None:
        self.file = LineFile(path, SaturationLines(), about, overwrite=overwrite)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.file.__exit__(*failure)

    def holds(self, piece: Piece) -> bool:
        return self.file.holds(_names(piece))

    def append(self, piece: Piece, scores: Sequence[VariantScore]) -> None:
        strand = piece.region.strand or "."
        self.file.append(_names(piece), [(score, strand) for score in scores])

    def finish(self) -> None:
        self.file.finish()


def _names(piece: Piece) -> list[str]:
    region = cell(piece.region.name or ".")
    return [f"{contig}\t{start + 1}\t{region}\t{ref}\t{alt}" for contig, start, ref, alt in piece.variants]


class _Hdf5:
    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        self.regions: list[Piece] = []
        """The first piece of each region."""
        self.offsets = [0]

    def __enter__(self) -> "_Hdf5":
        import h5py

        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            file = self.file = stack.enter_context(h5py.File(temporary, "w"))
            file.attrs.update(self.about | {"bases": list(BASES), "flags": list(FLAGS)})
            for name, kind in {"llr": "f8", "llr_markov": "f8", "percentile": "f8", "flags": "u1"}.items():
                file.create_dataset(name, (0, 4), kind, maxshape=(None, 4), chunks=(_ROWS, 4))
            file.create_dataset("reference", (0,), "S1", maxshape=(None,), chunks=(_ROWS,))
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, traceback)

    def holds(self, piece: Piece) -> bool:
        return False

    def append(self, piece: Piece, scores: Sequence[VariantScore]) -> None:
        letters = piece.letters
        columns: dict[str, NDArray[Any]] = {
            "reference": np.array(list(letters), dtype="S1"),
            "llr": by_base(letters, [score.llr for score in scores]),
            "llr_markov": by_base(letters, [score.markov for score in scores]),
            "percentile": by_base(letters, [score.percentile for score in scores], reference=np.nan),
            "flags": np.nan_to_num(by_base(letters, [_bits(score.flags) for score in scores])).astype(np.uint8),
        }
        for name, values in columns.items():
            rows = self.file[name]
            rows.resize(len(rows) + len(values), axis=0)
            rows[-len(values) :] = values
        if len(self.regions) == piece.number:
            self.regions.append(piece)
            self.offsets.append(self.offsets[-1])
        self.offsets[-1] += len(letters)

    def finish(self) -> None:
        regions = [piece.region for piece in self.regions]
        self.file["contigs"] = [region.interval.contig for region in regions]
        self.file["starts"] = [region.interval.start for region in regions]
        self.file["ends"] = [region.interval.end for region in regions]
        self.file["names"] = [region.name for region in regions]
        self.file["strands"] = [region.strand for region in regions]
        self.file["offsets"] = self.offsets


def _bits(flags: Sequence[Flag]) -> int:
    return sum(1 << FLAGS.index(flag) for flag in flags)
