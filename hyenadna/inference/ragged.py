"""Batches of sequences of different lengths: alike lengths together, right-padded, within a budget of tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.tokenizer import PAD


def batches(lengths: NDArray[np.integer], tokens: int) -> list[NDArray[np.int64]]:
    """Row numbers of each batch: sequences sorted by length, as many as fit into `tokens` when padded, at least one.

    Parameters
    ----------
    lengths : int array (n,)
        Of the sequences in tokens.
    tokens : int
        Most tokens of a batch, pads included.
    """
    order = np.argsort(lengths, kind="stable")
    found, first = [], 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * lengths[order[last]] <= tokens:
            last += 1
        found.append(order[first:last].astype(np.int64))
        first = last
    return found


def padded(sequences: Sequence[NDArray[np.uint8]], to: int = 0) -> tuple[Tensor, Tensor]:
    """Token arrays side by side: (B, L) with PAD behind the shorter ones, L at least `to`; and their lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.full((len(sequences), max(int(lengths.max()), to)), PAD, dtype=torch.uint8)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.from_numpy(sequence)
    return tokens, lengths
