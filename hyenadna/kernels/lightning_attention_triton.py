"""Lightning attention in Triton; hyenadna.kernels.lightning_attention holds the equations and the references.

A program walks along a segment of the sequence of one head, block by block, with some columns of the state in its
registers, forwards or in reverse: with a direction the operator is its own derivative, so this kernel is the backward
pass as well. Products run on the tensor cores and are summed in float32. Of bfloat16 operands the scores and the state
are rounded to bfloat16 before they are multiplied; of float16, whose range a long sum leaves, they are multiplied in
TF32, which holds float16 exactly; of float32 in three products of TF32. Neither state nor weights are ever stored in
half precision.

Where items, heads and columns are too few to fill a GPU, the sequence is cut into segments. A first kernel sums what
each segment adds to the state, a few small steps of torch turn these sums into the states that the segments begin with,
and the segments then run side by side, reading K and V once more.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.kernels.backend import reported
from hyenadna.kernels.configuration import Configuration

_BLOCK = 64
_WIDEST = {torch.bfloat16: (64, 128, 64), torch.float16: (64, 64, 64), torch.float32: (32, 32, 32)}
"""Positions of a block, and rows and columns of the state, that the registers of one program hold without spilling.

Wider keys are summed in parts, wider values are other programs'."""
_PROGRAMS = 256
"""As many are wanted; an H200 runs 132 at once, or twice as many where two fit."""
_SHORTEST_SEGMENT = 8 * _BLOCK
_STAGES = 2


@triton.jit
def _tile(x, start, b, stride, width, BLOCK_L: tl.constexpr, BLOCK: tl.constexpr):
    """(positions, columns): the b rows of x from the position start on, and zeros."""
    i, column = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK)
    # one wide address for the tile, since one for each number would fill the registers
    tile = x + start.to(tl.int64) * stride
    return tl.load(tile + i[:, None] * stride + column[None, :], mask=_inside(b, width, BLOCK_L, BLOCK), other=0.0)


@triton.jit
def _inside(b, width, BLOCK_L: tl.constexpr, BLOCK: tl.constexpr):
    return (tl.arange(0, BLOCK_L) < b)[:, None] & (tl.arange(0, BLOCK) < width)[None, :]


