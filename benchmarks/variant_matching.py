"""Random insertions and deletions that are as long as real ones and lie in repeats of the same length.

Most real ones lie in tandem repeats, and a model of DNA knows repeats, so real against anywhere would ask only whether
it sees a repeat. What an insertion or deletion has around it is told by its slack: how many bases to the right it can
be moved without changing the haplotype. One base out of a run of n like bases has slack n - 1, a unit of L bases out of
n copies (n - 1) L, one that fits to nothing 0.

For each real one several are drawn, by a generator of its own, so that they depend on no other: of the same kind and
length, of the same slack or, where too few are, the nearest, and among these of the nearest number of G and C. They lie
where no N is near, and none is one of the real ones. With L the length,

    deletion        of the L bases from p on: slack is how far s[p + i] = s[p + L + i] holds from i = 0 on
    insertion       with slack k >= L: the L bases from p on once more, where the same holds for k - L bases
                    with slack k < L: the k bases from p on, then L - k bases copied from elsewhere that end it

and all are written as far left as they go, as `normalized` does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from variant_sets import Sequences

from hyenadna.data.alleles import Variant
from hyenadna.data.intervals import Interval

FAR_FROM_N = 64
"""Bases without N on either side of a random one."""
_MOST_SLACK = 1000
_POOL = 4000
_G, _C, _N = ord("G"), ord("C"), ord("N")


class Matched(NamedTuple):
    """Random variants, each with the real one that it stands beside."""

    variants: list[Variant]
    of: NDArray[np.int64]
    """The number of the real one."""
    slack: NDArray[np.int64]


class _Candidates(NamedTuple):
    start: NDArray[np.int64]
    slack: NDArray[np.int64]
    gc: NDArray[np.int64]
    donor: NDArray[np.int64] | None = None
    """Where the letters that end an insertion are copied from."""


def slack(variant: Variant, source: Sequences) -> int:
    """How many bases to the right an insertion or deletion can be moved; it is as far left as it goes."""
    unit, first = variant.ref or variant.alt, variant.start + len(variant.ref)
    rest = source.fetch(variant.contig, first, min(source.lengths[variant.contig], first + _MOST_SLACK))
    same = (a == b for a, b in zip(rest, unit + rest, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), len(rest))


class Matcher:
    """Draws random insertions and deletions in one stretch of a genome.

    Parameters
    ----------
    source : Sequences
    stretch : Interval
        Where they may lie; at least `FAR_FROM_N` bases from the ends of the contig.
    real : sequence of Variant
        Normalised; none of these is drawn.
    """

    def __init__(self, source: Sequences, stretch: Interval, real: Sequence[Variant]) -> None:
        self.source, self.stretch, self.real = source, stretch, list(real)
        # one base before the first place, and behind the last one as much as any slack may take
        self.letters = source.letters[stretch.contig][stretch.start - 1 : stretch.end + _MOST_SLACK]
        self.before_gc = np.concatenate(([0], np.cumsum((self.letters == _G) | (self.letters == _C))))
        near = source.letters[stretch.contig][stretch.start - FAR_FROM_N : stretch.end + FAR_FROM_N + _MOST_SLACK]
        self.before_n = np.concatenate(([0], np.cumsum(near == _N)))
        self.taken = {(variant.start, len(variant.ref), variant.alt) for variant in self.real}

    def matched(self, each: int, seed: int = 0) -> Matched:
        """`each` random variants for every real one; fewer where the stretch holds fewer of its kind."""
        found: list[Variant] = []
        of: list[int] = []
        for number, variant in enumerate(self.real):
            drawn = self._drawn(variant, each, np.random.default_rng((seed, number)))
            found += drawn
            of += [number] * len(drawn)
        return Matched(found, np.array(of), np.array([slack(variant, self.source) for variant in found]))

    def _drawn(self, variant: Variant, each: int, random: np.random.Generator) -> list[Variant]:
        unit, wanted = variant.ref or variant.alt, slack(variant, self.source)
        gc = unit.count("G") + unit.count("C")
        if variant.alt and wanted < len(unit):
            candidates = self._partial(len(unit), wanted, random)
        else:
            candidates = self._tandem(len(unit), bool(variant.alt))
        pool = self._pool(candidates, wanted, each, random)
        apart, other = np.abs(candidates.slack[pool] - wanted), np.abs(candidates.gc[pool] - gc)
        drawn: list[Variant] = []
        for place in pool[np.lexsort((random.random(len(pool)), other, apart))]:
            made = self._variant(candidates, int(place), len(unit), wanted, bool(variant.alt))
            if (made.start, len(made.ref), made.alt) not in self.taken and made not in drawn:
                drawn.append(made)
            if len(drawn) == each:
                break
        return drawn

    def _pool(self, candidates: _Candidates, wanted: int, each: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Some candidates of the slack that is wanted, or of slacks around it where there are too few."""
        apart, within = np.abs(candidates.slack - wanted), 0
        enough = each + len(self.taken)  # some may be real ones
        pool = np.flatnonzero(apart == 0)
        while len(pool) < min(enough, len(apart)):
            within = 2 * within + 1
            pool = np.flatnonzero(apart <= within)
        return pool if len(pool) <= _POOL else random.choice(pool, _POOL, replace=False)

    def _tandem(self, L: int, insertion: bool) -> _Candidates:
        """All deletions of L bases, or all insertions that repeat the L bases behind them."""
        s, n = self.letters, len(self.stretch)
        same = s[:-L] == s[L:]
        ends = np.flatnonzero(~np.append(same, False))
        run = ends[np.searchsorted(ends, np.arange(1, n + 1))] - np.arange(1, n + 1)
        place = np.flatnonzero(~same[:n] & self._clear(L))
        gc = self.before_gc[place + 1 + L] - self.before_gc[place + 1]
        return _Candidates(place, run[place] + (L if insertion else 0), gc)

    def _partial(self, L: int, k: int, random: np.random.Generator) -> _Candidates:
        """Insertions whose first k bases are those behind them, and whose others fit to neither side."""
        clear, s = np.flatnonzero(self._clear(L)), self.letters
        place, donor = random.choice(clear, (2, min(_POOL, len(clear))))
        fits = (s[donor + 1] != s[place + 1 + k]) & (s[donor + L - k] != s[place])
        place, donor = place[fits], donor[fits]
        gc = self.before_gc[place + 1 + k] - self.before_gc[place + 1]
        gc += self.before_gc[donor + 1 + L - k] - self.before_gc[donor + 1]
        return _Candidates(place, np.full(len(place), k), gc, donor)

    def _clear(self, L: int) -> NDArray[np.bool_]:
        """Of every place of the stretch, whether no N is near it and the L bases from it on."""
        n, width = len(self.stretch), 2 * FAR_FROM_N + L
        return np.asarray(self.before_n[width : width + n] == self.before_n[:n])

    def _variant(self, candidates: _Candidates, number: int, L: int, k: int, insertion: bool) -> Variant:
        contig, start = self.stretch.contig, self.stretch.start + int(candidates.start[number])
        if candidates.donor is None:
            unit = self.source.fetch(contig, start, start + L)
        else:
            donor = self.stretch.start + int(candidates.donor[number])
            unit = self.source.fetch(contig, start, start + k) + self.source.fetch(contig, donor, donor + L - k)
        return Variant(contig, start, "", unit) if insertion else Variant(contig, start, unit, "")
