"""What reading the likelihoods of a file will take, before it is done."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from hyenadna.inference.embedding_plan import bases_per_second
from hyenadna.inference.likelihood_stretches import LikelihoodReader
from hyenadna.inference.sequence_chunks import chunks
from hyenadna.machine import peak_memory
from hyenadna.progress import duration, quantity

_SAMPLE = 1 << 16
"""Bases of a sequence that are read to learn the rate."""


def likelihood_plan(
    reader: LikelihoodReader, source: Iterable[tuple[str, str]], again: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Count and check all sequences, read the first of them for some seconds, and say what the whole would take.

    Parameters
    ----------
    reader : LikelihoodReader
        As for the job itself.
    source, again : iterable of (id, sequence)
        The same stream twice.

    Raises
    ------
    InputError              no sequence, an empty one, or a letter that is no nucleotide
    """
    n_token = reader.model.config.n_token
    sequences = bases = longest = 0
    for chunk in chunks(source, n_token=n_token, bases=reader.bases):
        sequences, bases = chunk.end, bases + int(chunk.lengths.sum())
        longest = max(longest, int(chunk.lengths.max()))
    first = next(chunks(islice(again, 1 << 12), n_token=n_token, bases=reader.bases))
    rate = bases_per_second(reader, [tokens[:_SAMPLE] for tokens in first.tokens])
    memory = peak_memory()
    text = (
        f"{sequences:,} sequences, {bases:,} bases, the longest {longest:,}. At {quantity(rate)}nt/s: "
        f"{duration(bases / rate)}, and {quantity(memory)}B of memory so far. Nothing was written"
    )
    return {
        "sequences": sequences,
        "bases": bases,
        "longest": longest,
        "nt_per_s": round(rate),
        "seconds": round(bases / rate, 1),
        "memory_bytes": memory,
        "text": text,
    }
