"""Log-likelihoods of a stream of sequences as a table, a line each, or as a bedGraph track, a line each base."""

import itertools
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.fasta import parse_records
from hyenadna.data.intervals import Interval, parse_bed
from hyenadna.data.opened import named, text_lines
from hyenadna.data.packed import packed
from hyenadna.data.sequence_files import check_strand, open_sequences
from hyenadna.errors import IntervalError, UsageError
from hyenadna.inference.likelihood import Strand
from hyenadna.inference.likelihood_stretches import LikelihoodReader, Stretch, Total, scored_bases
from hyenadna.inference.line_file import LineFile, cell, described, json_line, table_header
from hyenadna.inference.sequence_chunks import chunks
from hyenadna.progress import progress

_COLUMNS = ("id", "length", "scored_bases", "nats", "bits_per_base")
_OPPOSITE: Mapping[Strand, Strand] = {"forward": "reverse", "reverse": "forward", "both": "both"}


class TotalLines:
    """One line a sequence: id, length, bases scored, nats, bits per base; this last is empty where none is scored."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the numbers come from, in one line, and the columns of a TSV."""
        return json_line(about) if self.as_json else table_header(about, _COLUMNS)

    def line(self, name: str, values: Total) -> str:
        """The line of one sequence."""
        scored = int(values.scored) if values.scored.is_integer() else values.scored
        bits = values.bits_per_base
        if self.as_json:
            rounded = None if math.isnan(bits) else round(bits, 6)
            numbers = (name, values.length, scored, round(values.nats, 4), rounded)
            return json_line(dict(zip(_COLUMNS, numbers, strict=True)))
        text = "" if math.isnan(bits) else f"{bits:.6f}"
        return f"{cell(name)}\t{values.length}\t{scored}\t{values.nats:.4f}\t{text}\n"

    def name(self, line: str) -> str:
        """The id in a line."""
        return str(json.loads(line)["id"]) if self.as_json else line.split("\t", 1)[0]


class TrackLines:
    """One line a base that is scored: contig, start, end (0-based, half-open), ln p; named by contig and start."""

    as_json = False

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the numbers come from, as a comment, and the line by which genome browsers know a track."""
        strand = str(about.get("strands", "")).replace('"', "'")
        model = Path(str(about.get("model", "model"))).name.replace('"', "'")
        return (
            f"# {described(about)}\n"
            f'track type=bedGraph name="ln p, {model}" description="ln p of each base, in nats, by {model}; {strand}" '
            "visibility=full autoScale=on\n"
        )

    def line(self, name: str, values: float) -> str:
        """The line of one base."""
        start = int(name.rpartition("\t")[2])
        return f"{name}\t{start + 1}\t{values:.4f}\n"

    def name(self, line: str) -> str:
        """Contig and start of a line."""
        return "\t".join(line.split("\t", 2)[:2])


def write_totals(reader: LikelihoodReader, source: Iterable[tuple[str, str]], file: LineFile[Total]) -> int:
    """Write the likelihoods of a stream of (id, sequence), in order and in the memory of the longest; how many.

    Raises
    ------
    InputError              no sequence, an empty one, or a letter that is no nucleotide; other sequences than those
                            which the file already holds
    NotFiniteError          the model gives something that is not a number
    WriteError              the disk is full; what was written is kept
    """
    parts = chunks(source, n_token=reader.model.config.n_token, bases=reader.bases)
    return file.fill(reader, parts, "likelihood")


class Placed(NamedTuple):
    """A stretch of a genome: the bases of its forward strand, and which strand is meant."""

    interval: Interval
    reverse: bool
    sequence: str


def placed_sequences(source: str, fasta: Path | None = None) -> Iterator[Placed]:
    """The records of a FASTA file, or the regions of a BED file in their order, one after another.

    Parameters
    ----------
    source : str
        FASTA or BED, plain or gzip, or '-' for standard input.
    fasta : Path, optional
        The genome of a BED file.

    Raises
    ------
    UsageError              the file is a table, whose sequences have no coordinates; as in `open_sequences`
    FastaError              malformed, or two records of one name
    IntervalError           as in `read_bed`; or two regions overlap
    InputError              unreadable; a strand that is not '+', '-' or '.'
    """
    with open_sequences(source, fasta) as (kind, _, file):
        if kind == "fasta":
            for record in parse_records(file, named(source)):
                whole = Interval(record.name, 0, len(record.sequence))
                yield Placed(whole, reverse=False, sequence=record.sequence.tobytes().decode())
            return
        if kind != "bed" or fasta is None:
            raise UsageError(
                f"{named(source)} is a table, whose sequences have no coordinates; a track needs FASTA or BED"
            )
        genome = packed(fasta)
        lines = ((number, line.rstrip("\r\n")) for number, line in text_lines(file, source))
        regions = list(parse_bed(lines, named(source), genome.lengths))
        _refuse_overlaps([region.interval for region in regions], named(source))
        for region in regions:
            check_strand(region, named(source))
            yield Placed(region.interval, region.strand == "-", genome.fetch(region.interval).tobytes().decode())


def write_track(reader: LikelihoodReader, source: Iterable[Placed], file: LineFile[float]) -> int:
    """Write the log-likelihood of each base that is scored, by its place in the genome; how many there are.

    Of a region on the strand '-' that strand is what `forward` reads.

    Raises
    ------
    InputError              there is no sequence; other ones than those which the file already holds
    NotFiniteError          the model gives something that is not a number
    WriteError              the disk is full; what was written is kept
    """
    places = deque[tuple[Interval, Strand]]()

    def pairs() -> Iterator[tuple[str, str]]:
        for interval, reverse, sequence in source:
            places.append((interval, _OPPOSITE[reader.strand] if reverse else reader.strand))
            yield str(interval), sequence

    bases = 0
    with file, progress("likelihood", 0) as job:
        for chunk in chunks(pairs(), n_token=reader.model.config.n_token, bases=reader.bases):
            own = [places.popleft() for _ in chunk.ids]
            strands = [strand for _, strand in own]
            scored = [scored_bases(tokens, strand) for tokens, strand in zip(chunk.tokens, strands, strict=True)]
            for some, read in reader.parts(chunk.tokens, strands):
                names = [name for stretch in some for name in _names(own[stretch.row][0], scored[stretch.row], stretch)]
                if not file.holds(names):
                    values = [found.per_base for found in read()]
                    file.append(names, [value for row in values for value in row[~np.isnan(row)].tolist()])
                    job.advance(sum(map(len, values)), own[some[-1].row][0].contig)
            bases += sum(int(own.sum()) for own in scored)
        file.finish()
    return bases


def _names(interval: Interval, scored: NDArray[np.bool_], stretch: Stretch) -> list[str]:
    """Contig and start of each base of a stretch that is scored."""
    places = np.flatnonzero(scored[stretch.start : stretch.end]) + interval.start + stretch.start
    return [f"{interval.contig}\t{place}" for place in places.tolist()]


def _refuse_overlaps(intervals: Sequence[Interval], source: str) -> None:
    ordered = sorted(intervals)
    for one, other in itertools.pairwise(ordered):
        if one.contig == other.contig and other.start < one.end:
            raise IntervalError(
                f"{source} has the regions {one} and {other}, which overlap; a track has one value for each base: "
                "merge them, or write a track for each"
            )
