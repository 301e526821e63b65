"""The feed-forward layer of a block: two matrix products with GELU between them, each position by itself.

    y = W2 a + b2,   a = p sigmoid(z),   z = sqrt(8 / pi) (p + 0.044715 p^3),   p = W1 x + b1

The tanh form of GELU (Hendrycks and Gimpel 2016), because (1 + tanh(z / 2)) / 2 = sigmoid(z). Its slope is

    da/dp = sigmoid(z) + 3 sigmoid(z) (1 - sigmoid(z)) (z - sqrt(8 / pi) 2 p / 3)

On a CPU torch's sigmoid takes a third of the time of its GELU, and the slope another tenth. Positions go through in
blocks, so that p and a stay in the caches. For the backward pass p is kept if that takes little memory, and computed
again from x if not, for a sixth more arithmetic: then nothing as wide as p is ever stored for all positions.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.kernels.working_set import bytes_to_keep, rows_at_once

_SCALE, _CUBIC = math.sqrt(8 / math.pi), 0.044715


def mlp_reference(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The same as `mlp` by torch's own operations."""
    return F.linear(F.gelu(F.linear(x, weight1, bias1), approximate="tanh"), weight2, bias2)


def _by_sigmoid(p: Tensor) -> bool:
    # elsewhere torch's GELU is one pass, and in half precision it rounds once
    return p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64)


def _exponent(p: Tensor) -> Tensor:
    return torch.addcmul(p.new_tensor(_SCALE), p, p, value=_SCALE * _CUBIC).mul_(p)


def gelu(p: Tensor) -> Tensor:
    """GELU of p in its tanh form, without gradients; best given what the caches hold."""
    return _exponent(p).sigmoid_().mul_(p) if _by_sigmoid(p) else F.gelu(p, approximate="tanh")


def _gelu_and_gradient(p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(p), and the gradient for p from that for GELU(p), which is overwritten."""
    if not _by_sigmoid(p):
        return F.gelu(p, approximate="tanh"), torch.ops.aten.gelu_backward(grad, p, approximate="tanh")
    z = _exponent(p)
    s = torch.sigmoid(z)
    a = p * s
    falling = torch.addcmul(s, s, s, value=-1)
    slope = s.addcmul_(falling, z.sub_(p, alpha=2 * _SCALE / 3), value=3)
    return a, grad.mul_(slope)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        size, out = rows_at_once(x.device), x.new_empty(len(x), len(weight2))
        keep = len(x) * len(weight1) * x.itemsize <= bytes_to_keep(x.device)
        kept = []
        for rows, y in zip(x.split(size), out.split(size), strict=True):
            p = torch.addmm(bias1, rows, weight1.T)
            torch.addmm(bias2, gelu(p), weight2.T, out=y)
            if keep:
                kept.append(p)
        ctx.save_for_backward(x, weight1, bias1, weight2, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is returned has no history: its own derivative would be wrong
            raise UsageError("mlp has no second derivative (create_graph=True); mlp_reference has")
        x, weight1, bias1, weight2, *kept = ctx.saved_tensors
        size, grad_x = rows_at_once(x.device), torch.empty_like(x)
        # blocks of a half-precision product are summed in float32
        total, needed = torch.promote_types(x.dtype, torch.float32), ctx.needs_input_grad
        grad_weight1, grad_bias1, grad_weight2 = (
            torch.zeros_like(w, dtype=total) if needed[i] else None for i, w in enumerate((weight1, bias1, weight2), 1)
        )
        for i, (rows, g, out) in enumerate(zip(x.split(size), grad.split(size), grad_x.split(size), strict=True)):
            p = kept[i] if kept else torch.addmm(bias1, rows, weight1.T)
            a, grad_p = _gelu_and_gradient(p, g @ weight2)
            if grad_weight2 is not None:
                grad_weight2 += g.T @ a
            if grad_weight1 is not None:
                grad_weight1 += grad_p.T @ rows
            if grad_bias1 is not None:
                grad_bias1 += grad_p.sum(0)
            torch.mm(grad_p, weight1, out=out)
        weights = (None if w is None else w.to(x.dtype) for w in (grad_weight1, grad_bias1, grad_weight2))
        return grad_x, *weights, grad.sum(0) if needed[4] else None


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The feed-forward layer; the equations stand at the top of this file.

    Parameters
    ----------
    x : Tensor (..., D)
    weight1, bias1 : Tensor (F, D), (F,)
    weight2, bias2 : Tensor (D, F), (D,)

    Returns
    -------
    Tensor (..., D)                 in autocast's dtype where that is enabled, otherwise in x's

    Examples
    --------
    >>> identity = torch.eye(2)
    >>> mlp(torch.tensor([[10.0, -10.0]]), identity, torch.zeros(2), identity, torch.ones(2))
    tensor([[11.,  1.]])
    """
    operands = [x.reshape(-1, x.shape[-1]), weight1, bias1, weight2, bias2]
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        operands = [operand.to(dtype) for operand in operands]
    y: Tensor = _Mlp.apply(*operands)  # type: ignore[no-untyped-call]
    return y.view(x.shape)
