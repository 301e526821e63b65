"""Motifs that a generated sequence must hold or must not, and a band for its GC: kept exactly, without dead ends.

The motifs become one automaton (`hyenadna.inference.motifs`). For each state and number of bases still to
come it is known beforehand whether, and with which numbers of G and C, the constraints can still be met. A base behind
which they cannot be is never written, and constraints that contradict each other are refused before the first.

That alone would let a model put off a required motif to the last place where it fits, and the GC to the end. So the
probability of every base is multiplied by its outlook: the chance that bases drawn at random, each of the four alike,
would meet the constraints from there on. It is that of the motifs times that of the GC, each taken by itself. A model
to which all bases are alike thus writes each sequence that holds the motifs, or has such a GC, equally often: a motif
may come to stand anywhere. Any other model chooses by its own probabilities, and the seed, among the places.

An occurrence counts where its last base is written, so that one which begins in the prompt counts and one within the
prompt does not. The GC is that of the bases written, without the prompt.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import UsageError
from hyenadna.inference.generation_config import Constraints as Constraints
from hyenadna.inference.generation_config import Motifs, check_motifs
from hyenadna.inference.motifs import automaton

_MOST_BYTES = 1 << 30
_GC = np.array([0, 1, 1, 0])
_FAR = 1 << 40
"""More G and C than any sequence has: what stands for no number of them at all."""


class _Levels(NamedTuple):
    """For the states, with so many bases to come: what these may be."""

    outlook: NDArray[np.float64]
    """(S,): ln of the chance that random bases meet the motifs, up to a constant; -inf where none can."""
    fewest: NDArray[np.int64]
    """(S,): least number of G and C with which they can be met."""
    most: NDArray[np.int64]
    """(S,): the greatest."""
    gaps: dict[int, int]
    """Of a state for which not all numbers between these are possible: those that are, as bits."""


class Plan:
    """What constraints leave to every base of sequences of one length behind one prompt.

    Parameters
    ----------
    constraints : Constraints
        What is kept to.
    length : int
        Bases that will be written.
    stop : tuple of str
        Motifs that end a sequence before that, where it keeps to the constraints by then.
    prompt : str
        Of A, C, G, T.

    Attributes
    ----------
    start : int             the state of each sequence before its first base

    Raises
    ------
    UsageError              it takes too much memory to know
    """

    start = 0

    def __init__(self, constraints: Constraints, length: int, *, stop: Motifs = (), prompt: str = "") -> None:
        self.constraints, self.length = constraints, length
        self.automaton = automaton(
            constraints.require, constraints.forbid, stop, both_strands=constraints.both_strands, prompt=prompt
        )
        self._levels: list[_Levels] = []
        self._look_ahead()

    @property
    def can_begin(self) -> bool:
        """Whether any sequence keeps to the constraints."""
        return bool(self.possible(np.array([self.start]), np.array([0]), self.length)[0])

    @property
    def restricts(self) -> bool:
        """Whether there is any constraint, besides stop motifs."""
        return bool(self.constraints.require or self.constraints.forbid or self.constraints.gc)

    def band(self, length: int) -> tuple[int, int]:
        """Least and greatest number of G and C of so many bases."""
        low, high = self.constraints.gc or (0.0, 1.0)
        return math.ceil(low * length - 1e-9), math.floor(high * length + 1e-9)

    def possible(self, states: NDArray[np.int64], gc: NDArray[np.int64], left: int) -> NDArray[np.bool_]:
        """Whether sequences in these states, with so many G and C, can keep to the constraints in so many bases.

        Parameters
        ----------
        states, gc : int64 array (...)
            A state of -1 is that of a forbidden motif.
        left : int
            Bases still to come.
        """
        level = self._level(left)
        able: NDArray[np.bool_] = (states >= 0) & ~np.isneginf(level.outlook)[states]
        if self.constraints.gc is None:
            return able
        low, high = (bound - gc for bound in self.band(self.length))
        able &= np.maximum(level.fewest[states], low) <= np.minimum(level.most[states], high)
        if level.gaps:
            for place in zip(*np.nonzero(able), strict=True):
                if (numbers := level.gaps.get(int(states[place]))) is not None:
                    least, last = max(0, int(low[place])), int(high[place])
                    able[place] = bool(numbers >> least & (1 << last - least + 1) - 1)
        return able

    def weighted(
        self, nats: NDArray[np.float64], states: NDArray[np.int64], gc: NDArray[np.int64], left: int
    ) -> NDArray[np.float64]:
        """The distribution of the next base, with what cannot be completed left out and the rest by its outlook.

        Parameters
        ----------
        nats : float64 array (B, 4)
            Log-probabilities of the bases.
        states, gc : int64 array (B,)
            Where each sequence is, and its number of G and C.
        left : int
            Bases still to come, this one among them.

        Returns
        -------
        float64 array (B, 4)    not normalised; all -inf in a sequence that has come to where nothing is possible
        """
        after, gc_after = self.automaton.following[states], gc[:, None] + _GC
        outlook = self._level(left - 1).outlook[after]
        if self.constraints.gc is not None:
            low, high = self.band(self.length)
            outlook = outlook + log_chance(low - gc_after, high - gc_after, left - 1)
        return np.where(self.possible(after, gc_after, left - 1), nats + outlook, -np.inf)

    def after(
        self, states: NDArray[np.int64], gc: NDArray[np.int64], bases: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The states and numbers of G and C behind a base more of each sequence."""
        return self.automaton.following[states, bases], gc + _GC[bases]

    def ends(
        self, states: NDArray[np.int64], bases: NDArray[np.int64], gc: NDArray[np.int64], written: int
    ) -> NDArray[np.bool_]:
        """Which sequences end with a base: it completes a stop motif, and behind it the constraints are kept to.

        Parameters
        ----------
        states, bases : int64 array (B,)
            Before the base, and the base.
        gc : int64 array (B,)
            G and C with it.
        written : int
            Bases with it.
        """
        low, high = self.band(written)
        met = self.automaton.met[self.automaton.following[states, bases]]
        return np.asarray(self.automaton.stops[states, bases] & met & (low <= gc) & (gc <= high))

    def _level(self, left: int) -> _Levels:
        # levels end where they do not change any more
        return self._levels[min(left, len(self._levels) - 1)]

    def _look_ahead(self) -> None:
        met, banded = self.automaton.met, self.constraints.gc is not None
        none = np.where(met, 0, _FAR)
        level = _Levels(np.where(met, 0.0, -np.inf), none, -none, {})
        used = 0
        for _ in range(self.length + 1):
            self._levels.append(level)
            used += (24 if banded else 8) * len(met) + sum(numbers.bit_length() // 8 for numbers in level.gaps.values())
            if used > _MOST_BYTES:
                raise UsageError(
                    f"constraints of {len(met):,} states take over 1 GiB to look ahead {self.length:,} bases; give a "
                    "shorter length, or fewer or shorter motifs"
                )
            before, level = level, self._one_more(level, banded)
            if not banded and _alike(before.outlook, level.outlook):
                return

    def _one_more(self, level: _Levels, banded: bool) -> _Levels:
        following = self.automaton.following
        outlook = _mean(np.append(level.outlook, -np.inf)[following])
        if not banded:
            return _Levels(outlook, level.fewest, level.most, {})
        fewest = np.append(level.fewest, _FAR)[following] + _GC
        most = np.append(level.most, -_FAR)[following] + _GC
        gaps = self._gaps(level, fewest, most)
        # far stays far, however often something is added
        low, high = fewest.min(axis=1), most.max(axis=1)
        none = low > _FAR // 2
        return _Levels(outlook, np.where(none, _FAR, low), np.where(none, -_FAR, high), gaps)

    def _gaps(self, level: _Levels, fewest: NDArray[np.int64], most: NDArray[np.int64]) -> dict[int, int]:
        """The possible numbers, as bits, of the states where they do not lie side by side; (S, 4) -> by state."""
        order = fewest.argsort(axis=1)
        low, high = np.take_along_axis(fewest, order, axis=1), np.take_along_axis(most, order, axis=1)
        apart = (low[:, 1:] > np.maximum.accumulate(high, axis=1)[:, :-1] + 1) & (low[:, 1:] < _FAR // 2)
        suspects = apart.any(axis=1)
        if level.gaps:
            suspects |= np.isin(self.automaton.following, list(level.gaps)).any(axis=1)
        found = {}
        for state in np.flatnonzero(suspects).tolist():
            numbers = 0
            for base, after in enumerate(self.automaton.following[state].tolist()):
                if after >= 0 and level.fewest[after] < _FAR:
                    span = int(level.most[after] - level.fewest[after])
                    own = level.gaps.get(after, (1 << span + 1) - 1 << int(level.fewest[after]))
                    numbers |= own << int(_GC[base])
            side_by_side = numbers // (numbers & -numbers) if numbers else 0
            if side_by_side & side_by_side + 1:
                found[state] = numbers
        return found


def plan(constraints: Constraints, length: int, *, stop: Motifs = (), prompt: str = "") -> Plan:
    """The plan of constraints that can be kept to; arguments as `Plan` takes them.

    Raises
    ------
    UsageError              no sequence of that length keeps to them, it takes too much memory to know, or what should
                            stop it is no motif
    """
    check_motifs("stop", stop)
    found = Plan(constraints, length, stop=stop, prompt=prompt)
    if found.can_begin:
        return found
    words = {"require": f"holds {_listed(constraints.require)}", "forbid": f"lacks {_listed(constraints.forbid)}"}
    if constraints.gc is not None:
        words["gc"] = "has {:.4g} to {:.4g} of its bases G or C".format(*constraints.gc)
    off: dict[str, Any] = {"require": (), "forbid": (), "gc": None}
    given = [name for name in words if getattr(constraints, name)]
    for kept in itertools.chain.from_iterable(itertools.combinations(given, n) for n in range(1, len(given) + 1)):
        # the last are all of them, of which it is known
        some = dataclasses.replace(constraints, **{name: off[name] for name in off if name not in kept})
        if not Plan(some, length, stop=stop, prompt=prompt).can_begin:
            break
    behind = " behind this prompt" if prompt else ""
    raise UsageError(
        f"no sequence of {length:,} bases{behind} {' and '.join(words[name] for name in kept)}; "
        "change the length or the constraints"
    )


def log_chance(low: NDArray[np.int64], high: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Ln of the chance that `low` to `high` of n random bases are G or C; -inf where there is no such number."""
    from scipy.special import bdtr, gammaln  # a tenth of a second that only a GC band needs

    low, high = np.maximum(low, 0), np.minimum(high, n)
    able = low <= high
    # the half with the smaller numbers, in which differences are exact
    turned = low > n / 2
    low, high = np.where(turned, n - high, low), np.where(turned, n - low, high)
    chance = bdtr(np.maximum(high, 0), n, 0.5) - np.where(low > 0, bdtr(np.maximum(low - 1, 0), n, 0.5), 0.0)
    # beyond the reach of float64 by the largest term alone
    likeliest = np.clip(n // 2, low, np.maximum(low, high))
    largest = gammaln(n + 1) - gammaln(likeliest + 1) - gammaln(n - likeliest + 1) - n * math.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(chance > 1e-280, np.log(np.maximum(chance, 1e-300)), largest)
    return np.where(able, values, -np.inf)


def _mean(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ln of the mean of exp over the last axis, up to a constant; -inf where all are."""
    highest = nats.max(axis=-1)
    finite = ~np.isneginf(highest)
    values = np.full(len(nats), -np.inf)
    values[finite] = highest[finite] + np.log(np.exp(nats[finite] - highest[finite, None]).sum(axis=-1))
    return values - values.max() if finite.any() else values


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether nothing changes from one level to the next, and so in none that follows."""
    able = ~np.isneginf(one)
    same = np.array_equal(able, ~np.isneginf(other))
    return same and bool((np.abs(one[able] - other[able]) <= 1e-12).all())


def _listed(motifs: tuple[str, ...]) -> str:
    return ", ".join(motifs[:5]) + (f" and {len(motifs) - 5:,} more" if len(motifs) > 5 else "")
