"""The implicit long filters: a small sine network of the position, damped by an exponential window."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from hyenadna.kernels.working_set import rows_at_once

_FAST_DECAY, _SLOW_DECAY, _DECAY_TARGET = 0.3, 1.5, 1e-2
"""The window of the fastest channel reaches 1e-2 at 0.3 of the filter's length, that of the slowest at 1.5."""


class Sine(nn.Module):
    """sin(frequency x) with one trainable frequency a unit, (1, F); the published networks share one such module."""

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), frequency))


class HyenaFilter(nn.Module):
    """The D long filters of one Hyena operator, and the gain of its direct path.

        h[d, t] = network(z[t])[d] (exp(-|delta[d]| t / (T - 1)) + shift)

    Poli et al. 2023, section 3.3, as HyenaDNA uses it. T is the filters' full length: it scales time, so the first L
    taps are the same whatever L is asked for, and the same weights with another T are other filters.
    """

    def __init__(
        self, d_model: int, *, length: int, width: int, emb_dim: int, sine_frequency: float, shift: float
    ) -> None:
        super().__init__()
        self.length, self.emb_dim, self.shift, self.d_model = length, emb_dim, shift, d_model
        self.bias = nn.Parameter(torch.randn(d_model))
        # the keys are the indices that the published checkpoints give these layers
        self.implicit_filter = nn.ModuleDict(
            {
                "0": nn.Linear(emb_dim, width),
                "1": Sine(width, sine_frequency),
                "2": nn.Linear(width, width),
                "4": nn.Linear(width, width),
                "6": nn.Linear(width, d_model, bias=False),
            }
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the filters are computed in: float64 for a float64 model, float32 for every other."""
        return torch.float64 if self.bias.dtype == torch.float64 else torch.float32

    def forward(self, L: int) -> Tensor:
        """The first L taps of every filter, (D, L)."""
        return self.taps(self.hidden(L), slice(None))

    def hidden(self, L: int) -> Tensor:
        """The network's last hidden layer at the first L positions, (L, F)."""
        positions = torch.arange(L, device=self.bias.device, dtype=torch.float64)
        # bfloat16 has no digits for the phase of the sines: autocast must not touch this network
        with torch.autocast(self.bias.device.type, enabled=False):
            return torch.cat([self._hidden(part) for part in positions.split(8 * rows_at_once(self.bias.device))])

    def _hidden(self, positions: Tensor) -> Tensor:
        dtype, network = self.dtype, self.implicit_filter
        frequency = cast(Sine, network["1"]).freq.to(dtype)
        x = positional_features(positions, self.length, self.emb_dim).to(dtype)
        for index in ("0", "2", "4"):
            layer = cast(nn.Linear, network[index])
            x = torch.sin(frequency * torch.addmm(layer.bias.to(dtype), x, layer.weight.to(dtype).T))
        return x

    def taps(self, hidden: Tensor, channels: slice) -> Tensor:
        """The filters of some channels, from the hidden layer (L, F): (D', L) with D' channels."""
        with torch.autocast(self.bias.device.type, enabled=False):
            h = cast(nn.Linear, self.implicit_filter["6"]).weight[channels].to(self.dtype) @ hidden.T
        return h.mul_(self._window(hidden.shape[0], channels))

    def _window(self, L: int, channels: slice) -> Tensor:
        slow, fast = (math.log(_DECAY_TARGET) / at for at in (_SLOW_DECAY, _FAST_DECAY))
        device = self.bias.device
        delta = torch.linspace(slow, fast, self.d_model, device=device, dtype=torch.float64)[channels]
        time = torch.arange(L, device=device, dtype=torch.float64) / (self.length - 1)
        return torch.outer(delta.to(self.dtype), time.to(self.dtype)).exp_().add_(self.shift)


def positional_features(positions: Tensor, length: int, emb_dim: int) -> Tensor:
    """What the filter network knows of a position: [t, cos(f w), -sin(f w)] for each of (emb_dim - 1) / 2 bands f.

    Parameters
    ----------
    positions : Tensor (L,), float64
        Counted from 0. At a million positions float32 has no digits left for the phase.
    length : int
        T, the filters' full length: t = position / (T - 1), w = 2 pi position / T.
    emb_dim : int
        Number of features; the bands lie evenly between 1e-4 and (emb_dim - 1) / 2 - 1.

    Returns
    -------
    Tensor (L, emb_dim), float64

    Examples
    --------
    >>> positional_features(torch.arange(2.0), 5, 3).shape
    torch.Size([2, 3])
    """
    bands = (emb_dim - 1) // 2
    frequency = torch.linspace(1e-4, bands - 1, bands, device=positions.device, dtype=torch.float64)
    phase = 2 * math.pi / length * positions[:, None] * frequency
    return torch.cat([positions[:, None] / (length - 1), torch.cos(phase), -torch.sin(phase)], dim=1)
