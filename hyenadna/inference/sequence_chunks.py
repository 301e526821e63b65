"""A stream of sequences in chunks of bounded memory, whose borders depend on the sequences alone.

A job that stopped can so be taken up at a border and computes the very batches that it would have computed.
"""

import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError
from hyenadna.files import Fingerprint
from hyenadna.model.packed_linear import weight_count


class Chunk:
    """Some sequences that follow each other.

    Parameters
    ----------
    first : int
        Sequences before this chunk.
    pairs : list of (id, sequence)
        At least one.
    n_token : {'n', 'pad'}
        What N is in the model's input.

    Raises
    ------
    InputError              an empty sequence, or a letter that is no nucleotide; names the row and the id
    """

    def __init__(self, first: int, pairs: list[tuple[str, str]], n_token: Literal["n", "pad"]) -> None:
        self.first, self.ids = first, [name for name, _ in pairs]
        self.lengths: NDArray[np.int64] = np.array([len(sequence) for _, sequence in pairs], dtype=np.int64)
        if not self.lengths.all():
            row = int(np.argmin(self.lengths))
            raise InputError(f"sequence {first + row + 1} ({self.ids[row]!r}) is empty; drop it or fill it in")
        try:
            joined = encode("".join(sequence for _, sequence in pairs), n_token)
        except InputError:
            for row, (name, sequence) in enumerate(pairs):
                _check(first + row + 1, name, sequence)
            raise
        self.tokens: list[NDArray[np.uint8]] = np.split(joined, np.cumsum(self.lengths)[:-1])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def end(self) -> int:
        """Sequences up to the end of this chunk."""
        return self.first + len(self)

    @cached_property
    def checksums(self) -> NDArray[np.uint32]:
        """CRC-32 of each sequence's tokens."""
        return np.array([zlib.crc32(tokens.data) for tokens in self.tokens], dtype=np.uint32)


def chunks(
    source: Iterable[tuple[str, str]], *, n_token: Literal["n", "pad"], bases: int, rows: int = 1 << 16
) -> Iterator[Chunk]:
    """The sequences of a stream, some at a time, in order.

    Parameters
    ----------
    source : iterable of (id, sequence)
        Of any length; letters in either case.
    n_token : {'n', 'pad'}
        What N is in the model's input.
    bases, rows : int
        A chunk ends with the sequence by which it reaches so many bases or sequences.

    Raises
    ------
    InputError              an empty sequence, or a letter that is no nucleotide; or there is no sequence at all
    """
    first, pairs, held = 0, list[tuple[str, str]](), 0
    for pair in source:
        pairs.append(pair)
        held += len(pair[1])
        if held >= bases or len(pairs) >= rows:
            yield Chunk(first, pairs, n_token)
            first, pairs, held = first + len(pairs), [], 0
    if pairs:
        yield Chunk(first, pairs, n_token)
    elif not first:
        raise InputError("the input holds no sequences; is it the right file?")


def bases_between_writes(model: nn.Module, batch_tokens: int) -> int:
    """Bases of a chunk: some seconds of a model's work on two CPUs, and at least a few batches."""
    return max(4 * batch_tokens, min(1 << 20, (1 << 37) // weight_count(model)))


def origin(source: str, fasta: Path | None = None) -> dict[str, str | int]:
    """Which file the sequences come from: name, size, and SHA-256 of its first and last 64 KiB; '-' has a name alone.

    Raises
    ------
    InputError              there is no such file
    """
    about: dict[str, str | int] = {}
    for role, path in (("input", Path(source)), ("fasta", fasta)):
        if path is None:
            continue
        about[role] = path.name
        if path.is_file():
            fingerprint = Fingerprint.of(path)
            about |= {f"{role}_bytes": fingerprint.size, f"{role}_head_tail_sha256": fingerprint.head_tail_sha256}
        elif source != "-" and not path.exists():
            raise InputError(f"there is no file {path}")
    return about


def _check(number: int, name: str, sequence: str) -> None:
    try:
        encode(sequence)
    except InputError as error:
        raise InputError(f"sequence {number} ({name!r}): {error}") from error
