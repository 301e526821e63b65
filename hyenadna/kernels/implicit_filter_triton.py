"""The implicit filters in Triton; hyenadna.kernels.implicit_filter holds the equations and the references.

A program works on a tile of positions: the hidden layers stay on chip, with units as rows and positions as columns, so
that filters are read and written with positions contiguous. The few features of a position come from float64, as
float32 has no digits for their phases at a million positions. Products are on the tensor cores in three TF32 parts,
which is as exact as float32; one part alone is amplified by the sines to an error of 2 % in the filters.

Backward makes the hidden layers of a tile again. Each program sums its tiles' gradients in memory of its own, which
stays in the L2 cache, and torch sums over the programs: no atomic additions, the same numbers at every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.kernels.backend import reported
from hyenadna.kernels.configuration import Configuration
from hyenadna.kernels.sine_network import SineNetwork, decay_rates, positional_features

_WARPS = 4
_BLOCK_D = 64
_FORWARD_BLOCK_L, _BACKWARD_BLOCK_L = 64, 32
"""Backward holds all hidden layers of a tile at once: with 64 positions its threads spill several times as much."""
_BACKWARD_PROGRAMS = 264
"""Two for each multiprocessor of an H200; each has a copy of the parameters' gradients."""


@triton.jit
def _load_matrix(at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS): a matrix of rows by columns with zeros around it."""
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return tl.load(at + r[:, None] * columns + c[None, :], mask=(r < rows)[:, None] & (c < columns)[None, :], other=0.0)


@triton.jit
def _load_column(at, rows, ROWS: tl.constexpr):
    r = tl.arange(0, ROWS)
    return tl.load(at + r, mask=r < rows, other=0.0)[:, None]


@triton.jit
def _add_matrix(at, value, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at += r[:, None] * columns + c[None, :]
    mask = (r < rows)[:, None] & (c < columns)[None, :]
    tl.debug_barrier()  # another thread may have stored the last sum
    tl.store(at, tl.load(at, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def _add_column(at, value, rows, ROWS: tl.constexpr):
    r = tl.arange(0, ROWS)
    tl.debug_barrier()
    tl.store(at + r, tl.load(at + r, mask=r < rows, other=0.0) + value, mask=r < rows)


@triton.jit
def _load_features(features, t, L, E, E_PAD: tl.constexpr):
    """(E_PAD, positions)"""
    e = tl.arange(0, E_PAD)
    return tl.load(features + t[None, :] * E + e[:, None], mask=(t < L)[None, :] & (e < E)[:, None], other=0.0)


@triton.jit
def _sin_near(a, n):
    """sin(a - n pi), where that is at most pi / 2 away from zero and n is a multiple of 1 / 2 below 4096."""
    # pi in three parts: the products with the first two are exact
    r = ((a - n * 3.140625) - n * 0.00096750259399414062) - n * 1.5099579909783765e-07
    z = r * r
    series = 1 / 362880 + z * (-1 / 39916800 + z * (1 / 6227020800))
    return r + r * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * series)))


@triton.jit
def _sin(a):
    # tl.sin takes arguments of any size, for which every call has a branch and an array in local memory
    n = tl.floor(a * 0.3183098861837907 + 0.5)
    s = _sin_near(a, n)
    return tl.where((n.to(tl.int32) & 1) == 0, s, -s)


@triton.jit
def _cos(a):
    n = tl.floor(a * 0.3183098861837907)
    s = _sin_near(a, n + 0.5)
    return tl.where((n.to(tl.int32) & 1) == 0, -s, s)


@triton.jit
def _linear(x, weight, bias, F, K, F_PAD: tl.constexpr, K_PAD: tl.constexpr):
    """(F_PAD, positions): weight x + bias of x (K_PAD, positions); zero in the rows after F."""
    w = _load_matrix(weight, F, K, F_PAD, K_PAD)
    return tl.dot(w, x, input_precision="tf32x3") + _load_column(bias, F, F_PAD)


@triton.jit
def _window(rates, time, shift, D, BLOCK_D: tl.constexpr):
    """(BLOCK_D, positions)"""
    return tl.exp(-_load_column(rates, D, BLOCK_D) * time[None, :]) + shift


@triton.jit
def _implicit_filter_forward(
    features, rates, frequency, weight1, bias1, weight2, bias2, weight3, bias3, output, h,
    L, D, E, shift,
    F: tl.constexpr, F_PAD: tl.constexpr, E_PAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    w = _load_column(frequency, F, F_PAD)
    x0 = _load_features(features, t, L, E, E_PAD)
    x1 = _sin(w * _linear(x0, weight1, bias1, F, E, F_PAD, E_PAD))
    x2 = _sin(w * _linear(x1, weight2, bias2, F, F, F_PAD, F_PAD))
    x3 = _sin(w * _linear(x2, weight3, bias3, F, F, F_PAD, F_PAD))
    time = tl.load(features + t * E, mask=t < L, other=0.0)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        gain = _load_matrix(output + first * F, D - first, F, BLOCK_D, F_PAD)
        taps = tl.dot(gain, x3, input_precision="tf32x3") * _window(rates + first, time, shift, D - first, BLOCK_D)
        tl.store(h + d.to(tl.int64)[:, None] * L + t[None, :], taps, mask=(d < D)[:, None] & (t < L)[None, :])


@triton.jit
def _sine_layer_backward(
    dx, z, x, frequency, weight, d_frequency, d_weight, d_bias,
    F, K, F_PAD: tl.constexpr, K_PAD: tl.constexpr,
):  # fmt: skip
    """From the gradient for sin(frequency z), z = weight x + bias, that for x; adds those of the parameters."""
    w = _load_column(frequency, F, F_PAD)
    dz = dx * _cos(w * z)
    _add_column(d_frequency, tl.sum(dz * z, axis=1), F, F_PAD)
    dz *= w
    _add_column(d_bias, tl.sum(dz, axis=1), F, F_PAD)
    _add_matrix(d_weight, tl.dot(dz, tl.trans(x), input_precision="tf32x3"), F, K, F_PAD, K_PAD)
    return tl.dot(tl.trans(_load_matrix(weight, F, K, F_PAD, K_PAD)), dz, input_precision="tf32x3")


@triton.jit
def _implicit_filter_backward(
    features, rates, frequency, weight1, bias1, weight2, bias2, weight3, bias3, output, dh,
    d_frequency, d_weight1, d_bias1, d_weight2, d_bias2, d_weight3, d_bias3, d_output,
    L, D, E, dh_stride, shift,
    F: tl.constexpr, F_PAD: tl.constexpr, E_PAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    d_frequency += program * F
    d_weight1, d_bias1 = d_weight1 + program * F * E, d_bias1 + program * F
    d_weight2, d_bias2 = d_weight2 + program * F * F, d_bias2 + program * F
    d_weight3, d_bias3 = d_weight3 + program * F * F, d_bias3 + program * F
    d_output += program * D * F
    w = _load_column(frequency, F, F_PAD)
    for tile in range(program, tl.cdiv(L, BLOCK_L), tl.num_programs(0)):
        t = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        x0 = _load_features(features, t, L, E, E_PAD)
        z1 = _linear(x0, weight1, bias1, F, E, F_PAD, E_PAD)
        x1 = _sin(w * z1)
        z2 = _linear(x1, weight2, bias2, F, F, F_PAD, F_PAD)
        x2 = _sin(w * z2)
        z3 = _linear(x2, weight3, bias3, F, F, F_PAD, F_PAD)
        x3 = _sin(w * z3)
        time = tl.load(features + t * E, mask=t < L, other=0.0)

        dx = tl.zeros((F_PAD, BLOCK_L), tl.float32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            mask = (d < D)[:, None] & (t < L)[None, :]
            dy = tl.load(dh + d.to(tl.int64)[:, None] * dh_stride + t[None, :], mask=mask, other=0.0)
            dy *= _window(rates + first, time, shift, D - first, BLOCK_D)
            d_gain = tl.dot(dy, tl.trans(x3), input_precision="tf32x3")
            _add_matrix(d_output + first * F, d_gain, D - first, F, BLOCK_D, F_PAD)
            gain = _load_matrix(output + first * F, D - first, F, BLOCK_D, F_PAD)
            dx += tl.dot(tl.trans(gain), dy, input_precision="tf32x3")

        dx = _sine_layer_backward(dx, z3, x2, frequency, weight3, d_frequency, d_weight3, d_bias3, F, F, F_PAD, F_PAD)
        dx = _sine_layer_backward(dx, z2, x1, frequency, weight2, d_frequency, d_weight2, d_bias2, F, F, F_PAD, F_PAD)
        _sine_layer_backward(dx, z1, x0, frequency, weight1, d_frequency, d_weight1, d_bias1, F, E, F_PAD, E_PAD)


def _operands(network: SineNetwork, L: int, length: int) -> tuple[Tensor, ...]:
    """What both kernels read: features, rates and parameters."""
    E, D, device = network.weight1.shape[1], len(network.output), network.output.device
    features = positional_features(torch.arange(L, device=device, dtype=torch.float64), length, E).float()
    return features, decay_rates(D, device).float(), *(x.contiguous() for x in network)


def _constants(F: int, E: int, block_l: int) -> dict[str, int]:
    # 16 is the smallest side of a matrix product
    F_PAD, E_PAD = (max(16, triton.next_power_of_2(size)) for size in (F, E))
    return {"F": F, "F_PAD": F_PAD, "E_PAD": E_PAD, "BLOCK_D": _BLOCK_D, "BLOCK_L": block_l}


def forward(network: SineNetwork, L: int, length: int, shift: float) -> Tensor:
    """The first L taps of every filter, (D, L); the network is float32."""
    (F, E), D = network.weight1.shape, len(network.output)
    h = network.output.new_empty(D, L)
    with reported("implicit_filter", h), torch.cuda.device_of(h):
        _implicit_filter_forward[(triton.cdiv(L, _FORWARD_BLOCK_L),)](
            *_operands(network, L, length), h,
            L, D, E, shift, **_constants(F, E, _FORWARD_BLOCK_L),
            num_warps=_WARPS, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip
    return h


def backward(network: SineNetwork, L: int, length: int, shift: float, grad: Tensor) -> SineNetwork:
    """The gradients for the network's parameters, from that for the filters (D, L)."""
    (F, E), D = network.weight1.shape, len(network.output)
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    programs = min(_BACKWARD_PROGRAMS, triton.cdiv(L, _BACKWARD_BLOCK_L))
    partial = [x.new_zeros(programs, *x.shape) for x in network]
    with reported("implicit_filter", grad), torch.cuda.device_of(grad):
        _implicit_filter_backward[(programs,)](
            *_operands(network, L, length), grad, *partial,
            L, D, E, grad.stride(0), shift, **_constants(F, E, _BACKWARD_BLOCK_L),
            num_warps=_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return SineNetwork(*(x.sum(0) for x in partial))


def configurations() -> list[Configuration]:
    """What is launched for the published networks: width 64, five features."""
    return [
        _configuration(_implicit_filter_forward, _FORWARD_BLOCK_L, num_stages=3, spill_budget=0),
        _configuration(_implicit_filter_backward, _BACKWARD_BLOCK_L, num_stages=1, spill_budget=2048),
    ]


def _configuration(kernel: Any, block_l: int, *, num_stages: int, spill_budget: int) -> Configuration:
    constants = _constants(64, 5, block_l)
    signature = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature |= {name: "i32" for name in ("L", "D", "E", "dh_stride") if name in signature} | {"shift": "fp32"}
    name = kernel.__name__.lstrip("_")
    return Configuration(
        name, kernel, signature, constants, _WARPS, num_stages, tensor_cores=True, spill_budget=spill_budget
    )
