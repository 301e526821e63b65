"""Log-likelihoods of sequences of any length, a stretch at a time.

`likelihoods` holds numbers for every base of every sequence, which for a chromosome are gigabytes. Here the sequences
are cut into stretches; of each, those windows are read that score some of its bases, and its numbers are given up
before the next is read. They are the numbers of `likelihoods`. A window that scores bases of two stretches is read for
each, so that what a stretch gives depends on nothing that was read before it: a job that stopped computes the very same
batches when it is taken up.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.inference.likelihood import (
    Likelihood,
    ScoredWindow,
    Strand,
    bits_per_base,
    context_of,
    is_base,
    likelihood_of,
    scored_windows,
    window_nats,
)
from hyenadna.inference.ragged import batches
from hyenadna.inference.sequence_chunks import bases_between_writes
from hyenadna.model.language_model import HyenaDNA

_STRIDES = 8
"""Of a stretch at least, as up to one window a stretch is read twice on the reverse strand."""


class Stretch(NamedTuple):
    """Some bases of one of several sequences, counted on its forward strand."""

    row: int
    """Of the sequence, from 0."""
    start: int
    end: int


class Total(NamedTuple):
    """How likely a model finds a whole sequence."""

    length: int
    """In bases."""
    nats: float
    """Sum of ln p over the bases of a strand; of both strands the mean."""
    scored: float
    """Number of bases in that sum; of both strands the mean."""

    @property
    def bits_per_base(self) -> float:
        """Code length over the bases scored; NaN if there is none."""
        return bits_per_base(self.nats, self.scored)


class _Windows(NamedTuple):
    """Those of one sequence."""

    windows: list[ScoredWindow]
    spans: NDArray[np.int64]
    """(n, 2): the bases that each scores on the forward strand, from the first up to one past the last."""

    @classmethod
    def of(cls, tokens: NDArray[np.uint8], context: int, strand: Strand) -> "_Windows":
        windows, L = scored_windows(tokens, context, strand), len(tokens)
        spans = [(window.first, window.start + len(window.tokens)) for window in windows]
        turned = [(L - e, L - s) if w.strand == "-" else (s, e) for w, (s, e) in zip(windows, spans, strict=True)]
        return cls(windows, np.array(turned, dtype=np.int64).reshape(-1, 2))

    def within(self, stretch: Stretch) -> NDArray[np.intp]:
        """Numbers of the windows that score a base of a stretch."""
        return np.flatnonzero((self.spans[:, 0] < stretch.end) & (self.spans[:, 1] > stretch.start))


class LikelihoodReader:
    """Reads log-likelihoods of sequences by a model; call it with the tokens of some for the sums of each.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read; of both, the mean.
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one window; changes speed and memory, not the result.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.
    bases : int, optional
        Of a stretch at most. Default: some seconds of a model's work on two CPUs.

    Attributes
    ----------
    context : int           bases that are read at once: two fewer than the filters have taps
    stride : int            bases between the windows of longer sequences
    """

    def __init__(
        self,
        model: HyenaDNA,
        *,
        strand: Strand = "forward",
        batch_tokens: int = 1 << 13,
        dtype: torch.dtype = torch.float32,
        bases: int | None = None,
    ) -> None:
        self.model, self.strand, self.batch_tokens, self.dtype = model, strand, batch_tokens, dtype
        self.context = context_of(model)
        self.stride = max(1, self.context // 2)
        self.bases = bases or max(bases_between_writes(model, batch_tokens), _STRIDES * self.stride)

    def __call__(self, sequences: Sequence[NDArray[np.uint8]]) -> list[Total]:
        """The sums of each sequence, in their order.

        Parameters
        ----------
        sequences : sequence of uint8 arrays
            Tokens, at least one each, of any lengths.

        Raises
        ------
        InputError              a sequence is empty
        NotFiniteError          the model gives something that is not a number
        """
        totals = [Total(len(tokens), 0.0, 0.0) for tokens in sequences]
        for some, read in self.parts(sequences):
            for stretch, found in zip(some, read(), strict=True):
                length, nats, scored = totals[stretch.row]
                totals[stretch.row] = Total(length, nats + found.nats, scored + found.scored)
        return totals

    def parts(
        self, sequences: Sequence[NDArray[np.uint8]], strands: Sequence[Strand] | None = None
    ) -> Iterator[tuple[list[Stretch], Callable[[], list[Likelihood]]]]:
        """The sequences in stretches, some at a time, each with a function that reads them.

        Parameters
        ----------
        sequences : sequence of uint8 arrays
            Tokens, at least one each, of any lengths.
        strands : sequence of {'forward', 'reverse', 'both'}, optional
            Of each sequence. Default: `strand` of them all.

        Yields
        ------
        list of Stretch
            Of one sequence they come from left to right.
        function
            Called without arguments, gives the `Likelihood` of each of these stretches.
        """
        known = [
            _Windows.of(tokens, self.context, strand)
            for tokens, strand in zip(sequences, strands or [self.strand] * len(sequences), strict=True)
        ]
        for some in stretches([len(tokens) for tokens in sequences], self.bases):
            yield some, partial(self._read, some, known)

    def _read(self, some: list[Stretch], known: list[_Windows]) -> list[Likelihood]:
        numbers = [known[stretch.row].within(stretch) for stretch in some]
        windows = [
            known[stretch.row].windows[number] for stretch, own in zip(some, numbers, strict=True) for number in own
        ]
        rest = iter(self._nats(windows))
        found = []
        for stretch, own in zip(some, numbers, strict=True):
            cut = [_cut(known[stretch.row], number, next(rest), stretch) for number in own]
            found.append(likelihood_of(stretch.end - stretch.start, [w for w, _ in cut], [nats for _, nats in cut]))
        return found

    def _nats(self, windows: list[ScoredWindow]) -> list[NDArray[np.float64]]:
        """What each window scores; those without a base to score, as in the gaps of an assembly, are not read."""
        scored = [window.tokens[max(window.first - window.start, 1) :] for window in windows]
        found = [np.full(len(window.tokens) - (window.first - window.start), np.nan) for window in windows]
        wanted = np.flatnonzero([is_base(tokens).any() for tokens in scored])
        lengths = np.array([len(windows[number].tokens) for number in wanted], dtype=np.int64)
        for rows in batches(lengths, self.batch_tokens):
            numbers = wanted[rows]
            read = window_nats(self.model, [windows[number] for number in numbers], dtype=self.dtype)
            for number, nats in zip(numbers, read, strict=True):
                found[number] = nats
        return found


def stretches(lengths: Sequence[int], bases: int) -> Iterator[list[Stretch]]:
    """Sequences of these lengths in stretches of at most so many bases: the first ones of all, the second ones, ...

    Examples
    --------
    >>> [[(s.row, s.start, s.end) for s in some] for some in stretches([2, 5], 4)]
    [[(0, 0, 2), (1, 0, 4)], [(1, 4, 5)]]
    """
    rows, start = list(range(len(lengths))), 0
    while rows:
        yield [Stretch(row, start, min(start + bases, lengths[row])) for row in rows]
        start += bases
        rows = [row for row in rows if lengths[row] > start]


def scored_bases(tokens: NDArray[np.uint8], strand: Strand) -> NDArray[np.bool_]:
    """Which bases of a whole sequence are scored: A, C, G, T, but for the first of the only strand that is read."""
    scored = is_base(tokens)
    if strand != "both" or len(tokens) == 1:
        scored[-1 if strand == "reverse" else 0] = False
    return scored


def _cut(
    known: _Windows, number: int, nats: NDArray[np.float64], stretch: Stretch
) -> tuple[ScoredWindow, NDArray[np.float64]]:
    """What a window scores within a stretch, as if the stretch were the whole sequence."""
    window, (start, end) = known.windows[number], known.spans[number].tolist()
    left, right = max(start, stretch.start), min(end, stretch.end)
    if window.strand == "+":
        return window._replace(first=left - stretch.start), nats[left - start : right - start]
    return window._replace(first=stretch.end - right), nats[end - right : end - left]
