"""The right-angle transform: a causal convolution of N points by one complex transform of N points, without padding.

    X[k] = sum over n < N of x[n] w^(n (k + 1/4)),     w = exp(-2 pi i / N),   k = 0 ... N - 1

Arithmetic is then modulo t^N + i: what a product wraps around comes back multiplied by -i. So for real x and h the
inverse of X H has the causal convolution (x * h)[n] as its real part and the tail (x * h)[n + N] in its imaginary part,
and the inverse of G conj(U) has the correlation sum over t of g[t] u[t - n] as its real part. (Nussbaumer 1982, section
5.3 calls such weighted transforms right-angle circular convolution.)

Stages. With n = (n1 rows + a) columns + c and k = k1 + outer (p + rows q), N = outer rows columns, and with the shift
s = (k1 + 1/4) / outer and e(x) = exp(-2 pi i x), the transform is three products with small matrices:

    A[k1, a, c] = sum over n1 of e(n1 s) x[n1, a, c]                        outer stage, real input
    B[k1, p, c] = e(c (p + s) / (rows columns)) sum over a of e(a (p + s) / rows) A[k1, a, c]
    X[k1, p, q] = sum over c of e(c q / columns) B[k1, p, c]

The last two lines, the inner transform, belong to one k1 and are computed on chip. They differ from an ordinary transform
by the factors e(a s / rows) and e(c s / (rows columns)), which are applied to the tables and not to the signal. With
outer = 1 the inner transform is all there is. The inverse runs the other way on conjugates: if Y is to be transformed
back, conj(Y) goes through the transposed tables, and what comes out is N times the conjugate of the inverse.

Layout. A spectrum is stored as X[p'][q] with p' = k1 + outer p = k mod (N / columns) and q = k div (N / columns), real
parts before imaginary parts. Plans of one size have the same number of columns and therefore the same layout.

Precision. Products run on the tensor cores in float16 with float32 sums. Every tile is first multiplied by the power of
two that brings its largest magnitude into [32, 64): block floating point, so that the range of float16 does not matter.
`fast` takes the operands as they are rounded (11 bits). `exact` splits each into a float16 and the float16 of what
that leaves (22 bits together) and adds three products; this is as exact as three products in TF32, at twice its rate.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Plan(NamedTuple):
    """How outer * rows * columns points are transformed."""

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


class Tables(NamedTuple):
    """The factors of a plan; float32, real parts before imaginary parts."""

    outer: Tensor
    """(2, padded, padded): e(n1 (k1 + 1/4) / outer) at [k1, n1]; zeros beyond outer."""
    outer_padded: int
    rows: Tensor
    """(2, rows, rows): e(a p / rows) at [p, a]."""
    twiddle: Tensor
    """(2, rows, columns): e(c p / (rows columns)) at [p, c]."""
    columns: Tensor
    """(2, columns, columns): e(c q / columns) at [c, q]."""
    row_shift: Tensor
    """(outer, 2, rows): e(a s / rows)."""
    column_shift: Tensor
    """(outer, 2, columns): e(c s / (rows columns))."""


def outer_padding(outer: int) -> int:
    """The side of the outer table: whole blocks of the outer stage's products."""
    return max(16, triton.next_power_of_2(outer)) if outer <= 64 else triton.cdiv(outer, 64) * 64


@lru_cache(maxsize=32)
def tables(plan: Plan, device: torch.device) -> Tables:
    """The tables of a plan, computed in float64 from phases reduced to one turn in integers."""
    outer, rows, columns = plan
    quarters = 4 * torch.arange(outer) + 1  # 4 (k1 + 1/4)
    padded = outer_padding(outer)
    outer_table = torch.zeros(2, padded, padded, device=device)
    outer_table[:, :outer, :outer] = _turns(quarters[:, None] * torch.arange(outer), 4 * outer).to(device)
    a, c = torch.arange(rows), torch.arange(columns)
    row_shift = _turns(quarters[:, None] * a, 4 * outer * rows)
    column_shift = _turns(quarters[:, None] * c, 4 * plan.size)
    return Tables(
        outer_table,
        padded,
        _turns(a[:, None] * a, rows).to(device),
        _turns(a[:, None] * c, plan.inner).to(device),
        _turns(c[:, None] * c, columns).to(device),
        row_shift.transpose(0, 1).contiguous().to(device),
        column_shift.transpose(0, 1).contiguous().to(device),
    )


def _turns(numerator: Tensor, denominator: int) -> Tensor:
    """e(numerator / denominator) as (2, ...), real and imaginary parts."""
    angle = (numerator % denominator).double() * (-2 * math.pi / denominator)
    return torch.stack([angle.cos(), angle.sin()]).float()


