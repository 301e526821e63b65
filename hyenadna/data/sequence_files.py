"""Sequences one after another out of any file that holds some, in flat memory: tables, FASTA, BED with a genome."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from hyenadna.data.alphabet import IUPAC, reverse_complement
from hyenadna.data.columns import id_column, sequence_column
from hyenadna.data.fasta import parse_records
from hyenadna.data.intervals import Region, parse_bed
from hyenadna.data.opened import Format, beginning, format_of, named, opened, text_lines
from hyenadna.data.packed import packed
from hyenadna.data.table_file import Table, table_of
from hyenadna.errors import InputError, UsageError

_UPPER = bytes(range(256)).upper().replace(b"U", b"T")
_ALLOWED = IUPAC.encode()


def stream(
    source: str | Path, *, fasta: Path | None = None, seq_col: str | None = None, id_col: str | None = None
) -> Iterator[tuple[str, str]]:
    """The names and sequences of a file, in its order, in the memory of the longest sequence.

    Parameters
    ----------
    source : str or Path
        CSV, TSV, JSONL, FASTA or BED, plain or gzip; Parquet; or '-', standard input, which is FASTA if it begins with
        '>', JSONL if it begins with '{', BED if `fasta` is given, and else CSV or TSV by its header.
    fasta : Path, optional
        The genome of a BED file: FASTA, plain, gzip or BGZF, of which a pack is made, or a pack. Regions on the strand
        '-' are given as their reverse complement.
    seq_col, id_col : str, optional
        Columns of a table; by default known by their name, the sequences also by what they hold.

    Yields
    ------
    tuple of str
        The name: the id column, else the number of the row from 1; the first word of a FASTA header; the name of a BED
        region, else contig:start-end (1-based, inclusive). The sequence: upper case, U as T.

    Raises
    ------
    InputError              unreadable or malformed; a sequence that is empty or has what is no nucleotide, with its row
    UsageError              a column that does not exist, or of a file that has none; a BED file without a genome, or a
                            genome without a BED file
    MissingExtra            Parquet without pyarrow
    """
    source = str(source)
    with open_sequences(source, fasta) as (kind, first, file):
        if kind in ("fasta", "bed"):
            refuse_columns(f"{named(source)} is {kind.upper()}", {"--seq-col": seq_col, "--id-col": id_col})
        if kind == "fasta":
            for record in fasta_records(file, source):
                yield record.name, record.sequence
        elif kind == "bed":
            assert fasta is not None  # open_sequences asks for it
            for region in bed_regions(file, source, fasta):
                yield region.name, region.sequence
        else:
            yield from _rows(table_of(file, source, first, kind), seq_col, id_col)


@contextlib.contextmanager
def open_sequences(source: str, fasta: Path | None) -> Iterator[tuple[Format, bytes, IO[bytes]]]:
    """The kind of a file that holds sequences, its first line and its bytes from the beginning.

    Raises
    ------
    InputError              the file is unreadable, empty, or of another kind
    UsageError              a BED file without a genome, or a genome without a BED file
    """
    with opened(source) as file:
        first, file = beginning(file)
        kind = format_of(source, first)
        if kind == "bed" and fasta is None:
            raise UsageError(f"{source} is a BED file; --fasta names the genome that it speaks of")
        if fasta is not None and kind == "delimited":
            kind = "bed"
        if fasta is not None and kind != "bed":
            raise UsageError(f"--fasta is the genome of a BED file, but {named(source)} is {kind}; leave --fasta out")
        yield kind, first, file


def refuse_columns(what: str, given: Mapping[str, str | None]) -> None:
    """Raise UsageError if a flag names a column where there are none: what is `what`, in words."""
    for flag, column in given.items():
        if column is not None:
            raise UsageError(f"{flag} {column}: {what}, which has no columns by name; leave it out")


def nucleotides(text: str, place: str) -> str:
    """A sequence in upper case, U as T, without blanks around it.

    Raises
    ------
    InputError              it is empty or holds what is no nucleotide code; names `place`

    Examples
    --------
    >>> nucleotides(" acguN", "line 2")
    'ACGTN'
    """
    text = text.strip()
    if not text:
        raise InputError(f"{place} has an empty sequence; each needs at least one base: remove the row or complete it")
    if not text.isascii() or (text.encode().translate(_UPPER, _ALLOWED + _ALLOWED.lower())):
        at, letter = next((at, letter) for at, letter in enumerate(text, 1) if letter not in IUPAC + IUPAC.lower())
        raise InputError(
            f"{place} has {letter!r} at position {at:,} of its sequence, which is no nucleotide; "
            f"allowed are {IUPAC} in either case"
        )
    return text.encode().translate(_UPPER).decode()


class FastaRecord(NamedTuple):
    """One record of a FASTA file, checked."""

    name: str
    description: str
    sequence: str


class BedSequence(NamedTuple):
    """One region of a BED file and its bases, on its own strand."""

    name: str
    """The name in the file, or contig:start-end (1-based, inclusive)."""
    coordinates: str
    given_name: str
    """The fourth column, '' where there is none."""
    contig: str
    sequence: str


def fasta_records(file: IO[bytes], source: str) -> Iterator[FastaRecord]:
    """The records of an open FASTA file; names may repeat."""
    for record in parse_records(file, named(source), unique=False):
        yield FastaRecord(record.name, record.description, record.sequence.tobytes().translate(_UPPER).decode())


def bed_regions(file: IO[bytes], source: str, fasta: Path) -> Iterator[BedSequence]:
    """The regions of an open BED file with their sequences from the genome `fasta`.

    Raises
    ------
    InputError              a strand that is not '+', '-' or '.'
    IntervalError           a malformed line, an unknown contig, a region off its end
    FastaError              the genome is not readable FASTA
    WriteError              there is no room for the genome's pack
    """
    genome = packed(fasta)
    lines = ((number, line.rstrip("\r\n")) for number, line in text_lines(file, source))
    for region in parse_bed(lines, named(source), genome.lengths):
        contig, start, end = region.interval.contig, region.interval.start, region.interval.end
        coordinates = f"{contig}:{start + 1}-{end}"
        check_strand(region, named(source))
        bases = genome.fetch(region.interval).tobytes().translate(_UPPER).decode()
        name = "" if region.name == "." else region.name
        sequence = reverse_complement(bases) if region.strand == "-" else bases
        yield BedSequence(name or coordinates, coordinates, name, contig, sequence)


def check_strand(region: Region, source: str) -> None:
    """Raise InputError if the sixth column of a BED line, in the file that messages call `source`, is no strand."""
    if region.strand not in ("", ".", "+", "-"):
        contig, start, end = region.interval.contig, region.interval.start, region.interval.end
        raise InputError(
            f"{source}: {contig}:{start + 1}-{end} has the strand {region.strand!r} in its sixth column; "
            "allowed are +, - and ."
        )


def _rows(table: Table, seq_col: str | None, id_col: str | None) -> Iterator[tuple[str, str]]:
    sequence, name = sequence_column(table, seq_col), id_column(table, id_col)
    columns = (sequence,) if name is None else (sequence, name)
    for row, (number, fields) in enumerate(table.read(columns), 1):
        given = "" if name is None else fields[1].strip()
        yield given or str(row), nucleotides(fields[0], table.place(number))
