"""The launches of the long convolution in Triton: how each size is transformed, with which tuning, in which order.

Sizes up to 8192 (`fast`) or 4096 (`exact`) are transformed on chip, by one launch each way; all others in stages,
group by group of rows, through a scratch that stays in the L2 cache. What is computed and at what cost says
fft_conv_triton.py.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyenadna.kernels.backend import Precision
from hyenadna.kernels.fft_conv_kernels_triton import (
    inner,
    inner_backward,
    inner_spectrum,
    inner_taps,
    on_chip,
    on_chip_backward,
    on_chip_spectrum,
    on_chip_taps,
)
from hyenadna.kernels.right_angle_triton import Plan, inner_tables, outer_stage, outer_stage_back, outer_table

_SCRATCH_BYTES = 24 << 20
"""Of the scratch of one group of rows, so that it stays in the L2 cache (50 MB on an H200) between the launches."""
_WARPS = 8192
"""So many warps on chip keep a GPU busy (an H200 holds 8448); what the batch has more of, programs loop over."""


class Tuning(NamedTuple):
    """What to choose anew, by measurement, on another GPU; these are chosen by registers, spills and shared memory."""

    on_chip_warps: dict[int, tuple[int, int]]
    """The sizes that are transformed on chip, with the warps of a program forward and backward."""
    inner: int
    """Points of the inner transforms of all other sizes."""
    inner_warps: tuple[int, int]
    """The same of the inner transforms."""
    outer_block: int
    """Results of the outer stage that one program computes for each column,"""
    outer_sum: int
    """terms of their sums that it loads at once,"""
    outer_width: int
    """and its columns."""
    outer_warps: int
    outer_stages: int
    """Depth of the pipeline of its loads."""


TUNING: dict[Precision, Tuning] = {
    "fast": Tuning(
        {256: (1, 1), 512: (1, 2), 1024: (4, 4), 2048: (4, 4), 4096: (4, 4), 8192: (8, 8)},
        4096, (4, 4), outer_block=128, outer_sum=32, outer_width=128, outer_warps=8, outer_stages=3,
    ),
    "exact": Tuning(
        {256: (1, 1), 512: (2, 2), 1024: (4, 4), 2048: (4, 4), 4096: (4, 4)},
        4096, (4, 4), outer_block=128, outer_sum=32, outer_width=64, outer_warps=8, outer_stages=2,
    ),
}  # fmt: skip


class Gradients(NamedTuple):
    """Where the gradients go; None for those that nobody asks for. All signals have the strides of that of v."""

    v: Tensor
    pre: Tensor | None
    post: Tensor | None
    h: Tensor | None


class OnChip:
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
        on_chip[D, _parts(B, D, self.warps)](
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
        into: Gradients,
    ) -> None:
        """Fill the gradients."""
        B, D, L = v.shape
        parts = _parts(B, D, self.warps_backward)
        spectra = None if into.h is None else spectrum.new_empty(parts, *spectrum.shape)
        on_chip_backward[D, parts](
            grad, v, pre, post, into.v, into.pre, into.post, spectra, spectrum, skip, self.tables, B, L,
            *_strides(grad, v, pre, post, into.v), **self.constants, **_options(self.warps_backward),
        )  # fmt: skip
        if into.h is not None and spectra is not None:
            _fill_taps(into.h, spectra)

    def spectrum(self, h: Tensor, spectrum: Tensor) -> None:
        """Fill the spectrum (D, 2, N) of h (D, L)."""
        D, L = h.shape
        on_chip_spectrum[D,](h, spectrum, self.tables, L, h.stride(0), **self.constants, **_options(self.warps))

    def taps(self, spectra: Tensor, h: Tensor) -> None:
        """Fill h (D, L) with the inverse of the sum of the spectra (parts, D, 2, N)."""
        D, L = h.shape
        on_chip_taps[D,](spectra, h, self.tables, len(spectra), L, **self.constants, **_options(self.warps))


class _Group(NamedTuple):
    """Rows that go through the launches together."""

    first_b: int
    batches: int
    first_d: int
    channels: int


class _Scratch(NamedTuple):
    """What the launches of a group hand on: numbers (rows, 2, outer, inner) and the exponents that they share."""

    numbers: Tensor
    exponents: Tensor
    inverse_exponents: Tensor


class Staged:
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
        self.headroom = {"HEADROOM": plan.outer.bit_length() // 2}
        self.inner_headroom = {"HEADROOM": plan.inner.bit_length() // 2}
        self.tables = inner_tables(plan, device)
        self.outer_table = outer_table(plan, self.dtype, device)

    def convolve(
        self, v: Tensor, spectrum: Tensor, skip: Tensor, pre: Tensor | None, post: Tensor | None, out: Tensor
    ) -> None:
        """Fill out."""
        groups, (scratch,) = self._groups(*v.shape[:2], scratches=1)
        for group in groups:
            self._forth(v, pre, scratch, group)
            inner[self.plan.outer, group.channels](
                *scratch, spectrum, skip, self.tables, group.first_d, group.batches,
                **self.inner, **self.width, **self.inner_headroom, **_options(self.tuning.inner_warps[0]),
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
        into: Gradients,
    ) -> None:
        """Fill the gradients."""
        groups, (of_u, of_g) = self._groups(*v.shape[:2], scratches=2)
        grad_spectrum = None if into.h is None else torch.empty_like(spectrum[: groups[0].channels])
        for group in groups:
            self._forth(v, pre, of_u, group)
            self._forth(grad, post, of_g, group)
            inner_backward[self.plan.outer, group.channels](
                *of_u, *of_g, grad_spectrum, spectrum, skip, self.tables, group.first_b, group.first_d, group.batches,
                WITH_Y=into.post is not None,
                **self.inner, **self.width, **self.inner_headroom, **_options(self.tuning.inner_warps[1]),
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
            inner_spectrum[self.plan.outer, group.channels](
                scratch.numbers, scratch.exponents, spectrum, self.tables, group.first_d,
                **self.inner, **self.width, **_options(self.tuning.inner_warps[0]),
            )  # fmt: skip

    def taps(self, spectra: Tensor, h: Tensor) -> None:
        """Fill h (D, L) with the inverse of the sum of the spectra (parts, D, 2, N)."""
        spectrum = spectra[0] if len(spectra) == 1 else spectra.sum(0)
        groups, (scratch,) = self._groups(1, len(h), scratches=1)
        for group in groups:
            inner_taps[self.plan.outer, group.channels](
                spectrum, scratch.numbers, scratch.inverse_exponents, self.tables, group.first_d,
                **self.inner, **self.inner_headroom, **_options(self.tuning.inner_warps[0]),
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
                empty(rows, plan.inner // self.tuning.outer_width, dtype=torch.int32, device=self.device),
                empty(rows, plan.outer, dtype=torch.int32, device=self.device),
            )
            for _ in range(scratches)
        ]

    def _forth(self, x: Tensor, gate: Tensor | None, scratch: _Scratch, group: _Group) -> None:
        """The outer stage of x gate."""
        blocks = self.plan.padded_outer // self.outer["BLOCK"] * (self.plan.inner // self.outer["WIDTH"])
        outer_stage[blocks, group.batches * group.channels](
            x, gate, scratch.numbers, scratch.exponents, self.outer_table, group.first_b, group.first_d, group.batches,
            x.shape[-1], *_strides(x, gate),
            **self.outer, **self.headroom, **_options(self.tuning.outer_warps, self.tuning.outer_stages),
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
        blocks = -(-L // (self.plan.inner * self.outer["BLOCK"]))
        outer_stage_back[blocks * (self.plan.inner // self.outer["WIDTH"]), group.batches * group.channels](
            scratch.numbers, scratch.inverse_exponents, self.outer_table, gate, out, second_gate, second_out,
            group.first_b, group.first_d, group.batches, L, *_strides(gate, second_gate, out),
            **self.outer, **_options(self.tuning.outer_warps, self.tuning.outer_stages),
        )  # fmt: skip


def _options(warps: int, stages: int = 1) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def _strides(*signals: Tensor | None) -> list[int]:
    """Of the batch and of the channels, for each."""
    return [stride for x in signals for stride in ((0, 0) if x is None else x.stride()[:2])]


def _parts(B: int, D: int, warps: int) -> int:
    """Programs among which the batch of one channel is divided on chip."""
    return min(B, -(-_WARPS // (D * warps)))


def plan_of(size: int, precision: Precision) -> Plan:
    """How a transform of this size is factored."""
    tuning = TUNING[precision]
    inner = size if size in tuning.on_chip_warps else tuning.inner
    # by size alone, so that both precisions lay out spectra in one way
    columns = 16 if size <= 512 else 32 if size <= 2048 else 64
    return Plan(size // inner, inner // columns, columns)


@lru_cache(maxsize=64)
def launches_of(size: int, precision: Precision, device: torch.device) -> OnChip | Staged:
    """The launches of this size, with their tables on the device."""
    plan = plan_of(size, precision)
    return (OnChip if plan.outer == 1 else Staged)(plan, precision, device)


def _fill_taps(h: Tensor, spectra: Tensor) -> None:
    launches_of(spectra.shape[-1], "exact", h.device).taps(spectra, h)


def good_size(L: int) -> int:
    """The points of the transform of L tokens: m 2^a with m = 1, 3, 5 or 7, but powers of two from 256 to 16384.

    Examples
    --------
    >>> good_size(1000), good_size(160_002), good_size(450_002), good_size(1_000_002)
    (1024, 163840, 458752, 1048576)
    """
    power = max(256, 1 << (L - 1).bit_length())
    return power if power <= 16384 else min(m * power // 8 for m in (5, 6, 7, 8) if m * power // 8 >= L)
