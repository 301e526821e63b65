"""Gated causal long convolution by FFT.

    y[b, d, t] = post[b, d, t] (skip[d] u[b, d, t] + sum over s <= t of h[d, t - s] u[b, d, s]),   u = v pre

Poli et al. 2023, section 3.2 with N = 2. The circular product is made linear by zero padding to n >= 2 L - 1, where n
is the next even number whose only prime factors are 2, 3 and 5: at the published lengths 2 L has large prime factors,
and a transform of that size costs several times more.

Cost for one (B, D, L) input: three real transforms of length n forward (u, h and the inverse), three more backward (the
gradient, and the inverses for u and h; the batch is summed in the frequency domain, so h costs one inverse and not B).
float32 and float64; half-precision inputs are transformed in float32.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend
from hyenadna.kernels.backend import Precision, precision_of

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def good_size(minimum: int) -> int:
    """The smallest even 5-smooth number that is at least `minimum`.

    Examples
    --------
    >>> good_size(2 * 160_002 - 1)
    324000
    """
    best = 2
    while best < minimum:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three
            while size < minimum:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


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
        L, n = v.shape[-1], good_size(2 * v.shape[-1] - 1)
        u = (v if pre_gate is None else v * pre_gate).to(h.dtype)
        u_spectrum, h_spectrum = torch.fft.rfft(u, n=n), torch.fft.rfft(h, n=n)
        y: Tensor = torch.fft.irfft(u_spectrum * h_spectrum, n=n)[..., :L]
        y.addcmul_(u, skip[:, None])
        ctx.save_for_backward(v, pre_gate, post_gate, skip, u_spectrum, h_spectrum, None if post_gate is None else y)
        return y.to(v.dtype) if post_gate is None else (y * post_gate).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the spectra were saved without their own history: the result would be wrong
            raise UsageError("fft_conv has no second derivative (create_graph=True); fft_conv_reference has")
        v, pre_gate, post_gate, skip, u_spectrum, h_spectrum, y = ctx.saved_tensors
        L, n, dtype = v.shape[-1], good_size(2 * v.shape[-1] - 1), skip.dtype
        grad_post = None if post_gate is None else (grad * y).to(post_gate.dtype)
        g = (grad if post_gate is None else grad * post_gate).to(dtype)
        u = (v if pre_gate is None else v * pre_gate).to(dtype)
        grad_skip = (g * u).sum((0, 2))
        g_spectrum = torch.fft.rfft(g, n=n)
        # correlation is convolution with the conjugate spectrum
        h_of_batch = (g_spectrum * u_spectrum.conj()).sum(0)
        grad_h = torch.fft.irfft(h_of_batch, n=n)[..., :L]
        grad_u = torch.fft.irfft(g_spectrum.mul_(h_spectrum.conj()), n=n)[..., :L]
        grad_u.addcmul_(g, skip[:, None])
        if pre_gate is None:
            return grad_u.to(v.dtype), grad_h, grad_skip, None, grad_post
        return (grad_u * pre_gate).to(v.dtype), grad_h, grad_skip, (grad_u * v).to(v.dtype), grad_post


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
    pre_gate: Tensor,
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
    """
    if transform.backend == "triton":
        from hyenadna.kernels import fft_conv_triton  # imports triton

        return fft_conv_triton.fft_conv_spectrum(v, spectrum, skip, pre_gate, post_gate, precision_of(v.dtype), out)
    (B, D, L), n = v.shape, transform.size
    # the product is written where the transform needs it, with its zeros behind
    padded = skip.new_empty(B, D, n)
    padded[..., L:] = 0
    u = torch.mul(v, pre_gate, out=padded[..., :L])
    y = torch.fft.irfft(torch.fft.rfft(padded).mul_(spectrum), n=n)[..., :L]
    y.addcmul_(u, skip[:, None])
    return torch.mul(y, post_gate, out=torch.empty_like(v) if out is None else out)


def _check(v: Tensor, h: Tensor, skip: Tensor, *gates: Tensor | None) -> None:
    shapes = f"v {tuple(v.shape)}, h {tuple(h.shape)}, skip {tuple(skip.shape)}"
    if v.dim() != 3 or h.dim() != 2 or skip.dim() != 1 or not v.shape[1] == h.shape[0] == skip.shape[0]:
        raise ShapeError(f"fft_conv was given {shapes}; it takes v (B, D, L), h (D, L), skip (D,)")
    if v.shape[-1] == 0 or h.shape[1] < v.shape[-1]:
        raise ShapeError(f"fft_conv was given {shapes}; the input needs 1 base or more, the filter as many taps")
    if v.dtype not in _DTYPES or h.dtype not in _DTYPES[2:] or skip.dtype != h.dtype:
        dtypes = f"v {v.dtype}, h {h.dtype}, skip {skip.dtype}"
        raise ShapeError(f"fft_conv was given {dtypes}; v may be any floating dtype, h and skip float32 or float64")
    for gate in gates:
        if gate is not None and gate.shape != v.shape:
            raise ShapeError(f"fft_conv was given a gate {tuple(gate.shape)} for {shapes}; they must agree")
