"""Windows of sequences that are longer than a model takes: every base is in one, and all but the only one are full."""

from collections.abc import Sequence
from typing import NamedTuple

from hyenadna.errors import UsageError


class LongWindow(NamedTuple):
    """A stretch of one sequence that the model reads by itself."""

    row: int
    """Number of the sequence."""
    start: int
    """First base of the window."""
    end: int
    """Base behind its last."""
    first: int
    """First base that no earlier window of the sequence holds."""


def long_windows(lengths: Sequence[int], context: int, stride: int) -> list[LongWindow]:
    """The windows of sequences, in order: a sequence of up to `context` bases is one window.

    A longer one is cut into windows of `context` bases that begin every `stride` bases; the last one ends where the
    sequence does, so it may begin sooner.

    Parameters
    ----------
    lengths : sequence of int
        Bases of each sequence, at least 1.
    context : int
        The most bases of a window.
    stride : int
        Bases from one window's start to the next one's.

    Raises
    ------
    UsageError              a stride under 1, or over the context, which would leave bases out

    Examples
    --------
    >>> [tuple(window) for window in long_windows([3, 9], context=4, stride=2)]
    [(0, 0, 3, 0), (1, 0, 4, 0), (1, 2, 6, 4), (1, 4, 8, 6), (1, 5, 9, 8)]
    """
    if not 1 <= stride <= context:
        raise UsageError(f"a stride of {stride:,} bases; allowed are 1 to the {context:,} bases of a window")
    found = []
    for row, length in enumerate(lengths):
        first = 0
        for start in [*range(0, max(0, length - context), stride), max(0, length - context)]:
            end = min(start + context, length)
            found.append(LongWindow(row, start, end, first))
            first = end
    return found
