"""Files and standard input as decompressed bytes, and what kind of file they are by their name and first line."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal, cast

from hyenadna.data.compressed import BGZF_END, FIRST_BYTES, by_first_bytes, compression
from hyenadna.data.fasta import FOREIGN
from hyenadna.errors import InputError

Format = Literal["fasta", "bed", "jsonl", "parquet", "delimited"]
FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".fas")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_BY_NAME: dict[str, Format] = {
    **dict.fromkeys(FASTA_SUFFIXES, "fasta"), ".bed": "bed", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet",
}  # fmt: skip
_BOM = b"\xef\xbb\xbf"
_LONGEST_HEAD = 1 << 20


@contextmanager
def opened(source: str, wanted: str = "a table, FASTA or BED file") -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file or named pipe, or of standard input for '-'; gzip is known by its first bytes.

    Failures of what the caller does with them, such as writing to a pipe that was closed, stay what they are.

    Parameters
    ----------
    source : str
    wanted : str
        What messages tell the user to give.

    Raises
    ------
    InputError              the file does not exist, cannot be read, is truncated or damaged; also while it is read
    """
    path = Path(source)
    if source != "-" and not path.exists():
        raise InputError(f"there is no file {source}; give {wanted}, or - for standard input")
    if source != "-" and path.is_dir():
        raise InputError(f"{source} is a folder; give {wanted}, or - for standard input")
    with ExitStack() as files:
        with _told(source):
            raw = sys.stdin.buffer if source == "-" else files.enter_context(path.open("rb"))
            if source != "-" and path.is_file():
                compression(path)  # tells at once of BGZF that was cut between two of its blocks
            head = raw.read(FIRST_BYTES)
        stream, compressed = rejoined(head, raw), by_first_bytes(head)
        if compressed == "bgzf":
            stream = io.BufferedReader(_WholeBgzf(stream), 1 << 20)
        plain = stream if compressed == "plain" else cast(IO[bytes], gzip.GzipFile(fileobj=stream))
        yield io.BufferedReader(_Told(plain, source), 1 << 20)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turn what goes wrong while `source` is read into an InputError."""
    try:
        yield
    except EOFError as error:
        raise InputError(f"{named(source)} is truncated: its gzip stream ends too early; write it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{named(source)} is damaged: {error}; fetch or write it again") from error
    except OSError as error:
        raise InputError(f"{named(source)} cannot be read: {error.strerror or error}") from error


def named(source: str) -> str:
    """What messages call a source."""
    return "standard input" if source == "-" else source


def beginning(stream: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    """The first line that is neither blank nor a comment, and the stream as if nothing had been read.

    A comment begins with '# ', as the provenance in our own tables does. The line comes without a byte-order mark.
    """
    read = first = b""
    while not first and (line := stream.readline(_LONGEST_HEAD)):
        read += line
        line = line.removeprefix(_BOM).lstrip()
        first = b"" if line.startswith(b"# ") else line
    return first, rejoined(read, stream)


def format_of(source: str, first: bytes) -> Format:
    """What kind of file this is, by its name and its first line.

    Raises
    ------
    InputError              an empty file, one of a kind that holds no sequences, or Parquet by its name alone
    """
    name = source.lower().removesuffix(".gz")
    if not first:
        raise InputError(f"{named(source)} is empty; give a table with a header, a FASTA or a BED file")
    if first.startswith(b">"):
        return "fasta"
    if first.startswith(b"PAR1"):
        return "parquet"
    if looks := next((text for magic, text in FOREIGN.items() if first.startswith(magic)), ""):
        raise InputError(f"{named(source)} looks like {looks}; give CSV, TSV, JSONL, Parquet, FASTA or BED")
    by_name = _BY_NAME.get(Path(name).suffix)
    if by_name == "parquet":
        raise InputError(f"{source} is no Parquet file, though its name says so: it does not begin with PAR1")
    if first.startswith(b"["):
        raise InputError(f"{named(source)} is a JSON array; write one object a line (JSONL)")
    return by_name or ("jsonl" if first.startswith(b"{") else "delimited")


def text_lines(stream: IO[bytes], source: str) -> Iterator[tuple[int, str]]:
    """The lines of a stream with their numbers from 1 and their line ends, without a byte-order mark.

    Raises
    ------
    InputError              a line is not UTF-8
    """
    for number, line in enumerate(stream, 1):
        try:
            yield number, (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{named(source)}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
            ) from error


def rejoined(head: bytes, rest: IO[bytes]) -> IO[bytes]:
    """A stream that gives `head` and then what is left of `rest`, which need not be seekable."""
    return io.BufferedReader(_Rejoined(head, rest), 1 << 20)


class _Read1(io.RawIOBase):
    """A stream made of chunks of other streams."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with what comes next; 0 at the end."""
        chunk = self.next_chunk(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def next_chunk(self, size: int) -> bytes | memoryview:
        """At most `size` bytes, empty at the end."""
        raise NotImplementedError


class _Rejoined(_Read1):
    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self.head, self.rest = memoryview(head), rest

    def next_chunk(self, size: int) -> bytes | memoryview:
        """The rest of the head, then what the stream has."""
        chunk, self.head = self.head[:size], self.head[size:]
        return chunk or _read1(self.rest, size)


class _WholeBgzf(_Read1):
    """BGZF as it is: EOFError at its end if that was cut off between two blocks, where gzip notices nothing."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.last = stream, b""

    def next_chunk(self, size: int) -> bytes:
        """What the stream has."""
        chunk = _read1(self.stream, size)
        if not chunk and self.last != BGZF_END:
            raise EOFError
        self.last = (self.last + chunk[-len(BGZF_END) :])[-len(BGZF_END) :]
        return chunk


class _Told(_Read1):
    def __init__(self, stream: IO[bytes], source: str) -> None:
        self.stream, self.source = stream, source

    def next_chunk(self, size: int) -> bytes:
        """What the stream has; InputError if it cannot be read."""
        with _told(self.source):
            return _read1(self.stream, size)


def _read1(stream: IO[bytes], size: int) -> bytes:
    # read1 gives what a pipe holds instead of waiting for a full buffer
    return cast(bytes, getattr(stream, "read1", stream.read)(size))
