"""The windows that a genome is evaluated in: both strands, half overlapping, scored where context is long."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import COMPLEMENT
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.errors import IntervalError, UsageError


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of one strand of an interval; start and end count from where that strand begins to be read."""

    interval: Interval
    strand: Literal["+", "-"]
    start: int
    end: int

    @property
    def length(self) -> int:
        """In bases."""
        return self.end - self.start

    def letters(self, pack: Pack, look_back: int = 0) -> NDArray[np.uint8]:
        """The window in reading direction, after up to `look_back` bases of the interval before it; case kept."""
        contig = pack.contig(self.interval.contig)
        start = self.start - min(look_back, self.start)
        if self.strand == "+":
            return contig[self.interval.start + start : self.interval.start + self.end]
        return COMPLEMENT[contig[self.interval.end - self.end : self.interval.end - start][::-1]]

    def places(self) -> NDArray[np.int64]:
        """Of each base of the window, its position on the contig: int64 (length,)."""
        if self.strand == "+":
            return np.arange(self.interval.start + self.start, self.interval.start + self.end)
        return np.arange(self.interval.end - 1 - self.start, self.interval.end - 1 - self.end, -1)


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """Which windows of the intervals are read.

    Windows of `length` start every `length` // 2 bases, on each strand from where that strand of an interval begins.
    The bases after the first `context` ones of a window are scored, so that each base of an interval but its first
    `context` is scored once on each strand. The last window of an interval is shorter when the interval ends.

    Raises
    ------
    UsageError              a length under 2, or fewer than 1 base asked for
    IntervalError           no interval is long enough to have a base scored
    """

    intervals: Sequence[Interval]
    length: int
    max_bases: int | None = None
    """About how many bases to score on each strand, in evenly spread windows. Default: all."""

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UsageError(f"the window length is {self.length}; it must be at least 2, a base and its context")
        if self.max_bases is not None and self.max_bases < 1:
            raise UsageError(f"{self.max_bases} bases were asked for; ask for at least 1")
        if not sum(map(self._count, self.intervals)):
            longest = max((len(interval) for interval in self.intervals), default=0)
            raise IntervalError(
                f"none of {len(self.intervals)} intervals holds a window: the longest has {longest:,} bp and the first "
                f"{self.context:,} of each serve as context only; use windows of at most {max(longest, 2):,} bp"
            )

    @property
    def stride(self) -> int:
        """From the start of a window to the next, and the number of bases scored in a whole one."""
        return self.length // 2

    @property
    def context(self) -> int:
        """Number of bases at the start of a window that are not scored there."""
        return self.length - self.stride

    def __len__(self) -> int:
        """Number of windows on both strands."""
        return 2 * self._kept(sum(map(self._count, self.intervals)))

    def __iter__(self) -> Iterator[Window]:
        total = sum(map(self._count, self.intervals))
        kept, chosen, before = self._kept(total), 0, 0
        for interval in self.intervals:
            count, indices = self._count(interval), []
            while chosen < kept and (index := (2 * chosen + 1) * total // (2 * kept)) < before + count:
                indices.append(index - before)
                chosen += 1
            before += count
            yield from (self._window(interval, "+", index) for index in indices)
            # mirrored, so that a sample of windows covers about the same part of the genome on both strands
            yield from (self._window(interval, "-", count - 1 - index) for index in reversed(indices))

    def _count(self, interval: Interval) -> int:
        """Windows on one strand of an interval."""
        return max(0, -((self.context - (len(interval))) // self.stride))

    def _kept(self, total: int) -> int:
        return total if self.max_bases is None else min(total, max(1, self.max_bases // self.stride))

    def _window(self, interval: Interval, strand: Literal["+", "-"], index: int) -> Window:
        start = index * self.stride
        return Window(interval, strand, start, min(start + self.length, len(interval)))
