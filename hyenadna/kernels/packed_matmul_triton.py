"""The product with packed weights in Triton; hyenadna.kernels.packed_matmul holds the equations.

A program computes a tile of y, or of the gradient for x. On its way along the sum it makes one tile of W after the
other in registers, in float32, rounds it to x's dtype and multiplies on the tensor cores: W is never in memory, going
forward or back, and is read in its packed bytes. Float32 is multiplied in three products of TF32, half precision in its
own; the sums are float32. Neighbouring programs take the same rows of x, which are by far the larger operand, so that
they find them in the second cache. Strides say whether x, y and their gradients lie transposed.

Where a tile's columns lie in one run of bytes and in one group (its width divides both), the shift and the group are
numbers and the loads are wide; otherwise each column has its own. Which tile of y is fastest is measured at the first
call for a shape, a power of two of rows and a dtype, and kept on disk.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.kernels.backend import interpreting, reported
from hyenadna.kernels.configuration import Configuration
from hyenadna.kernels.packed_weight import PackedWeight, packed_bytes, planes

_NARROWEST, _WIDEST = 16, 32
"""Columns of a tile of W: no fewer than the tensor cores take, no more than the registers hold."""
_FORWARD_TILES = ((16, 32, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3))
_BACKWARD_TILES = _FORWARD_TILES[:3]
"""Rows of x and rows of W, warps and stages; going back, a tile of the result has the columns of one of W."""


@triton.jit
def _plane(rows, inside, k0, k, K, BITS: tl.constexpr, IN_RUNS: tl.constexpr):
    """(rows, columns): some bits of the codes in the columns k, which start with k0; rows point to their bytes."""
    size = (K * BITS + 7) // 8
    if IN_RUNS:
        first = tl.multiple_of(k0 % size, 16)
        byte, shift = first + (k - k0), k0 // size * BITS
        codes = tl.load(rows[:, None] + byte[None, :], mask=inside[:, None], other=0).to(tl.int32) >> shift
    else:
        byte, shift = k % size, k // size * BITS
        codes = tl.load(rows[:, None] + byte[None, :], mask=inside[:, None], other=0).to(tl.int32) >> shift[None, :]
    return codes & ((1 << BITS) - 1)


@triton.jit
def _weights(
    packed, scale, zero, r0, k0, R, K, row_bytes, group,
    BITS: tl.constexpr, IN_RUNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(rows, columns) of W from (r0, k0) on, float32; beyond its last column what lies in the last."""
    r = r0 + tl.arange(0, BLOCK_R)
    inside, r = r < R, r.to(tl.int64)
    k = k0 + tl.arange(0, BLOCK_K)
    if not IN_RUNS:
        k = tl.minimum(k, K - 1)  # no shift by more than a byte has
    rows = packed + r * row_bytes
    if BITS == 3:
        codes = _plane(rows, inside, k0, k, K, 2, IN_RUNS)
        codes |= _plane(rows + (K * 2 + 7) // 8, inside, k0, k, K, 1, IN_RUNS) << 2
    else:
        codes = _plane(rows, inside, k0, k, K, BITS, IN_RUNS)
    r *= tl.cdiv(K, group)
    at = (r + k0 // group)[:, None] if IN_RUNS else r[:, None] + (k // group)[None, :]
    zeros = tl.load(zero + at, mask=inside[:, None], other=0.0).to(tl.float32)
    return (codes.to(tl.float32) - zeros) * tl.load(scale + at, mask=inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def _tile(x, row0, column0, rows, columns, stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to a tile of a matrix, and which of them lie within."""
    row, column = row0 + tl.arange(0, ROWS), column0 + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return x + row.to(tl.int64)[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column, inside


@triton.jit
def _packed_matmul_forward(
    x, packed, scale, zero, bias, y,
    n, R, K, row_bytes, group, size, x_row, x_column, y_row, y_column,
    BITS: tl.constexpr, IN_RUNS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(R, BLOCK_R)
    n0 = tl.program_id(0) // across * BLOCK_N
    r0 = tl.program_id(0) % across * BLOCK_R
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for k0 in range(0, K, BLOCK_K):
        at, inside = _tile(x, n0, k0, n, K, x_row, x_column, BLOCK_N, BLOCK_K)
        rows = tl.load(at, mask=inside, other=0.0)
        w = _weights(packed, scale, zero, r0, k0, R, K, row_bytes, group, BITS, IN_RUNS, BLOCK_R, BLOCK_K)
        sums = tl.dot(rows, tl.trans(w.to(rows.dtype)), sums, input_precision="tf32x3")
    r = r0 + tl.arange(0, BLOCK_R)
    sums += tl.load(bias + r, mask=r < R, other=0.0).to(tl.float32)[None, :]
    at, inside = _tile(y, n0, r0, n, R, y_row, y_column, BLOCK_N, BLOCK_R)
    tl.store(at, sums, mask=inside)


@triton.jit
def _packed_matmul_backward(
    grad_y, packed, scale, zero, grad_x,
    n, R, K, row_bytes, group, size, y_row, y_column, x_row, x_column,
    BITS: tl.constexpr, IN_RUNS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(K, BLOCK_K)
    n0 = tl.program_id(0) // across * BLOCK_N
    k0 = tl.program_id(0) % across * BLOCK_K
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for r0 in range(0, R, BLOCK_R):
        at, inside = _tile(grad_y, n0, r0, n, R, y_row, y_column, BLOCK_N, BLOCK_R)
        rows = tl.load(at, mask=inside, other=0.0)
        w = _weights(packed, scale, zero, r0, k0, R, K, row_bytes, group, BITS, IN_RUNS, BLOCK_R, BLOCK_K)
        sums = tl.dot(rows, w.to(rows.dtype), sums, input_precision="tf32x3")
    at, inside = _tile(grad_x, n0, k0, n, K, x_row, x_column, BLOCK_N, BLOCK_K)
    tl.store(at, sums, mask=inside)


def _tuned(kernel: Any, tiles: tuple[tuple[int, int, int, int], ...]) -> Any:
    """The kernel with the fastest tile; in the interpreter, which has no clock for it, the smallest."""
    configs = [
        triton.Config({"BLOCK_N": block_n, "BLOCK_R": block_r}, num_warps=warps, num_stages=stages)
        for block_n, block_r, warps, stages in (tiles[:1] if interpreting() else tiles)
    ]
    return triton.autotune(configs, key=["size", "R", "K", "BITS", "IN_RUNS", "BLOCK_K"], cache_results=True)(kernel)


_forward = _tuned(_packed_matmul_forward, _FORWARD_TILES)
_backward = _tuned(_packed_matmul_backward, _BACKWARD_TILES)


def width(weight: PackedWeight) -> tuple[int, bool]:
    """Columns of a tile of W, and whether they lie in one run of bytes and in one group."""
    runs = (packed_bytes(weight.columns, plane) for plane in planes(weight.bits))
    common = math.gcd(weight.group, *runs)
    power = common & -common  # the largest power of two that divides it
    return (min(power, _WIDEST), True) if power >= _NARROWEST else (2 * _NARROWEST, False)


def _arguments(weight: PackedWeight, n: int) -> tuple[list[Tensor], list[int], dict[str, Any]]:
    """What both kernels take: the weights, the sizes, and the constants."""
    tensors = [x.contiguous() for x in weight[:3]]
    R, row_bytes = weight.packed.shape
    # the rows in steps of two, so that not every length is tuned by itself
    sizes = [n, R, weight.columns, row_bytes, weight.group, min(4096, 1 << (n - 1).bit_length())]
    block, in_runs = width(weight)
    return tensors, sizes, {"BITS": weight.bits, "IN_RUNS": in_runs, "BLOCK_K": block, "enable_fp_fusion": True}


def forward(x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor) -> None:
    """Into out (n, R), of any strides."""
    n, R = out.shape
    if not out.numel():
        return
    tensors, sizes, constants = _arguments(weight, n)
    bias = x.new_zeros(R) if bias is None else bias.contiguous()
    with reported("packed_matmul", x), torch.cuda.device_of(x):
        _forward[lambda tile: (triton.cdiv(n, tile["BLOCK_N"]) * triton.cdiv(R, tile["BLOCK_R"]),)](
            x, *tensors, bias, out, *sizes, *x.stride(), *out.stride(), **constants
        )


def backward(grad: Tensor, weight: PackedWeight, out: Tensor) -> None:
    """Into out (n, K) the gradient for x, from that for y (n, R)."""
    n, K = out.shape
    if not out.numel():
        return
    tensors, sizes, constants = _arguments(weight, n)
    with reported("packed_matmul", grad), torch.cuda.device_of(grad):
        _backward[lambda tile: (triton.cdiv(n, tile["BLOCK_N"]) * triton.cdiv(K, tile["BLOCK_K"]),)](
            grad, *tensors, out, *sizes, *grad.stride(), *out.stride(), **constants
        )


def configurations() -> list[Configuration]:
    """Every tile, number of bits and dtype of x that is launched, both ways round, and columns apart; not all pairs."""
    small, middle, _, large = _FORWARD_TILES
    chosen = [
        *((_packed_matmul_forward, "fp16", 4, True, tile) for tile in _FORWARD_TILES),
        *((_packed_matmul_forward, "fp32", 4, True, tile) for tile in (middle, large)),
        *((_packed_matmul_forward, "bf16", bits, True, small) for bits in (1, 2, 3, 8)),
        *((_packed_matmul_backward, dtype, 4, True, _BACKWARD_TILES[-1]) for dtype in ("fp16", "fp32")),
        *((kernel, "bf16", 3, False, small) for kernel in (_packed_matmul_forward, _packed_matmul_backward)),
    ]
    return [_configuration(*one) for one in chosen]


def _configuration(kernel: Any, dtype: str, bits: int, in_runs: bool, tile: tuple[int, int, int, int]) -> Configuration:
    block_n, block_r, warps, stages = tile
    arguments = kernel.arg_names
    constants = {"BITS": bits, "IN_RUNS": in_runs, "BLOCK_N": block_n, "BLOCK_R": block_r, "BLOCK_K": _WIDEST}
    # float32 with x as (K, n) and y as (n, R) in memory, half precision the other way
    constants |= {"x_row": 1, "y_column": 1} if dtype == "fp32" else {"x_column": 1, "y_row": 1}
    numbers = arguments[arguments.index("n") :]
    signature = {name: "i32" if name in numbers else f"*{dtype}" for name in arguments}
    signature |= {"packed": "*u8", "scale": "*fp16", "zero": "*fp16"} | dict.fromkeys(constants, "constexpr")
    name = f"{kernel.__name__.lstrip('_')}, {dtype}, {bits} bits, {block_n} x {block_r}{'' if in_runs else ', apart'}"
    return Configuration(name, kernel, signature, constants, warps, stages, tensor_cores=True, spill_budget=64)
