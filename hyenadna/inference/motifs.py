"""Motifs of IUPAC codes as one automaton that reads a sequence base by base.

A state is the set of motifs begun, with how much of each is read, and the required motifs that were met. Without IUPAC
codes this is the automaton of Aho and Corasick 1975.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import BASES, reverse_complement
from hyenadna.errors import UsageError
from hyenadna.inference.generation_config import BASES_OF, Motifs

_MOST_STATES = 1 << 14


class Automaton(NamedTuple):
    """Where reading a base leads, from each of S states; the first state is that behind the prompt."""

    following: NDArray[np.int64]
    """(S, 4): the next state; -1 where that would complete a forbidden motif."""
    met: NDArray[np.bool_]
    """(S,): whether all required motifs were met."""
    stops: NDArray[np.bool_]
    """(S, 4): whether that completes a stop motif."""


def automaton(
    require: Motifs = (), forbid: Motifs = (), stop: Motifs = (), *, both_strands: bool = False, prompt: str = ""
) -> Automaton:
    """The automaton of motifs that must appear, that must not, and that end a sequence, behind a prompt.

    Parameters
    ----------
    require, forbid, stop : tuple of str
        Motifs of IUPAC codes; a required one is met by any of its occurrences.
    both_strands : bool
        Whether a motif that is required or forbidden also appears as its reverse complement.
    prompt : str
        Of A, C, G, T; what is begun in it is gone on with.

    Raises
    ------
    UsageError              the motifs take too many states
    """
    bits = _MotifBits(require, forbid, stop, both_strands)
    start = 0
    for letter in prompt[max(0, len(prompt) - bits.longest) :]:
        start, _ = bits.read(start, BASES.index(letter))
    number, states = {(start, 0): 0}, [(start, 0)]
    following, stops = [], []
    for reading, met in states:  # grows as it goes
        row, ends = [], []
        for base in range(4):
            after, hits = bits.read(reading, base)
            now_met = met
            for index, (own, last) in enumerate(bits.required):
                if hits & last:
                    now_met |= 1 << index
                if now_met >> index & 1:
                    after &= ~own  # how much of a motif is read does not matter any more
            ends.append(bool(hits & bits.stop))
            if hits & bits.forbidden:
                row.append(-1)
                continue
            if (after, now_met) not in number:
                number[after, now_met] = len(states)
                states.append((after, now_met))
            row.append(number[after, now_met])
        following.append(row)
        stops.append(ends)
        if len(states) > _MOST_STATES:
            raise UsageError(
                f"the motifs take more than {_MOST_STATES:,} states together; give fewer of them, or such with fewer "
                "codes that stand for several bases"
            )
    everything = (1 << len(bits.required)) - 1
    return Automaton(np.array(following), np.array([met == everything for _, met in states]), np.array(stops))


class _MotifBits:
    """All motifs side by side in one number: a bit is set if so much of its motif was read (Baeza-Yates, Gonnet)."""

    def __init__(self, require: Motifs, forbid: Motifs, stop: Motifs, both_strands: bool) -> None:
        self._begin = self._end = self.forbidden = self.stop = self._size = self.longest = 0
        self._fits = [0] * 4
        self.required: list[tuple[int, int]] = []
        for motif in require:
            added = [self._add(strand) for strand in _strands(motif, both_strands)]
            self.required.append((sum(own for own, _ in added), sum(last for _, last in added)))
        for motif in forbid:
            self.forbidden |= sum(self._add(strand)[1] for strand in _strands(motif, both_strands))
        for motif in stop:
            self.stop |= self._add(_strands(motif, False)[0])[1]

    def _add(self, motif: str) -> tuple[int, int]:
        first = self._size
        for place, letter in enumerate(motif, first):
            for base in BASES_OF[letter]:
                self._fits[BASES.index(base)] |= 1 << place
        self._size, self.longest = first + len(motif), max(self.longest, len(motif))
        last = 1 << self._size - 1
        self._begin |= 1 << first
        self._end |= last
        return (1 << self._size) - (1 << first), last

    def read(self, reading: int, base: int) -> tuple[int, int]:
        """What is begun behind a base more, and the last bits of the motifs that it completes."""
        after = (reading << 1 | self._begin) & self._fits[base]
        return after & ~self._end, after & self._end


def _strands(motif: str, both: bool) -> list[str]:
    upper = motif.upper().replace("U", "T")
    return sorted({upper, reverse_complement(upper)} if both else {upper})
