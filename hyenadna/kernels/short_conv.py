"""Gated short convolution: what lies between a Hyena operator's input projection and its long convolution.

    s[i, b, d, t] = bias[i, d] + sum over m < M of weight[i, d, m] x[i, b, d, t - (M - 1) + m],   i = 0, 1, 2
    u = s[1] s[2],   gate = s[0]

Poli et al. 2023, section 3.2 with N = 2: x[0], x[1], x[2] are the parts x0, x1, v of the projection, u is what the long
convolution takes and gate what it is multiplied by.

Bound by memory: a forward pass reads three numbers and writes two for each position and channel, a backward pass reads
five and writes three. Only the projection is saved for backward, and the short convolutions are computed again. On a
CPU these are M shifted multiply-adds along contiguous rows, a few channels at a time; torch's general convolution
spends ten times as long at 160,000 tokens. Any floating dtype; half precision is accumulated in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend
from hyenadna.kernels.working_set import channels_at_once

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

Gradients = tuple[Tensor, Tensor | None, Tensor | None]
"""For the projection; for weight and bias if either is asked for."""


def gated_short_conv_reference(projected: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `gated_short_conv` by torch's grouped convolution."""
    M = weight.shape[-1]
    x = projected.transpose(0, 1).flatten(1, 2)  # (B, 3 D, L)
    s = F.conv1d(F.pad(x, (M - 1, 0)), weight.flatten(0, 1)[:, None], bias.flatten(), groups=x.shape[1])
    gate, x1, v = s.chunk(3, dim=1)
    return x1 * v, gate


def _short_conv(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Into out: (B, D, L), (D, M) and (D,); computed in weight's dtype, whatever those of x and out."""
    L, M = x.shape[-1], weight.shape[-1]
    x = x.to(weight.dtype)
    y = torch.addcmul(bias[:, None], x, weight[:, -1:], out=out if out.dtype == weight.dtype else None)
    for back in range(1, min(M, L)):
        y[..., back:].addcmul_(x[..., : L - back], weight[:, M - 1 - back, None])
    return y if y.dtype == out.dtype else out.copy_(y)


def _short_conv_backward(
    x: Tensor, weight: Tensor, grad: Tensor, grad_weight: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    """Into out the gradient for x, into grad_weight that for weight; grad and scratch are of weight's dtype."""
    L, M = x.shape[-1], weight.shape[-1]
    if grad_weight is not None:
        x = x.to(weight.dtype)
        for back in range(min(M, L)):
            product = torch.mul(grad[..., back:], x[..., : L - back], out=scratch[..., back:])
            grad_weight[:, M - 1 - back] = product.sum((0, 2))
    grad_x = torch.mul(grad, weight[:, -1:], out=out if out.dtype == weight.dtype else scratch)
    for back in range(1, min(M, L)):
        grad_x[..., : L - back].addcmul_(grad[..., back:], weight[:, M - 1 - back, None])
    if grad_x.dtype != out.dtype:
        out.copy_(grad_x)


def _groups(projected: Tensor) -> list[slice]:
    """The channels in groups that fit the caches together with what is made of them."""
    _, B, D, L = projected.shape
    step = channels_at_once(projected.device, B * L)
    return [slice(first, min(first + step, D)) for first in range(0, D, step)]


def _rows_like(x: Tensor, *shape: int) -> Tensor:
    """An empty (..., B, D, L) in x's dtype that lies as (..., D, B, L) in memory."""
    *leading, B, D, L = shape
    return x.new_empty(*leading, D, B, L).transpose(-3, -2)


def _forward(projected: Tensor, weight: Tensor, bias: Tensor, u: Tensor, gate: Tensor) -> None:
    _, B, _, L = projected.shape
    groups = _groups(projected)
    scratch = _rows_like(weight, 2, B, groups[0].stop, L)
    for channels in groups:
        x, w, b = projected[:, :, channels], weight[:, channels], bias[:, channels]
        _short_conv(x[0], w[0], b[0], gate[:, channels])
        s1, s2 = (_short_conv(x[i], w[i], b[i], scratch[i - 1, :, : x.shape[2]]) for i in (1, 2))
        torch.mul(s1, s2, out=u[:, channels])


def _backward(
    projected: Tensor, weight: Tensor, bias: Tensor, grad_u: Tensor, grad_gate: Tensor, of_weights: bool
) -> Gradients:
    _, B, _, L = projected.shape
    groups = _groups(projected)
    scratch = _rows_like(weight, 3, B, groups[0].stop, L)
    grad_projected = torch.empty_like(projected)
    grad_weight, grad_bias = (torch.zeros_like(weight), torch.empty_like(bias)) if of_weights else (None, None)
    for channels in groups:
        x, w, b = projected[:, :, channels], weight[:, channels], bias[:, channels]
        s1, s2, product = scratch[:, :, : x.shape[2]]
        _short_conv(x[1], w[1], b[1], s1)
        _short_conv(x[2], w[2], b[2], s2)
        grads = grad_gate[:, channels].to(w.dtype), s2.mul_(grad_u[:, channels]), s1.mul_(grad_u[:, channels])
        for i, grad in enumerate(grads):
            into = None if grad_weight is None else grad_weight[i, channels]
            _short_conv_backward(x[i], w[i], grad, into, product, grad_projected[i][:, channels])
            if grad_bias is not None:
                grad_bias[i, channels] = grad.sum((0, 2))
    return grad_projected, grad_weight, grad_bias


Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], Gradients]


