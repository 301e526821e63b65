"""Random single-base changes, and how much less or more likely models find a sequence with each of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import A, encode
from hyenadna.inference.evaluate import base_bits
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.inference.windows import WindowPlan
from hyenadna.machine import peak_memory
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import Job

CHANGES = 7
"""Random substitutions of one window; with the unchanged one it is read eight times."""
CHANGED_WINDOW = 512
"""Most bases of a window whose substitutions are ranked; they lie in its middle half."""


def changed_windows(
    pack: Pack, intervals: Sequence[Interval], length: int, tokens: int, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """Tokens (1 + changes, L) of a window as it is, and with single bases of its middle half replaced at random.

    Parameters
    ----------
    pack : Pack
        The genome.
    intervals : Interval, ...
        Where the windows lie, evenly spread; one that holds anything but A, C, G, T is left out.
    length : int
        Most bases of a window, besides `CHANGED_WINDOW`.
    tokens : int
        About how many there are in all windows.
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
        rows = np.tile(encode(letters), (changes + 1, 1))
        places = random.choice(np.arange(first, last), changes, replace=False)
        shifts = random.integers(1, 4, changes).astype(np.uint8)
        rows[np.arange(1, changes + 1), places] = (rows[0, places] - A + shifts) % 4 + A
        yield rows


def log_likelihood_ratios(models: Sequence[HyenaDNA], windows: NDArray[np.uint8], job: Job) -> NDArray[np.float64]:
    """Log-likelihood ratios of all changes, in bits, by each model: windows (n, 1 + changes, L) -> (models, changes).

    Bases before the change are alike in both and weigh nothing.
    """
    tokens = torch.from_numpy(windows.reshape(-1, windows.shape[-1])).long().to(models[0].device)
    found = []
    for model in models:
        bits, _ = base_bits(model(tokens).logits[:, :-1], tokens[:, 1:] - A)
        likelihood = -bits.double().sum(dim=1).view(len(windows), -1)
        found.append((likelihood[:, 1:] - likelihood[:, :1]).flatten().cpu().numpy())
        job.advance(tokens.numel(), f"{peak_memory() / 1e9:.2f} GB")
    return np.stack(found)
