"""From the model's next-base distribution to the one that a base is drawn from.

All functions take and give natural log-probabilities over A, C, G, T, or over blocks of them, in float64, of shape
(..., n) and normalised along the last axis; -inf is what cannot be drawn. A sequence goes through them in this order:

1. the model's distribution, renormalised over A, C, G, T, so that no other token ever counts;
2. constraints (`hyenadna.inference.constraints`): what cannot be completed goes, the rest is weighted by its outlook;
3. repetition: a penalty for each time that the base would complete a k-mer that was written before;
4. temperature: fixed, or dynamic by the entropy of what step 3 gives or by a diversity score of the context;
5. top-k, top-p, and locally typical sampling, each on what the one before has left, renormalised; where whole blocks
   of bases are judged by their typicality, each base of them goes through all steps before that one first.

Ties: whatever is exactly as good as the last one kept is kept as well, so that no rule prefers A to T; greedy decoding
alone must take one, and takes the first in the order A, C, G, T. Masses are compared to within 1e-12, which rounding
does not reach. A step that is off (temperature 1, top-k 4, a mass of 1) returns its input, bit for bit.
"""

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import A
from hyenadna.inference.generation_config import Decoding as Decoding
from hyenadna.inference.generation_config import Mapping as Mapping

Nats = NDArray[np.float64]

_SLACK = 1e-12
_MIDDLE, _STEEPNESS, _EDGE = 0.9, 0.2, 1e-6
"""Of the inverse sigmoid: the temperature at a score of 1/2, its change by a logit, how near scores come to 0 and 1."""


