"""FASTA files: a fast stream of whole records, and random access through a checked index."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data import faidx
from hyenadna.data.alphabet import IUPAC
from hyenadna.data.compressed import compression, open_stream
from hyenadna.errors import FastaError, StaleIndexError
from hyenadna.files import beside_or_cached, lock, writable

if TYPE_CHECKING:
    import pyfaidx

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20
_COMMON = b"ACGTUNacgtun"
_ALLOWED = (IUPAC + IUPAC.lower()).encode()
FOREIGN = {
    b"@": "a FASTQ file",
    b"##fileformat=VCF": "a VCF file",
    b"LOCUS ": "a GenBank file",
    b"%PDF-": "a PDF file",
    b"BAM\x01": "a BAM file",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "compressed by bzip2; decompress it or use bgzip",
    b"\xfd7zXZ": "compressed by xz; decompress it or use bgzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it or use bgzip",
    b"PK\x03\x04": "a ZIP archive; unpack it",
}
"""First bytes of files that people take for sequences."""


class Record(NamedTuple):
    """One sequence of a FASTA file."""

    name: str
    """The first word of the header."""
    sequence: NDArray[np.uint8]
    """uint8 (L,): ASCII bytes as they stand in the file, case kept, line ends removed."""
    description: str = ""
    """The header behind the name, its words separated by one blank."""


def read_records(path: Path) -> Iterator[Record]:
    """The records of a FASTA file, plain, gzip or BGZF (told apart by their first bytes), one after another.

    Line lengths, blank lines, CRLF and lower case do not matter. Memory: the longest record.

    Parameters
    ----------
    path : Path
        The file, or a named pipe.

    Raises
    ------
    FastaError
        The file cannot be read, is empty, truncated, or does not begin with '>'; a record has no name, the name of an
        earlier one, no sequence, or a character that is no IUPAC nucleotide code.
    """
    with open_stream(Path(path)) as stream:
        yield from parse_records(stream, str(path))


def parse_records(stream: IO[bytes], source: str, *, unique: bool = True) -> Iterator[Record]:
    """The records of a FASTA file that is open and decompressed.

    Parameters
    ----------
    stream : binary file
    source : str
        What messages call the file.
    unique : bool
        Refuse a name that an earlier record has, which takes memory for every name.

    Raises
    ------
    FastaError              as `read_records`
    """
    parser = _Parser(source, unique)
    while chunk := stream.read(_CHUNK):
        yield from parser.feed(chunk)
    yield from parser.close()


class _Parser:
    """Turns chunks of a FASTA file, cut anywhere, into records."""

    def __init__(self, path: str, unique: bool) -> None:
        self.path, self.unique, self.name, self.description = path, unique, "", ""
        self.names, self.count = set[str](), 0
        self.sequence, self.strange = bytearray(), 0
        self.header: bytearray | None = None
        self.started = False
        self.at_line_start = True

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """The records that end in this chunk."""
        if not self.started:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()
            self._check_beginning(chunk)
        position = 0
        while position < len(chunk):
            if self.header is None:
                mark = self._next_header(chunk, position)
                self._extend(chunk[position : mark if mark >= 0 else None])
                if mark < 0:
                    return
                yield from self.close_record()
                self.header, position = bytearray(), mark + 1
            end = chunk.find(b"\n", position)
            self.header += chunk[position : end if end >= 0 else None]
            if len(self.header) > _LONGEST_HEADER:
                raise FastaError(f"{self.path} has a header of more than {_LONGEST_HEADER} characters; is this FASTA?")
            if end < 0:
                return
            self._begin_record()
            position = end + 1

    def close(self) -> Iterator[Record]:
        """The last record."""
        if not self.started:
            raise FastaError(f"{self.path} is empty; give a FASTA file, plain, gzip or BGZF")
        if self.header is not None:
            self._begin_record()
        yield from self.close_record()

    def close_record(self) -> Iterator[Record]:
        """The record that is being read, if there is one."""
        if not self.name:
            return
        if not self.sequence:
            raise FastaError(f"{self.path}: the record {self.name!r} has no sequence; remove it or complete the file")
        if len(self.sequence) >= 20 and 2 * self.strange > len(self.sequence):
            raise FastaError(
                f"{self.path}: more than half of the record {self.name!r} are ambiguity codes; "
                "is this protein? Sequences must be DNA or RNA"
            )
        yield Record(self.name, np.frombuffer(self.sequence, dtype=np.uint8), self.description)
        self.sequence, self.strange = bytearray(), 0

    def _check_beginning(self, chunk: bytes) -> None:
        if chunk and not chunk.startswith(b">"):
            looks = next((text for magic, text in FOREIGN.items() if chunk.startswith(magic)), "")
            raise FastaError(
                f"{self.path} does not begin with '>' but with {repr(chunk[:12])[1:]}"
                + (f" (it looks like {looks})" if looks else "")
                + "; give a FASTA file, plain, gzip or BGZF"
            )
        self.started = bool(chunk)

    def _next_header(self, chunk: bytes, position: int) -> int:
        if self.at_line_start and chunk.startswith(b">", position):
            return position
        mark = chunk.find(b"\n>", position)
        return mark + 1 if mark >= 0 else -1

    def _begin_record(self) -> None:
        assert self.header is not None
        words = self.header.decode("utf-8", "replace").split()
        if not words or not words[0].isprintable():
            raise FastaError(
                f"{self.path}: the header {bytes(self.header[:40])!r} after record {self.count} has no name; "
                "a header is '>', a name without spaces, and any text"
            )
        self.name, self.description = words[0], " ".join(words[1:])
        self.header, self.at_line_start = None, True
        self.count += 1
        if self.unique and self.name in self.names:
            raise FastaError(f"{self.path} has two records named {self.name!r}; names must differ: rename one")
        if self.unique:
            self.names.add(self.name)

    def _extend(self, text: bytes) -> None:
        bases = text.translate(None, b"\r\n")
        strange = bases.translate(None, _COMMON)
        if strange.translate(None, _ALLOWED):
            position, letter = next((i, letter) for i, letter in enumerate(bases) if letter not in _ALLOWED)
            raise FastaError(
                f"{self.path}: the record {self.name!r} has {chr(letter)!r} at position "
                f"{len(self.sequence) + position + 1:,}, which is no nucleotide; allowed are {IUPAC} in either case "
                "(gaps, stops and proteins are not DNA)"
            )
        self.strange += len(strange)
        self.sequence += bases
        self.at_line_start = text.endswith(b"\n") if text else self.at_line_start


def open_reference(path: Path) -> "pyfaidx.Fasta":
    """A FASTA file, plain or BGZF, for random access; out of bounds is an error, not a shorter sequence.

    The index is built once, beside the file or, if its folder is read-only, in the user's cache, where an outdated one
    is replaced. Open it anew in every process: pyfaidx is not safe to share.

    Raises
    ------
    FastaError              unreadable, plain gzip, or lines of different lengths, which no index can describe
    StaleIndexError         an index beside the file is older, or the index does not fit it; says which to delete
    """
    path = Path(path)
    compressed = compression(path)
    if compressed == "gzip":
        raise FastaError(
            f"{path} is compressed by gzip, which allows no random access; compress it by bgzip: "
            f"gunzip -c {path.name} | bgzip > {path.stem}.bgz"
        )
    if (compressed == "bgzf") != path.name.lower().endswith((".gz", ".bgz")):  # pyfaidx goes by the name
        raise FastaError(
            f"{path} is {compressed}, but its name says otherwise; the names of BGZF files alone end in .gz"
        )
    beside, cached = beside_or_cached(path, ".fai", "indexes")
    index = beside if beside.exists() or writable(path.parent) else cached
    wanted = [index] if compressed == "plain" else [index, index.with_suffix(".gzi")]
    if not all(file.exists() for file in wanted) or (index == cached and _older(wanted, path)):
        with lock(index.with_name(f".{index.name}.lock")):
            faidx.build(path, *wanted)
    if old := _older(wanted, path):
        raise StaleIndexError(f"{old[0]} is older than {path.name}, which it describes; delete {old[0]} and run again")
    return _open_checked(path, *wanted)


def _older(files: Iterable[Path], path: Path) -> list[Path]:
    """Those of the files that were written before `path`."""
    return [file for file in files if file.stat().st_mtime_ns < path.stat().st_mtime_ns]


def _open_checked(path: Path, index: Path, gzi: Path | None = None) -> "pyfaidx.Fasta":
    import pyfaidx

    names = {"indexname": str(index), "gzi_indexname": gzi and str(gzi)}
    try:
        lines = faidx.read(index)
        reference = pyfaidx.Fasta(str(path), **names, strict_bounds=True, rebuild=False, build_index=False)
        fits = faidx.fits(reference.faidx, lines)
    except (ValueError, TypeError, ZeroDivisionError, struct.error, UnicodeDecodeError) as error:
        raise StaleIndexError(f"{index} is no index of {path.name}; delete {index} and run again") from error
    if not fits:
        reference.close()
        raise StaleIndexError(
            f"{index} gives other lengths than {path.name} has, which was changed since; delete {index} and run again"
        )
    return reference
