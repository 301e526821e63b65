"""Triton kernels of the gated causal long convolution."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.kernels.backend import Precision, reported
from hyenadna.kernels.configuration import Configuration
from hyenadna.kernels.right_angle_triton import (
    Plan,
    block_scale,
    dot,
    inverse,
    inverse_real,
    load_complex,
    load_inner_tables,
    outer_padding,
    product,
    tables,
    transform,
    transform_real,
)


@triton.jit
def _load_product(x, gate, x_offset, gate_offset, inside):
    """x gate in float32, zero outside; gate may be None."""
    tile = tl.load(x + x_offset, mask=inside, other=0).to(tl.float32)
    if gate is not None:
        tile *= tl.load(gate + gate_offset, mask=inside, other=0).to(tl.float32)
    return tile


@triton.jit
def _store_product(tile, gate, gate_offset, out, out_offset, inside):
    """Stores tile gate in the dtype of out; gate and out may be None."""
    if out is not None:
        if gate is not None:
            tile *= tl.load(gate + gate_offset, mask=inside, other=0).to(tl.float32)
        tl.store(out + out_offset, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _row(
    v, pre_gate, post_gate, out, spectrum, skip,
    rows_table, twiddle, columns_table, row_shift, column_shift,
    B, L, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The convolution on chip: one channel, every num_programs(1)-th of the batch."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, 0, ROWS, COLUMNS
    )
    hr, hi = load_complex(spectrum + d * (2 * SIZE) + n, SIZE)
    hr += tl.load(skip + d)  # the transform of an impulse is 1
    for b in range(tl.program_id(1).to(tl.int64), B, tl.num_programs(1)):
        u = _load_product(v, pre_gate, b * v_b + d * v_d + n, b * pre_b + d * pre_d + n, inside)
        ur, ui = transform_real(u, fr, fi, tr, ti, gr, gi, EXACT)
        yr, yi = product(ur, ui, hr, hi)
        y = inverse_real(yr, yi, fr, fi, tr, ti, gr, gi, EXACT) / SIZE
        _store_product(y, post_gate, b * post_b + d * post_d + n, out, b * out_b + d * out_d + n, inside)


@triton.jit
def _row_backward(
    grad, v, pre_gate, post_gate, grad_v, grad_pre, grad_post, grad_spectrum, spectrum, skip,
    rows_table, twiddle, columns_table, row_shift, column_shift,
    B, L, grad_b, grad_d, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """All gradients on chip, that of the filter as its spectrum, summed over the program's part of the batch."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, 0, ROWS, COLUMNS
    )
    sum_r = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_i = tl.zeros((ROWS, COLUMNS), tl.float32)
    for b in range(tl.program_id(1).to(tl.int64), B, tl.num_programs(1)):
        at_v = b * v_b + d * v_d + n
        at_pre = b * pre_b + d * pre_d + n
        at_post = b * post_b + d * post_d + n
        at_grad = b * grad_b + d * grad_d + n
        at_out = b * out_b + d * out_d + n
        hr, hi = load_complex(spectrum + d * (2 * SIZE) + n, SIZE)
        hr += tl.load(skip + d)
        u = _load_product(v, pre_gate, at_v, at_pre, inside)
        ur, ui = transform_real(u, fr, fi, tr, ti, gr, gi, EXACT)
        if grad_post is not None:
            yr, yi = product(ur, ui, hr, hi)
            y = inverse_real(yr, yi, fr, fi, tr, ti, gr, gi, EXACT) / SIZE
            _store_product(y, grad, at_grad, grad_post, at_out, inside)
        g = _load_product(grad, post_gate, at_grad, at_post, inside)
        dr, di = transform_real(g, fr, fi, tr, ti, gr, gi, EXACT)
        pr, pi = product(dr, di, ur, -ui)
        sum_r += pr
        sum_i += pi
        dr, di = product(dr, di, hr, -hi)
        du = inverse_real(dr, di, fr, fi, tr, ti, gr, gi, EXACT) / SIZE
        _store_product(du, pre_gate, at_pre, grad_v, at_out, inside)
        _store_product(du, v, at_v, grad_pre, at_out, inside)
    if grad_spectrum is not None:
        at = (tl.program_id(1) * tl.num_programs(0) + d) * (2 * SIZE) + n
        tl.store(grad_spectrum + at, sum_r)
        tl.store(grad_spectrum + at + SIZE, sum_i)


