"""The gated causal long convolution in Triton, forward and backward, of any length.

    y[b, d, t] = post[b, d, t] (skip[d] u[b, d, t] + sum over s <= t of h[d, t - s] u[b, d, s]),   u = v pre

by the right-angle transform (right_angle_triton.py): without the post gate, y has the spectrum U H, where H is that of
the filter with skip added to tap 0. Backward, with g = post grad: grad_u has the spectrum G conj(H), and the filter's
gradient that of G conj(U), summed over the batch; its tap 0 is also the gradient of skip.

Up to 8192 points (`fast`) or 4096 (`exact`) a row is transformed on chip, in one launch. Beyond, three launches take
one group of rows after another through a scratch that stays in the L2 cache: outer stages; inner transforms, products
and inverse inner transforms; outer stages back. In backward, u and g go through together.

Cost per token, counted for L = N, with both gates; `fast` with signals of two bytes, `exact` of four:

    HBM, forward         fast 8 + 8 / B bytes: v, pre, post, y and the filter's spectrum; exact 16 + 8 / B
    HBM, backward        fast 14 + 24 / B, exact 28 + 24 / B: with the spectrum of the filter's gradient, to and fro
    L2, scratch          fast 16 bytes forward and 32 backward, exact 32 and 64
    L2, outer stage      each way again the input outer / block times, and 4 outer / width (exact: 8) for its table
    FLOPs, forward       8 rows + 16 columns on chip, else 8 outer + 16 (rows + columns); exact three times as many
    FLOPs, backward      twice that
    filter in training   forward 12 / B bytes, backward 4 / B, and each way half the FLOPs of an exact forward

so 1536 FLOPs at 4096 tokens, 2048 at 8192 and 4096 at 2^20, in `fast`.

float32, float16 and bfloat16 signals, float32 filters. Relative error in the L2 norm: `fast` to 1e-3, `exact` to 1e-6.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.kernels.backend import Precision, reported
from hyenadna.kernels.configuration import Configuration
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
_SPILL_BUDGET = 4096
"""Bytes that a thread may spill, stores and loads together."""


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
        into: _Gradients,
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
        into: _Gradients,
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


def _in_rows(x: Tensor) -> Tensor:
    """The same with neighbouring tokens next to each other in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows_of_gate(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else _in_rows(gate)


def _plan(size: int, precision: Precision) -> Plan:
    tuning = TUNING[precision]
    inner = size if size in tuning.on_chip_warps else tuning.inner
    # by size alone, so that both precisions lay out spectra in one way
    columns = 16 if size <= 512 else 32 if size <= 2048 else 64
    return Plan(size // inner, inner // columns, columns)


@lru_cache(maxsize=64)
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
    power = max(256, 1 << (L - 1).bit_length())
    return power if power <= 16384 else min(m * power // 8 for m in (5, 6, 7, 8) if m * power // 8 >= L)


def filter_spectrum(h: Tensor, size: int) -> Tensor:
    """The exact spectra of filters h (D, up to size), float32 (D, 2, size); they serve every length of this size."""
    with reported("fft_conv", h), torch.cuda.device_of(h):
        h = _in_rows(h.float())
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
        v, pre_gate, post_gate = _in_rows(v), _rows_of_gate(pre_gate), _rows_of_gate(post_gate)
        y = out if out is not None and out.stride(-1) == 1 else torch.empty_like(v)
        launches = _launches(spectrum.shape[-1], precision, v.device)
        launches.convolve(v, spectrum.contiguous(), skip.float().contiguous(), pre_gate, post_gate, y)
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
            grad, v = _in_rows(grad), _in_rows(v)
            pre, post = _rows_of_gate(pre_gate), _rows_of_gate(post_gate)
            into = _Gradients(
                torch.empty_like(v),
                torch.empty_like(v, dtype=pre.dtype) if pre is not None and needs_pre else None,
                torch.empty_like(v, dtype=post.dtype) if post is not None and needs_post else None,
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
    y: Tensor = _FFTConv.apply(v, h.float(), skip.float().contiguous(), pre_gate, post_gate, precision)  # type: ignore[no-untyped-call]
    return y


def configurations() -> Iterator[Configuration]:
    """What is launched with both gates: every size on chip, and outer stages of 40 (160,002 tokens) and 256 (1M)."""
    cpu = torch.device("cpu")
    modes: tuple[tuple[Precision, str], ...] = (("fast", "*bf16"), ("exact", "*fp32"))
    for precision, signal in modes:
        tuning = TUNING[precision]
        for size in tuning.on_chip_warps:
            chip = _OnChip(_plan(size, precision), precision, cpu)
            name = f"fft_conv {precision} {size}"
            yield _configuration(f"{name} forward", on_chip, signal, chip.constants, chip.warps)
            yield _configuration(f"{name} backward", on_chip_backward, signal, chip.constants, chip.warps_backward)
            if precision == "exact" and size == max(tuning.on_chip_warps):
                yield _configuration(f"{name} spectrum", on_chip_spectrum, signal, chip.constants, chip.warps)
                yield _configuration(f"{name} taps", on_chip_taps, signal, chip.constants, chip.warps)
        for size in (163_840, 1 << 20):
            staged = _Staged(_plan(size, precision), precision, cpu)
            name = f"fft_conv {precision} {size}"
            outer = tuning.outer_warps, tuning.outer_stages
            one_gate = staged.outer | {"second_gate": None, "second_out": None}
            yield _configuration(f"{name} outer", outer_stage, signal, staged.outer | staged.headroom, *outer)
            yield _configuration(f"{name} outer back", outer_stage_back, signal, one_gate, *outer)
        forward, backward = tuning.inner_warps
        constants = staged.inner | staged.width | staged.inner_headroom
        yield _configuration(f"{name} inner", inner, signal, constants, forward)
        yield _configuration(f"{name} inner backward", inner_backward, signal, constants | {"WITH_Y": True}, backward)
        yield _configuration(f"{name} outer back twice", outer_stage_back, signal, staged.outer, *outer)
        if precision == "exact":
            spectrum, taps = staged.inner | staged.width, staged.inner | staged.inner_headroom
            yield _configuration(f"{name} spectrum", inner_spectrum, signal, spectrum, forward)
            yield _configuration(f"{name} taps", inner_taps, signal, taps, forward)


_SIGNALS = {
    "v",
    "pre",
    "post",
    "out",
    "grad",
    "grad_v",
    "grad_pre",
    "grad_post",
    "x",
    "gate",
    "second_gate",
    "second_out",
}
_OPERANDS = {"scratch", "u_scratch", "g_scratch", "table"}
_NUMBERS = {"B", "L", "batches", "parts"}


def _configuration(
    name: str, kernel: Any, signal: str, constants: dict[str, Any], warps: int, stages: int = 1
) -> Configuration:
    def type_of(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in _NUMBERS or argument.endswith(("_b", "_d")):
            return "i32"
        if argument.endswith("exponents"):
            return "*i32"
        if argument in _SIGNALS:
            return signal
        return ("*fp32" if constants["EXACT"] else "*fp16") if argument in _OPERANDS else "*fp32"

    signature = {argument: type_of(argument) for argument in kernel.arg_names}
    return Configuration(
        name, kernel, signature, constants, warps, stages, tensor_cores=True, spill_budget=_SPILL_BUDGET
    )
