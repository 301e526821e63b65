"""Random single-base changes of held-out sequence, whose log-likelihood ratios two models can be compared by."""

from collections.abc import Iterator, Sequence

import numpy as np

from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import A, encode
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.inference.variants import SubstitutionUnit
from hyenadna.inference.windows import WindowPlan

CHANGES = 7
"""Random substitutions of one window, which are read together with the unchanged one."""
CHANGED_WINDOW = 512
"""Most bases of a window whose substitutions are ranked; they lie in its middle half."""


def random_substitutions(
    pack: Pack, intervals: Sequence[Interval], length: int, tokens: int, seed: int
) -> Iterator[SubstitutionUnit]:
    """Windows, each with random changes of single bases in its middle half.

    Parameters
    ----------
    pack : Pack
        The genome.
    intervals : Interval, ...
        Where the windows lie, evenly spread; one that holds anything but A, C, G, T is left out.
    length : int
        Most bases of a window, besides `CHANGED_WINDOW`.
    tokens : int
        About how many the windows have, each counted once for every change and once as it is.
    seed : int
        Of places and bases.
    """
    random = np.random.default_rng(seed)
    length = min(CHANGED_WINDOW, length, max((len(interval) for interval in intervals), default=0))
    first, last = length // 4, length - length // 4
    changes = min(CHANGES, last - first)
    number = max(1, tokens // (length * (changes + 1)))
    for window in WindowPlan(intervals, length, number * (length // 2)):
        letters = window.letters(pack)
        if window.strand == "-" or window.length < length or (CODE_OF_BYTE[letters] == NO_BASE).any():
            continue
        reference = encode(letters)
        places = random.choice(np.arange(first, last), changes, replace=False)
        bases = (reference[places].astype(np.int64) - A + random.integers(1, 4, changes)) % 4
        ascending = places.argsort()
        yield SubstitutionUnit(reference, "+", places[ascending], bases[ascending])
