"""Code lengths summed in blocks of the genome: all that an evaluation keeps of what it has read."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.intervals import Interval, merge
from hyenadna.inference.evaluation import Columns
from hyenadna.inference.windows import Window, WindowPlan

BLOCK = 10_000
"""Bases of the genome in one block of the bootstrap, both strands together."""
SOFT_MASKED = "soft-masked"
"""The annotation of lower-case letters."""
_LOWER_CASE = ord("a")
_CONTIG_SHIFT = 40


class BlockSums:
    """Rows of sums, one for each 10-kb block that holds a base; see `Columns` for what is in a row.

    Parameters
    ----------
    plan : WindowPlan
        The windows to be added.
    order : int
        Highest order of the Markov models.
    regions : dict
        Intervals of each annotation, overlapping or not.
    """

    def __init__(self, plan: WindowPlan, order: int, regions: Mapping[str, Sequence[Interval]]) -> None:
        self.columns = Columns(order, (*regions, SOFT_MASKED), bins=(plan.length - 1).bit_length())
        self._context = plan.context
        self._edges = [edges_of(intervals) for intervals in regions.values()]
        self._contigs: dict[str, int] = {}
        self._rows: dict[int, NDArray[np.float64]] = {}

    def add(
        self,
        windows: Sequence[Window],
        letters: NDArray[np.uint8],
        bits: NDArray[np.float64],
        elsewhere: NDArray[np.float64],
        baseline_bits: NDArray[np.float64],
    ) -> None:
        """Add the bases of windows, given one window after the other.

        Parameters
        ----------
        windows : Window, ...
            In any order.
        letters : uint8 array (bases,)
            ASCII in reading direction.
        bits : float64 array (bases,)
            By the language model.
        elsewhere : float64 array (bases,)
            Its probability of tokens other than A, C, G, T.
        baseline_bits : float64 array (order + 2, bases)
            Of plain orders, then interpolated; NaN: no base.
        """
        position = np.concatenate([np.arange(window.length) for window in windows])
        places = [window.places() for window in windows]
        blocks, block = np.unique(self._block_numbers(windows, places), return_inverse=True)
        shown = (position > 0) & ~np.isnan(baseline_bits[-1])
        scored = (position >= self._context) & shown
        group = np.stack((np.ones(len(bits)), bits, baseline_bits[-1]))

        columns = self.columns
        rows = np.zeros((len(blocks), columns.group(columns.context(columns.bins))))
        first = columns.group(0)
        rows[:, :first] = _sums(block, len(blocks), np.stack((elsewhere, *baseline_bits[:-1])), scored)
        rows[:, first : first + 3] = _sums(block, len(blocks), group, scored)
        for i, inside in enumerate(self._annotations(windows, places, letters)):
            first = columns.group(columns.inside(i))
            rows[:, first : first + 3] = _sums(block, len(blocks), group, scored & inside)
            rows[:, first + 3 : first + 6] = _sums(block, len(blocks), group, scored & ~inside)
        bin_of = np.frexp(position)[1] - 1  # the floor of log2, and -1 for the first base, which is not shown
        by_bin = _sums(block * columns.bins + bin_of, len(blocks) * columns.bins, group, shown)
        rows[:, columns.group(columns.context(0)) :] = by_bin.reshape(len(blocks), -1)
        for number, row in zip(blocks.tolist(), rows, strict=True):
            self._rows[number] = self._rows[number] + row if number in self._rows else row

    def rows(self) -> NDArray[np.float64]:
        """All sums so far: float64 array (blocks, columns), in the order of the genome."""
        width = self.columns.group(self.columns.context(self.columns.bins))
        return np.array([self._rows[number] for number in sorted(self._rows)]).reshape(-1, width)

    def _block_numbers(self, windows: Sequence[Window], places: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        numbers = []
        for window, place in zip(windows, places, strict=True):
            contig = self._contigs.setdefault(window.interval.contig, len(self._contigs))
            numbers.append((contig << _CONTIG_SHIFT) + place // BLOCK)
        return np.concatenate(numbers)

    def _annotations(
        self, windows: Sequence[Window], places: Sequence[NDArray[np.int64]], letters: NDArray[np.uint8]
    ) -> Iterator[NDArray[np.bool_]]:
        """Of each annotation, whether each base is inside."""
        yield from (inside(edges, windows, places) for edges in self._edges)
        yield is_lower_case(letters)


def _sums(
    index: NDArray[np.int64], size: int, values: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The sums of the chosen values that have the same index: (n, bases) -> (size, n)."""
    kept = index[chosen]
    return np.stack([np.bincount(kept, weights=row[chosen], minlength=size) for row in values], axis=1)


def is_lower_case(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of letters in ASCII."""
    return letters >= _LOWER_CASE


def inside(
    edges: Mapping[str, NDArray[np.int64]], windows: Sequence[Window], places: Sequence[NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Of each base of windows, one window after the other, whether it lies in the intervals of these edges."""
    nowhere = np.zeros(0, dtype=np.int64)
    return np.concatenate(
        [
            np.searchsorted(edges.get(window.interval.contig, nowhere), place, side="right") % 2 == 1
            for window, place in zip(windows, places, strict=True)
        ]
    )


def edges_of(intervals: Sequence[Interval]) -> dict[str, NDArray[np.int64]]:
    """Of each contig, start, end, start, end ... of the union of the intervals, in order."""
    union: dict[str, list[int]] = {}
    for interval in merge(intervals):
        union.setdefault(interval.contig, []).extend((interval.start, interval.end))
    return {contig: np.array(edges, dtype=np.int64) for contig, edges in union.items()}