def _implementation(projected: Tensor) -> tuple[Forward, Backward]:
    if backend.chosen(projected) == "triton":
        from hyenadna.kernels import short_conv_triton  # imports triton

        return short_conv_triton.forward, short_conv_triton.backward
    return _forward, _backward


class _GatedShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(projected, weight, bias)
        compute, ctx.backward_of = _implementation(projected)
        u, gate = (_rows_like(projected, *projected.shape[1:]) for _ in range(2))
        compute(projected, weight, bias, u, gate)
        return u, gate

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_gate: Tensor) -> Gradients:
        if torch.is_grad_enabled():  # what is returned has no history: its own derivative would be wrong
            raise UsageError(
                "gated_short_conv has no second derivative (create_graph=True); gated_short_conv_reference has"
            )
        grads: Gradients = ctx.backward_of(*ctx.saved_tensors, grad_u, grad_gate, any(ctx.needs_input_grad[1:]))
        return grads


def gated_short_conv(
    projected: Tensor, weight: Tensor, bias: Tensor, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The input and the gate of the long convolution; the equations stand at the top of this file.

    Parameters
    ----------
    projected : Tensor (3, B, D, L)
        The parts x0, x1, v of the projection: a view of any strides, so that (3 D, B, L) and (B, L, 3 D) in memory both
        serve without a copy; bfloat16, float16, float32 or float64.
    weight : Tensor (3, D, M)
        The last tap is that of the newest position.
    bias : Tensor (3, D)
    out : (u, gate), optional
        Where the result goes, without gradients: (B, D, L) in projected's dtype with L contiguous, sharing no memory
        with it.

    Returns
    -------
    u, gate : Tensor (B, D, L)
        In projected's dtype, in memory (D, B, L) if `out` is not given; accumulated in float32 or float64.

    Raises
    ------
    ShapeError, a ValueError        shapes that do not fit, or another dtype
    KernelError                     the Triton kernel does not run on this GPU

    Examples
    --------
    >>> projected = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])[:, None, None]
    >>> weight = torch.tensor([[[5.0, 3.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    >>> u, gate = gated_short_conv(projected, weight, torch.zeros(3, 1))
    >>> u.tolist(), gate.tolist()
    ([[[2.0, 2.0, 2.0]]], [[[3.0, 5.0, 0.0]]])
    """
    _check(projected, weight, bias)
    dtype = torch.float64 if projected.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(dtype), bias.to(dtype)
    if out is None:
        u, gate = _GatedShortConv.apply(projected, weight, bias)  # type: ignore[no-untyped-call]
        return u, gate
    compute, _ = _implementation(projected)
    with torch.no_grad():
        compute(projected, weight, bias, *out)
    return out


def _check(projected: Tensor, weight: Tensor, bias: Tensor) -> None:
    shapes = f"projected {tuple(projected.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
    if (
        (projected.dim(), weight.dim(), bias.dim()) != (4, 3, 2)
        or not projected.shape[0] == weight.shape[0] == bias.shape[0] == 3
        or not projected.shape[2] == weight.shape[1] == bias.shape[1]
        or 0 in (*projected.shape, *weight.shape)
    ):
        raise ShapeError(
            f"gated_short_conv was given {shapes}; it takes projected (3, B, D, L), weight (3, D, M), bias (3, D), "
            "none of them empty"
        )
    if projected.dtype not in _DTYPES:
        raise ShapeError(f"gated_short_conv was given {projected.dtype}; it takes any floating dtype")
