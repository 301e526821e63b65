"""What a set of sequences looks like without any model: composition, repeats, and the spectrum of its k-mers.

Everything is a sum over sequences, so that a bootstrap over sequences gives intervals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE

HOMOPOLYMER = 6
"""The shortest run of one base that counts."""
PERIODS = range(2, 7)
TANDEM_BASES, TANDEM_UNITS = 12, 3
"""A tandem repeat has at least so many bases, and so many copies of its unit."""
WORD = 12
"""Bases of the words that are looked for again, and most bases of the words of the linguistic complexity."""
SPECTRA = range(1, 7)
"""The k of the k-mer spectra."""
_GAP = 6
"""Letters between joined sequences: no period reaches over them."""


class Share(NamedTuple):
    """A quantity that is a ratio of sums over sequences."""

    name: str
    part: NDArray[np.float64]
    """(n,): of each sequence."""
    whole: NDArray[np.float64]
    """(n,): what it is a share of."""


def shares(sequences: Sequence[str]) -> list[Share]:
    """GC, homopolymers, tandem repeats, repeated words and linguistic complexity of some sequences.

    The last is the number of different words over all lengths 1 to 12, as a share of the most that a sequence of that
    length can have, min(4^k, L - k + 1) each (Gabrielian and Bolshoy 1999, as a sum).

    Parameters
    ----------
    sequences : sequence of str
        Nucleotides in either case; letters other than A, C, G, T (U) count nowhere.
    """
    joined = _Joined.of(sequences)
    bases = joined.per_sequence(joined.is_base)
    homopolymer = joined.in_period(1, HOMOPOLYMER)
    tandem = np.zeros_like(homopolymer)
    for period in PERIODS:
        tandem |= joined.in_period(period, max(TANDEM_BASES, TANDEM_UNITS * period))
    words = {k: joined.words(k) for k in range(1, WORD + 1)}
    different = {k: _different(*found, len(sequences)) for k, found in words.items()}
    count = {k: np.bincount(rows, minlength=len(sequences)).astype(np.float64) for k, (rows, _) in words.items()}
    periods = f"{PERIODS[0]}-{PERIODS[-1]}"
    return [
        Share("GC", joined.per_sequence((joined.codes == 1) | (joined.codes == 2)), bases),
        Share(f"in homopolymers of {HOMOPOLYMER} bp or more", joined.per_sequence(homopolymer), bases),
        Share(f"in tandem repeats of period {periods}", joined.per_sequence(tandem & ~homopolymer), bases),
        Share(f"{WORD}-mers met before in the sequence", count[WORD] - different[WORD], count[WORD]),
        Share(
            f"linguistic complexity, k to {WORD}",
            np.sum(list(different.values()), axis=0),
            np.sum([np.minimum(4.0**k, n) for k, n in count.items()], axis=0),
        ),
    ]


def spectra(sequences: Sequence[str]) -> dict[int, NDArray[np.int64]]:
    """How often each word of k bases occurs, (4^k,), for every k of `SPECTRA`; words begin at every base."""
    joined = _Joined.of(sequences)
    return {k: np.bincount(joined.words(k)[1], minlength=4**k) for k in SPECTRA}


def jensen_shannon(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """The Jensen-Shannon divergence of two spectra, in bits: 0 (alike) to 1 (nothing in common); NaN if one is empty.

        H((p + q) / 2) - (H(p) + H(q)) / 2          with p and q the spectra as shares (Lin 1991)

    Two samples of one source are not at 0: the divergence of counts has a bias of about (4^k - 1) / (4 n ln 2) bits at
    n words each, so that it is to be compared among samples of one size.

    Examples
    --------
    >>> jensen_shannon(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]))
    0.5
    """
    if not a.sum() or not b.sum():
        return float("nan")
    p, q = a / a.sum(), b / b.sum()
    return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return -float((p * np.log2(p)).sum())


class _Joined(NamedTuple):
    """All sequences in one array, with gaps between them."""

    codes: NDArray[np.uint8]
    rows: NDArray[np.int64]
    """The sequence of each position."""
    n: int

    @classmethod
    def of(cls, sequences: Sequence[str]) -> "_Joined":
        letters = np.frombuffer(("N" * _GAP).join([*sequences, ""]).encode(), dtype=np.uint8)
        return cls(
            CODE_OF_BYTE[letters],
            np.repeat(np.arange(len(sequences)), [len(sequence) + _GAP for sequence in sequences]),
            len(sequences),
        )

    @property
    def is_base(self) -> NDArray[np.bool_]:
        """Where a letter is A, C, G or T."""
        base: NDArray[np.bool_] = self.codes != NO_BASE
        return base

    def per_sequence(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many of the chosen positions each sequence has: (n,)."""
        return np.bincount(self.rows[chosen], minlength=self.n).astype(np.float64)

    def in_period(self, period: int, least: int) -> NDArray[np.bool_]:
        """Which bases lie in a stretch of at least so many bases, each of which equals the one `period` before it."""
        codes = self.codes
        same = (codes[period:] == codes[:-period]) & self.is_base[period:]
        edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
        starts, ends = edges[::2], edges[1::2] + period  # with the first unit, which nothing precedes
        long = ends - starts >= least
        change = np.bincount(starts[long], minlength=len(codes) + 1) - np.bincount(ends[long], minlength=len(codes) + 1)
        inside: NDArray[np.bool_] = np.cumsum(change)[:-1] > 0
        return inside

    def words(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of every word of k bases: its sequence, and its number in base 4."""
        ends = max(0, len(self.codes) - k + 1)
        number, whole = np.zeros(ends, np.int64), np.ones(ends, bool)
        for place in range(k):
            number = number << 2 | (self.codes[place : place + ends] & 3)
            whole &= self.is_base[place : place + ends]
        return self.rows[:ends][whole], number[whole]


def _different(rows: NDArray[np.int64], number: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """How many different words each sequence has."""
    found = np.unique(rows << (2 * WORD) | number)
    return np.bincount(found >> (2 * WORD), minlength=n).astype(np.float64)
