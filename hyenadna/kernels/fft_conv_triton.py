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
from typing import Any

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
from hyenadna.kernels.fft_conv_launches_triton import TUNING, Gradients, OnChip, Staged, launches_of, plan_of
from hyenadna.kernels.fft_conv_launches_triton import good_size as good_size  # also for those who call this module
from hyenadna.kernels.right_angle_triton import outer_stage, outer_stage_back

_SPILL_BUDGET = 4096
"""Bytes that a thread may spill, stores and loads together."""


def _in_rows(x: Tensor) -> Tensor:
    """The same with neighbouring tokens next to each other in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows_of_gate(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else _in_rows(gate)


def filter_spectrum(h: Tensor, size: int) -> Tensor:
    """The exact spectra of filters h (D, up to size), float32 (D, 2, size); they serve every length of this size."""
    with reported("fft_conv", h), torch.cuda.device_of(h):
        h = _in_rows(h.float())
        spectrum = h.new_empty(len(h), 2, size)
        launches_of(size, "exact", h.device).spectrum(h, spectrum)
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
        launches = launches_of(spectrum.shape[-1], precision, v.device)
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
            into = Gradients(
                torch.empty_like(v),
                torch.empty_like(v, dtype=pre.dtype) if pre is not None and needs_pre else None,
                torch.empty_like(v, dtype=post.dtype) if post is not None and needs_post else None,
                skip.new_empty(v.shape[1:]) if needs_h or needs_skip else None,
            )
            launches = launches_of(spectrum.shape[-1], ctx.precision, v.device)
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
            chip = OnChip(plan_of(size, precision), precision, cpu)
            name = f"fft_conv {precision} {size}"
            yield _configuration(f"{name} forward", on_chip, signal, chip.constants, chip.warps)
            yield _configuration(f"{name} backward", on_chip_backward, signal, chip.constants, chip.warps_backward)
            if precision == "exact" and size == max(tuning.on_chip_warps):
                yield _configuration(f"{name} spectrum", on_chip_spectrum, signal, chip.constants, chip.warps)
                yield _configuration(f"{name} taps", on_chip_taps, signal, chip.constants, chip.warps)
        for size in (163_840, 1 << 20):
            staged = Staged(plan_of(size, precision), precision, cpu)
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
