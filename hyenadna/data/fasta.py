"""FASTA files: a fast stream of whole records, and random access through a checked index."""

import bisect
import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import IUPAC
from hyenadna.errors import FastaError, StaleIndexError
from hyenadna.files import atomic_write, beside_or_cached, lock, writable

if TYPE_CHECKING:
    import pyfaidx

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20
_COMMON = b"ACGTUNacgtun"
_ALLOWED = (IUPAC + IUPAC.lower()).encode()
# the empty block that ends every whole BGZF file (SAM specification, 4.1.2)
_BGZF_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_FOREIGN = {
    b"@": "a FASTQ file",
    b"##fileformat=VCF": "a VCF file",
    b"LOCUS ": "a GenBank file",
    b"BAM\x01": "a BAM file",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "compressed by bzip2; decompress it or use bgzip",
    b"\xfd7zXZ": "compressed by xz; decompress it or use bgzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it or use bgzip",
    b"PK\x03\x04": "a ZIP archive; unpack it",
}

Compression = Literal["plain", "gzip", "bgzf"]


class Record(NamedTuple):
    """One sequence of a FASTA file."""

    name: str
    """The first word of the header."""
    sequence: NDArray[np.uint8]
    """uint8 (L,): ASCII bytes as they stand in the file, case kept, line ends removed."""


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
    path = Path(path)
    parser = _Parser(path)
    with open_stream(path) as stream:
        while chunk := stream.read(_CHUNK):
            yield from parser.feed(chunk)
    yield from parser.close()


