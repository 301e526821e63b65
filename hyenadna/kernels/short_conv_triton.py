"""The gated short convolution in Triton; hyenadna.kernels.short_conv holds the equations and the references.

A program computes a tile of channels by positions. The tile's neighbours in time are loaded again for every tap: they
come from the nearest cache, where the reads of one tap overlap those of the next. Which axis of the projection is
contiguous decides the shape of the tile, so that reads and writes are coalesced in both layouts; Triton passes the tile
through shared memory where the projection has channels contiguous and the results have positions.

The gradients of weights and biases are summed over a tile by its program and over the tiles by torch, in one order: no
atomic additions, the same numbers at every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.kernels.backend import reported
from hyenadna.kernels.configuration import Configuration

_WARPS = 8
_TILES = {"channels first": (4, 256), "channels last": (32, 32)}
"""Channels and positions of a tile for projections that are (3 D, B, L) and (B, L, 3 D) in memory."""


@triton.jit
def _at(rows, t, L, stride, inside):
    """(channels, positions): what lies at the positions t of some rows, and zero outside of them."""
    at = rows[:, None] + t.to(tl.int64)[None, :] * stride
    return tl.load(at, mask=inside[:, None] & ((t >= 0) & (t < L))[None, :], other=0.0).to(tl.float32)


@triton.jit
def _short_conv(rows, t, L, stride, weight, bias, inside, M: tl.constexpr):
    """(channels, positions): the short convolution of some rows at the positions t."""
    y = tl.load(bias, mask=inside, other=0.0)[:, None]
    for back in tl.static_range(M):
        tap = tl.load(weight + (M - 1 - back), mask=inside, other=0.0)
        y += tap[:, None] * _at(rows, t - back, L, stride, inside)
    return y


@triton.jit
def _gated_short_conv_forward(
    x0, x1, x2, weight, bias, u, gate,
    D, L,
    x_batch, x_channel, x_position, u_batch, u_channel, gate_batch, gate_channel,
    M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b = tl.program_id(2).to(tl.int64)
    inside, d = d < D, d.to(tl.int64)
    tile = inside[:, None] & (t < L)[None, :]
    x = b * x_batch + d * x_channel
    s0 = _short_conv(x0 + x, t, L, x_position, weight + d * M, bias + d, inside, M)
    s1 = _short_conv(x1 + x, t, L, x_position, weight + (D + d) * M, bias + D + d, inside, M)
    s2 = _short_conv(x2 + x, t, L, x_position, weight + (2 * D + d) * M, bias + 2 * D + d, inside, M)
    tl.store(u + (b * u_batch + d * u_channel)[:, None] + t[None, :], s1 * s2, mask=tile)
    tl.store(gate + (b * gate_batch + d * gate_channel)[:, None] + t[None, :], s0, mask=tile)


@triton.jit
def _gated_short_conv_backward(
    x0, x1, x2, weight, bias, grad_u, grad_gate, grad_x0, grad_x1, grad_x2, partial,
    D, L,
    x_batch, x_channel, x_position, u_batch, u_channel, gate_batch, gate_channel,
    grad_batch, grad_channel, grad_position,
    M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b = tl.program_id(2).to(tl.int64)
    inside, d = d < D, d.to(tl.int64)
    tile = inside[:, None] & (t < L)[None, :]
    x = b * x_batch + d * x_channel
    x0, x1, x2 = x0 + x, x1 + x, x2 + x
    weight0, weight1, weight2 = weight + d * M, weight + (D + d) * M, weight + (2 * D + d) * M
    grad_u += b * u_batch + d * u_channel
    grad_gate += b * gate_batch + d * gate_channel
    # (programs, 3, M + 1, D): the taps of a part and then its bias
    program = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    partial += program * 3 * (M + 1) * D + d

    dx0 = tl.zeros((BLOCK_D, BLOCK_L), tl.float32)
    dx1 = tl.zeros((BLOCK_D, BLOCK_L), tl.float32)
    dx2 = tl.zeros((BLOCK_D, BLOCK_L), tl.float32)
    for m in tl.static_range(M):
        # through its tap m, the short convolution at `later` saw the position t; the last tap leaves ds at t itself
        later = t + (M - 1 - m)
        du = _at(grad_u, later, L, 1, inside)
        ds0 = _at(grad_gate, later, L, 1, inside)
        ds1 = du * _short_conv(x2, later, L, x_position, weight2, bias + 2 * D + d, inside, M)
        ds2 = du * _short_conv(x1, later, L, x_position, weight1, bias + D + d, inside, M)
        dx0 += tl.load(weight0 + m, mask=inside, other=0.0)[:, None] * ds0
        dx1 += tl.load(weight1 + m, mask=inside, other=0.0)[:, None] * ds1
        dx2 += tl.load(weight2 + m, mask=inside, other=0.0)[:, None] * ds2

    for m in tl.static_range(M):
        earlier = t - (M - 1 - m)
        tl.store(partial + m * D, tl.sum(ds0 * _at(x0, earlier, L, x_position, inside), axis=1), mask=inside)
        tl.store(partial + (M + 1 + m) * D, tl.sum(ds1 * _at(x1, earlier, L, x_position, inside), axis=1), mask=inside)
        tl.store(
            partial + (2 * M + 2 + m) * D, tl.sum(ds2 * _at(x2, earlier, L, x_position, inside), axis=1), mask=inside
        )
    tl.store(partial + M * D, tl.sum(ds0, axis=1), mask=inside)
    tl.store(partial + (2 * M + 1) * D, tl.sum(ds1, axis=1), mask=inside)
    tl.store(partial + (3 * M + 2) * D, tl.sum(ds2, axis=1), mask=inside)

    grad = (b * grad_batch + d * grad_channel)[:, None] + t.to(tl.int64)[None, :] * grad_position
    tl.store(grad_x0 + grad, dx0, mask=tile)
    tl.store(grad_x1 + grad, dx1, mask=tile)
    tl.store(grad_x2 + grad, dx2, mask=tile)


def _tile(projected: Tensor) -> tuple[int, int]:
    return _TILES["channels first" if projected.stride(3) == 1 else "channels last"]


def _grid(projected: Tensor) -> tuple[int, int, int]:
    _, B, D, L = projected.shape
    block_d, block_l = _tile(projected)
    return triton.cdiv(L, block_l), triton.cdiv(D, block_d), B


def forward(projected: Tensor, weight: Tensor, bias: Tensor, u: Tensor, gate: Tensor) -> None:
    """Into u and gate; weight and bias are float32."""
    _, _, D, L = projected.shape
    block_d, block_l = _tile(projected)
    with reported("gated_short_conv", projected), torch.cuda.device_of(projected):
        _gated_short_conv_forward[_grid(projected)](
            *projected, weight.contiguous(), bias.contiguous(), u, gate,
            D, L,
            *projected.stride()[1:], *u.stride()[:2], *gate.stride()[:2],
            M=weight.shape[2], BLOCK_D=block_d, BLOCK_L=block_l, num_warps=_WARPS, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip


def backward(
    projected: Tensor, weight: Tensor, bias: Tensor, grad_u: Tensor, grad_gate: Tensor, of_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for projected, weight and bias; the kernel makes the parts of the last two in any case."""
    _, _, D, L = projected.shape
    M = weight.shape[2]
    grad_u, grad_gate = (grad if grad.stride(2) == 1 else grad.contiguous() for grad in (grad_u, grad_gate))
    grad_projected = torch.empty_like(projected)
    block_d, block_l = _tile(projected)
    grid = _grid(projected)
    partial = weight.new_empty(grid[0] * grid[2], 3, M + 1, D)
    with reported("gated_short_conv", projected), torch.cuda.device_of(projected):
        _gated_short_conv_backward[grid](
            *projected, weight.contiguous(), bias.contiguous(), grad_u, grad_gate, *grad_projected, partial,
            D, L,
            *projected.stride()[1:], *grad_u.stride()[:2], *grad_gate.stride()[:2], *grad_projected.stride()[1:],
            M=M, BLOCK_D=block_d, BLOCK_L=block_l, num_warps=_WARPS, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip
    if not of_weights:
        return grad_projected, None, None
    sums = partial.sum(0)
    return grad_projected, sums[:, :M].transpose(1, 2).contiguous(), sums[:, M]


def configurations() -> list[Configuration]:
    """What is launched for the published three taps, in both layouts and the dtypes of training."""
    return [
        _configuration(kernel, dtype, layout)
        for kernel in (_gated_short_conv_forward, _gated_short_conv_backward)
        for dtype in ("fp32", "bf16")
        for layout in ("channels first", "channels last")
    ]


def _configuration(kernel: Any, dtype: str, layout: str) -> Configuration:
    arguments = kernel.arg_names
    contiguous = ("x_position", "grad_position") if layout == "channels first" else ("x_channel", "grad_channel")
    block_d, block_l = _TILES[layout]
    constants = {name: 1 for name in contiguous if name in arguments}
    constants |= {"M": 3, "BLOCK_D": block_d, "BLOCK_L": block_l}
    numbers = arguments[arguments.index("D") :]
    signature = {name: "i32" if name in numbers else f"*{dtype}" for name in arguments}
    signature |= {name: "*fp32" for name in ("weight", "bias", "partial") if name in arguments}
    signature |= dict.fromkeys(constants, "constexpr")
    name = f"{kernel.__name__.lstrip('_')}, {dtype}, {layout}"
    return Configuration(name, kernel, signature, constants, _WARPS, num_stages=3, tensor_cores=False, spill_budget=0)