def base_nats(logits: NDArray[np.floating]) -> Nats:
    """The model's log-probabilities of A, C, G, T, renormalised over them: logits (..., 16) -> (..., 4).

    Examples
    --------
    >>> np.exp(base_nats(np.zeros(16))).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return normalised(logits[..., A : A + 4].astype(np.float64))


def normalised(nats: Nats) -> Nats:
    """The same distribution with probabilities that sum to 1."""
    # not logaddexp.reduce, which is several times slower on so few numbers
    highest = nats.max(axis=-1, keepdims=True)
    values: Nats = nats - (highest + np.log(np.exp(nats - highest).sum(axis=-1, keepdims=True)))
    return values


def entropy(nats: Nats) -> Nats:
    """-sum of p ln p, in nats: (..., n) -> (...)."""
    values: Nats = -(np.exp(nats) * np.where(np.isneginf(nats), 0.0, nats)).sum(axis=-1)
    return values


def at_temperature(nats: Nats, temperature: float | Nats) -> Nats:
    """p^(1/T), renormalised; at 0 the first of the likeliest, alone.

    Parameters
    ----------
    nats : float64 array (..., n)
    temperature : float or float64 array (..., 1)
        One for all, or of each distribution its own, which must not be 0.
    """
    if not isinstance(temperature, np.ndarray):
        if temperature == 1:
            return nats
        if temperature == 0:
            likeliest = nats.argmax(axis=-1)[..., None] == np.arange(nats.shape[-1])
            return np.where(likeliest, 0.0, -np.inf)
    return normalised(nats / temperature)


def top_k(nats: Nats, k: int) -> Nats:
    """The k likeliest, and those as likely as the last of them."""
    n = nats.shape[-1]
    if k >= n:
        return nats
    least = np.partition(nats, n - k, axis=-1)[..., n - k : n - k + 1]
    return normalised(np.where(nats >= least, nats, -np.inf))


def top_p(nats: Nats, mass: float) -> Nats:
    """The fewest of the likeliest that together have the mass (nucleus sampling, Holtzman et al. 2020)."""
    return nats if mass >= 1 else _nearest(nats, -nats, mass)


def typical(nats: Nats, mass: float) -> Nats:
    """The fewest with the mass whose surprisal -ln p is nearest to the entropy.

    Meister et al. 2023 (arXiv 2202.00666). With four bases this may leave out the likeliest one.

    Parameters
    ----------
    nats : float64 array (..., n)
    mass : float
        tau in the paper; 1 leaves all.

    Examples
    --------
    >>> np.exp(typical(np.log([0.4, 0.3, 0.2, 0.1]), 0.5)).round(3).tolist()
    [0.0, 0.6, 0.4, 0.0]
    """
    return nats if mass >= 1 else _nearest(nats, np.abs(nats + entropy(nats)[..., None]), mass)


def _nearest(nats: Nats, distance: Nats, mass: float) -> Nats:
    """What lies at the least distances and has the mass together, with what lies as far as the last of it."""
    order = distance.argsort(axis=-1)
    gathered = np.take_along_axis(np.exp(nats), order, axis=-1).cumsum(axis=-1)
    last = np.minimum((gathered < mass - _SLACK).sum(axis=-1), nats.shape[-1] - 1)
    farthest = np.take_along_axis(distance, np.take_along_axis(order, last[..., None], axis=-1), axis=-1)
    return normalised(np.where(distance <= farthest, nats, -np.inf))


def dynamic_temperature(scores: Nats, mapping: Mapping, least: float, most: float) -> Nats:
    """The temperature for diversity scores s from 0 to 1, rising from `least` to `most`.

        linear             least + (most - least) s
        exponential        least (most / least)^s
        inverse-sigmoid    0.9 + 0.2 ln(s / (1 - s)), cut off at `least` and `most`

    The three mappings are those that arXiv 2406.07850 names; it does not give their constants, which are ours. Of the
    entropy as the score, EDT (arXiv 2403.14541) makes a temperature by a formula of its own; here both go the same way.
    """
    match mapping:
        case "linear":
            values = least + (most - least) * scores
        case "exponential":
            values = least * (most / least) ** scores
        case "inverse-sigmoid":
            inner = np.clip(scores, _EDGE, 1 - _EDGE)
            values = np.clip(_MIDDLE + _STEEPNESS * np.log(inner / (1 - inner)), least, most)
    return np.asarray(values, dtype=np.float64)


def decode(nats: Nats, decoding: Decoding, *, penalty: Nats | None = None, scores: Nats | None = None) -> Nats:
    """Steps 3 to 5 on the distributions of single bases; typicality of blocks is for `block_nats` and `typical`.

    Parameters
    ----------
    nats : float64 array (B, 4)
        The model's, after the constraints.
    decoding : Decoding
        The steps.
    penalty : float64 array (B, 4), optional
        Nats taken from each base for repetition.
    scores : float64 array (B,), optional
        Of the diversity head, where the temperature goes by it.

    Returns
    -------
    float64 array (B, 4)
    """
    if penalty is not None:
        nats = normalised(nats - penalty)
    if decoding.dynamic is None:
        nats = at_temperature(nats, decoding.temperature)
    else:
        if decoding.dynamic == "entropy":
            scores = entropy(nats) / math.log(4)
        assert scores is not None  # generate asks for the head
        bounds = decoding.min_temperature, decoding.max_temperature
        nats = at_temperature(nats, dynamic_temperature(scores, decoding.mapping, *bounds)[..., None])
    nats = top_p(top_k(nats, decoding.top_k), decoding.top_p)
    return typical(nats, decoding.typical_p) if decoding.typical_kmer == 1 else nats


def block_nats(levels: list[Nats]) -> Nats:
    """The log-probabilities of all blocks of k bases from those of each base behind those before it.

    Parameters
    ----------
    levels : list of k float64 arrays (B 4^j, 4)
        Of base j behind each of the 4^j blocks before it, in alphabetical order; anything behind what cannot be drawn.

    Returns
    -------
    float64 array (B, 4^k)  in alphabetical order
    """
    if len(levels) == 1:
        return levels[0]
    B = len(levels[0])
    joint = np.zeros((B, 1))
    for level in levels:
        following = level.reshape(B, -1, 4)
        joint = np.where(np.isneginf(joint)[..., None], -np.inf, joint[..., None] + following).reshape(B, -1)
    return joint


def draw(nats: Nats, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """The choice of each row, (B, n) and uniform numbers (B,) in [0, 1) -> (B,); never one that is -inf."""
    upto = np.exp(nats).cumsum(axis=-1)
    total = upto[:, -1]
    # u total may be rounded to the total itself, behind the last that can be drawn
    place = np.minimum(uniform * total, np.nextafter(total, 0))
    chosen: NDArray[np.int64] = (upto <= place[:, None]).sum(axis=-1)
    return chosen


class WrittenKmers:
    """How often the k-mers of each of several sequences were written.

    Parameters
    ----------
    k : int
        Bases of a k-mer, 2 to 31.
    prompt : int64 array (n,)
        What stands before all sequences, as codes 0 to 3.
    rows : int
        Number of sequences.
    """

    def __init__(self, k: int, prompt: NDArray[np.int64], rows: int) -> None:
        self.k, self.length = k, 0
        self.ending = np.zeros(1, dtype=np.int64)  # the last k - 1 bases of each sequence, as a number
        self._counts: list[dict[int, list[int]]] = [defaultdict(lambda: [0] * 4)]
        for base in prompt.tolist():
            self.add(np.array([base]))
        # one table of the prompt for all sequences, and for each its own
        self._prompt, self._counts = self._counts[0], [defaultdict(lambda: [0] * 4) for _ in range(rows)]
        self.ending = self.ending.repeat(rows)

    def add(self, bases: NDArray[np.int64]) -> None:
        """Count the k-mer that the next base of each sequence completes, (rows,)."""
        if self.length >= self.k - 1:
            for counts, ending, base in zip(self._counts, self.ending.tolist(), bases.tolist(), strict=True):
                counts[ending][base] += 1
        self.length += 1
        self.ending = self.after(self.ending, bases)

    def after(self, ending: NDArray[np.int64], bases: NDArray[np.int64]) -> NDArray[np.int64]:
        """The endings that follow when each takes a base more."""
        following: NDArray[np.int64] = (4 * ending + bases) % 4 ** (self.k - 1)
        return following

    def times(self, ending: NDArray[np.int64], ahead: int = 0) -> Nats:
        """How often each base has completed what it would complete now.

        Parameters
        ----------
        ending : int64 array (rows n,)
            n endings of each sequence, `ahead` bases behind what was counted last.

        Returns
        -------
        float64 array (rows n, 4)
        """
        if self.length + ahead < self.k - 1:
            return np.zeros((len(ending), 4))
        each, none = len(ending) // len(self._counts), [0] * 4
        own = [self._counts[place // each].get(code, none) for place, code in enumerate(ending.tolist())]
        before = [self._prompt.get(code, none) for code in ending.tolist()]
        times: Nats = np.array(own, dtype=np.float64) + np.array(before)
        return times

    def select(self, rows: NDArray[np.int64]) -> None:
        """Keep some of the sequences."""
        self._counts, self.ending = [self._counts[row] for row in rows], self.ending[rows]
