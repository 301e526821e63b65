"""Markov models of DNA, plain and interpolated: the baselines that a language model has to beat.

Counts are over both strands, and a context never crosses the end of an interval or a letter other than A, C, G, T.
With c_k(s, b) the number of times that base b follows the k bases s:

    plain         p_k(b | s) = (c_k(s, b) + 4) / (c_k(s) + 16)
    interpolated  p_k(b | s) = (c_k(s, b) + a p_{k-1}(b | s without its first base)) / (c_k(s) + a),   p_{-1} = 1/4

The prior weight a is one number for all orders, chosen on validation intervals. Where fewer than k bases precede, both
use the longest order that has its context.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import COMPLEMENT
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import TOKEN_OF_BYTE, A, T
from hyenadna.progress import progress

MAX_ORDER = 12
PRIOR_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""The grid of prior weights; the one with the fewest bits on the validation intervals is taken."""
DEFAULT_PRIOR_WEIGHT = 100.0
"""Used when there is no validation interval: the best one of the grid on E. coli and on human chr20."""

NO_BASE = 4
CODE_OF_BYTE: NDArray[np.uint8] = np.where(
    (TOKEN_OF_BYTE >= A) & (TOKEN_OF_BYTE <= T), TOKEN_OF_BYTE - A, NO_BASE
).astype(np.uint8)
"""uint8 (256,): 0 to 3 for A, C, G, T of either case (U is T), `NO_BASE` for every other byte."""

_PIECE = 1 << 22
_PSEUDO_COUNT = 4
"""Of plain models: on E. coli, yeast and human chr20 the best orders take up to 0.01 bits less with 4 than with 1."""
_MOST_VALIDATION_BASES = 2_000_000
_VALIDATION_PIECE = 10_000

Counts = NDArray[np.integer[Any]]


