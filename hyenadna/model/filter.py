"""The implicit long filters' parameters; hyenadna.kernels.implicit_filter computes the filters."""

from typing import cast

import torch
from torch import Tensor, nn

from hyenadna.kernels.implicit_filter import hidden_layer, implicit_filter, taps
from hyenadna.kernels.sine_network import SineNetwork


class Sine(nn.Module):
    """sin(frequency x) with one trainable frequency a unit, (1, F); the published networks share one such module."""

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), frequency))


class HyenaFilter(nn.Module):
    """The D long filters of one Hyena operator, and the gain of its direct path."""

    def __init__(
        self, d_model: int, *, length: int, width: int, emb_dim: int, sine_frequency: float, shift: float
    ) -> None:
        super().__init__()
        self.length, self.shift = length, shift
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
        return implicit_filter(self._network(), L, self.length, self.shift)

    def hidden(self, L: int) -> Tensor:
        """The network's last hidden layer at the first L positions, (L, F)."""
        return hidden_layer(self._network(), L, self.length)

    def taps(self, hidden: Tensor, channels: slice) -> Tensor:
        """The filters of some channels, from the hidden layer (L, F): (D', L) with D' channels."""
        return taps(self._network(), hidden, self.length, self.shift, channels)

    def _network(self) -> SineNetwork:
        frequency = cast(Sine, self.implicit_filter["1"]).freq
        first, second, third, output = (cast(nn.Linear, self.implicit_filter[index]) for index in "0246")
        parameters = (
            frequency, first.weight, first.bias, second.weight, second.bias, third.weight, third.bias, output.weight,
        )  # fmt: skip
        return SineNetwork(*(parameter.to(self.dtype) for parameter in parameters))
