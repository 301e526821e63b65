"""Files that may be compressed: plain, gzip or BGZF, told apart by their first bytes and never by their names."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

from hyenadna.errors import FastaError

Compression = Literal["plain", "gzip", "bgzf"]
FIRST_BYTES = 18
"""What `by_first_bytes` needs to see."""
# the empty block that ends every whole BGZF file (SAM specification, 4.1.2)
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def compression(path: Path) -> Compression:
    """How a file is compressed, by its first bytes.

    Raises
    ------
    FastaError              the file cannot be read, or is a BGZF file without its last block
    """
    with _readable(path), path.open("rb") as file:
        if (found := by_first_bytes(file.read(FIRST_BYTES))) == "bgzf":
            file.seek(-min(len(BGZF_END), path.stat().st_size), 2)
            if file.read() != BGZF_END:
                raise FastaError(
                    f"{path} is truncated: it lacks the block that ends a BGZF file; fetch or write it again"
                )
        return found


def by_first_bytes(head: bytes) -> Compression:
    """How a stream is compressed, by the 18 bytes (or fewer, of a shorter one) that it begins with."""
    if head[:2] != b"\x1f\x8b":
        return "plain"
    return "bgzf" if len(head) >= 18 and head[3] & 4 and head[12:14] == b"BC" else "gzip"


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; whatever goes wrong while they are read becomes a FastaError."""
    with _readable(path):
        if path.is_fifo() or compression(path) == "plain":
            with path.open("rb") as file:
                yield file
        else:
            with gzip.open(path) as stream:
                yield cast(IO[bytes], stream)


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
