"""Implicit long filters: a small sine network of the position, damped by an exponential window.

    h[d, t] = sum over f of output[d, f] x3[f, t] (exp(-rate[d] t / (T - 1)) + shift)
    xn[:, t] = sin(frequency (weightn x(n-1)[:, t] + biasn)),   n = 1, 2, 3;   x0[:, t] = features of t

Poli et al. 2023, section 3.3, as HyenaDNA uses it: D filters, three hidden layers of width F, E features of a position.
T is the filters' full length: it scales time, so the first L taps are the same whatever L is asked for, and the same
weights with another T are other filters.

2 (E F + 2 F^2 + F D) FLOPs for each position. The filters are made in tiles of positions, and backward makes the hidden
layers of a tile again: in training nothing of size (L, F) outlives its tile, of which there would be 2.3 GB at
1,000,000 positions.
float32 or float64. The sines amplify errors: positions and their phases are float64, products are never in half
precision, and autocast is kept out. The Triton kernels use no plain TF32; torch does on a GPU if it is told to.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend
from hyenadna.kernels.sine_network import SineNetwork, decay_rates, positional_features
from hyenadna.kernels.working_set import rows_at_once


def implicit_filter_reference(network: SineNetwork, L: int, length: int, shift: float) -> Tensor:
    """The same as `implicit_filter`, all positions at once."""
    positions = torch.arange(L, device=network.output.device, dtype=torch.float64)
    return _taps(network, _hidden(network, positions, length), positions, length, shift)


def _hidden(network: SineNetwork, positions: Tensor, length: int) -> Tensor:
    x = positional_features(positions, length, network.weight1.shape[1]).to(network.output.dtype)
    for weight, bias in network.hidden_layers():
        x = torch.sin(network.frequency * torch.addmm(bias, x, weight.T))
    return x


def _taps(network: SineNetwork, hidden: Tensor, positions: Tensor, length: int, shift: float) -> Tensor:
    rates = decay_rates(network.output.shape[0], positions.device)
    return network.output @ hidden.T * _window(rates, positions, length, shift, hidden.dtype)


def _window(rates: Tensor, positions: Tensor, length: int, shift: float, dtype: torch.dtype) -> Tensor:
    return torch.outer(-rates.to(dtype), (positions / (length - 1)).to(dtype)).exp_().add_(shift)


def _tiles(L: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """The positions in tiles: where each lies, and what is in it in float64."""
    size = 4 * rows_at_once(device)
    for first in range(0, L, size):
        last = min(first + size, L)
        yield slice(first, last), torch.arange(first, last, device=device, dtype=torch.float64)


def _forward(network: SineNetwork, L: int, length: int, shift: float) -> Tensor:
    h = network.output.new_empty(network.output.shape[0], L)
    for tile, positions in _tiles(L, h.device):
        h[:, tile] = _taps(network, _hidden(network, positions, length), positions, length, shift)
    return h


def _backward(network: SineNetwork, L: int, length: int, shift: float, grad: Tensor) -> SineNetwork:
    sums = SineNetwork(*(torch.zeros_like(x) for x in network))
    rates, E = decay_rates(len(network.output), grad.device), network.weight1.shape[1]
    for tile, positions in _tiles(L, grad.device):
        x, z = [positional_features(positions, length, E).to(grad.dtype)], []
        for weight, bias in network.hidden_layers():
            z.append(torch.addmm(bias, x[-1], weight.T))
            x.append(torch.sin(network.frequency * z[-1]))  # (P, F), for P positions of the tile
        dy = grad[:, tile] * _window(rates, positions, length, shift, grad.dtype)
        sums.output.addmm_(dy, x.pop())
        dx = dy.T @ network.output
        for (weight, _), (d_weight, d_bias) in zip(
            reversed(network.hidden_layers()), reversed(sums.hidden_layers()), strict=True
        ):
            dz = torch.cos(network.frequency * z[-1]).mul_(dx)
            sums.frequency.add_((dz * z.pop()).sum(0))
            dz.mul_(network.frequency)
            d_weight.addmm_(dz.T, x.pop())
            d_bias.add_(dz.sum(0))
            dx = dz @ weight
    return sums


class _ImplicitFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, L: int, length: int, shift: float, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        ctx.of = L, length, shift
        compute, ctx.backward_of = _forward, _backward
        if backend.chosen(parameters[0]) == "triton":
            from hyenadna.kernels import implicit_filter_triton  # imports triton

            compute, ctx.backward_of = implicit_filter_triton.forward, implicit_filter_triton.backward
        return compute(SineNetwork(*parameters), L, length, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is returned has no history: its own derivative would be wrong
            raise UsageError(
                "implicit_filter has no second derivative (create_graph=True); implicit_filter_reference has"
            )
        with torch.autocast(grad.device.type, enabled=False):
            return None, None, None, *ctx.backward_of(SineNetwork(*ctx.saved_tensors), *ctx.of, grad)


def implicit_filter(network: SineNetwork, L: int, length: int, shift: float) -> Tensor:
    """The first L taps of every filter; the equations stand at the top of this file.

    Parameters
    ----------
    network : SineNetwork
        The filters' parameters.
    L : int
        Number of taps, 1 or more.
    length : int
        T, the filters' full length, 2 or more.
    shift : float
        What the window decays to, above zero.

    Returns
    -------
    Tensor (D, L)                   in the network's dtype

    Raises
    ------
    ShapeError, a ValueError        parameters that do not fit, other dtypes, or no taps
    KernelError                     the Triton kernel does not run on this GPU
    """
    _check(network, L)
    with torch.autocast(network.output.device.type, enabled=False):
        h: Tensor = _ImplicitFilter.apply(L, length, shift, *network)  # type: ignore[no-untyped-call]
    return h


def hidden_layer(network: SineNetwork, L: int, length: int) -> Tensor:
    """The network's last hidden layer at the first L positions, (L, F), of which `taps` makes any channels' filters."""
    _check(network, L)
    with torch.autocast(network.output.device.type, enabled=False):
        return torch.cat([_hidden(network, positions, length) for _, positions in _tiles(L, network.output.device)])


def taps(network: SineNetwork, hidden: Tensor, length: int, shift: float, channels: slice) -> Tensor:
    """The filters of some channels, (D', L), from the hidden layer (L, F)."""
    positions = torch.arange(hidden.shape[0], device=hidden.device, dtype=torch.float64)
    rates = decay_rates(network.output.shape[0], hidden.device)[channels]
    with torch.autocast(hidden.device.type, enabled=False):
        h = network.output[channels] @ hidden.T
    return h.mul_(_window(rates, positions, length, shift, hidden.dtype))


def _check(network: SineNetwork, L: int) -> None:
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in network._asdict().items())
    F, E, D = network.frequency.numel(), network.weight1.shape[-1], len(network.output)
    expected = [(1, F), (F, E), (F,), (F, F), (F,), (F, F), (F,), (D, F)]
    if [tuple(x.shape) for x in network] != expected or E < 3 or E % 2 == 0:
        raise ShapeError(
            f"implicit_filter was given {shapes}; it takes frequency (1, F), weight1 (F, E) with E odd and 3 or more, "
            "weight2 and weight3 (F, F), biases (F,), output (D, F)"
        )
    dtypes = {x.dtype for x in network}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise ShapeError(f"implicit_filter was given {dtypes}; all parameters must be float32, or all float64")
    if L < 1:
        raise ShapeError(f"implicit_filter was asked for {L} taps; it makes 1 or more")
