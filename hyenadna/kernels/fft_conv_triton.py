"""The gated causal long convolution in Triton, forward and backward, of any length.

    y[b, d, t] = post[b, d, t] (skip[d] u[b, d, t] + sum over s <= t of h[d, t - s] u[b, d, s]),   u = v pre

by the right-angle transform (right_angle_triton.py): Y = U (H + skip), because the transform of an impulse is 1. With
g = post dL/dy, backward is DU = G conj(H + skip), and the filter's gradient has the spectrum sum over b of G conj(U),
whose tap 0 is also the gradient of skip.

Up to 8192 points (`fast`) or 4096 (`exact`) a row is transformed on chip, in one launch. Beyond, three launches take a
group of rows through a scratch that stays in the L2 cache: outer stages; inner transforms, product and inverse inner
transforms; inverse outer stages.

Cost per token of one row, for N = L; float16 or bfloat16 in `fast`, float32 in `exact`, both gates:

                        fast                                exact
    HBM, forward        8 B + 8 B of spectrum / B           16 B + 8 B / B
    HBM, backward       14 B + 16 B / B                     28 B + 16 B / B
    L2, with an outer stage, besides
      scratch, forward  16 B                                32 B
      scratch, backward 32 B                                64 B
      operands          each of the outer stage's programs reads its block's input and table
    FLOPs, forward      on chip 12 rows + 16 columns        three times as many
                        else 8 outer + 16 (rows + columns)

and backward twice the forward's (1.5 times on chip without a post gate), plus an exact transform each way of the filter.

float16, bfloat16 and float32 signals, float32 filters. `fast` is within 1e-3 in relative L2 norm, `exact` within 1e-6.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.kernels.backend import Precision, reported
from hyenadna.kernels.configuration import Configuration
from hyenadna.kernels.right_angle_triton import (
    Plan,
    inner_tables,
    inverse_real,
    inverse_to_scratch,
    load_complex,
    load_product,
    load_scratch,
    load_tables,
    outer_stage,
    outer_stage_back,
    outer_table,
    product,
    store_product,
    transform,
    transform_real,
)

_SCRATCH_BYTES = 24 << 20
"""Of the scratch of one group of rows, so that it stays in the L2 cache (50 MB on an H200) between the launches."""
_PROGRAMS = 1024
"""This many programs on chip keep a GPU busy; what the batch has more of, each works through in a loop."""


class Tuning(NamedTuple):
    """What to choose anew by measurement on another GPU."""

    on_chip_warps: dict[int, tuple[int, int]]
    """Sizes that are transformed on chip: warps of a program, forward and backward."""
    inner: int
    """Points of the inner transform of all other sizes."""
    inner_warps: tuple[int, int]
    """The same for the inner transform's launches."""
    outer_block: int
    """The outer stage's tile: outputs,"""
    outer_sum: int
    """terms of their sums that are loaded together,"""
    outer_width: int
    """neighbouring tokens,"""
    outer_warps: int
    outer_stages: int
    """and loads in flight."""


TUNING: dict[Precision, Tuning] = {
    "fast": Tuning(
        {256: (1, 1), 512: (1, 2), 1024: (4, 4), 2048: (4, 4), 4096: (4, 4), 8192: (8, 8)},
        4096, (4, 4), outer_block=128, outer_sum=32, outer_width=128, outer_warps=8, outer_stages=2,
    ),
    "exact": Tuning(
        {256: (1, 1), 512: (2, 2), 1024: (4, 4), 2048: (4, 4), 4096: (4, 4)},
        4096, (4, 4), outer_block=128, outer_sum=32, outer_width=64, outer_warps=8, outer_stages=2,
    ),
}  # fmt: skip


@triton.jit
def _load_filter(spectrum, skip, d, at, distance):
    """The spectrum of h + skip times an impulse."""
    hr, hi = load_complex(spectrum + at, distance)
    return hr + tl.load(skip + d), hi


@triton.jit
def _add_spectrum(re, im, spectrum, at, distance, adds):
    """Stores a spectrum, or adds it to what the same threads have stored there."""
    if adds:
        re += tl.load(spectrum + at)
        im += tl.load(spectrum + at + distance)
    tl.store(spectrum + at, re)
    tl.store(spectrum + at + distance, im)


