"""Short depthwise causal convolution.

    y[b, c, t] = bias[c] + sum over m < M of weight[c, m] x[b, c, t - (M - 1) + m]

Poli et al. 2023, section 3.2 (the short filter on the projections). M shifted multiply-adds along contiguous rows: for
M = 3 this is bound by memory, where a general convolution routine spends ten times as long at 160,000 tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import UsageError


def short_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as `short_conv` by torch's grouped convolution."""
    M = weight.shape[-1]
    return F.conv1d(F.pad(x, (M - 1, 0)), weight[:, None], bias, groups=x.shape[1])


def _shifted_sum(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    # (B, C, L) and (C, M): adds what lies 1, 2, ... positions back
    L, M = x.shape[-1], weight.shape[-1]
    for back in range(1, min(M, L)):
        out[..., back:].addcmul_(x[..., : L - back], weight[:, M - 1 - back, None])
    return out


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _shifted_sum(x, weight, torch.addcmul(bias[:, None], x, weight[:, -1:]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        L, M = x.shape[-1], weight.shape[-1]
        grad_x = grad * weight[:, -1:]
        grad_weight = torch.zeros_like(weight)
        grad_weight[:, -1] = (grad * x).sum((0, 2))
        for back in range(1, min(M, L)):
            grad_x[..., : L - back].addcmul_(grad[..., back:], weight[:, M - 1 - back, None])
            grad_weight[:, M - 1 - back] = (grad[..., back:] * x[..., : L - back]).sum((0, 2))
        return grad_x, grad_weight, grad.sum((0, 2))


def short_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution; the equation stands at the top of this file.

    Parameters
    ----------
    x : Tensor (B, C, L)        any strides, fastest with L contiguous
    weight : Tensor (C, M)      the last tap is that of the newest position
    bias : Tensor (C,)

    Returns
    -------
    Tensor (B, C, L)            in x's dtype

    Raises
    ------
    UsageError                  shapes that do not fit

    Examples
    --------
    >>> short_conv(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1))
    tensor([[[3., 2., 1., 0.]]])
    """
    if x.dim() != 3 or weight.dim() != 2 or not x.shape[1] == weight.shape[0] == bias.numel() or bias.dim() != 1:
        raise UsageError(
            f"short_conv was given x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}; "
            "it takes x (B, C, L), weight (C, M), bias (C,)"
        )
    y: Tensor = _ShortConv.apply(x, weight.to(x.dtype), bias.to(x.dtype))  # type: ignore[no-untyped-call]
    return y
