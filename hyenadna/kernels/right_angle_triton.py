"""The right-angle transform: a causal convolution of N points by one complex transform of N points, without padding.

    X[k] = sum over n < N of x[n] e(n (k + 1/4) / N),     e(t) = exp(-2 pi i t),     k = 0 ... N - 1

This is arithmetic modulo t^N + i: what a product wraps around comes back multiplied by -i. So for real x and h the
inverse of X H has the causal convolution of x and h as its real part (and what runs past the end in its imaginary
part), and the inverse of G conj(U) has the correlation sum over t of g[t] u[t - n] as its real part.

Stages. With N = outer rows columns, n = (n1 rows + a) columns + c, k = k1 + outer (p + rows q) and the shift
s = (k1 + 1/4) / outer, the transform is three products with small matrices:

    A[k1, a, c] = sum over n1 of e(n1 s) x[n1, a, c]                                            the outer stage
    B[k1, p, c] = e(c (p + s) / (rows columns)) sum over a of e(a (p + s) / rows) A[k1, a, c]
    X[k1, p, q] = sum over c of e(c q / columns) B[k1, p, c]

The last two lines are the inner transform of one k1, done on chip. It differs from an ordinary transform by the factors
e(a s / rows) and e(c s / (rows columns)), which are applied to its tables. With outer = 1 it is all there is.
The inverse goes the other way with conjugates: conj(Y) through the transposed tables gives N times the conjugate of the
inverse of Y.

Layout. A spectrum is stored as X[p'][q] with p' = k1 + outer p, which is k mod (N / columns), and q = k div
(N / columns), real parts before imaginary ones. So every plan with the same columns has the same layout.

Precision. The products run on the tensor cores with float16 operands and float32 sums. A tile is first divided by the
power of two that brings its largest magnitude into [32, 64), so that the range of float16 does not matter (block
floating point). `fast` rounds the operands to the 11 bits of float16. `exact` splits each into a float16 and another
for what that leaves, 22 bits together, and adds three products: as exact as three products in TF32, which has the
same 11 bits, at twice the rate, and computed by Triton's interpreter as by a GPU.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Plan(NamedTuple):
    """How a transform of outer * rows * columns points is computed."""

    outer: int
    rows: int
    columns: int

    @property
    def inner(self) -> int:
        """Points of the transform on chip."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Points in all."""
        return self.outer * self.inner

    @property
    def padded_outer(self) -> int:
        """Side of the outer table: a power of two up to 128, then whole blocks of 128."""
        return max(16, 1 << (self.outer - 1).bit_length()) if self.outer <= 128 else -(-self.outer // 128) * 128


@lru_cache(maxsize=32)
def inner_tables(plan: Plan, device: torch.device) -> Tensor:
    """Float32, one after the other, the real parts of each before the imaginary ones.

    e(a p / rows) at [p, a]; e(c p / (rows columns)) at [p, c]; e(c q / columns) at [c, q]; and for every k1
    e(a s / rows) and e(c s / (rows columns)).
    """
    quarters = 4 * torch.arange(plan.outer)[:, None] + 1  # 4 (k1 + 1/4)
    a, c = torch.arange(plan.rows), torch.arange(plan.columns)
    matrices = (
        _turns(a[:, None] * a, plan.rows),
        _turns(a[:, None] * c, plan.inner),
        _turns(c[:, None] * c, plan.columns),
    )
    shifts = torch.cat(
        [_turns(quarters * a, 4 * plan.outer * plan.rows), _turns(quarters * c, 4 * plan.size)], dim=-1
    )  # (2, outer, rows + columns)
    rows_then_columns = [part.transpose(0, 1).flatten(1) for part in shifts.split([plan.rows, plan.columns], dim=-1)]
    parts = [*(matrix.flatten() for matrix in matrices), torch.cat(rows_then_columns, dim=1).flatten()]
    return torch.cat(parts).to(device)


@lru_cache(maxsize=32)
def outer_table(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """e(n1 s) at [k1, n1], with zeros beyond: (2, padded, padded)."""
    quarters = 4 * torch.arange(plan.outer)[:, None] + 1  # 4 (k1 + 1/4)
    table = torch.zeros(2, plan.padded_outer, plan.padded_outer)
    table[:, : plan.outer, : plan.outer] = _turns(quarters * torch.arange(plan.outer), 4 * plan.outer)
    return table.to(device, dtype)


def _turns(numerator: Tensor, denominator: int) -> Tensor:
    """e(numerator / denominator) as (2, ...): real and imaginary parts, from phases reduced to one turn in integers."""
    angle = (numerator % denominator).double() * (-2 * math.pi / denominator)
    return torch.stack([angle.cos(), angle.sin()]).float()


@triton.jit
def _power_of_two(exponent):
    """2^exponent, exactly; 2^-126 for anything less."""
    return ((tl.maximum(exponent, -126) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _block_exponent(magnitudes):
    """The exponent of the power of two whose inverse brings the largest magnitude into [32, 64); -124 for zeros."""
    largest = tl.max(magnitudes).to(tl.int32, bitcast=True) >> 23
    return tl.minimum(tl.maximum(largest, 8), 254) - 132


@triton.jit
def _normalised(re, im):
    """A complex tile divided by a power of two, and that power's exponent."""
    exponent = _block_exponent(tl.maximum(tl.abs(re), tl.abs(im)))
    scale = _power_of_two(-exponent)
    return re * scale, im * scale, exponent


@triton.jit
def product(ar, ai, br, bi):
    """The complex product a b, element by element."""
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _dot(a, b, acc, EXACT: tl.constexpr):
    """The matrix product a b, added to acc unless that is None."""
    a_high = a.to(tl.float16)
    b_high = b.to(tl.float16)
    if EXACT:
        a_low = (a - a_high.to(tl.float32)).to(tl.float16)
        b_low = (b - b_high.to(tl.float32)).to(tl.float16)
        acc = tl.dot(a_high, b_low, acc)
        acc = tl.dot(a_low, b_high, acc)
    return tl.dot(a_high, b_high, acc)


@triton.jit
def _complex_dot(ar, ai, br, bi, EXACT: tl.constexpr):
    """The complex matrix product a b."""
    re = _dot(-ai, bi, _dot(ar, br, None, EXACT), EXACT)
    im = _dot(ai, br, _dot(ar, bi, None, EXACT), EXACT)
    return re, im


@triton.jit
def load_complex(pointers, distance):
    """Real and imaginary parts that lie `distance` apart."""
    return tl.load(pointers), tl.load(pointers + distance)


@triton.jit
def load_tables(tables, k1, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The factors of the inner transform of k1: e(a (p+s) / rows), e(c (p+s) / (rows columns)), e(c q / columns)."""
    a = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    fr, fi = load_complex(tables + a[:, None] * ROWS + a[None, :], ROWS * ROWS)
    tables += 2 * ROWS * ROWS
    tr, ti = load_complex(tables + a[:, None] * COLUMNS + c[None, :], ROWS * COLUMNS)
    tables += 2 * ROWS * COLUMNS
    gr, gi = load_complex(tables + c[:, None] * COLUMNS + c[None, :], COLUMNS * COLUMNS)
    tables += 2 * COLUMNS * COLUMNS + k1 * (2 * ROWS + 2 * COLUMNS)
    sr, si = load_complex(tables + a, ROWS)
    fr, fi = product(fr, fi, sr[None, :], si[None, :])
    sr, si = load_complex(tables + 2 * ROWS + c, COLUMNS)
    tr, ti = product(tr, ti, sr[None, :], si[None, :])
    return fr, fi, tr, ti, gr, gi


@triton.jit
def transform_real(x, factors, EXACT: tl.constexpr):
    """The inner transform of a real tile [a, c]: a spectrum [p, q]."""
    fr, fi, tr, ti, gr, gi = factors
    exponent = _block_exponent(tl.abs(x))
    x *= _power_of_two(-exponent)
    re, im = product(_dot(fr, x, None, EXACT), _dot(fi, x, None, EXACT), tr, ti)
    re, im = _complex_dot(re, im, gr, gi, EXACT)
    return re * _power_of_two(exponent), im * _power_of_two(exponent)


@triton.jit
def transform(re, im, factors, EXACT: tl.constexpr):
    """The inner transform of a complex tile [a, c]: a spectrum [p, q]."""
    fr, fi, tr, ti, gr, gi = factors
    re, im, exponent = _normalised(re, im)
    re, im = _complex_dot(fr, fi, re, im, EXACT)
    re, im = product(re, im, tr, ti)
    re, im = _complex_dot(re, im, gr, gi, EXACT)
    return re * _power_of_two(exponent), im * _power_of_two(exponent)


@triton.jit
def _inverse_over_columns(re, im, factors, EXACT: tl.constexpr):
    """What both inverses begin with: the conjugate of [p, c], and an exponent."""
    tr, ti, gr, gi = factors[2], factors[3], factors[4], factors[5]
    re, im, exponent = _normalised(re, im)
    re, im = _complex_dot(re, -im, gr, gi, EXACT)
    re, im = product(re, im, tr, ti)
    return re, im, exponent


@triton.jit
def inverse_real(re, im, factors, EXACT: tl.constexpr):
    """The real part of the inverse inner transform: [a, c] of [p, q]."""
    re, im, exponent = _inverse_over_columns(re, im, factors, EXACT)
    fr, fi = tl.trans(factors[0]), tl.trans(factors[1])
    x = _dot(fi, -im, _dot(fr, re, None, EXACT), EXACT)
    return x * (_power_of_two(exponent) / (x.shape[0] * x.shape[1]))


@triton.jit
def _inverse(re, im, factors, EXACT: tl.constexpr):
    """The conjugate of the inverse inner transform, times its points and 2^-exponent, and the exponent."""
    re, im, exponent = _inverse_over_columns(re, im, factors, EXACT)
    re, im = _complex_dot(tl.trans(factors[0]), tl.trans(factors[1]), re, im, EXACT)
    return re, im, exponent


@triton.jit
def load_product(x, gate, x_row, gate_row, n, inside):
    """The product x gate in float32, zero outside, of rows that begin where stated; gate may be None."""
    tile = tl.load(x + x_row + n, mask=inside, other=0).to(tl.float32)
    if gate is not None:
        tile *= tl.load(gate + gate_row + n, mask=inside, other=0).to(tl.float32)
    return tile


@triton.jit
def store_product(tile, gate, gate_row, out, out_row, n, inside):
    """Store tile gate in the dtype of out; gate and out may be None."""
    if out is not None:
        if gate is not None:
            tile *= tl.load(gate + gate_row + n, mask=inside, other=0).to(tl.float32)
        tl.store(out + out_row + n, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def outer_stage(
    x, gate, scratch, exponents, table, first_b, first_d, batches, L, x_b, x_d, gate_b, gate_d,
    OUTER: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr, HEADROOM: tl.constexpr,
    BLOCK: tl.constexpr, SUM: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The outer stage of x gate, for BLOCK of the k1 and WIDTH neighbouring points of the inner transform.

    The scratch (rows, 2, OUTER, INNER) times 2^exponents (rows, INNER / WIDTH) is A.
    """
    row = tl.program_id(1).to(tl.int64)
    d = first_d + row // batches
    b = first_b + row % batches
    k1 = tl.program_id(0) % (PADDED // BLOCK) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(0) // (PADDED // BLOCK)
    n2 = column * WIDTH + tl.arange(0, WIDTH)
    re = tl.zeros((BLOCK, WIDTH), tl.float32)
    im = tl.zeros((BLOCK, WIDTH), tl.float32)
    exponent = tl.full((), -124, tl.int32)
    for first in range(0, tl.cdiv(L, INNER), SUM):
        n1 = first + tl.arange(0, SUM)
        n = n1[:, None] * INNER + n2[None, :]
        tile = load_product(x, gate, b * x_b + d * x_d, b * gate_b + d * gate_d, n, n < L)
        er, ei = load_complex(table + k1[:, None] * PADDED + n1[None, :], PADDED * PADDED)
        # one exponent for all terms: it rises when larger ones come, and the sums so far follow
        higher = tl.maximum(exponent, _block_exponent(tl.abs(tile)))
        tile *= _power_of_two(-higher)
        re = _dot(er, tile, re * _power_of_two(exponent - higher), EXACT)
        im = _dot(ei, tile, im * _power_of_two(exponent - higher), EXACT)
        exponent = higher
    at = scratch + row * (2 * OUTER * INNER) + (k1[:, None] * INNER + n2[None, :])
    inside = (k1 < OUTER)[:, None]
    headroom = 1.0 / (1 << HEADROOM)
    tl.store(at, (re * headroom).to(scratch.dtype.element_ty), mask=inside)
    tl.store(at + OUTER * INNER, (im * headroom).to(scratch.dtype.element_ty), mask=inside)
    # every block of k1 finds the same
    tl.store(exponents + row * (INNER // WIDTH) + column, exponent + HEADROOM)


@triton.jit
def load_scratch(
    scratch, exponents, row, k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """A[k1, a, c] of one k1."""
    a = tl.arange(0, ROWS)[:, None]
    n2 = a * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = scratch + (row * (2 * OUTER) + k1) * (ROWS * COLUMNS) + n2
    re, im = load_complex(at, OUTER * ROWS * COLUMNS)
    unit = _power_of_two(tl.load(exponents + row * (ROWS * COLUMNS // WIDTH) + a * COLUMNS // WIDTH))
    return re.to(tl.float32) * unit, im.to(tl.float32) * unit


@triton.jit
def inverse_to_scratch(
    re, im, factors, scratch, inverse_exponents, row, k1,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEADROOM: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The inverse inner transform of one k1, whose exponents are (rows, OUTER)."""
    re, im, exponent = _inverse(re, im, factors, EXACT)
    n2 = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = scratch + (row * (2 * OUTER) + k1) * (ROWS * COLUMNS) + n2
    headroom = 1.0 / (1 << HEADROOM)
    tl.store(at, (re * headroom).to(scratch.dtype.element_ty))
    tl.store(at + OUTER * ROWS * COLUMNS, (im * headroom).to(scratch.dtype.element_ty))
    tl.store(inverse_exponents + row * OUTER + k1, exponent + HEADROOM)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def outer_stage_back(
    scratch, inverse_exponents, table, gate, out, second_gate, second_out, first_b, first_d, batches, L,
    gate_b, gate_d, second_gate_b, second_gate_d, out_b, out_d,
    OUTER: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr,
    BLOCK: tl.constexpr, SUM: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The outer stage back, x: stores x gate and x second_gate."""
    row = tl.program_id(1).to(tl.int64)
    d = first_d + row // batches
    b = first_b + row % batches
    blocks = tl.cdiv(L, INNER * BLOCK)
    n1 = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n2 = tl.program_id(0) // blocks * WIDTH + tl.arange(0, WIDTH)
    inverse_exponents += row * OUTER
    # one exponent for all terms, the largest, so that nothing grows
    largest = tl.full((), -124, tl.int32)
    for first in range(0, OUTER, SUM):
        k1 = first + tl.arange(0, SUM)
        largest = tl.maximum(largest, tl.max(tl.load(inverse_exponents + k1, mask=k1 < OUTER, other=-124)))
    x = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, OUTER, SUM):
        k1 = first + tl.arange(0, SUM)
        inside = (k1 < OUTER)[:, None]
        at = scratch + row * (2 * OUTER * INNER) + (k1[:, None] * INNER + n2[None, :])
        unit = _power_of_two(tl.load(inverse_exponents + k1, mask=k1 < OUTER, other=-124) - largest)[:, None]
        re = tl.load(at, mask=inside, other=0).to(tl.float32) * unit
        im = tl.load(at + OUTER * INNER, mask=inside, other=0).to(tl.float32) * unit
        er, ei = load_complex(table + k1[:, None] * PADDED + n1[None, :], PADDED * PADDED)
        x = _dot(tl.trans(er), re, x, EXACT)
        x = _dot(tl.trans(ei), -im, x, EXACT)
    x *= _power_of_two(largest) / (OUTER * INNER)
    n = n1[:, None] * INNER + n2[None, :]
    out_row = b * out_b + d * out_d
    store_product(x, gate, b * gate_b + d * gate_d, out, out_row, n, n < L)
    store_product(x, second_gate, b * second_gate_b + d * second_gate_d, second_out, out_row, n, n < L)
