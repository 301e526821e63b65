"""What sequences are made of: counts of k-mers, GC and CpG, and one-hot columns, as the baselines take them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import BASES

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_OTHER = 4
_BASES_AT_ONCE = 1 << 22


def codes(sequence: str) -> NDArray[np.uint8]:
    """0 to 3 for A, C, G, T, and 4 for every other letter."""
    table = np.full(256, _OTHER, dtype=np.uint8)
    table[np.frombuffer(BASES.encode(), dtype=np.uint8)] = np.arange(4)
    found: NDArray[np.uint8] = table[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
    return found


def kmer_numbers(letters: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Number in base 4 of the k-mer that starts at each place, -1 where it holds another letter than A, C, G, T.

    Examples
    --------
    >>> kmer_numbers(codes("ACGNA"), 2).tolist()
    [1, 6, -1, -1]
    """
    n = max(0, len(letters) - k + 1)
    numbers, known = np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)
    for place in range(k):
        letter = letters[place : place + n]
        numbers = numbers * 4 + letter
        known &= letter != _OTHER
    return np.where(known, numbers, -1)


def kmer_counts(sequences: Sequence[str], k: int, *, both_strands: bool = False) -> "csr_matrix":
    """How often each k-mer stands in each sequence: sparse float32 (n, 4 ** k).

    Parameters
    ----------
    sequences : sequence of str
        Upper case; k-mers with other letters than A, C, G, T are not counted.
    k : int
        Length in bases.
    both_strands : bool
        Count a k-mer and its reverse complement as one, in the column of the smaller number.
    """
    from scipy.sparse import csr_matrix, vstack

    column = _canonical(k) if both_strands else np.arange(4**k)
    blocks, first = [], 0
    while first < len(sequences):
        last, bases = first, 0
        while last < len(sequences) and (last == first or bases + len(sequences[last]) <= _BASES_AT_ONCE):
            bases += len(sequences[last])
            last += 1
        # a letter that is no base between two sequences, so that no k-mer spans both
        numbers = kmer_numbers(codes("".join(sequence + "N" for sequence in sequences[first:last])), k)
        row = np.repeat(np.arange(last - first), [len(sequence) + 1 for sequence in sequences[first:last]])
        row, known = row[: len(numbers)], numbers >= 0
        values = np.ones(int(known.sum()), dtype=np.float32)
        blocks.append(csr_matrix((values, (row[known], column[numbers[known]])), shape=(last - first, 4**k)))
        first = last
    return csr_matrix(vstack(blocks)) if blocks else csr_matrix((0, 4**k), dtype=np.float32)


def gc_and_cpg(sequences: Sequence[str]) -> NDArray[np.float64]:
    """(n, 2): share of G and C among the known bases, and of CG among the neighbouring pairs of known bases."""
    single, pairs = kmer_counts(sequences, 1).toarray(), kmer_counts(sequences, 2)
    known, neighbours = np.maximum(single.sum(axis=1), 1), np.maximum(np.asarray(pairs.sum(axis=1))[:, 0], 1)
    cpg = pairs[:, [BASES.index("C") * 4 + BASES.index("G")]].toarray()[:, 0]
    return np.stack((single[:, 1:3].sum(axis=1) / known, cpg / neighbours), axis=1).astype(np.float64)


def one_hot(sequences: Sequence[str]) -> "csr_matrix":
    """Sparse float32 (n, 4 * length) of sequences of one length: column 4 p + b is 1 where base b stands at place p."""
    from scipy.sparse import csr_matrix

    letters = np.stack([codes(sequence) for sequence in sequences])
    row, place = np.nonzero(letters != _OTHER)
    columns = 4 * place + letters[row, place]
    return csr_matrix((np.ones(len(row), dtype=np.float32), (row, columns)), shape=(len(letters), 4 * letters.shape[1]))


def window_kmers(sequences: Sequence[str], flank: int, bases: NDArray[np.integer] | None = None) -> "csr_matrix":
    """The 3-mers around each base, by their place: sparse float32 (bases, 64 * (2 * flank - 1)).

    Parameters
    ----------
    sequences : sequence of str
        One after the other; their bases are numbered through.
    flank : int
        How many bases to each side of a base are looked at; what lies outside of its sequence is unknown.
    bases : int array, optional
        Numbers of the bases that are asked for; default all.
    """
    from scipy.sparse import csr_matrix

    lengths = np.array([len(sequence) for sequence in sequences])
    gap = "N" * flank
    numbers = kmer_numbers(codes(gap + "".join(sequence + gap for sequence in sequences)), 3)
    # the window of a base begins where the base itself would stand without the gap before its sequence
    begin = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)) * flank, lengths)
    begin = begin if bases is None else begin[bases]
    width = 2 * flank - 1
    seen = numbers[begin[:, None] + np.arange(width)]
    row, place = np.nonzero(seen >= 0)
    column = 64 * place + seen[row, place]
    return csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), shape=(len(begin), 64 * width))


def _canonical(k: int) -> NDArray[np.int64]:
    numbers = np.arange(4**k)
    reverse, left = np.zeros_like(numbers), numbers.copy()
    for _ in range(k):
        reverse, left = reverse * 4 + 3 - left % 4, left // 4
    return np.minimum(numbers, reverse)
