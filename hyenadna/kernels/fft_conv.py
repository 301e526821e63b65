"""Gated causal long convolution by FFT.

    y[b, d, t] = post[b, d, t] (skip[d] u[b, d, t] + sum over s <= t of h[d, t - s] u[b, d, s]),   u = v pre

Poli et al. 2023, section 3.2 with N = 2. The circular product is made linear by zero padding to n >= 2 L - 1, where n
is `good_size(2 L - 1)`: at the published lengths 2 L has large prime factors, and its transform costs several times
more.

Cost for one (B, D, L) input: three real transforms of length n forward (u, h and the inverse), three more backward (the
gradient, and the inverses for u and h; the batch is summed in the frequency domain, so h costs one inverse and not B).
Gradients that nobody asked for are not computed: with frozen filters it is two backward.
Channels are transformed a group at a time. If they are large, the forward pass saves its inputs only, and backward
transforms them again: three more.
float32 and float64; half-precision inputs are transformed in float32.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend
from hyenadna.kernels.backend import Precision, precision_of
from hyenadna.kernels.working_set import bytes_to_keep, channels_at_once

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def good_size(minimum: int) -> int:
    """The size of the quickest real transform of at least `minimum` points, as far as its factors tell.

    That is the smallest multiple of 16 whose prime factors are 2, 3 and 5: with few factors 2 a transform takes up to
    twice as long. From half a million points it is a power of two if that is at most a fifth above `minimum`: others
    take half as long again.

    Examples
    --------
    >>> good_size(2 * 160_002 - 1), good_size(2 * 1_000_002 - 1) == 2**21
    (324000, True)
    """
    best = 16
    while best < minimum:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 16 * three
            while size < minimum:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    power = 1 << (minimum - 1).bit_length()
    return power if power >= 1 << 19 and 5 * power <= 6 * minimum else best


def fft_conv_reference(
    v: Tensor, h: Tensor, skip: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None
) -> Tensor:
    """The same as `fft_conv`, in the fewest torch operations; any floating dtype that torch can transform."""
    L = v.shape[-1]
    u = v if pre_gate is None else v * pre_gate
    spectrum = torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(h[:, :L], n=2 * L)
    y: Tensor = torch.fft.irfft(spectrum, n=2 * L)[..., :L] + skip[:, None] * u
    return y if post_gate is None else y * post_gate


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, h: Tensor, skip: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
    ) -> Tensor:
        (B, D, L), n = v.shape, good_size(2 * v.shape[-1] - 1)
        # spectra, and y with the memory behind it
        keep = D * (2 * B + 1) * (n + 2) * h.itemsize <= bytes_to_keep(v.device)
        out, groups = torch.empty_like(v), _groups(v, n)
        kept: list[Tensor] = []
        zeros = h.new_zeros(B, groups[0].stop, n)
        for c in groups:
            padded = _padded(zeros, v[:, c], _of(pre_gate, c))
            computed = _convolved(padded, h[c], skip[c], L)
            torch.mul(computed[-1], 1 if post_gate is None else post_gate[:, c], out=out[:, c])
            kept += computed if keep else ()
        ctx.save_for_backward(v, h, skip, pre_gate, post_gate, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the spectra were saved without their own history: the result would be wrong
            raise UsageError("fft_conv has no second derivative (create_graph=True); fft_conv_reference has")
        v, h, skip, pre_gate, post_gate, *kept = ctx.saved_tensors
        (B, _, L), n = v.shape, good_size(2 * v.shape[-1] - 1)
        grad_v, grad_h, grad_skip, grad_pre, grad_post = (
            torch.empty_like(x) if needed else None
            for x, needed in zip((v, h, skip, pre_gate, post_gate), ctx.needs_input_grad, strict=True)
        )
        groups = _groups(v, n)
        zeros, grad_zeros = h.new_zeros(2, B, groups[0].stop, n)
        for i, c in enumerate(groups):
            padded = _padded(zeros, v[:, c], _of(pre_gate, c))
            u_spectrum, h_spectrum, y = kept[3 * i : 3 * i + 3] or _convolved(padded, h[c], skip[c], L)
            if grad_post is not None:
                torch.mul(grad[:, c], y, out=grad_post[:, c])
            grad_padded = _padded(grad_zeros, grad[:, c], _of(post_gate, c))
            g, g_spectrum = grad_padded[..., :L], torch.fft.rfft(grad_padded)
            if grad_skip is not None:
                grad_skip[c] = (g * padded[..., :L]).sum((0, 2))
            # correlation is convolution with the conjugate spectrum
            if grad_h is not None:
                grad_h[c] = torch.fft.irfft((g_spectrum * u_spectrum.conj()).sum(0), n=n)[..., :L]
            grad_u = torch.fft.irfft(g_spectrum.mul_(h_spectrum.conj()), n=n)[..., :L]
            grad_u.addcmul_(g, skip[c, None])
            if grad_v is not None:
                torch.mul(grad_u, 1 if pre_gate is None else pre_gate[:, c], out=grad_v[:, c])
            if grad_pre is not None:
                torch.mul(grad_u, v[:, c], out=grad_pre[:, c])
        return grad_v, grad_h, grad_skip, grad_pre, grad_post


def _groups(v: Tensor, n: int) -> list[slice]:
    """The channels in groups that are transformed together."""
    B, D, _ = v.shape
    step = channels_at_once(v.device, B * n)
    return [slice(first, min(first + step, D)) for first in range(0, D, step)]


def _of(gate: Tensor | None, channels: slice) -> Tensor | None:
    return None if gate is None else gate[:, channels]


def _padded(zeros: Tensor, x: Tensor, gate: Tensor | None) -> Tensor:
    """(B, D', L) x, times its gate, written over the first L of n zeros."""
    padded = zeros[:, : x.shape[1]]
    gated = padded[..., : x.shape[-1]].copy_(x)
    if gate is not None:
        gated.mul_(gate)
    return padded


def _convolved(padded: Tensor, h: Tensor, skip: Tensor, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """The spectra of the input and of the filters, and the ungated result (B, D', L)."""
    n = padded.shape[-1]
    u_spectrum, h_spectrum = torch.fft.rfft(padded), torch.fft.rfft(h, n=n)
    y = torch.fft.irfft(u_spectrum * h_spectrum, n=n)[..., :L]
    return u_spectrum, h_spectrum, y.addcmul_(padded[..., :L], skip[:, None])


def fft_conv(
    v: Tensor,
    h: Tensor,
    skip: Tensor,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    *,
    precision: Precision | None = None,
) -> Tensor:
    """Gated causal long convolution with a per-channel skip; the equation stands at the top of this file.

    Parameters
    ----------
    v : Tensor (B, D, L)            input; bfloat16, float16, float32 or float64; any strides, fastest with L contiguous
    h : Tensor (D, >= L)            filter taps, h[:, 0] the newest; float32 or float64
    skip : Tensor (D,)              gain of the direct path, in h's dtype
    pre_gate, post_gate : Tensor (B, D, L), optional
        Multiply the input and the output.
    precision : 'exact' or 'fast', optional
        Of the Triton kernels; torch is always exact. By default half-precision inputs are computed fast.

    Returns
    -------
    Tensor (B, D, L)                in v's dtype; accumulated in h's dtype

    Raises
    ------
    ShapeError, a ValueError        shapes that do not fit, a filter shorter than the input, or another dtype
    KernelError                     the Triton kernel does not run on this GPU

    Examples
    --------
    >>> impulse = torch.tensor([[[1.0, 0.0, 0.0]]])
    >>> fft_conv(impulse, torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1)).round(decimals=4)
    tensor([[[3., 2., 1.]]])
    """
    _check(v, h, skip, pre_gate, post_gate)
    h = h[:, : v.shape[-1]]
    if backend.chosen(v) == "triton":
        from hyenadna.kernels import fft_conv_triton  # imports triton

        return fft_conv_triton.fft_conv(v, h, skip, pre_gate, post_gate, precision or precision_of(v.dtype))
    y: Tensor = _FFTConv.apply(v, h, skip, pre_gate, post_gate)  # type: ignore[no-untyped-call]
    return y


class Transform(NamedTuple):
    """How inputs of some length are transformed; the spectra of filters belong to one of these."""

    backend: Literal["triton", "torch"]
    size: int
    """Points of the transform."""
    taps: int
    """So many taps of a filter may enter its spectrum; it then serves every length up to this with the same size."""


def transform_of(L: int, like: Tensor) -> Transform:
    """The transform that `fft_conv_spectrum` uses for inputs of L tokens, of the dtype and on the device of `like`."""
    if backend.chosen(like) == "triton":
        from hyenadna.kernels import fft_conv_triton  # imports triton

        size = fft_conv_triton.good_size(L)
        return Transform("triton", size, size)
    size = good_size(2 * L - 1)
    return Transform("torch", size, size // 2)


def filter_spectrum(h: Tensor, transform: Transform) -> Tensor:
    """The spectra of filters (D, up to transform.taps) as `fft_conv_spectrum` takes them; their first axis is D."""
    if transform.backend == "triton":
        from hyenadna.kernels import fft_conv_triton  # imports triton

        return fft_conv_triton.filter_spectrum(h, transform.size)
    spectrum: Tensor = torch.fft.rfft(h, n=transform.size)
    return spectrum


def fft_conv_spectrum(
    v: Tensor,
    spectrum: Tensor,
    skip: Tensor,
    pre_gate: Tensor | None,
    post_gate: Tensor,
    transform: Transform,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The same as `fft_conv` without gradients and with the filters' spectrum, which inference computes once.

    Parameters
    ----------
    v, pre_gate, post_gate : Tensor (B, D, L)
        As for `fft_conv`.
    spectrum : Tensor (D, ...)
        `filter_spectrum(h, transform)`.
    skip : Tensor (D,)
        As for `fft_conv`.
    transform : Transform
        `transform_of(L, v)`.
    out : Tensor (B, D, L), optional
        Where the result goes, in v's dtype; shares no memory with the inputs.

    Raises
    ------
    ShapeError, a ValueError        the spectrum is not of v's channels, or v is longer than the transform serves
    KernelError                     the Triton kernel does not run on this GPU
    """
    if not v.shape[1] == len(spectrum) == len(skip) or not 0 < v.shape[-1] <= transform.taps:
        shapes = f"v {tuple(v.shape)}, spectrum {tuple(spectrum.shape)}, skip {tuple(skip.shape)}"
        raise ShapeError(
            f"fft_conv_spectrum was given {shapes}; they must have D channels and v 1 to {transform.taps:,} tokens"
        )
    if transform.backend == "triton":
        from hyenadna.kernels import fft_conv_triton  # imports triton

        return fft_conv_triton.fft_conv_spectrum(v, spectrum, skip, pre_gate, post_gate, precision_of(v.dtype), out)
    (B, D, L), n = v.shape, transform.size
    out = torch.empty_like(v) if out is None else out
    step = min(D, channels_at_once(v.device, B * n))
    # the input of each transform is written where it is needed, with its zeros behind
    memory = skip.new_empty(B, step, n)
    memory[..., L:] = 0
    for first in range(0, D, step):
        channels = slice(first, min(first + step, D))
        padded = memory[:, : channels.stop - first]
        u = padded[..., :L]
        if pre_gate is None:
            u.copy_(v[:, channels])
        else:
            torch.mul(v[:, channels], pre_gate[:, channels], out=u)
        y = torch.fft.irfft(torch.fft.rfft(padded).mul_(spectrum[channels]), n=n)[..., :L]
        y.addcmul_(u, skip[channels, None])
        torch.mul(y, post_gate[:, channels], out=out[:, channels])
    return out


def _check(v: Tensor, h: Tensor, skip: Tensor, *gates: Tensor | None) -> None:
    shapes = f"v {tuple(v.shape)}, h {tuple(h.shape)}, skip {tuple(skip.shape)}"
    if v.dim() != 3 or h.dim() != 2 or skip.dim() != 1 or not v.shape[1] == h.shape[0] == skip.shape[0]:
        raise ShapeError(f"fft_conv was given {shapes}; it takes v (B, D, L), h (D, L), skip (D,)")
    if 0 in v.shape or h.shape[1] < v.shape[-1]:
        raise ShapeError(f"fft_conv was given {shapes}; the input needs 1 base or more, the filter as many taps")
    if not v.device == h.device == skip.device:
        raise ShapeError(f"fft_conv was given v on {v.device}, h on {h.device}, skip on {skip.device}; they must agree")
    if v.dtype not in _DTYPES or h.dtype not in _DTYPES[2:] or skip.dtype != h.dtype:
        dtypes = f"v {v.dtype}, h {h.dtype}, skip {skip.dtype}"
        raise ShapeError(f"fft_conv was given {dtypes}; v may be any floating dtype, h and skip float32 or float64")
    for gate in gates:
        if gate is not None and (gate.shape, gate.device) != (v.shape, v.device):
            raise ShapeError(
                f"fft_conv was given a gate {tuple(gate.shape)} on {gate.device} for {shapes}; they must agree"
            )
