"""Training windows as a function of (seed, step, index in the step) alone: no state, so resuming is exact.

The number of processes, the micro-batches and the history of the run do not enter, so they may change between runs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack, letter_counts
from hyenadna.data.tokenizer import COMPLEMENT_TOKEN, IGNORE, PAD, SEP, TOKEN_OF_BYTE, N
from hyenadna.errors import InputError, UsageError

NToken = Literal["n", "pad"]
SoftMask = Literal["upper", "ignore"]
_ATTEMPTS = 64
_SCAN = 1 << 20
_LOWER_CASE = 0x20  # the bit by which ASCII writes a letter in lower case


@dataclasses.dataclass(frozen=True)
class Source:
    """A part of one genome, and how often it is drawn."""

    pack: Pack
    """The genome."""
    intervals: tuple[Interval, ...]
    """Windows lie within one of these."""
    weight: float
    """Share of the windows that come from here, relative to the other sources' weights."""


class Windows(NamedTuple):
    """Records as the model is trained on them: L bases, then SEP."""

    inputs: NDArray[np.uint8]
    """uint8 (B, L): tokens of the bases."""
    targets: NDArray[np.int64]
    """int64 (B, L): the token after each, SEP after the last; IGNORE where it is not in the loss."""


class _Draw(NamedTuple):
    source: NDArray[np.int64]
    position: NDArray[np.int64]
    reverse: NDArray[np.bool_]


