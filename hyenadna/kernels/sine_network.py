"""What the implicit long filters are made of: the sine network's parameters, its input, and the rates of the window."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_FAST_DECAY, _SLOW_DECAY, _DECAY_TARGET = 0.3, 1.5, 1e-2
"""The window of the fastest channel reaches 1e-2 at 0.3 of the filter's length, that of the slowest at 1.5."""


class SineNetwork(NamedTuple):
    """The parameters of D filters; all of one dtype, float32 or float64."""

    frequency: Tensor
    """(1, F), shared by the three hidden layers."""
    weight1: Tensor
    """(F, E)"""
    bias1: Tensor
    """(F,), as the other biases."""
    weight2: Tensor
    """(F, F)"""
    bias2: Tensor
    weight3: Tensor
    """(F, F)"""
    bias3: Tensor
    output: Tensor
    """(D, F)"""

    def hidden_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each."""
        return [(self.weight1, self.bias1), (self.weight2, self.bias2), (self.weight3, self.bias3)]


def positional_features(positions: Tensor, length: int, emb_dim: int) -> Tensor:
    """What the filter network knows of a position: [t, cos(f w), -sin(f w)] for each of (emb_dim - 1) / 2 bands f.

    Parameters
    ----------
    positions : Tensor (L,), float64
        Counted from 0. At a million positions float32 has no digits left for the phase.
    length : int
        T, the filters' full length: t = position / (T - 1), w = 2 pi position / T.
    emb_dim : int
        E, the number of features; the bands lie evenly between 1e-4 and (E - 1) / 2 - 1.

    Returns
    -------
    Tensor (L, E), float64

    Examples
    --------
    >>> positional_features(torch.arange(2.0), 5, 3).shape
    torch.Size([2, 3])
    """
    bands = (emb_dim - 1) // 2
    frequency = torch.linspace(1e-4, bands - 1, bands, device=positions.device, dtype=torch.float64)
    phase = 2 * math.pi / length * positions[:, None] * frequency
    return torch.cat([positions[:, None] / (length - 1), torch.cos(phase), -torch.sin(phase)], dim=1)


def decay_rates(D: int, device: torch.device) -> Tensor:
    """How fast the windows of D channels decay, (D,), float64: the window is exp(-rate) at the filters' end."""
    slow, fast = (-math.log(_DECAY_TARGET) / at for at in (_SLOW_DECAY, _FAST_DECAY))
    return torch.linspace(slow, fast, D, device=device, dtype=torch.float64)
