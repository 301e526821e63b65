"""Sequences that are the same, the same on the other strand, or nearly the same: what makes a test look too good.

Two sequences are near duplicates if they share enough k-mers of 12 bases. A k-mer and its reverse complement count as
one, so that strands do not matter; k-mers with other letters than A, C, G, T, and repeats of a unit of up to four bases
(AAAA..., CACA..., ...), do not count, for they say nothing of common origin. Enough is two things at once:

    shared >= 0.15 n                               n: different k-mers of the sequence that has fewer
    shared >= log4(2 * 10^8 * n_a * n_b) - 11      a run of so many by chance: fewer than 1 of 10^8 random pairs

The first is the containment index (Broder 1997); 0.15 is what is left of 12-mers when 15 % of the bases differ
(0.85^12 = 0.14; Ondov et al. 2016 and Hera et al. 2023 derive this relation). So a sequence within a longer one is a
near duplicate of it, as are two windows that overlap by more than about a sixth, and young copies of one transposon
(human Alu). Sequences under about 20 bases have too few k-mers for the second, and are only compared exactly.

Of a sequence with more than 2,048 k-mers only those are kept whose hash is small enough to leave about as many
(FracMinHash, Hera et al. 2023); a pair is compared on the k-mers that both would have kept, and the first threshold is
scaled by their share. A k-mer that very many sequences have is followed to 1,024 of them, the likest by smallest hash;
to fewer, down to 16, where that would be more than 2^27 comparisons (thousands of variants of one sequence).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import reverse_complement

K = 12
"""Bases of a k-mer."""
CONTAINMENT = 0.15
"""Share of the k-mers of the smaller sequence that near duplicates have in common."""
_BY_CHANCE = 1e-8
_KEPT = 2048
_PARTNERS = (1024, 512, 256, 128, 64, 32, 16)
_COMPARISONS = 1 << 27
_FEW = 1 << 20
_LONGEST_UNIT = 4
_HASHES = 1 << (2 * K)
_BASES_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 22


class Duplicates(NamedTuple):
    """Which test sequences the training sequences give away; each in one of the three arrays at most."""

    exact: NDArray[np.bool_]
    """(n,): the same sequence is in train."""
    reverse_complement: NDArray[np.bool_]
    """(n,): its reverse complement is, and it itself is not."""
    near: NDArray[np.bool_]
    """(n,): a near duplicate is, and no exact one on either strand."""

    @property
    def any(self) -> NDArray[np.bool_]:
        """(n,): any of the three."""
        return self.exact | self.reverse_complement | self.near


def duplicated(train: Sequence[str], test: Sequence[str]) -> Duplicates:
    """Which test sequences are in train: exactly, on the other strand, or nearly.

    Parameters
    ----------
    train, test : sequence of str
        Nucleotides in upper case.

    Examples
    --------
    >>> duplicated(["AACCG", "GATTACA"], ["AACCG", "TGTAATC", "ACGTA"]).any.tolist()
    [True, True, False]
    """
    known = set(train)
    exact = np.array([sequence in known for sequence in test], dtype=bool)
    other = np.array([reverse_complement(sequence) in known for sequence in test], dtype=bool) & ~exact
    near = np.zeros(len(test), dtype=bool)
    unknown = np.flatnonzero(~exact & ~other)
    if len(unknown) and len(train):
        queries = _Sketches.of([test[int(row)] for row in unknown])
        for found, _ in _near_pairs(queries, _Sketches.of(sorted(known))):
            near[unknown[found]] = True
    return Duplicates(exact, other, near)


def distinct(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Places of the sequences that none before them repeats, on either strand: (m,), ascending.

    Examples
    --------
    >>> distinct(["AACCG", "GATTACA", "CGGTT", "AACCG", "ACGTA"]).tolist()
    [0, 1, 4]
    """
    first: dict[str, int] = {}
    for place, sequence in enumerate(sequences):
        first.setdefault(min(sequence, reverse_complement(sequence)), place)
    return np.array([*first.values()], dtype=np.int64)