class _Places:
    """Every position of a source at which a window of L bases fits, numbered from 0."""

    def __init__(self, source: Source, length: int) -> None:
        fitting = [interval for interval in source.intervals if len(interval) >= length]
        if not fitting:
            longest = max(map(len, source.intervals), default=0)
            raise InputError(
                f"a window of {length:,} bases is longer than every interval of {source.pack.source} that it may come "
                f"from; a length of up to {longest:,} would do"
            )
        self.intervals = fitting
        self.cumulative = np.cumsum([len(interval) - length + 1 for interval in fitting])
        first = np.array([source.pack.starts[interval.contig] + interval.start for interval in fitting])
        self.shift: NDArray[np.int64] = first - np.concatenate([[0], self.cumulative[:-1]])
        self.count = int(self.cumulative[-1])

    def positions(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index into the pack's sequence of each numbered place."""
        interval = np.searchsorted(self.cumulative, numbers, side="right")
        return numbers + self.shift[interval]


class WindowSampler:
    """Draws training windows: the source by weight, the start uniformly over all places where one fits, the strand.

    A window with more than `max_n_share` of bases other than A, C, G, T is drawn again, up to 64 times; then the best
    of these is taken.

    Parameters
    ----------
    sources : sequence of Source
    seed : int
    n_token : {'n', 'pad'}
        What N is in the inputs (`HyenaConfig.n_token`); it is never in the loss.
    soft_mask : {'upper', 'ignore'}
        Whether lower-case bases are read like others, or kept out of the loss.
    reverse_complement : bool
        Whether every second window, by the toss of a coin, is read from the other strand.
    max_n_share : float

    Raises
    ------
    UsageError              no source, or a weight that is not a positive number
    InputError              a source without any A, C, G or T
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        *,
        n_token: NToken,
        soft_mask: SoftMask,
        reverse_complement: bool,
        max_n_share: float = 0.05,
    ) -> None:
        self.sources, self.seed = tuple(sources), seed % 2**64
        self.n_token, self.soft_mask, self.reverse_complement = n_token, soft_mask, reverse_complement
        self.max_n_share = max_n_share
        weights = np.array([source.weight for source in self.sources], dtype=np.float64)
        if not self.sources or not np.isfinite(weights).all() or (weights <= 0).any():
            raise UsageError(f"the weights of the sources are {weights.tolist()}; each must be a positive number")
        for source in self.sources:
            check_usable(source)
        self._shares = np.cumsum(weights) / weights.sum()
        self._shares[-1] = 1.0  # rounding must not leave a gap at the top
        self._places: dict[int, list[_Places]] = {}

    def windows(self, step: int, first: int, count: int, length: int) -> Windows:
        """Windows `first` to `first + count` of a step: inputs and targets (count, length).

        Raises
        ------
        InputError              a source has no interval of `length` bases; says which length would do
        """
        _, tokens, lower = self._drawn(step, first, count, length)
        return _windows(tokens, lower, self.n_token, self.soft_mask)

    def describe(self, step: int, first: int, count: int, length: int) -> list[str]:
        """Where the same windows lie, 1-based and inclusive, with the strand: '20:1,000,001-1,001,024(-)'.

        With several sources the name of the file comes first.
        """
        draw, _, _ = self._drawn(step, first, count, length)
        loci = []
        for number, position, reverse in zip(draw.source.tolist(), draw.position.tolist(), draw.reverse, strict=True):
            pack = self.sources[number].pack
            contig = int(np.searchsorted(pack.offsets, position, side="right")) - 1
            start = position - int(pack.offsets[contig])
            file = f"{pack.source} " if len(self.sources) > 1 else ""
            loci.append(f"{file}{Interval(pack.names[contig], start, start + length)}({'-' if reverse else '+'})")
        return loci

    def _drawn(
        self, step: int, first: int, count: int, length: int
    ) -> tuple[_Draw, NDArray[np.uint8], NDArray[np.bool_]]:
        """The loci, tokens and lower-case mask (count, length) of windows, after redrawing those with too many N."""
        if length not in self._places:
            self._places[length] = [_Places(source, length) for source in self.sources]
        indices = np.arange(first, first + count, dtype=np.uint64)
        draw = self._draw(step, indices, 0, length)
        tokens, lower = self._gather(draw, length)
        strange = (tokens == N).sum(axis=1)
        for attempt in range(1, _ATTEMPTS):
            again = np.flatnonzero(strange > self.max_n_share * length)
            if not len(again):
                break
            redraw = self._draw(step, indices[again], attempt, length)
            new_tokens, new_lower = self._gather(redraw, length)
            new_strange = (new_tokens == N).sum(axis=1)
            better = new_strange < strange[again]
            rows = again[better]
            tokens[rows], lower[rows], strange[rows] = new_tokens[better], new_lower[better], new_strange[better]
            for kept, new in zip(draw, redraw, strict=True):
                kept[rows] = new[better]
        return draw, tokens, lower

    def _draw(self, step: int, indices: NDArray[np.uint64], attempt: int, length: int) -> _Draw:
        stream = _mix(_mix(np.array([self.seed], dtype=np.uint64)) + np.uint64(step))
        key = _mix(stream + indices)
        # the source does not depend on the attempt: files with many N would be drawn less often than by their weight
        source = np.searchsorted(self._shares, _uniform(key, 0), side="right")
        place, coin = _uniform(key, 2 * attempt + 1), _uniform(key, 2 * attempt + 2)
        position = np.empty(len(indices), dtype=np.int64)
        for number, places in enumerate(self._places[length]):
            mine = source == number
            position[mine] = places.positions((place[mine] * places.count).astype(np.int64))
        return _Draw(source, position, (coin < 0.5) & self.reverse_complement)

    def _gather(self, draw: _Draw, length: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        letters = np.empty((len(draw.position), length), dtype=np.uint8)
        for number, source in enumerate(self.sources):
            mine = draw.source == number
            if mine.any():
                letters[mine] = _slices(source.pack.sequence, draw.position[mine], length)
        letters[draw.reverse] = letters[draw.reverse, ::-1]
        tokens = _tokens(letters)
        tokens[draw.reverse] = COMPLEMENT_TOKEN[tokens[draw.reverse]]
        return tokens, (letters & _LOWER_CASE).astype(bool)


def validation_windows(
    sources: Sequence[Source],
    length: int,
    count: int,
    *,
    n_token: NToken,
    soft_mask: SoftMask,
    max_n_share: float = 0.05,
) -> Windows:
    """About `count` windows spread evenly over the sources, forward strand, the same at every call.

    Each source gets its share of `count` by weight; windows with more than `max_n_share` of N are left out, unless none
    would remain.

    Raises
    ------
    InputError              a source has no interval of `length` bases; says which length would do
    """
    total = sum(source.weight for source in sources)
    letters = []
    for source in sources:
        places = _Places(source, length)
        wanted = min(max(1, round(count * source.weight / total)), places.count)
        numbers = ((2 * np.arange(wanted) + 1) * places.count) // (2 * wanted)
        letters.append(_slices(source.pack.sequence, places.positions(numbers), length))
    rows = np.concatenate(letters)
    tokens = _tokens(rows)
    good = (tokens == N).mean(axis=1) <= max_n_share
    if good.any():
        tokens, rows = tokens[good], rows[good]
    return _windows(tokens, (rows & _LOWER_CASE).astype(bool), n_token, soft_mask)


def check_usable(source: Source) -> None:
    """Raise InputError if there is no A, C, G or T in a source; reads no further than the first."""
    for interval in source.intervals:
        bases = source.pack.fetch(interval)
        for start in range(0, len(bases), _SCAN):
            if letter_counts(bases[start : start + _SCAN])[:4].any():
                return
    raise InputError(
        f"{source.pack.source} has no A, C, G or T in the {len(source.intervals)} intervals that it is read from; "
        "is it masked altogether, or are the wrong contigs kept?"
    )


def _windows(tokens: NDArray[np.uint8], lower: NDArray[np.bool_], n_token: NToken, soft_mask: SoftMask) -> Windows:
    targets = np.full(tokens.shape, SEP, dtype=np.int64)
    targets[:, :-1] = tokens[:, 1:]
    targets[targets == N] = IGNORE
    if soft_mask == "ignore":
        targets[:, :-1][lower[:, 1:]] = IGNORE
    if n_token == "pad":
        tokens[tokens == N] = PAD
    return Windows(tokens, targets)


def _slices(sequence: NDArray[np.uint8], positions: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
    """uint8 (B, L): copies of the windows that begin at `positions` (B,)."""
    return np.lib.stride_tricks.sliding_window_view(sequence, length)[positions]


def _tokens(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # bytes.translate is several times faster than indexing a table
    tokens = np.frombuffer(bytearray(letters.tobytes().translate(TOKEN_OF_BYTE.tobytes())), dtype=np.uint8)
    return tokens.reshape(letters.shape)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function of the state after x (Steele, Lea and Flood 2014); arrays, whose overflow wraps."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(key: NDArray[np.uint64], counter: int) -> NDArray[np.float64]:
    """float64 (B,) in [0, 1): random number `counter` of every key (B,)."""
    mixed = _mix(key ^ _mix(np.array([counter], dtype=np.uint64)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
