"""Indexes for random access to FASTA files: .fai as samtools faidx writes it, .gzi as bgzip does.

pyfaidx builds the same, but line by line: ten times slower on BGZF. It also reads on when an index does not fit.
"""

import bisect
import dataclasses
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.compressed import open_stream
from hyenadna.errors import FastaError
from hyenadna.files import atomic_write

if TYPE_CHECKING:
    import pyfaidx

_CHUNK = 1 << 20
_CHECKED = 256


class IndexLine(NamedTuple):
    """A line of a .fai file."""

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


def read(index: Path) -> list[IndexLine]:
    """The lines of a .fai file.

    Raises
    ------
    ValueError, TypeError       a line that is not a name and four numbers
    """
    columns = map(str.split, index.read_text(encoding="utf-8").splitlines())
    return [IndexLine(name, *map(int, numbers)) for name, *numbers in columns]


def build(path: Path, index: Path, gzi: Path | None = None) -> None:
    """Write the index of a FASTA file, and for BGZF the index of its blocks.

    Raises
    ------
    FastaError              unreadable, no FASTA, a name twice, or a record whose lines differ in length
    WriteError              the index cannot be written
    """
    with open_stream(path) as stream:
        records = _records(path, stream)
    lines = [f"{r.name}\t{r.length}\t{r.offset}\t{r.bases_per_line}\t{r.bytes_per_line}\n" for r in records]
    if gzi is not None:
        from Bio import bgzf

        with path.open("rb") as file:
            blocks = bgzf.BgzfBlocks(file)  # type: ignore[no-untyped-call]
            starts = [(start, data_start) for start, _, data_start, size in blocks if size]
        with atomic_write(gzi) as temporary:
            pairs = b"".join(struct.pack("<QQ", *pair) for pair in starts[1:])  # the first is known to be at 0, 0
            temporary.write_bytes(struct.pack("<Q", len(starts) - 1) + pairs)
    with atomic_write(index) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def fits(reference: "pyfaidx.Faidx", lines: list[IndexLine]) -> bool:
    """Whether up to 256 records end where the index says: with a base, then the next header or the end of the file.

    A changed length shifts everything after it, so the last record alone tells of nearly every change.
    """
    following = [line.name for line in lines[1:]] + [""]
    pairs = list(zip(lines, following, strict=True))
    for line, next_name in [*pairs[:: len(pairs) // _CHECKED + 1], *pairs[-1:]]:
        end = _read_at(reference, line.last_base, len(next_name) + 64)
        line_end, *header = end[1:].split(b">", 1)
        names = header[0].split()[:1] if header else []
        if not end[:1].isalpha() or line_end.strip() or names != ([next_name.encode()] if next_name else []):
            return False
    return bool(lines)


def _read_at(reference: "pyfaidx.Faidx", offset: int, count: int) -> bytes:
    if not reference._bgzf:
        reference.file.seek(offset)
    else:
        from Bio.bgzf import make_virtual_offset

        blocks = reference.gzi_index
        block = blocks[max(0, bisect.bisect_right(blocks, offset, key=lambda block: block.ustart) - 1)]
        virtual = make_virtual_offset(block.cstart, offset - block.ustart)  # type: ignore[no-untyped-call]
        reference.file.seek(virtual)
    return bytes(reference.file.read(count))


@dataclasses.dataclass
class _Record:
    """What is known of a record while its lines go by."""

    path: Path
    name: str
    offset: int
    length: int = 0
    bases_per_line: int = 0
    bytes_per_line: int = 0
    ended: bool = False

    def add(self, bases: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
        """Count lines (n,) of so many bases and bytes; only the last with bases may be shorter, or end otherwise."""
        if not self.length:
            blank = int(np.argmax(bases > 0)) if bases.any() else len(bases)
            self.offset += int(widths[:blank].sum())
            bases, widths = bases[blank:], widths[blank:]
            if not len(bases):
                return
            self.bases_per_line, self.bytes_per_line = int(bases[0]), int(widths[0])
        other = np.flatnonzero((bases != self.bases_per_line) | (widths != self.bytes_per_line))
        rest = bases if self.ended else bases[other[0] + 1 :] if len(other) else bases[:0]
        if rest.any() or (bases > self.bases_per_line).any():
            raise FastaError(
                f"{self.path}: the lines of record {self.name!r} have different lengths, so it cannot be indexed; "
                "rewrite it with lines of one length (seqkit seq -w 60)"
            )
        self.ended = self.ended or len(other) > 0
        self.length += int(bases.sum())


def _records(path: Path, stream: IO[bytes]) -> list[_Record]:
    records: dict[str, _Record] = {}
    text, position = bytearray(), 0
    while chunk := stream.read(_CHUNK):
        text += chunk
        if (end := chunk.rfind(b"\n")) >= 0:
            whole = len(text) - len(chunk) + end + 1
            _add_lines(path, records, np.frombuffer(bytes(text[:whole]), dtype=np.uint8), position)
            text, position = text[whole:], position + whole
    if text:
        _add_lines(path, records, np.frombuffer(bytes(text), dtype=np.uint8), position)
    without = [record.name for record in records.values() if not record.length]
    if without or not records:
        raise FastaError(
            f"{path} has no sequence" + (f" for {without[0]!r}" if without else "") + "; complete the file"
        )
    return list(records.values())


def _add_lines(path: Path, records: dict[str, _Record], text: NDArray[np.uint8], position: int) -> None:
    """Count the whole lines of `text`, which begins at `position` of the file; the last may lack its line end."""
    ends = np.flatnonzero(text == ord("\n")) + 1
    if not len(ends) or ends[-1] < len(text):
        ends = np.append(ends, len(text))
    starts = np.concatenate([[0], ends[:-1]])
    widths = ends - starts
    bases = widths - (text[ends - 1] == ord("\n"))
    bases -= (bases > 0) & (text[np.maximum(starts + bases - 1, 0)] == ord("\r"))
    headers = np.flatnonzero(text[starts] == ord(">"))
    record = next(reversed(records.values()), None)
    for first, last in zip([0, *(headers + 1)], [*headers, len(starts)], strict=True):
        if first:
            words = text[starts[first - 1] + 1 : ends[first - 1]].tobytes().decode("utf-8", "replace").split()
            if not words or words[0] in records:
                raise FastaError(f"{path} repeats the name {words[:1]} or has a record without one; each needs its own")
            record = records[words[0]] = _Record(path, words[0], position + int(ends[first - 1]))
        if record is not None:
            record.add(bases[first:last], widths[first:last])
        elif bases[first:last].any():
            raise FastaError(f"{path} does not begin with '>'; give a FASTA file, plain or BGZF")