class _Parser:
    """Turns chunks of a FASTA file, cut anywhere, into records."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.names = path, "", set[str]()
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
        yield Record(self.name, np.frombuffer(self.sequence, dtype=np.uint8))
        self.sequence, self.strange = bytearray(), 0

    def _check_beginning(self, chunk: bytes) -> None:
        if chunk and not chunk.startswith(b">"):
            looks = next((text for magic, text in _FOREIGN.items() if chunk.startswith(magic)), "")
            raise FastaError(
                f"{self.path} does not begin with '>' but with {chunk[:12].decode('ascii', 'backslashreplace')!r}"
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
                f"{self.path}: the header {bytes(self.header[:40])!r} after record {len(self.names)} has no name; "
                "a header is '>', a name without spaces, and any text"
            )
        self.name, self.header, self.at_line_start = words[0], None, True
        if self.name in self.names:
            raise FastaError(f"{self.path} has two records named {self.name!r}; names must differ: rename one")
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


def compression(path: Path) -> Compression:
    """How a file is compressed, by its first bytes.

    Raises
    ------
    FastaError              the file cannot be read, or is a BGZF file without its last block
    """
    with _readable(path), path.open("rb") as file:
        head = file.read(18)
        if head[:2] != b"\x1f\x8b":
            return "plain"
        if not (len(head) == 18 and head[3] & 4 and head[12:14] == b"BC"):
            return "gzip"
        file.seek(-min(len(_BGZF_EOF), path.stat().st_size), 2)
        if file.read() != _BGZF_EOF:
            raise FastaError(f"{path} is truncated: it lacks the block that ends a BGZF file; fetch or write it again")
        return "bgzf"


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; whatever goes wrong while they are read becomes a FastaError."""
    with _readable(path):
        if path.is_fifo() or compression(path) == "plain":
            with path.open("rb") as file:
                yield file
        else:
            with gzip.open(path) as stream:
                yield stream  # type: ignore[misc]  # GzipFile is an IO[bytes] in all but name


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise FastaError(f"{path} is truncated: its gzip stream ends too early; fetch or write it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FastaError(f"{path} is damaged: {error}; fetch or write it again") from error
    except OSError as error:
        raise FastaError(
            f"{path} cannot be read: {error.strerror or error}; give a FASTA file, plain, gzip or BGZF"
        ) from error


class _IndexLine(NamedTuple):
    """A line of a .fai file (samtools faidx)."""

    name: str
    length: int
    offset: int
    bases_per_line: int
    bytes_per_line: int

    @property
    def last_base(self) -> int:
        """Offset of the record's last base."""
        lines, rest = divmod(self.length - 1, self.bases_per_line)
        return self.offset + lines * self.bytes_per_line + rest


def open_reference(path: Path) -> "pyfaidx.Fasta":
    """A FASTA file, plain or BGZF, for random access; out of bounds is an error, not a shorter sequence.

    The index is built once, beside the file or, if its folder is read-only, in the user's cache. Open it anew in every
    process: pyfaidx is not safe to share.

    Raises
    ------
    FastaError              unreadable, plain gzip, or lines of different lengths, which no index can describe
    StaleIndexError         the index is older than the file or does not fit it; says which file to delete
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
            f"{path} is {compressed}, but its name says otherwise; names of BGZF files, and no other, end in .gz"
        )
    beside, cached = beside_or_cached(path, ".fai", "indexes")
    index = beside if beside.exists() or writable(path.parent) else cached
    wanted = [index] if compressed == "plain" else [index, index.with_suffix(".gzi")]
    if not all(file.exists() for file in wanted):
        with lock(index.with_name(f".{index.name}.lock")):
            _build_index(path, index, *wanted[1:])
    for file in wanted:
        if file.stat().st_mtime_ns < path.stat().st_mtime_ns:
            raise StaleIndexError(f"{file} is older than {path.name}, which it describes; delete {file} and run again")
    return _open_checked(path, *wanted)


def _build_index(path: Path, index: Path, gzi: Path | None = None) -> None:
    with open_stream(path) as stream:
        lines = ["\t".join(map(str, line)) + "\n" for line in _index_lines(path, stream)]
    if gzi is not None:
        from Bio import bgzf

        with path.open("rb") as file:
            starts = [(start, data_start) for start, _, data_start, size in bgzf.BgzfBlocks(file) if size]
        with atomic_write(gzi) as temporary:
            pairs = b"".join(
                struct.pack("<QQ", *pair) for pair in starts[1:]
            )  # the first block is at 0, 0 and not listed
            temporary.write_bytes(struct.pack("<Q", len(starts) - 1) + pairs)
    with atomic_write(index) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _index_lines(path: Path, stream: IO[bytes]) -> list[_IndexLine]:
    """The index of a FASTA stream; pyfaidx builds the same, but takes 20 times as long on BGZF."""
    index: dict[str, _IndexLine] = {}
    name, position, ended = "", 0, False
    for number, line in enumerate(stream, 1):
        bases, position = len(line.rstrip(b"\r\n")), position + len(line)
        if line.startswith(b">"):
            words = line[1:].decode("utf-8", "replace").split()
            name, ended = words[0] if words else "", False
            if not name or name in index:
                raise FastaError(f"{path}:{number} repeats the name {name!r} or has none; every record needs its own")
            index[name] = _IndexLine(name, 0, position, 0, 0)
        elif bases and not name:
            raise FastaError(f"{path} does not begin with '>'; give a FASTA file, plain or BGZF")
        elif bases:
            known = index[name]
            width = known[3:] if known.length else (bases, len(line))
            if ended or bases > width[0]:
                raise FastaError(
                    f"{path}:{number}: the lines of record {name!r} have different lengths, so it cannot be indexed; "
                    "rewrite it with lines of one length (seqkit seq -w 60)"
                )
            index[name] = _IndexLine(name, known.length + bases, known.offset, *width)
            ended = (bases, len(line)) != width
        elif name and index[name].length:
            ended = True
        elif name:
            index[name] = _IndexLine(name, 0, position, 0, 0)
    if not index or not all(line.length for line in index.values()):
        raise FastaError(f"{path} is empty or has a record without sequence ({name!r}); complete the file")
    return list(index.values())


def _open_checked(path: Path, index: Path, gzi: Path | None = None) -> "pyfaidx.Fasta":
    import pyfaidx

    try:
        lines = [
            _IndexLine(c[0], *map(int, c[1:])) for c in map(str.split, index.read_text(encoding="utf-8").splitlines())
        ]
        reference = pyfaidx.Fasta(
            str(path),
            indexname=str(index),
            gzi_indexname=gzi and str(gzi),
            strict_bounds=True,
            rebuild=False,
            build_index=False,
        )
        fits = _fits(reference.faidx, lines)
    except (ValueError, TypeError, ZeroDivisionError, struct.error, UnicodeDecodeError) as error:
        raise StaleIndexError(f"{index} is no index of {path.name}; delete {index} and run again") from error
    if not fits:
        reference.close()
        raise StaleIndexError(
            f"{index} gives other lengths than {path.name} has: the file was changed since; delete {index} and run again"
        )
    return reference


def _fits(faidx: "pyfaidx.Faidx", lines: list[_IndexLine]) -> bool:
    """Whether up to 256 records end where the index says: with a base, then the next header or the end of the file.

    A changed length shifts everything after it, so the last record alone tells of nearly every change.
    """
    following = [line.name for line in lines[1:]] + [""]
    pairs = list(zip(lines, following, strict=True))
    for line, next_name in [*pairs[:: max(1, len(pairs) // 255)], *pairs[-1:]]:
        end = _read_at(faidx, line.last_base, len(next_name) + 64)
        words = end[1:].split(b">", 1)
        is_next = len(words) == 2 and words[1].split()[:1] == [next_name.encode()] if next_name else len(words) == 1
        if not end[:1].isalpha() or words[0].strip() or not is_next:
            return False
    return bool(lines)


def _read_at(faidx: "pyfaidx.Faidx", offset: int, count: int) -> bytes:
    if not faidx._bgzf:
        faidx.file.seek(offset)
    else:
        from Bio.bgzf import make_virtual_offset

        block = faidx.gzi_index[
            max(0, bisect.bisect_right(faidx.gzi_index, offset, key=lambda block: block.ustart) - 1)
        ]
        faidx.file.seek(make_virtual_offset(block.cstart, offset - block.ustart))
    return bytes(faidx.file.read(count))
