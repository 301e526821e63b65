"""The implicit filters in Triton; hyenadna.kernels.implicit_filter holds the equations and the references.

A program makes the filters of a tile of positions: the hidden layers stay on chip, with units as rows and positions as
columns, so that the result is written with positions contiguous. The few features of a position come from float64, as
float32 has no digits for their phases at a million positions. Products are on the tensor cores in three TF32 parts,
which is as exact as float32; one part alone would be amplified by the sines to errors of several percent.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.kernels.backend import reported
from hyenadna.kernels.configuration import Configuration
from hyenadna.kernels.implicit_filter import SineNetwork, decay_rates, positional_features

_WARPS = 4
_BLOCK_L = 64
_BLOCK_D = 64


@triton.jit
def _sine_layer(x, weight, bias, frequency, columns, F: tl.constexpr, F_PAD: tl.constexpr, K_PAD: tl.constexpr):
    """(F_PAD, positions): sin(frequency (weight x + bias)) of x (K_PAD, positions); zero in the rows after F."""
    f, k = tl.arange(0, F_PAD), tl.arange(0, K_PAD)
    inside = f < F
    w = tl.load(weight + f[:, None] * columns + k[None, :], mask=inside[:, None] & (k < columns)[None, :], other=0.0)
    z = tl.dot(w, x, input_precision="tf32x3") + tl.load(bias + f, mask=inside, other=0.0)[:, None]
    return tl.sin(tl.load(frequency + f, mask=inside, other=0.0)[:, None] * z)


@triton.jit
def _implicit_filter(
    features, rates, frequency, weight1, bias1, weight2, bias2, weight3, bias3, output, h,
    L, D, E, shift,
    F: tl.constexpr, F_PAD: tl.constexpr, E_PAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    e, f = tl.arange(0, E_PAD), tl.arange(0, F_PAD)
    x = tl.load(features + t[None, :] * E + e[:, None], mask=(t < L)[None, :] & (e < E)[:, None], other=0.0)
    x = _sine_layer(x, weight1, bias1, frequency, E, F, F_PAD, E_PAD)
    x = _sine_layer(x, weight2, bias2, frequency, F, F, F_PAD, F_PAD)
    x = _sine_layer(x, weight3, bias3, frequency, F, F, F_PAD, F_PAD)
    time = tl.load(features + t * E, mask=t < L, other=0.0)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        w = tl.load(output + d[:, None] * F + f[None, :], mask=(d < D)[:, None] & (f < F)[None, :], other=0.0)
        window = tl.exp(-tl.load(rates + d, mask=d < D, other=0.0)[:, None] * time[None, :]) + shift
        taps = tl.dot(w, x, input_precision="tf32x3") * window
        tl.store(h + d.to(tl.int64)[:, None] * L + t[None, :], taps, mask=(d < D)[:, None] & (t < L)[None, :])


def implicit_filter(network: SineNetwork, L: int, length: int, shift: float) -> Tensor:
    """The first L taps of every filter, (D, L); the network is float32."""
    device = network.output.device
    (F, E), D = network.weight1.shape, len(network.output)
    positions = torch.arange(L, device=device, dtype=torch.float64)
    features = positional_features(positions, length, E).float()
    h = features.new_empty(D, L)
    with reported("implicit_filter", h), torch.cuda.device_of(h):
        _implicit_filter[(triton.cdiv(L, _BLOCK_L),)](
            features, decay_rates(D, device).float(), *(x.contiguous() for x in network), h,
            L, D, E, shift,
            F=F, F_PAD=_padded(F), E_PAD=_padded(E), BLOCK_D=_BLOCK_D, BLOCK_L=_BLOCK_L, num_warps=_WARPS,
        )  # fmt: skip
    return h


def _padded(size: int) -> int:
    """The smallest size of a matrix product that holds `size`."""
    return max(16, triton.next_power_of_2(size))


def configurations() -> list[Configuration]:
    """What is launched for the published networks of width 64."""
    kernel: Any = _implicit_filter
    constants = {"F": 64, "F_PAD": 64, "E_PAD": 16, "BLOCK_D": _BLOCK_D, "BLOCK_L": _BLOCK_L}
    signature = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature |= {"L": "i32", "D": "i32", "E": "i32", "shift": "fp32"}
    return [
        Configuration("implicit_filter", kernel, signature, constants, _WARPS, 3, tensor_cores=True, spill_budget=0)
    ]