@dataclasses.dataclass(frozen=True)
class MarkovModels:
    """The plain models of every order up to the highest one, and their interpolation."""

    counts: tuple[Counts, ...]
    """Of every order k, an array (4^k, 4): how often base b follows the context whose base-4 number is s."""
    prior_weight: float = DEFAULT_PRIOR_WEIGHT
    """The weight a of the interpolation, in counts."""

    @property
    def order(self) -> int:
        """The highest order."""
        return len(self.counts) - 1

    @cached_property
    def trained_bases(self) -> int:
        """Number of bases counted; a base counts once for each strand that was read."""
        return int(self.counts[0].sum())

    def bits(self, letters: NDArray[np.uint8], start: int = 0) -> NDArray[np.float64]:
        """Code length of each base given those to its left.

        Parameters
        ----------
        letters : uint8 array (L,)
            ASCII, in reading direction.
        start : int
            The first position wanted; those before it serve as context only.

        Returns
        -------
        float64 array (order + 2, L - start)
            -log2 of the probability by each plain order 0 ... order, and by the interpolated model in the last row;
            NaN where the letter is none of A, C, G, T.

        Examples
        --------
        >>> model = MarkovModels((np.array([[2, 1, 1, 0]]),), prior_weight=4.0)
        >>> model.bits(np.frombuffer(b"AAN", dtype=np.uint8)).round(3).tolist()
        [[1.737, 1.737, nan], [1.415, 1.415, nan]]
        """
        probability = np.empty((self.order + 2, len(letters) - start))
        smooth = np.full(len(letters) - start, 0.25)
        for k, (known, count, total) in enumerate(self._tallies(letters, start)):
            plain = (count + _PSEUDO_COUNT) / (total + 4 * _PSEUDO_COUNT)
            probability[k] = np.where(known, plain, probability[k - 1])
            smooth = np.where(known, (count + self.prior_weight * smooth) / (total + self.prior_weight), smooth)
        probability[-1] = smooth
        probability[:, CODE_OF_BYTE[letters[start:]] == NO_BASE] = np.nan
        return -np.log2(probability)

    def distribution(self, context: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities of A, C, G, T after `context` (ASCII) by each model: float64 array (order + 2, 4)."""
        endings = (np.append(context, np.uint8(ord(base))) for base in "ACGT")
        return np.stack([np.exp2(-self.bits(letters, len(context))[:, 0]) for letters in endings], axis=1)

    def _tallies(
        self, letters: NDArray[np.uint8], start: int
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]]:
        """Of each order: whether the context is there, how often the base followed it, how often it was seen."""
        start_kept = min(start, self.order)
        codes = CODE_OF_BYTE[letters[start - start_kept :]]
        n = len(codes) - start_kept
        place = np.arange(len(codes))
        run_begin = np.maximum.accumulate(np.where(codes == NO_BASE, place + 1, 0))
        run_begin = np.concatenate(([0], run_begin[:-1]))[start_kept:]  # of the bases before each position
        available = place[start_kept:] - run_begin
        padded = np.concatenate((np.zeros(self.order - start_kept, dtype=np.int64), codes & 3))
        context = np.zeros(n, dtype=np.int64)
        for j in range(self.order):
            context = context << 2 | padded[j : j + n]
        base = padded[self.order :].astype(np.int64)
        for k, counts in enumerate(self.counts):
            here = context & (4**k - 1)
            rows = np.take(counts, here, axis=0)
            total = rows[:, 0].astype(np.float64) + rows[:, 1] + rows[:, 2] + rows[:, 3]
            count = np.take_along_axis(rows, base[:, None], axis=1)[:, 0]
            yield available >= k, count.astype(np.float64), total


def fit(
    pack: Pack, train: Sequence[Interval], valid: Sequence[Interval], order: int = MAX_ORDER
) -> tuple[MarkovModels, bool]:
    """Markov models counted on both strands of `train`, with the prior weight that codes `valid` best.

    Parameters
    ----------
    pack : Pack
        The genome.
    train, valid : Interval, ...
        Where to count, and where to choose the prior weight.
    order : int
        The highest order; 12 takes 0.4 GB (twice that above 1 Gb of training intervals).

    Returns
    -------
    MarkovModels
    bool                            whether `valid` held a base; if not, the prior weight is the default one
    """
    total = sum(interval.end - interval.start for interval in train)
    with progress("counting Markov baselines", total) as job:

        def sequences() -> Iterator[NDArray[np.uint8]]:
            for interval in train:
                yield pack.fetch(interval)
                job.advance(len(interval))

        counts = count_both_strands(sequences(), order, many=2 * total >= 2**31)
    models = MarkovModels(counts)
    weight = best_prior_weight(models, [pack.fetch(interval) for interval in valid])
    return (models, False) if weight is None else (dataclasses.replace(models, prior_weight=weight), True)


def count_both_strands(
    sequences: Iterable[NDArray[np.uint8]], order: int = MAX_ORDER, many: bool = False
) -> tuple[Counts, ...]:
    """Counts of every order on both strands; parameters and result are those of `count_forward`."""
    both = []
    for k, counts in enumerate(count_forward(sequences, order, many)):
        mers = counts.reshape((4,) * (k + 1))
        other = mers.transpose()[(slice(None, None, -1),) * (k + 1)]  # reversed, and A with T, C with G exchanged
        both.append((mers + other).reshape(4**k, 4))
    return tuple(both)


def count_forward(
    sequences: Iterable[NDArray[np.uint8]], order: int = MAX_ORDER, many: bool = False
) -> tuple[Counts, ...]:
    """How often each base follows each context, of every order, on the strand that is given.

    Only the highest order is counted; a lower one is its sum over the first base of the context, which misses nothing
    but the words that begin a run of A, C, G, T: these are counted one by one.

    Parameters
    ----------
    sequences : uint8 arrays (L,)
        ASCII; no word spans two of them.
    order : int
        The highest order.
    many : bool
        Count in int64 instead of int32: needed above 2^31 bases on both strands.

    Returns
    -------
    integer arrays (4^k, 4), ...    one for each order k = 0 ... order
    """
    dtype = np.int64 if many else np.int32
    top = np.zeros(4 ** (order + 1), dtype=dtype)
    begins = [np.zeros(4**k, dtype=dtype) for k in range(order + 1)]  # words of k bases that begin a run
    for letters in sequences:
        for first in range(0, len(letters), _PIECE):
            _count_piece(letters, first, order, top, begins)
    counts = [top]
    for k in range(order, 0, -1):
        counts.append(counts[-1].reshape(4, 4**k).sum(axis=0, dtype=dtype) + begins[k])
    return tuple(words.reshape(-1, 4) for words in reversed(counts))


def _count_piece(letters: NDArray[np.uint8], first: int, order: int, top: Counts, begins: Sequence[Counts]) -> None:
    """Count the words of order + 1 bases that start in one piece of a sequence, and those that begin a run in it."""
    n = min(_PIECE, len(letters) - first)
    codes = np.full(n + order, NO_BASE, dtype=np.uint8)
    piece = CODE_OF_BYTE[letters[first : first + n + order]]
    codes[: len(piece)] = piece
    is_base = codes != NO_BASE
    word = np.zeros(n, dtype=np.int32)  # 4^13 fits
    whole = np.ones(n, dtype=bool)
    for j in range(order + 1):
        word = word << 2 | (codes[j : j + n] & 3)
        whole &= is_base[j : j + n]
    _add(top, word[whole])

    before = first > 0 and CODE_OF_BYTE[letters[first - 1]] != NO_BASE
    starts = np.flatnonzero(is_base[:n] & ~np.concatenate(([before], is_base[: n - 1])))
    word = np.zeros(len(starts), dtype=np.int32)
    for k in range(1, order + 1):
        kept = is_base[starts + k - 1]
        starts, word = starts[kept], word[kept] << 2 | codes[starts[kept] + k - 1]
        _add(begins[k], word)


def _add(counts: Counts, words: NDArray[np.int32]) -> None:
    """Count words; sorting them first turns random writes to a large table into ordered ones, 3 times faster."""
    words = np.sort(words)
    last = np.flatnonzero(np.append(words[1:] != words[:-1], len(words) > 0))
    counts[words[last]] += np.diff(last, prepend=-1).astype(counts.dtype)


def best_prior_weight(models: MarkovModels, sequences: Sequence[NDArray[np.uint8]]) -> float | None:
    """The weight of `PRIOR_WEIGHTS` that codes both strands of `sequences` in the fewest bits; None without any base.

    Long sequences are sampled: evenly spread pieces of 10 kb, about 2 Mb in all.
    """
    pieces = [
        letters[i : i + _VALIDATION_PIECE] for letters in sequences for i in range(0, len(letters), _VALIDATION_PIECE)
    ]
    step = max(1, len(pieces) * _VALIDATION_PIECE // _MOST_VALIDATION_BASES)
    weights = np.array(PRIOR_WEIGHTS)[:, None]
    bits, bases = np.zeros(len(weights)), 0
    for piece in pieces[step // 2 :: step]:
        for letters in (piece, COMPLEMENT[piece[::-1]]):
            smooth = np.full((len(weights), len(letters)), 0.25)
            for known, count, total in models._tallies(letters, 0):
                smooth = np.where(known, (count + weights * smooth) / (total + weights), smooth)
            scored = CODE_OF_BYTE[letters] != NO_BASE
            bits -= np.log2(smooth[:, scored]).sum(axis=1)
            bases += int(scored.sum())
    return PRIOR_WEIGHTS[int(bits.argmin())] if bases else None