@triton.jit
def block_scale(largest):
    """The power of two that brings a magnitude into [32, 64); 2^124 for zero."""
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    return ((259 - tl.minimum(tl.maximum(exponent, 8), 254)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def block_scale_of_complex(re, im):
    """The same for a whole tile."""
    return block_scale(tl.max(tl.maximum(tl.abs(re), tl.abs(im))))


@triton.jit
def product(ar, ai, br, bi):
    """The complex product a b, element by element."""
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def dot(a, b, acc, EXACT: tl.constexpr):
    """The matrix product acc + a b of float32 tiles; acc may be None."""
    a_high = a.to(tl.float16)
    b_high = b.to(tl.float16)
    if EXACT:
        a_low = (a - a_high.to(tl.float32)).to(tl.float16)
        b_low = (b - b_high.to(tl.float32)).to(tl.float16)
        acc = tl.dot(a_high, b_low, acc)
        acc = tl.dot(a_low, b_high, acc)
    return tl.dot(a_high, b_high, acc)


@triton.jit
def complex_dot(ar, ai, br, bi, EXACT: tl.constexpr):
    """The complex matrix product a b."""
    re = dot(-ai, bi, dot(ar, br, None, EXACT), EXACT)
    im = dot(ai, br, dot(ar, bi, None, EXACT), EXACT)
    return re, im


@triton.jit
def load_complex(pointers, distance):
    """Real and imaginary parts that lie `distance` apart."""
    return tl.load(pointers), tl.load(pointers + distance)


@triton.jit
def load_inner_tables(
    rows_table, twiddle, columns_table, row_shift, column_shift, k1, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The three tables of the inner transform of k1, shifted: e(a (p+s) / rows), e(c (p+s) / inner), e(c q / columns)."""
    a = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    fr, fi = load_complex(rows_table + a[:, None] * ROWS + a[None, :], ROWS * ROWS)
    sr, si = load_complex(row_shift + k1 * (2 * ROWS) + a, ROWS)
    fr, fi = product(fr, fi, sr[None, :], si[None, :])
    tr, ti = load_complex(twiddle + a[:, None] * COLUMNS + c[None, :], ROWS * COLUMNS)
    sr, si = load_complex(column_shift + k1 * (2 * COLUMNS) + c, COLUMNS)
    tr, ti = product(tr, ti, sr[None, :], si[None, :])
    gr, gi = load_complex(columns_table + c[:, None] * COLUMNS + c[None, :], COLUMNS * COLUMNS)
    return fr, fi, tr, ti, gr, gi


@triton.jit
def transform_real(x, fr, fi, tr, ti, gr, gi, EXACT: tl.constexpr):
    """The inner transform of a real tile [a, c]: a spectrum [p, q]."""
    scale = block_scale(tl.max(tl.abs(x)))
    x = x * scale
    ar, ai = product(dot(fr, x, None, EXACT), dot(fi, x, None, EXACT), tr, ti)
    xr, xi = complex_dot(ar, ai, gr, gi, EXACT)
    unit = 1 / scale
    return xr * unit, xi * unit


@triton.jit
def transform(xr, xi, fr, fi, tr, ti, gr, gi, EXACT: tl.constexpr):
    """The inner transform of a complex tile [a, c]: a spectrum [p, q]."""
    scale = block_scale_of_complex(xr, xi)
    ar, ai = complex_dot(fr, fi, xr * scale, xi * scale, EXACT)
    ar, ai = product(ar, ai, tr, ti)
    xr, xi = complex_dot(ar, ai, gr, gi, EXACT)
    unit = 1 / scale
    return xr * unit, xi * unit


@triton.jit
def _to_last_stage(yr, yi, tr, ti, gr, gi, EXACT: tl.constexpr):
    scale = block_scale_of_complex(yr, yi)
    ar, ai = complex_dot(yr * scale, -yi * scale, gr, gi, EXACT)
    ar, ai = product(ar, ai, tr, ti)
    return ar, ai, 1 / scale


@triton.jit
def inverse_real(yr, yi, fr, fi, tr, ti, gr, gi, EXACT: tl.constexpr):
    """The real part of the inverse inner transform, times its points: [a, c] of [p, q]."""
    ar, ai, unit = _to_last_stage(yr, yi, tr, ti, gr, gi, EXACT)
    return dot(tl.trans(fi), -ai, dot(tl.trans(fr), ar, None, EXACT), EXACT) * unit


@triton.jit
def inverse(yr, yi, fr, fi, tr, ti, gr, gi, EXACT: tl.constexpr):
    """The conjugate of the inverse inner transform, times its points: z [a, c] and a unit, the value being z unit."""
    ar, ai, unit = _to_last_stage(yr, yi, tr, ti, gr, gi, EXACT)
    zr, zi = complex_dot(tl.trans(fr), tl.trans(fi), ar, ai, EXACT)
    return zr, zi, unit