@triton.jit
def _on_chip(
    v, pre, post, out, spectrum, skip, tables, B, L, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The convolution of one channel, for every num_programs(1)-th of the batch."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    factors = load_tables(tables, 0, ROWS, COLUMNS)
    hr, hi = _load_filter(spectrum, skip, d, d * (2 * ROWS * COLUMNS) + n, ROWS * COLUMNS)
    for b in range(tl.program_id(1).to(tl.int64), B, tl.num_programs(1)):
        u = load_product(v, pre, b * v_b + d * v_d + n, b * pre_b + d * pre_d + n, inside)
        ur, ui = transform_real(u, factors, EXACT)
        yr, yi = product(ur, ui, hr, hi)
        y = inverse_real(yr, yi, factors, EXACT)
        store_product(y, post, b * post_b + d * post_d + n, out, b * out_b + d * out_d + n, inside)


@triton.jit
def _on_chip_backward(
    grad, v, pre, post, grad_v, grad_pre, grad_post, grad_spectra, spectrum, skip, tables, B, L,
    grad_b, grad_d, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """All gradients, that of the filter as a spectrum (num_programs(1), D, 2, N) for each part of the batch."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    factors = load_tables(tables, 0, ROWS, COLUMNS)
    part = tl.program_id(1).to(tl.int64)
    for b in range(part, B, tl.num_programs(1)):
        at_v = b * v_b + d * v_d + n
        at_pre = b * pre_b + d * pre_d + n
        at_grad = b * grad_b + d * grad_d + n
        at_out = b * out_b + d * out_d + n
        hr, hi = _load_filter(spectrum, skip, d, d * (2 * SIZE) + n, SIZE)
        u = load_product(v, pre, at_v, at_pre, inside)
        ur, ui = transform_real(u, factors, EXACT)
        if grad_post is not None:
            yr, yi = product(ur, ui, hr, hi)
            y = inverse_real(yr, yi, factors, EXACT)
            store_product(y, grad, at_grad, grad_post, at_out, inside)
        g = load_product(grad, post, at_grad, b * post_b + d * post_d + n, inside)
        gr, gi = transform_real(g, factors, EXACT)
        if grad_spectra is not None:
            sr, si = product(gr, gi, ur, -ui)
            at = (part * tl.num_programs(0) + d) * (2 * SIZE) + n
            _add_spectrum(sr, si, grad_spectra, at, SIZE, b >= tl.num_programs(1))
        # loaded again: there are not registers enough to keep them
        hr, hi = _load_filter(spectrum, skip, d, d * (2 * SIZE) + n, SIZE)
        gr, gi = product(gr, gi, hr, -hi)
        grad_u = inverse_real(gr, gi, factors, EXACT)
        store_product(grad_u, pre, at_pre, grad_v, at_out, inside)
        store_product(grad_u, v, at_v, grad_pre, at_out, inside)


@triton.jit
def _on_chip_spectrum(
    h, spectrum, tables, L, h_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """The spectrum of one channel's filter."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    taps = tl.load(h + d * h_d + n, mask=n < L, other=0)
    hr, hi = transform_real(taps, load_tables(tables, 0, ROWS, COLUMNS), EXACT)
    _add_spectrum(hr, hi, spectrum, d * (2 * ROWS * COLUMNS) + n, ROWS * COLUMNS, False)


@triton.jit
def _on_chip_taps(
    spectra, h, tables, parts, L, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """The first L taps (D, L) of which the sum of (parts, D, 2, N) is the spectrum, of one channel."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    hr = tl.zeros((ROWS, COLUMNS), tl.float32)
    hi = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(parts):
        pr, pi = load_complex(
            spectra + (part * tl.num_programs(0) + d) * (2 * ROWS * COLUMNS) + n, ROWS * COLUMNS
        )
        hr += pr
        hi += pi
    taps = inverse_real(hr, hi, load_tables(tables, 0, ROWS, COLUMNS), EXACT)
    tl.store(h + d * L + n, taps, mask=n < L)


@triton.jit
def _frequencies(d, k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a spectrum (D, 2, N) holds [p, q] of one k1."""
    p = k1 + OUTER * tl.arange(0, ROWS)
    return d * (2 * OUTER * ROWS * COLUMNS) + p[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit(do_not_specialize=["first_d", "batches"])
def _inner(
    scratch, units, inverse_units, spectrum, skip, tables, first_d, batches,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DAMPING: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one channel and k1, the product with the filter's spectrum, and back, in the scratch."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    d = first_d + channel
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    at_h = _frequencies(d, k1, OUTER, ROWS, COLUMNS)
    for row in range(channel * batches, (channel + 1) * batches):
        ur, ui = load_scratch(scratch, units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, factors, EXACT)
        hr, hi = _load_filter(spectrum, skip, d, at_h, OUTER * ROWS * COLUMNS)
        yr, yi = product(ur, ui, hr, hi)
        inverse_to_scratch(yr, yi, factors, scratch, inverse_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING, EXACT)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def _inner_backward(
    u_scratch, u_units, u_inverse_units, g_scratch, g_units, g_inverse_units, grad_spectrum, spectrum, skip, tables,
    first_b, first_d, batches,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DAMPING: tl.constexpr,
    WITH_Y: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The same of u, if y is asked for, and of g, and the spectrum of the filter's gradient, summed over the batch."""
    SIZE: tl.constexpr = OUTER * ROWS * COLUMNS
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    d = first_d + channel
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    at_h = _frequencies(d, k1, OUTER, ROWS, COLUMNS)
    first = channel * batches
    for row in range(first, first + batches):
        ur, ui = load_scratch(u_scratch, u_units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, factors, EXACT)
        if WITH_Y:
            hr, hi = _load_filter(spectrum, skip, d, at_h, SIZE)
            yr, yi = product(ur, ui, hr, hi)
            inverse_to_scratch(
                yr, yi, factors, u_scratch, u_inverse_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING, EXACT
            )
        gr, gi = load_scratch(g_scratch, g_units, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        gr, gi = transform(gr, gi, factors, EXACT)
        if grad_spectrum is not None:
            sr, si = product(gr, gi, ur, -ui)
            at = _frequencies(channel, k1, OUTER, ROWS, COLUMNS)
            _add_spectrum(sr, si, grad_spectrum, at, SIZE, row - first + first_b > 0)
        hr, hi = _load_filter(spectrum, skip, d, at_h, SIZE)
        gr, gi = product(gr, gi, hr, -hi)
        inverse_to_scratch(
            gr, gi, factors, g_scratch, g_inverse_units, row, k1, OUTER, ROWS, COLUMNS, DAMPING, EXACT
        )


@triton.jit(do_not_specialize=["first_d"])
def _inner_spectrum(
    scratch, units, spectrum, tables, first_d,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one channel and k1 into the spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    hr, hi = load_scratch(scratch, units, channel, k1, OUTER, ROWS, COLUMNS, WIDTH)
    hr, hi = transform(hr, hi, load_tables(tables, k1, ROWS, COLUMNS), EXACT)
    at = _frequencies(first_d + channel, k1, OUTER, ROWS, COLUMNS)
    _add_spectrum(hr, hi, spectrum, at, OUTER * ROWS * COLUMNS, False)


@triton.jit(do_not_specialize=["first_d"])
def _inner_taps(
    spectrum, scratch, inverse_units, tables, first_d,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DAMPING: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inverse inner transforms of one channel and k1 of a spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    at = spectrum + _frequencies(first_d + channel, k1, OUTER, ROWS, COLUMNS)
    hr, hi = load_complex(at, OUTER * ROWS * COLUMNS)
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    inverse_to_scratch(hr, hi, factors, scratch, inverse_units, channel, k1, OUTER, ROWS, COLUMNS, DAMPING, EXACT)




class _Gradients(NamedTuple):
    """Where the gradients go; None for those that nobody asks for. All signals have the strides of that of v."""

    v: Tensor
    pre: Tensor | None
    post: Tensor | None
    h: Tensor | None


class _OnChip:
    """The launches of a size that is transformed on chip."""

    def __init__(self, plan: Plan, precision: Precision, device: torch.device) -> None:
        self.constants = {"ROWS": plan.rows, "COLUMNS": plan.columns, "EXACT": precision == "exact"}
        self.warps, self.warps_backward = TUNING[precision].on_chip_warps[plan.size]
        self.tables = inner_tables(plan, device)

    def convolve(
        self, v: Tensor, spectrum: Tensor, skip: Tensor, pre: Tensor | None, post: Tensor | None, out: Tensor
    ) -> None:
        """Fill out."""
        B, D, L = v.shape
        _on_chip[D, _parts(B, D)](
            v, pre, post, out, spectrum, skip, self.tables, B, L, *_strides(v, pre, post, out),
            **self.constants, **_options(self.warps),
        )  # fmt: skip

    def backward(
        self,
        grad: Tensor,
        v: Tensor,
        spectrum: Tensor,
        skip: Tensor,
        pre: Tensor | None,
        post: Tensor | None,
        into: _Gradients,
    ) -> None:
        """Fill the gradients."""
        B, D, L = v.shape
        spectra = None if into.h is None else spectrum.new_empty(_parts(B, D), *spectrum.shape)
        _on_chip_backward[D, _parts(B, D)](
            grad, v, pre, post, into.v, into.pre, into.post, spectra, spectrum, skip, self.tables, B, L,
            *_strides(grad, v, pre, post, into.v), **self.constants, **_options(self.warps_backward),
        )  # fmt: skip
        if into.h is not None and spectra is not None:
            _fill_taps(into.h, spectra)

    def spectrum(self, h: Tensor, spectrum: Tensor) -> None:
        """Fill the spectrum (D, 2, N) of h (D, L)."""
        D, L = h.shape
        _on_chip_spectrum[D,](h, spectrum, self.tables, L, h.stride(0), **self.constants, **_options(self.warps))

    def taps(self, spectra: Tensor, h: Tensor) -> None:
        """Fill h (D, L) with the inverse of the sum of the spectra (parts, D, 2, N)."""
        D, L = h.shape
        _on_chip_taps[D,](spectra, h, self.tables, len(spectra), L, **self.constants, **_options(self.warps))


class _Group(NamedTuple):
    """Rows that go through the launches together."""

    first_b: int
    batches: int
    first_d: int
    channels: int


class _Scratch(NamedTuple):
    """What the launches of a group hand on: numbers (rows, 2, outer, inner) and what they are to be multiplied by."""

    numbers: Tensor
    units: Tensor
    inverse_units: Tensor


class _Staged:
    """The launches of a size with an outer stage, group by group."""

    def __init__(self, plan: Plan, precision: Precision, device: torch.device) -> None:
        self.plan, self.device, self.tuning = plan, device, TUNING[precision]
        exact = precision == "exact"
        self.dtype = torch.float32 if exact else torch.float16
        self.inner = {"OUTER": plan.outer, "ROWS": plan.rows, "COLUMNS": plan.columns, "EXACT": exact}
        self.width = {"WIDTH": self.tuning.outer_width}
        self.outer = {
            "OUTER": plan.outer,
            "PADDED": plan.padded_outer,
            "INNER": plan.inner,
            "BLOCK": min(self.tuning.outer_block, plan.padded_outer),
            "SUM": min(self.tuning.outer_sum, plan.padded_outer),
            "EXACT": exact,
        } | self.width
        # sums of so many terms grow by about the root of it, which float16 need not hold
        self.damping = {"DAMPING": 2.0 ** -(plan.outer.bit_length() // 2)}
        self.inner_damping = {"DAMPING": 2.0 ** -(plan.inner.bit_length() // 2)}
        self.tables = inner_tables(plan, device)
        self.outer_table = outer_table(plan, self.dtype, device)

    def convolve(
        self, v: Tensor, spectrum: Tensor, skip: Tensor, pre: Tensor | None, post: Tensor | None, out: Tensor
    ) -> None:
        """Fill out."""
        groups, (scratch,) = self._groups(*v.shape[:2], scratches=1)
        for group in groups:
            self._forth(v, pre, scratch, group)
            _inner[self.plan.outer, group.channels](
                *scratch, spectrum, skip, self.tables, group.first_d, group.batches,
                **self.inner, **self.width, **self.inner_damping, **_options(self.tuning.inner_warps[0]),
            )  # fmt: skip
            self._back(scratch, post, out, group)

    def backward(
        self,
        grad: Tensor,
        v: Tensor,
        spectrum: Tensor,
        skip: Tensor,
        pre: Tensor | None,
        post: Tensor | None,
        into: _Gradients,
    ) -> None:
        """Fill the gradients."""
        groups, (of_u, of_g) = self._groups(*v.shape[:2], scratches=2)
        grad_spectrum = None if into.h is None else torch.empty_like(spectrum[: groups[0].channels])
        for group in groups:
            self._forth(v, pre, of_u, group)
            self._forth(grad, post, of_g, group)
            _inner_backward[self.plan.outer, group.channels](
                *of_u, *of_g, grad_spectrum, spectrum, skip, self.tables, group.first_b, group.first_d, group.batches,
                WITH_Y=into.post is not None,
                **self.inner, **self.width, **self.inner_damping, **_options(self.tuning.inner_warps[1]),
            )  # fmt: skip
            if into.post is not None:
                self._back(of_u, grad, into.post, group)
            self._back(of_g, pre, into.v, group, v, into.pre)
            if into.h is not None and grad_spectrum is not None and group.first_b + group.batches == len(v):
                channels = slice(group.first_d, group.first_d + group.channels)
                _fill_taps(into.h[channels], grad_spectrum[None, : group.channels])

    def spectrum(self, h: Tensor, spectrum: Tensor) -> None:
        """Fill the spectrum (D, 2, N) of h (D, L)."""
        groups, (scratch,) = self._groups(1, len(h), scratches=1)
        for group in groups:
            self._forth(h[None], None, scratch, group)
            _inner_spectrum[self.plan.outer, group.channels](
                scratch.numbers, scratch.units, spectrum, self.tables, group.first_d,
                **self.inner, **self.width, **_options(self.tuning.inner_warps[0]),
            )  # fmt: skip

    def taps(self, spectra: Tensor, h: Tensor) -> None:
        """Fill h (D, L) with the inverse of the sum of the spectra (parts, D, 2, N)."""
        spectrum = spectra[0] if len(spectra) == 1 else spectra.sum(0)
        groups, (scratch,) = self._groups(1, len(h), scratches=1)
        for group in groups:
            _inner_taps[self.plan.outer, group.channels](
                spectrum, scratch.numbers, scratch.inverse_units, self.tables, group.first_d,
                **self.inner, **self.inner_damping, **_options(self.tuning.inner_warps[0]),
            )  # fmt: skip
            self._back(scratch, None, h[None], group)

    def _groups(self, B: int, D: int, *, scratches: int) -> tuple[list[_Group], list[_Scratch]]:
        """All rows in groups whose scratches together stay in the L2 cache, and the scratches."""
        plan = self.plan
        rows = max(1, _SCRATCH_BYTES // (scratches * 2 * plan.size * self.dtype.itemsize))
        batches, channels = min(B, rows), max(1, min(D, rows // B))
        groups = [
            _Group(b, min(batches, B - b), d, min(channels, D - d))
            for d in range(0, D, channels)
            for b in range(0, B, batches)
        ]
        rows = batches * channels
        empty = torch.empty
        return groups, [
            _Scratch(
                empty(rows, 2, plan.outer, plan.inner, dtype=self.dtype, device=self.device),
                empty(rows, plan.inner // self.tuning.outer_width, device=self.device),
                empty(rows, plan.outer, device=self.device),
            )
            for _ in range(scratches)
        ]

    def _forth(self, x: Tensor, gate: Tensor | None, scratch: _Scratch, group: _Group) -> None:
        """The outer stage of x gate."""
        blocks = self.plan.padded_outer // self.outer["BLOCK"] * (self.plan.inner // self.outer["WIDTH"])
        outer_stage[blocks, group.batches * group.channels](
            x, gate, scratch.numbers, scratch.units, self.outer_table, group.first_b, group.first_d, group.batches,
            x.shape[-1], *_strides(x, gate),
            **self.outer, **self.damping, **_options(self.tuning.outer_warps, self.tuning.outer_stages),
        )  # fmt: skip

    def _back(
        self,
        scratch: _Scratch,
        gate: Tensor | None,
        out: Tensor,
        group: _Group,
        second_gate: Tensor | None = None,
        second_out: Tensor | None = None,
    ) -> None:
        """The outer stage back, times each gate."""
        L = out.shape[-1]
        blocks = triton.cdiv(triton.cdiv(L, self.plan.inner), self.outer["BLOCK"])
        outer_stage_back[blocks * (self.plan.inner // self.outer["WIDTH"]), group.batches * group.channels](
            scratch.numbers, scratch.inverse_units, self.outer_table, gate, out, second_gate, second_out,
            group.first_b, group.first_d, group.batches, L, *_strides(gate, second_gate, out),
            **self.outer, **_options(self.tuning.outer_warps, self.tuning.outer_stages),
        )  # fmt: skip


def _options(warps: int, stages: int = 1) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def _strides(*signals: Tensor | None) -> list[int]:
    """Of the batch and of the channels, for each."""
    return [stride for x in signals for stride in ((0, 0) if x is None else x.stride()[:2])]


def _parts(B: int, D: int) -> int:
    """Programs among which the batch of one channel is divided on chip."""
    return min(B, triton.cdiv(_PROGRAMS, D))


def _in_rows(x: Tensor | None) -> Tensor | None:
    """x with neighbouring tokens next to each other in memory."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _plan(size: int, precision: Precision) -> Plan:
    tuning = TUNING[precision]
    inner = size if size in tuning.on_chip_warps else tuning.inner
    # by size alone, so that both precisions lay out spectra in one way
    columns = 16 if size <= 512 else 32 if size <= 2048 else 64
    return Plan(size // inner, inner // columns, columns)


def _launches(size: int, precision: Precision, device: torch.device) -> _OnChip | _Staged:
    plan = _plan(size, precision)
    return (_OnChip if plan.outer == 1 else _Staged)(plan, precision, device)


def _fill_taps(h: Tensor, spectra: Tensor) -> None:
    _launches(spectra.shape[-1], "exact", h.device).taps(spectra, h)


def good_size(L: int) -> int:
    """The points of the transform of L tokens: m 2^a with m = 1, 3, 5 or 7, but powers of two from 256 to 16384.

    Examples
    --------
    >>> good_size(1000), good_size(160_002), good_size(450_002), good_size(1_000_002)
    (1024, 163840, 458752, 1048576)
    """
    power = max(256, triton.next_power_of_2(L))
    return power if power <= 16384 else min(m * power // 8 for m in (5, 6, 7, 8) if m * power // 8 >= L)


def filter_spectrum(h: Tensor, size: int) -> Tensor:
    """The exact spectra of filters h (D, up to size), float32 (D, 2, size); they serve every length of this size."""
    with reported("fft_conv", h), torch.cuda.device_of(h):
        h = cast(Tensor, _in_rows(h))
        spectrum = h.new_empty(len(h), 2, size)
        _launches(size, "exact", h.device).spectrum(h, spectrum)
        return spectrum


def fft_conv_spectrum(
    v: Tensor,
    spectrum: Tensor,
    skip: Tensor,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    precision: Precision,
    out: Tensor | None,
) -> Tensor:
    """The convolution without gradients, by a filter's spectrum; into out if that is given."""
    with reported("fft_conv", v), torch.cuda.device_of(v):
        v, pre_gate, post_gate = cast(Tensor, _in_rows(v)), _in_rows(pre_gate), _in_rows(post_gate)
        y = out if out is not None and out.stride(-1) == 1 else torch.empty_like(v)
        launches = _launches(spectrum.shape[-1], precision, v.device)
        launches.convolve(v, spectrum, skip, pre_gate, post_gate, y)
        return y if out is None else out if out is y else out.copy_(y)


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        h: Tensor,
        skip: Tensor,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        precision: Precision,
    ) -> Tensor:
        spectrum = filter_spectrum(h, good_size(v.shape[-1]))
        ctx.save_for_backward(v, spectrum, skip, pre_gate, post_gate)
        ctx.precision = precision
        return fft_conv_spectrum(v, spectrum, skip, pre_gate, post_gate, precision, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is saved has no history of its own: the result would be wrong
            raise UsageError("fft_conv has no second derivative (create_graph=True); fft_conv_reference has")
        v, spectrum, skip, pre_gate, post_gate = ctx.saved_tensors
        _, needs_h, needs_skip, needs_pre, needs_post, _ = ctx.needs_input_grad
        with reported("fft_conv", v), torch.cuda.device_of(v):
            grad, v, pre, post = _in_rows(grad), _in_rows(v), _in_rows(pre_gate), _in_rows(post_gate)
            into = _Gradients(
                torch.empty_like(v),
                torch.empty_like(v, dtype=pre.dtype) if needs_pre else None,
                torch.empty_like(v, dtype=post.dtype) if needs_post else None,
                skip.new_empty(v.shape[1:]) if needs_h or needs_skip else None,
            )
            launches = _launches(spectrum.shape[-1], ctx.precision, v.device)
            launches.backward(grad, v, spectrum, skip, pre, post, into)
        grad_skip = None if into.h is None else into.h[:, 0].clone()
        return into.v, into.h, grad_skip, into.pre, into.post, None


def fft_conv(
    v: Tensor,
    h: Tensor,
    skip: Tensor,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    precision: Precision,
) -> Tensor:
    """The convolution of kernels/fft_conv.py, with every gradient."""
    y: Tensor = _FFTConv.apply(v, h, skip, pre_gate, post_gate, precision)  # type: ignore[no-untyped-call]
    return y