@triton.jit
def _row_spectrum(
    h, spectrum, rows_table, twiddle, columns_table, row_shift, column_shift, L, h_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The spectrum of one channel's filter."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, 0, ROWS, COLUMNS
    )
    taps = tl.load(h + d * h_d + n, mask=n < L, other=0)
    hr, hi = transform_real(taps, fr, fi, tr, ti, gr, gi, EXACT)
    tl.store(spectrum + d * (2 * SIZE) + n, hr)
    tl.store(spectrum + d * (2 * SIZE) + SIZE + n, hi)


@triton.jit
def _row_taps(
    spectra, h, rows_table, twiddle, columns_table, row_shift, column_shift, parts, L,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The first L taps of which the sum of the `parts` spectra of one channel is the spectrum."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, 0, ROWS, COLUMNS
    )
    hr = tl.zeros((ROWS, COLUMNS), tl.float32)
    hi = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(parts):
        pr, pi = load_complex(spectra + (part * tl.num_programs(0) + d) * (2 * SIZE) + n, SIZE)
        hr += pr
        hi += pi
    taps = inverse_real(hr, hi, fr, fi, tr, ti, gr, gi, EXACT) / SIZE
    tl.store(h + d * L + n, taps, mask=n < L)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def _outer_forward(
    x, gate, scratch, units, outer_table, first_b, first_d, batches, L, x_b, x_d, gate_b, gate_d,
    OUTER: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr, DAMPING: tl.constexpr,
    BLOCK: tl.constexpr, SUM: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The outer stage of x gate: BLOCK of the k1 for WIDTH neighbouring points of the inner transforms.

    The scratch holds (rows, 2, OUTER, INNER) numbers; times the unit of their row and column block they are A[k1, n2].
    """
    row = tl.program_id(1).to(tl.int64)
    d = first_d + row // batches
    b = first_b + row % batches
    k1 = tl.program_id(0) % (PADDED // BLOCK) * BLOCK + tl.arange(0, BLOCK)
    column_block = tl.program_id(0) // (PADDED // BLOCK)
    n2 = column_block * WIDTH + tl.arange(0, WIDTH)
    re = tl.zeros((BLOCK, WIDTH), tl.float32)
    im = tl.zeros((BLOCK, WIDTH), tl.float32)
    scale = tl.full((), 2.0**124, tl.float32)  # that of zeros
    for first in range(0, tl.cdiv(L, INNER), SUM):
        n1 = first + tl.arange(0, SUM)
        n = n1[:, None] * INNER + n2[None, :]
        tile = _load_product(x, gate, b * x_b + d * x_d + n, b * gate_b + d * gate_d + n, n < L)
        er, ei = load_complex(outer_table + k1[:, None] * PADDED + n1[None, :], PADDED * PADDED)
        # one scale for all: it falls when a larger block comes, and what was summed falls with it
        lower = tl.minimum(scale, block_scale(tl.max(tl.abs(tile))))
        tile *= lower
        re = dot(er, tile, re * (lower / scale), EXACT)
        im = dot(ei, tile, im * (lower / scale), EXACT)
        scale = lower
    at = scratch + (row * (2 * OUTER) + k1)[:, None] * INNER + n2[None, :]
    tl.store(at, (re * DAMPING).to(scratch.dtype.element_ty), mask=(k1 < OUTER)[:, None])
    tl.store(at + OUTER * INNER, (im * DAMPING).to(scratch.dtype.element_ty), mask=(k1 < OUTER)[:, None])
    # every block of k1 finds the same scale
    tl.store(units + row * (INNER // WIDTH) + column_block, 1 / (scale * DAMPING))


@triton.jit
def _load_scratch(scratch, units, row, k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip # noqa: E501
    """The inner transform's input [a, c] of one k1."""
    a = tl.arange(0, ROWS)[:, None]
    at = scratch + (row * (2 * OUTER) + k1) * (ROWS * COLUMNS) + a * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    re, im = load_complex(at, OUTER * ROWS * COLUMNS)
    unit = tl.load(units + row * (ROWS * COLUMNS // WIDTH) + a * COLUMNS // WIDTH)
    return re.to(tl.float32) * unit, im.to(tl.float32) * unit


@triton.jit
def _store_scratch(re, im, unit, scratch, units, row, k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DAMPING: tl.constexpr):  # fmt: skip # noqa: E501
    """The inverse inner transform's output [a, c] of one k1, with one unit."""
    n2 = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = scratch + (row * (2 * OUTER) + k1) * (ROWS * COLUMNS) + n2
    tl.store(at, (re * DAMPING).to(scratch.dtype.element_ty))
    tl.store(at + OUTER * ROWS * COLUMNS, (im * DAMPING).to(scratch.dtype.element_ty))
    tl.store(units + row * OUTER + k1, unit / DAMPING)


@triton.jit
def _spectrum_offset(d, k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    p = k1 + OUTER * tl.arange(0, ROWS)
    return d * (2 * OUTER * ROWS * COLUMNS) + p[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit(do_not_specialize=["first_d", "batches"])
def _inner(
    scratch, units, back_units, spectrum, skip, rows_table, twiddle, columns_table, row_shift, column_shift,
    first_d, batches,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DAMPING: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one k1 and channel, times the filter's spectrum, and back, in the scratch."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, k1, ROWS, COLUMNS
    )
    at_h = spectrum + _spectrum_offset(first_d + channel, k1, OUTER, ROWS, COLUMNS)
    direct = tl.load(skip + first_d + channel)
    for row in range(channel * batches, (channel + 1) * batches):
        ur, ui = _load_scratch(scratch, units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, fr, fi, tr, ti, gr, gi, EXACT)
        hr, hi = load_complex(at_h, OUTER * ROWS * COLUMNS)
        yr, yi = product(ur, ui, hr + direct, hi)
        zr, zi, unit = inverse(yr, yi, fr, fi, tr, ti, gr, gi, EXACT)
        _store_scratch(zr, zi, unit, scratch, back_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING)


@triton.jit(do_not_specialize=["first_d", "batches", "adds"])
def _inner_backward(
    u_scratch, g_scratch, u_units, g_units, u_back_units, g_back_units, grad_spectrum, spectrum, skip,
    rows_table, twiddle, columns_table, row_shift, column_shift, first_d, batches, adds,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DAMPING: tl.constexpr,
    WITH_Y: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The same of u and of the gradient g, and the spectrum of the filter's gradient; `adds` to what is there."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, k1, ROWS, COLUMNS
    )
    SIZE: tl.constexpr = OUTER * ROWS * COLUMNS
    at_h = spectrum + _spectrum_offset(first_d + channel, k1, OUTER, ROWS, COLUMNS)
    direct = tl.load(skip + first_d + channel)
    sum_r = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_i = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row in range(channel * batches, (channel + 1) * batches):
        ur, ui = _load_scratch(u_scratch, u_units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, fr, fi, tr, ti, gr, gi, EXACT)
        hr, hi = load_complex(at_h, SIZE)
        hr += direct
        if WITH_Y:
            yr, yi = product(ur, ui, hr, hi)
            zr, zi, unit = inverse(yr, yi, fr, fi, tr, ti, gr, gi, EXACT)
            _store_scratch(zr, zi, unit, u_scratch, u_back_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING)
        dr, di = _load_scratch(g_scratch, g_units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        dr, di = transform(dr, di, fr, fi, tr, ti, gr, gi, EXACT)
        pr, pi = product(dr, di, ur, -ui)
        sum_r += pr
        sum_i += pi
        dr, di = product(dr, di, hr, -hi)
        zr, zi, unit = inverse(dr, di, fr, fi, tr, ti, gr, gi, EXACT)
        _store_scratch(zr, zi, unit, g_scratch, g_back_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING)
    if grad_spectrum is not None:
        at = grad_spectrum + _spectrum_offset(channel, k1, OUTER, ROWS, COLUMNS)
        if adds > 0:
            sum_r += tl.load(at)
            sum_i += tl.load(at + SIZE)
        tl.store(at, sum_r)
        tl.store(at + SIZE, sum_i)


@triton.jit(do_not_specialize=["first_d"])
def _inner_spectrum(
    scratch, units, spectrum, rows_table, twiddle, columns_table, row_shift, column_shift, first_d,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one k1 and channel into the spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, k1, ROWS, COLUMNS
    )
    hr, hi = _load_scratch(scratch, units, channel, k1, OUTER, ROWS, COLUMNS, WIDTH)
    hr, hi = transform(hr, hi, fr, fi, tr, ti, gr, gi, EXACT)
    at = spectrum + _spectrum_offset(first_d + channel, k1, OUTER, ROWS, COLUMNS)
    tl.store(at, hr)
    tl.store(at + OUTER * ROWS * COLUMNS, hi)


@triton.jit
def _inner_taps(
    spectrum, scratch, back_units, rows_table, twiddle, columns_table, row_shift, column_shift,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DAMPING: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inverse inner transforms of one k1 and channel of a spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    fr, fi, tr, ti, gr, gi = load_inner_tables(
        rows_table, twiddle, columns_table, row_shift, column_shift, k1, ROWS, COLUMNS
    )
    hr, hi = load_complex(spectrum + _spectrum_offset(channel, k1, OUTER, ROWS, COLUMNS), OUTER * ROWS * COLUMNS)
    zr, zi, unit = inverse(hr, hi, fr, fi, tr, ti, gr, gi, EXACT)
    _store_scratch(zr, zi, unit, scratch, back_units, channel, k1, OUTER, ROWS, COLUMNS, DAMPING)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def _outer_inverse(
    scratch, back_units, outer_table, gate, out, second_gate, second_out, first_b, first_d, batches, L,
    gate_b, gate_d, second_gate_b, second_gate_d, out_b, out_d,
    OUTER: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr, UNITS: tl.constexpr,
    BLOCK: tl.constexpr, SUM: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The outer stage back: y gate and, if there is a second result, y second_gate."""
    row = tl.program_id(1).to(tl.int64)
    d = first_d + row // batches
    b = first_b + row % batches
    blocks = tl.cdiv(tl.cdiv(L, INNER), BLOCK)
    n1 = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n2 = tl.program_id(0) // blocks * WIDTH + tl.arange(0, WIDTH)
    every = tl.arange(0, UNITS)
    unit = tl.max(tl.load(back_units + row * OUTER + every, mask=every < OUTER, other=0))
    y = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, OUTER, SUM):
        k1 = first + tl.arange(0, SUM)
        inside = (k1 < OUTER)[:, None]
        at = scratch + (row * (2 * OUTER) + k1)[:, None] * INNER + n2[None, :]
        # in the largest unit, nothing grows
        ratio = tl.load(back_units + row * OUTER + k1, mask=k1 < OUTER, other=0)[:, None] / unit
        zr = tl.load(at, mask=inside, other=0).to(tl.float32) * ratio
        zi = tl.load(at + OUTER * INNER, mask=inside, other=0).to(tl.float32) * ratio
        er, ei = load_complex(outer_table + k1[:, None] * PADDED + n1[None, :], PADDED * PADDED)
        y = dot(tl.trans(er), zr, y, EXACT)
        y = dot(tl.trans(ei), -zi, y, EXACT)
    y *= unit / (OUTER * INNER)
    n = n1[:, None] * INNER + n2[None, :]
    at_out = b * out_b + d * out_d + n
    _store_product(y, gate, b * gate_b + d * gate_d + n, out, at_out, n < L)
    _store_product(y, second_gate, b * second_gate_b + d * second_gate_d + n, second_out, at_out, n < L)


_ROW_WARPS: dict[tuple[Precision, int], tuple[int, int]] = {
    ("fast", 256): (1, 1),
    ("fast", 512): (1, 2),
    ("fast", 1024): (4, 4),
    ("fast", 2048): (4, 4),
    ("fast", 4096): (4, 8),
    ("fast", 8192): (8, 8),
    ("exact", 256): (1, 1),
    ("exact", 512): (2, 2),
    ("exact", 1024): (4, 4),
    ("exact", 2048): (4, 8),
    ("exact", 4096): (4, 8),
}
"""Warps of the forward and of the backward kernel on chip; sizes that are not here go through the outer stage."""

_INNER = 4096
"""Points of the inner transform below an outer stage."""
_INNER_WARPS = 8
_WIDTH = 128
_OUTER_WARPS = 8

_SCRATCH_BYTES = 24 << 20
"""Of the intermediate results between the launches, so that they stay in the L2 cache (50 MB on an H200)."""
_PROGRAMS = 1024
"""So many programs on chip keep a GPU busy; what is left of the batch is a loop within them."""
_PER_LAUNCH = {"enable_fp_fusion": True}


def good_size(L: int) -> int:
    """The points of the transform for L tokens: m 2^a >= L with m of 1, 3, 5, 7; powers of two from 256 to 16384.

    Examples
    --------
    >>> good_size(160_002), good_size(450_002), good_size(1_000_002)
    (163840, 458752, 1048576)
    """
    power = max(256, triton.next_power_of_2(L))
    return power if power <= 1 << 14 else min(m * power // 8 for m in (5, 6, 7, 8) if m * power // 8 >= L)


def _columns(size: int) -> int:
    """The same for every plan of a size: it gives the spectrum its layout."""
    return 16 if size <= 512 else 32 if size <= 2048 else 64


def _plan(size: int, precision: Precision) -> Plan:
    inner = size if (precision, size) in _ROW_WARPS else _INNER
    return Plan(size // inner, inner // _columns(size), _columns(size))


class _Group(NamedTuple):
    """Rows that go through the three launches together."""

    first_d: int
    channels: int
    first_b: int
    batches: int

    @property
    def rows(self) -> int:
        return self.channels * self.batches


def _groups(B: int, D: int, row_bytes: int) -> list[_Group]:
    """All rows, as many at once as leave the scratch in the L2 cache."""
    rows = max(1, _SCRATCH_BYTES // row_bytes)
    channels, batches = max(1, min(D, rows // B)), min(B, rows)
    return [
        _Group(d, min(channels, D - d), b, min(batches, B - b))
        for d in range(0, D, channels)
        for b in range(0, B, batches)
    ]


class _Scratch:
    """What the launches of one group hand on: numbers, and the units by which they are to be multiplied."""

    def __init__(self, plan: Plan, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.numbers = torch.empty(rows, 2, plan.outer, plan.inner, dtype=dtype, device=device)
        self.units = torch.empty(rows, plan.inner // _WIDTH, device=device)
        self.back_units = torch.empty(rows, plan.outer, device=device)


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def _with_rows(x: Tensor | None) -> Tensor | None:
    """x with neighbouring tokens neighbours in memory."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


class _OuterStage:
    """The launches of one transform that has an outer stage."""

    def __init__(self, plan: Plan, precision: Precision, device: torch.device) -> None:
        self.plan, self.exact, self.device = plan, precision == "exact", device
        self.dtype = torch.float32 if self.exact else torch.float16
        self.padded = outer_padding(plan.outer)
        table = tables(plan, device)
        self.outer_table, self.inner_tables = table.outer, (table.rows, table.twiddle, table.columns, table.row_shift, table.column_shift)
        block = min(self.padded, 64)
        self.outer_tile = {"BLOCK": block, "SUM": block, "WIDTH": _WIDTH, "EXACT": self.exact, "num_warps": _OUTER_WARPS, "num_stages": 2}
        self.inner_tile = {"OUTER": plan.outer, "ROWS": plan.rows, "COLUMNS": plan.columns, "EXACT": self.exact, "num_warps": _INNER_WARPS, "num_stages": 1}

    def row_bytes(self) -> int:
        return 2 * self.plan.size * self.dtype.itemsize

    def scratch(self, rows: int) -> _Scratch:
        return _Scratch(self.plan, rows, self.dtype, self.device)

    def damping(self, points: int) -> float:
        """Sums of so many numbers, as they are kept in float16."""
        return 2.0 ** -(points.bit_length() // 2)

    def forward(self, x: Tensor, gate: Tensor | None, scratch: _Scratch, group: _Group) -> None:
        plan, L = self.plan, x.shape[-1]
        grid = (self.padded // self.outer_tile["BLOCK"] * (plan.inner // _WIDTH), group.rows)
        _outer_forward[grid](
            x, gate, scratch.numbers, scratch.units, self.outer_table, group.first_b, group.first_d, group.batches, L,
            *_strides(x), *_strides(gate), OUTER=plan.outer, PADDED=self.padded, INNER=plan.inner,
            DAMPING=self.damping(plan.outer), **self.outer_tile, **_PER_LAUNCH
        )  # fmt: skip

    def convolve(self, scratch: _Scratch, spectrum: Tensor, skip: Tensor, group: _Group) -> None:
        _inner[(self.plan.outer, group.channels)](
            scratch.numbers, scratch.units, scratch.back_units, spectrum, skip, *self.inner_tables, group.first_d,
            group.batches, WIDTH=_WIDTH, DAMPING=self.damping(self.plan.inner), **self.inner_tile, **_PER_LAUNCH
        )  # fmt: skip

    def backward(self, u: _Scratch, g: _Scratch, spectrum: Tensor, skip: Tensor, grad_spectrum: Tensor | None, with_y: bool, group: _Group) -> None:
        _inner_backward[(self.plan.outer, group.channels)](
            u.numbers, g.numbers, u.units, g.units, u.back_units, g.back_units, grad_spectrum, spectrum, skip,
            *self.inner_tables, group.first_d, group.batches, group.first_b, WIDTH=_WIDTH,
            DAMPING=self.damping(self.plan.inner), WITH_Y=with_y, **self.inner_tile, **_PER_LAUNCH
        )  # fmt: skip

    def spectrum(self, scratch: _Scratch, spectrum: Tensor, group: _Group) -> None:
        _inner_spectrum[(self.plan.outer, group.channels)](
            scratch.numbers, scratch.units, spectrum, *self.inner_tables, group.first_d, WIDTH=_WIDTH, **self.inner_tile, **_PER_LAUNCH
        )

    def taps(self, spectrum: Tensor, scratch: _Scratch, group: _Group) -> None:
        _inner_taps[(self.plan.outer, group.channels)](
            spectrum, scratch.numbers, scratch.back_units, *self.inner_tables,
            DAMPING=self.damping(self.plan.inner), **self.inner_tile, **_PER_LAUNCH
        )  # fmt: skip

    def inverse(self, scratch: _Scratch, gate: Tensor | None, out: Tensor | None, group: _Group, second_gate: Tensor | None = None, second_out: Tensor | None = None) -> None:
        plan = self.plan
        like = out if out is not None else second_out
        assert like is not None
        L = like.shape[-1]
        blocks = triton.cdiv(triton.cdiv(L, plan.inner), self.outer_tile["BLOCK"])
        _outer_inverse[(blocks * (plan.inner // _WIDTH), group.rows)](
            scratch.numbers, scratch.back_units, self.outer_table, gate, out, second_gate, second_out,
            group.first_b, group.first_d, group.batches, L, *_strides(gate), *_strides(second_gate), *_strides(like),
            OUTER=plan.outer, PADDED=self.padded, INNER=plan.inner, UNITS=triton.next_power_of_2(plan.outer),
            **self.outer_tile, **_PER_LAUNCH
        )  # fmt: skip


def _convolve(v: Tensor, spectrum: Tensor, skip: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None, precision: Precision, out: Tensor) -> Tensor:
    B, D, L = v.shape
    v, pre_gate, post_gate = _with_rows(v), _with_rows(pre_gate), _with_rows(post_gate)
    plan = _plan(good_size(L), precision)
    if plan.outer == 1:
        table = tables(plan, v.device)
        _row[(D, min(B, triton.cdiv(_PROGRAMS, D)))](
            v, pre_gate, post_gate, out, spectrum, skip, table.rows, table.twiddle, table.columns, table.row_shift, table.column_shift,
            B, L, *_strides(v), *_strides(pre_gate), *_strides(post_gate), *_strides(out),
            ROWS=plan.rows, COLUMNS=plan.columns, EXACT=precision == "exact", num_warps=_ROW_WARPS[precision, plan.size][0], num_stages=1, **_PER_LAUNCH
        )
        return out
    stage = _OuterStage(plan, precision, v.device)
    groups = _groups(B, D, stage.row_bytes())
    scratch = stage.scratch(groups[0].rows)
    for group in groups:
        stage.forward(v, pre_gate, scratch, group)
        stage.convolve(scratch, spectrum, skip, group)
        stage.inverse(scratch, post_gate, out, group)
    return out


def filter_spectrum(h: Tensor, size: int) -> Tensor:
    D, L = h.shape
    h = _with_rows(h)
    spectrum = torch.empty(D, 2, size, device=h.device)
    plan = _plan(size, "exact")
    if plan.outer == 1:
        table = tables(plan, h.device)
        _row_spectrum[(D,)](h, spectrum, table.rows, table.twiddle, table.columns, table.row_shift, table.column_shift, L, h.stride(0),
            ROWS=plan.rows, COLUMNS=plan.columns, EXACT=True, num_warps=_ROW_WARPS["exact", size][0], num_stages=1, **_PER_LAUNCH)
        return spectrum
    stage = _OuterStage(plan, "exact", h.device)
    groups = _groups(1, D, stage.row_bytes())
    scratch = stage.scratch(groups[0].rows)
    for group in groups:
        stage.forward(h[None], None, scratch, group)
        stage.spectrum(scratch, spectrum, group)
    return spectrum


def fft_conv_spectrum(v, spectrum, skip, pre_gate, post_gate, precision, out):
    return _convolve(v, spectrum, skip, pre_gate, post_gate, precision, torch.empty_like(v) if out is None else out)


def _backward(
    grad: Tensor, v: Tensor, spectrum: Tensor, skip: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None,
    precision: Precision, grad_v: Tensor, grad_pre: Tensor | None, grad_post: Tensor | None, grad_h: Tensor | None,
) -> None:  # fmt: skip
    """Fills the gradients that are given."""
    B, D, L = v.shape
    grad, v, pre_gate, post_gate = (_with_rows(x) for x in (grad, v, pre_gate, post_gate))
    plan = _plan(good_size(L), precision)
    if plan.outer == 1:
        table = tables(plan, v.device)
        parts = min(B, triton.cdiv(_PROGRAMS, D))
        grad_spectrum = None if grad_h is None else torch.empty(parts, D, 2, plan.size, device=v.device)
        _row_backward[(D, parts)](
            grad, v, pre_gate, post_gate, grad_v, grad_pre, grad_post, grad_spectrum, spectrum, skip,
            table.rows, table.twiddle, table.columns, table.row_shift, table.column_shift,
            B, L, *_strides(grad), *_strides(v), *_strides(pre_gate), *_strides(post_gate), *_strides(grad_v),
            ROWS=plan.rows, COLUMNS=plan.columns, EXACT=precision == "exact", num_warps=_ROW_WARPS[precision, plan.size][1], num_stages=1, **_PER_LAUNCH
        )
        if grad_h is not None:
            _taps(grad_spectrum, grad_h)
        return
    stage = _OuterStage(plan, precision, v.device)
    groups = _groups(B, D, 2 * stage.row_bytes())
    u_scratch, g_scratch = stage.scratch(groups[0].rows), stage.scratch(groups[0].rows)
    grad_spectrum = None if grad_h is None else torch.empty(groups[0].channels, 2, plan.size, device=v.device)
    for group in groups:
        stage.forward(v, pre_gate, u_scratch, group)
        stage.forward(grad, post_gate, g_scratch, group)
        stage.backward(u_scratch, g_scratch, spectrum, skip, grad_spectrum, grad_post is not None, group)
        if grad_post is not None:
            stage.inverse(u_scratch, grad, grad_post, group)
        stage.inverse(g_scratch, pre_gate, grad_v, group, v, grad_pre)
        if grad_h is not None and group.first_b + group.batches == B:
            channels = slice(group.first_d, group.first_d + group.channels)
            _taps(grad_spectrum[None, : group.channels], grad_h[channels])


def _taps(spectra: Tensor, h: Tensor) -> None:
    """Fill h (D, L) with the taps of which the sum of (parts, D, ...) is the spectrum."""
    D, L = h.shape
    plan = _plan(spectra.shape[-1], "exact")
    if plan.outer == 1:
        table = tables(plan, h.device)
        _row_taps[(D,)](spectra, h, table.rows, table.twiddle, table.columns, table.row_shift, table.column_shift, len(spectra), L,
            ROWS=plan.rows, COLUMNS=plan.columns, EXACT=True, num_warps=_ROW_WARPS["exact", plan.size][0], num_stages=1, **_PER_LAUNCH)
        return
    spectra = spectra.sum(0) if len(spectra) > 1 else spectra[0]
    stage = _OuterStage(plan, "exact", h.device)
    groups = _groups(1, D, stage.row_bytes())
    scratch = stage.scratch(groups[0].rows)
    for group in groups:
        stage.taps(spectra[group.first_d :], scratch, group)
        stage.inverse(scratch, None, h[None], group)


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, h, skip, pre_gate, post_gate, precision):
        spectrum = filter_spectrum(h, good_size(v.shape[-1]))
        ctx.save_for_backward(v, spectrum, skip, pre_gate, post_gate)
        ctx.precision = precision
        return _convolve(v, spectrum, skip, pre_gate, post_gate, precision, torch.empty_like(v))

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise UsageError("fft_conv has no second derivative (create_graph=True); fft_conv_reference has")
        v, spectrum, skip, pre_gate, post_gate = ctx.saved_tensors
        _, D, L = v.shape
        needs = ctx.needs_input_grad
        grad_v = torch.empty_like(v)
        grad_pre = torch.empty_like(grad_v) if needs[3] else None
        grad_post = torch.empty_like(grad_v) if needs[4] else None
        grad_h = torch.empty(D, L, device=v.device) if needs[1] or needs[2] else None
        _backward(grad, v, spectrum, skip, pre_gate, post_gate, ctx.precision, grad_v, grad_pre, grad_post, grad_h)
        return grad_v, grad_h, None if grad_h is None else grad_h[:, 0].clone(), grad_pre, grad_post, None


def fft_conv(v, h, skip, pre_gate, post_gate, precision):
    return _FFTConv.apply(v, h, skip, pre_gate, post_gate, precision)