@triton.jit
def _absorbed(state, k, v, weights, whole, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """The state behind a block: decayed by the whole block, with the weighted k and v of its positions added."""
    k = (k.to(tl.float32) * weights[:, None]).to(OPERAND)
    return tl.dot(tl.trans(k), v.to(OPERAND), state * whole, input_precision=PRECISION)


@triton.jit
def _block(step, first, last, BLOCK_L: tl.constexpr, REVERSE: tl.constexpr):
    """The first position of the block of that number, counted in the direction of the walk, and its positions."""
    start = first + step * BLOCK_L
    if REVERSE:
        start = first + (tl.cdiv(last - first, BLOCK_L) - 1 - step) * BLOCK_L
    return start, tl.minimum(BLOCK_L, last - start)


@triton.jit
def _decays(slope, b, BLOCK_L: tl.constexpr, REVERSE: tl.constexpr):
    """The weights of q and of k in a block of b positions; in reverse they change places."""
    i = tl.arange(0, BLOCK_L)
    rising = tl.exp(-slope * (i + 1))
    falling = tl.exp(-slope * tl.maximum(b - 1 - i, 0))
    if REVERSE:
        return falling, rising
    return rising, falling


@triton.jit
def _lightning_sums(
    k, v, slopes, sums,
    H, L, K, V, segment,
    k_batch, k_head, k_position, v_batch, v_head, v_position,
    REVERSE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(V, BLOCK_V)
    segments = tl.num_programs(0) // across
    number, c0 = tl.program_id(0) // across, tl.program_id(0) % across * BLOCK_V
    row = tl.program_id(1).to(tl.int64)
    k += row // H * k_batch + row % H * k_head
    v += row // H * v_batch + row % H * v_head + c0
    slope = tl.load(slopes + row % H)
    first = number * segment
    last = tl.minimum(first + segment, L)

    state = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    for step in range(0, tl.cdiv(last - first, BLOCK_L)):
        start, b = _block(step, first, last, BLOCK_L, REVERSE)
        keys = _tile(k, start, b, k_position, K, BLOCK_L, BLOCK_K)
        values = _tile(v, start, b, v_position, V - c0, BLOCK_L, BLOCK_V)
        _, of_k = _decays(slope, b, BLOCK_L, REVERSE)
        state = _absorbed(state, keys, values, of_k, tl.exp(-slope * b), OPERAND, PRECISION)

    key, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    at = ((row * segments + number) * K + key)[:, None] * V + c0 + column[None, :]
    tl.store(sums + at, state, mask=(key < K)[:, None] & (column < V - c0)[None, :])


@triton.jit
def _lightning_blocks(
    q, k, v, slopes, states, o, final,
    H, L, K, V, segment,
    q_batch, q_head, q_position, k_batch, k_head, k_position, v_batch, v_head, v_position, o_batch, o_head, o_position,
    REVERSE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(V, BLOCK_V)
    segments = tl.num_programs(0) // across
    number, c0 = tl.program_id(0) // across, tl.program_id(0) % across * BLOCK_V
    row = tl.program_id(1).to(tl.int64)
    q += row // H * q_batch + row % H * q_head
    k += row // H * k_batch + row % H * k_head
    v += row // H * v_batch + row % H * v_head + c0
    o += row // H * o_batch + row % H * o_head + c0
    slope = tl.load(slopes + row % H)
    first = number * segment
    last = tl.minimum(first + segment, L)

    key, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    held = (key < K)[:, None] & (column < V - c0)[None, :]
    at = ((row * segments + number) * K + key)[:, None] * V + c0 + column[None, :]
    state = tl.load(states + at, mask=held, other=0.0)

    i = tl.arange(0, BLOCK_L)
    lag = i[:, None] - i[None, :]
    if REVERSE:
        lag = -lag
    within = tl.where(lag >= 0, tl.exp(-slope * tl.maximum(lag, 0)), 0.0)
    for step in range(0, tl.cdiv(last - first, BLOCK_L)):
        start, b = _block(step, first, last, BLOCK_L, REVERSE)
        queries = _tile(q, start, b, q_position, K, BLOCK_L, BLOCK_K)
        keys = _tile(k, start, b, k_position, K, BLOCK_L, BLOCK_K)
        values = _tile(v, start, b, v_position, V - c0, BLOCK_L, BLOCK_V)
        of_q, of_k = _decays(slope, b, BLOCK_L, REVERSE)
        read = tl.dot(queries.to(OPERAND), state.to(OPERAND), input_precision=PRECISION) * of_q[:, None]
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * within
        read = tl.dot(scores.to(OPERAND), values.to(OPERAND), read, input_precision=PRECISION)
        tile = o + start.to(tl.int64) * o_position
        tl.store(tile + i[:, None] * o_position + column[None, :], read, mask=_inside(b, V - c0, BLOCK_L, BLOCK_V))
        state = _absorbed(state, keys, values, of_k, tl.exp(-slope * b), OPERAND, PRECISION)

    if number == (0 if REVERSE else segments - 1):
        at = (row * K + key)[:, None] * V + c0 + column[None, :]
        tl.store(final + at, state, mask=held)


def _power(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _constants(dtype: torch.dtype, reverse: bool, K: int, V: int) -> dict[str, Any]:
    """What the kernels are compiled for."""
    block, key, value = _WIDEST[dtype]
    return {
        "REVERSE": reverse,
        "OPERAND": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "BLOCK_L": block,
        "BLOCK_K": min(key, _power(K)),
        "BLOCK_V": min(value, _power(V)),
    }


def _warps(constants: dict[str, Any]) -> int:
    return 8 if constants["BLOCK_K"] > 64 else 4


def _segment(L: int, programs: int) -> int:
    """Positions of a segment, where each of them makes so many programs."""
    segments = max(1, min(_PROGRAMS // programs, L // _SHORTEST_SEGMENT))
    return -(-L // (segments * _BLOCK)) * _BLOCK


def _first_states(sums: Tensor, state: Tensor, slopes: Tensor, L: int, segment: int, reverse: bool) -> Tensor:
    """(B, H, segments, K, V): the state that each segment begins with, from what each adds (the same shape)."""
    states, numbers = torch.empty_like(sums), range(sums.shape[2])
    for number in reversed(numbers) if reverse else numbers:
        states[:, :, number] = state
        length = min(segment, L - number * segment)
        state = torch.addcmul(sums[:, :, number], state, torch.exp(-slopes * length)[:, None, None])
    return states


def forward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """What is read, and the last state; slopes (H,) and state (B, H, K, V) are float32."""
    widest = _WIDEST[q.dtype][1]
    if q.shape[-1] <= widest:
        return _forward(q, k, v, slopes, state, reverse, q.dtype)
    # o is a sum over the keys' numbers, and each of them has its row of the state
    parts = [x.split(widest, dim) for x, dim in ((q, -1), (k, -1), (state, -2))]
    outputs = [_forward(q, k, v, slopes, state, reverse, torch.float32) for q, k, state in zip(*parts, strict=True)]
    o = torch.stack([o for o, _ in outputs]).sum(0).to(q.dtype)
    return o, torch.cat([state for _, state in outputs], dim=-2)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    (B, H, L, K), V = q.shape, v.shape[-1]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    slopes = slopes.contiguous()
    o = q.new_empty(B, L, H, V, dtype=dtype).transpose(1, 2)
    constants = _constants(q.dtype, reverse, K, V)
    across = triton.cdiv(V, constants["BLOCK_V"])
    segment = _segment(L, B * H * across)
    segments = triton.cdiv(L, segment)
    grid = (segments * across, B * H)
    how = constants | {"num_warps": _warps(constants), "num_stages": _STAGES, "enable_fp_fusion": True}
    sizes = (H, L, K, V, segment)
    final = slopes.new_empty(B, H, K, V)
    with reported("lightning_attention", q), torch.cuda.device_of(q):
        states = state[:, :, None].contiguous()
        if segments > 1:
            sums = slopes.new_empty(B, H, segments, K, V)
            _lightning_sums[grid](k, v, slopes, sums, *sizes, *k.stride()[:3], *v.stride()[:3], **how)
            states = _first_states(sums, state, slopes, L, segment, reverse)
        strides = [number for x in (q, k, v, o) for number in x.stride()[:3]]
        _lightning_blocks[grid](q, k, v, slopes, states, o, final, *sizes, *strides, **how)
    return o, final


def configurations() -> list[Configuration]:
    """Both kernels, the three dtypes and both directions, at the widest and at heads of 64; not all pairs."""
    return [
        _configuration(_lightning_blocks, "bf16", False, 64),
        _configuration(_lightning_blocks, "bf16", True, 128),
        _configuration(_lightning_blocks, "fp16", False, 64),
        _configuration(_lightning_blocks, "fp32", True, 32),
        _configuration(_lightning_sums, "bf16", False, 128),
        _configuration(_lightning_sums, "fp32", True, 32),
    ]


def _configuration(kernel: Any, name: str, reverse: bool, width: int) -> Configuration:
    arguments = kernel.arg_names
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    constants = _constants(dtype, reverse, width, width)
    # triton compiles numbers that 16 divides as such, without which no load is wide; here they are whole constants
    strides = {"batch": 1 << 20, "head": width, "position": 4 * width}
    constants |= {x: strides[x.split("_")[1]] for x in arguments if x.endswith(tuple(strides))}
    constants |= {"K": width, "V": width}
    numbers = arguments[arguments.index("H") :]
    signature = {argument: "i32" if argument in numbers else f"*{name}" for argument in arguments}
    signature |= {argument: "*fp32" for argument in ("slopes", "states", "final", "sums") if argument in arguments}
    signature |= dict.fromkeys(constants, "constexpr")
    title = f"{kernel.__name__.lstrip('_')}, {name}, {width}{', in reverse' if reverse else ''}"
    return Configuration(title, kernel, signature, constants, _warps(constants), _STAGES, True, spill_budget=0)