def clusters(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Number of the cluster of each sequence: (n,), from 0 in the order in which clusters first appear.

    Exact, reverse-complement and near duplicates are in one cluster, and whatever is linked through others
    (single linkage): sequences of different clusters are therefore no duplicates of each other in any sense.

    Examples
    --------
    >>> clusters(["AACCG", "GATTACA", "CGGTT", "ACGTA"]).tolist()
    [0, 1, 0, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    strandless = [min(sequence, reverse_complement(sequence)) for sequence in sequences]
    distinct = np.array([numbers.setdefault(sequence, len(numbers)) for sequence in strandless], dtype=np.int64)
    sketches = _Sketches.of(list(numbers))
    pairs = [np.stack(found) for found in _near_pairs(sketches, sketches)]
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1)
    n = len(numbers)
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    _, component = connected_components(links, directed=False)
    _, first_row, inverse = np.unique(component[distinct], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_row))[inverse].astype(np.int64)


class _Sketches(NamedTuple):
    """The hashed k-mers that are kept of each sequence, without repetition."""

    hashes: NDArray[np.int64]
    """Those of one sequence after those of another, ascending within each."""
    rows: NDArray[np.int64]
    """The sequence that each belongs to."""
    sizes: NDArray[np.int64]
    """(n,): different k-mers of each sequence, kept or not."""
    shares: NDArray[np.float64]
    """(n,): share of all hashes below which k-mers are kept."""

    @classmethod
    def of(cls, sequences: Sequence[str]) -> "_Sketches":
        hashes, rows = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        sizes = np.zeros(len(sequences), dtype=np.int64)
        shares = np.ones(len(sequences))
        for first, last in _chunks(sequences):
            keys = _kmer_keys(sequences[first:last])
            row = (keys >> (2 * K)) + first
            sizes[first:last] = np.bincount(row - first, minlength=last - first)
            shares[first:last] = np.minimum(1, _KEPT / np.maximum(sizes[first:last], 1))
            hashed = keys & (_HASHES - 1)
            kept = hashed < shares[row] * _HASHES
            hashes.append(hashed[kept])
            rows.append(row[kept])
        return cls(np.concatenate(hashes), np.concatenate(rows), sizes, shares)

    def smallest(self) -> NDArray[np.int64]:
        """(n,): the smallest hash of each sequence, which similar sequences are likely to have in common."""
        smallest = np.full(len(self.sizes), _HASHES, dtype=np.int64)
        np.minimum.at(smallest, self.rows, self.hashes)
        return smallest


def _chunks(sequences: Sequence[str]) -> Iterator[tuple[int, int]]:
    first = bases = 0
    for row, sequence in enumerate(sequences):
        bases += len(sequence)
        if bases >= _BASES_AT_ONCE:
            yield first, row + 1
            first, bases = row + 1, 0
    if first < len(sequences):
        yield first, len(sequences)


