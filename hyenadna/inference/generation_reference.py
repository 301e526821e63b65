"""What generated sequences are compared with: held-out windows of a genome, and samples of a Markov model of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import COMPLEMENT
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import Pack, packed
from hyenadna.data.splits import Split, hashed_split, matching_split
from hyenadna.errors import InputError
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE, MarkovModels, count_both_strands

ORDER = 6
"""Of the Markov model that is sampled from."""
_TRIES = 200
"""Places that are tried for a window without a letter other than A, C, G, T."""
_MARKOV_BASES, _MARKOV_PIECE = 8_000_000, 100_000
"""The Markov model is counted on about so many bases of the training part, in evenly spread pieces."""

_NEVER_COUNTED = 1e-6


@dataclasses.dataclass(frozen=True)
class Reference:
    """A genome in two parts."""

    pack: Pack
    train: tuple[Interval, ...]
    """What the model was trained on, as far as is known."""
    held_out: tuple[Interval, ...]
    """What windows are drawn from."""
    split: str
    """Where the parts come from, in words."""

    @classmethod
    def of(cls, path: Path, splits: Sequence[Split], longest: int) -> "Reference":
        """The reference in a file, in the parts that the model was trained and is tested with.

        Parameters
        ----------
        path : Path
            A FASTA file or a pack.
        splits : sequence of Split
            Those stored with the model. A genome that none of them is of is split anew, as `hyena evaluate` does.
        longest : int
            Bases of the longest generated sequence.

        Raises
        ------
        InputError              no FASTA file; no held-out interval is long enough, or the genome is too small to split
        """
        pack = packed(path)
        split, origin = matching_split(splits, pack), "stored with the model"
        if split is None:
            split = hashed_split(kept_contigs(pack.lengths, None).intervals, pack, longest)
            origin = "made for this report, for the model stores none of this genome and may have seen any of it"
        widest = max(map(len, split.test))
        if widest < longest:
            raise InputError(
                f"the longest generated sequence has {longest:,} bases, but the longest held-out interval of "
                f"{pack.source} has {widest:,}: generate shorter sequences, or give another genome"
            )
        return cls(pack, split.train, split.test, f"{origin}: {split.rule}")

    def windows(self, lengths: Sequence[int], random: np.random.Generator) -> list[str]:
        """Held-out windows of these lengths; as `random_windows`."""
        return random_windows(self.pack, self.held_out, lengths, random)

    def markov_samples(self, lengths: Sequence[int], random: np.random.Generator) -> list[str]:
        """Sequences of these lengths from a Markov model of order 6 of the training part, both strands."""
        total = sum(map(len, self.train))
        step = max(1, total // _MARKOV_BASES)
        places = ((i.contig, start, i.end) for i in self.train for start in range(i.start, i.end, _MARKOV_PIECE))
        pieces = [Interval(contig, start, min(start + _MARKOV_PIECE, end)) for contig, start, end in places]
        models = MarkovModels(count_both_strands((self.pack.fetch(piece) for piece in pieces[::step]), ORDER))
        return _samples(models, lengths, random)


def random_windows(
    pack: Pack, intervals: Sequence[Interval], lengths: Sequence[int], random: np.random.Generator
) -> list[str]:
    """Windows of these lengths, anywhere in the intervals and on either strand, without any letter but A, C, G, T.

    Raises
    ------
    InputError              no interval is long enough, or there seems to be no such window
    """
    return [_window(pack, intervals, length, random) for length in lengths]


def _window(pack: Pack, intervals: Sequence[Interval], length: int, random: np.random.Generator) -> str:
    room = np.array([max(0, len(interval) - length + 1) for interval in intervals])
    ends = np.cumsum(room)
    for _ in range(_TRIES if room.any() else 0):
        place = int(random.integers(ends[-1]))
        number = int(np.searchsorted(ends, place, side="right"))
        interval = intervals[number]
        start = interval.start + place - int(ends[number] - room[number])
        letters = pack.fetch(Interval(interval.contig, start, start + length))
        reverse = random.integers(2) == 1
        if (CODE_OF_BYTE[letters] != NO_BASE).all():
            return (COMPLEMENT[letters[::-1]] if reverse else letters).tobytes().decode().upper()
    raise InputError(
        f"{pack.source}: no window of {length:,} bases was found that is all A, C, G, T, in {_TRIES} tries in "
        f"{len(intervals)} intervals; ask for shorter ones, or give another genome"
    )


def _samples(models: MarkovModels, lengths: Sequence[int], random: np.random.Generator) -> list[str]:
    """Sequences by the counts of the highest order, all at once; the first bases are by lower orders.

    Nothing is written that was not counted, but after a context that never was: any base.
    """
    written = np.zeros((len(lengths), max(lengths)), np.int64)
    word = np.zeros(len(lengths), np.int64)
    for position in range(written.shape[1]):
        order = min(position, models.order)
        counts: NDArray[np.float64] = models.counts[order][word & (4**order - 1)] + _NEVER_COUNTED
        ends = np.cumsum(counts, axis=1)
        written[:, position] = (random.random(len(word))[:, None] * ends[:, -1:] >= ends[:, :-1]).sum(axis=1)
        word = (word << 2 | written[:, position]) & (4**models.order - 1)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[written]
    return [row[:length].tobytes().decode() for row, length in zip(letters, lengths, strict=True)]
