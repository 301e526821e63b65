"""What embedding a file will take, before it is done."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.inference.embed import Embedder
from hyenadna.inference.sequence_chunks import chunks
from hyenadna.machine import peak_memory
from hyenadna.progress import duration, quantity

_SECONDS = 2.0


def embedding_plan(
    embedder: Embedder, source: Iterable[tuple[str, str]], again: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Count and check all sequences, embed the first of them for some seconds, and say what the whole would take.

    Parameters
    ----------
    embedder : Embedder
        As for the job itself.
    source, again : iterable of (id, sequence)
        The same stream twice.

    Raises
    ------
    InputError              as `embed`
    """
    n_token = embedder.model.config.n_token
    sequences = bases = longest = rows = 0
    for chunk in chunks(source, n_token=n_token, **embedder.chunk):
        sequences, bases = chunk.end, bases + int(chunk.lengths.sum())
        longest = max(longest, int(chunk.lengths.max()))
        rows += sum(map(embedder.config.rows, chunk.lengths.tolist()))
    first = next(chunks(islice(again, 1 << 12), n_token=n_token, **embedder.chunk))
    rate, memory = bases_per_second(embedder, first.tokens), peak_memory()
    plan = {
        "sequences": sequences,
        "bases": bases,
        "longest": longest,
        "rows": rows,
        "width": embedder.width,
        "nt_per_s": round(rate),
        "seconds": round(bases / rate, 1),
        "output_bytes": 4 * rows * embedder.width,
        "memory_bytes": memory,
    }
    text = (
        f"{sequences:,} sequences, {bases:,} bases, the longest {longest:,}; {rows:,} rows of {embedder.width} "
        f"numbers, {quantity(plan['output_bytes'])}B. At {quantity(rate)}nt/s: {duration(bases / rate)}, "
        f"and {quantity(memory)}B of memory so far. Nothing was written"
    )
    return plan | {"text": text}


def bases_per_second(read: Callable[[list[NDArray[np.uint8]]], object], sequences: list[NDArray[np.uint8]]) -> float:
    """How fast sequences are read: the first of them, then more and more until it takes some seconds."""
    number = 1
    while True:
        some = sequences[:number]
        start = time.perf_counter()
        read(some)
        seconds = time.perf_counter() - start
        if number >= len(sequences) or seconds > _SECONDS / 2:
            return sum(map(len, some)) / seconds
        number *= 4