def _kmer_keys(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Sorted different values of row * 4^K + hash of the k-mer, over all k-mers that count."""
    letters = np.frombuffer(" ".join(sequences).encode(), dtype=np.uint8)
    if len(letters) < K:
        return np.zeros(0, dtype=np.int64)
    code_of = np.full(256, 4, dtype=np.int64)
    code_of[list(b"ACGT")] = np.arange(4)
    codes = code_of[letters]
    ends = len(letters) - K + 1
    forward, reverse = np.zeros(ends, dtype=np.int64), np.zeros(ends, dtype=np.int64)
    for place in range(K):
        base = codes[place : place + ends]
        forward = (forward << 2) | (base & 3)
        reverse |= (3 - (base & 3)) << (2 * place)
    bad = np.concatenate([[0], np.cumsum(codes == 4)])
    counts = bad[K:] == bad[:-K]
    for unit in range(1, _LONGEST_UNIT + 1):
        counts &= (forward >> (2 * unit)) != (forward & ((1 << (2 * (K - unit))) - 1))
    rows = np.repeat(np.arange(len(sequences)), [len(sequence) + 1 for sequence in sequences])[:ends]
    hashed = _hashed(np.minimum(forward, reverse)[counts])
    keys = np.sort((rows[counts] << (2 * K)) | hashed)
    return keys[np.diff(keys, prepend=-1) > 0]


def _hashed(kmers: NDArray[np.int64]) -> NDArray[np.int64]:
    """A permutation of the numbers below 4^K in which neighbours lie far apart: odd factors, and shifts by half."""
    mask = _HASHES - 1
    for factor in (0x9E3779B1, 0x85EBCA6B):
        kmers = (kmers * factor) & mask
        kmers ^= kmers >> K
    return kmers


def _near_pairs(queries: _Sketches, library: _Sketches) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of query and of library sequence of the near duplicates; the pairs of a query with itself left out."""
    n = len(library.sizes)
    smallest = library.smallest()
    order = np.argsort(smallest, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(n)
    # one list a k-mer; within it similar sequences stand beside each other, for of a long one a window is followed
    index = np.sort(library.hashes * n + place[library.rows])
    first, last = _windows(queries, index, np.searchsorted(smallest[order], queries.smallest()), n)
    ends = np.concatenate([[0], np.cumsum(last - first)])
    rows = np.searchsorted(queries.rows, np.arange(len(queries.sizes) + 1))
    row = 0
    while row < len(queries.sizes):
        # all k-mers of a sequence in one go, so that its pairs are counted in full
        until = int(np.searchsorted(ends[rows], ends[rows[row]] + _PAIRS_AT_ONCE, side="right")) - 1
        until = min(max(until, row + 1), len(queries.sizes))
        block = slice(rows[row], rows[until])
        lengths = (last - first)[block]
        offset = np.arange(lengths.sum()) - np.repeat(ends[block] - ends[rows[row]], lengths)
        partner = order[index[np.repeat(first[block], lengths) + offset] % n]
        pairs = np.sort(np.repeat(queries.rows[block], lengths) * n + partner)
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        a, b = pairs[starts] // n, pairs[starts] % n
        keep = _enough(np.diff(starts, append=len(pairs)), queries, a, library, b)
        if queries is library:
            keep &= a != b
        yield a[keep], b[keep]
        row = until


def _windows(
    queries: _Sketches, index: NDArray[np.int64], own_places: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where in the index the list of each query k-mer begins and ends; of a long list, what is around the own place."""
    if len(index) < _FEW:
        first, last = (np.searchsorted(index, (queries.hashes + step) * n) for step in (0, 1))
    else:
        # a table is many times faster than searching a long index: the lists are met in random order
        starts = np.concatenate([[0], np.cumsum(np.bincount(index // n, minlength=_HASHES))])
        first, last = starts[queries.hashes], starts[queries.hashes + 1]
    partners = next((n for n in _PARTNERS if np.minimum(last - first, n).sum() <= _COMPARISONS), _PARTNERS[-1])
    long = np.flatnonzero(last - first > partners)
    middle = np.searchsorted(index, queries.hashes[long] * n + own_places[queries.rows[long]])
    first[long] = np.clip(middle - partners // 2, first[long], last[long] - partners)
    last[long] = first[long] + partners
    return first, last


def _enough(
    shared: NDArray[np.int64], a_of: _Sketches, a: NDArray[np.int64], b_of: _Sketches, b: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether so many shared k-mers make near duplicates of sequence a of the ones and b of the others."""
    smaller = np.minimum(a_of.sizes[a], b_of.sizes[b]) * np.minimum(a_of.shares[a], b_of.shares[b])
    by_chance = np.log(2 / _BY_CHANCE * a_of.sizes[a] * b_of.sizes[b]) / np.log(4) - (K - 1)
    enough: NDArray[np.bool_] = shared >= np.maximum(CONTAINMENT * smaller, by_chance)
    return enough
