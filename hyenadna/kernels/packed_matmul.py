"""Product with a weight matrix of a few bits a number, without ever making the whole matrix.

    y[n, r] = bias[r] + sum over k < K of x[n, k] W[r, k]

W (R, K) is packed as `hyenadna.kernels.packed_weight` says. With `transposed` the result is y^T (R, n), as the Hyena
operator reads it.

Cost. 2 n K R FLOPs, and some 4 K R for the weights; it reads bits / 8 + (bytes of scale and zero) / g bytes a weight.
On a CPU as many rows of W as half a megabyte holds are made in x's dtype and multiplied, then the next; the result is
written in place, whichever way round. The backward pass makes them again, so that nothing of x or W is saved. It pays
in memory: with 16 positions or fewer the time is that of making W, several times that of a dense product.
x float32, float64, bfloat16 or float16; scale and zero float32 or float16. W is computed in float32 (in float64 for
x of float64) and rounded once, so the result is that of a dense layer with the weights of `dequantize`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend
from hyenadna.kernels.packed_weight import Bits, PackedWeight, dequantize

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def packed_matmul_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: Bits,
    group: int,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """The same as `packed_matmul` with the whole of W."""
    weight = dequantize(packed, scale, zero, bits=bits, group=group, columns=x.shape[1], dtype=x.dtype)
    y = F.linear(x, weight, bias)
    return y.T.contiguous() if transposed else y


def _forward(x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor) -> None:
    """Into out (n, R), of any strides."""
    for rows, block in weight.blocks(x.dtype):
        if bias is None:
            torch.mm(x, block.T, out=out[:, rows])
        else:
            torch.addmm(bias[rows], x, block.T, out=out[:, rows])


def _backward(grad: Tensor, weight: PackedWeight, out: Tensor) -> None:
    """Into out (n, K) the gradient for x, from that for y (n, R)."""
    # the products of the blocks of rows are summed in float32
    total = out if out.dtype in (torch.float32, torch.float64) else torch.empty_like(out, dtype=torch.float32)
    total.zero_()
    for rows, block in weight.blocks(out.dtype):
        if total is out:
            out.addmm_(grad[:, rows], block)
        else:
            total += grad[:, rows] @ block
    if total is not out:
        out.copy_(total)


Forward = Callable[[Tensor, PackedWeight, Tensor | None, Tensor], None]
Backward = Callable[[Tensor, PackedWeight, Tensor], None]


def _implementation(x: Tensor) -> tuple[Forward, Backward]:
    if backend.chosen(x) == "triton":
        from hyenadna.kernels import packed_matmul_triton  # imports triton

        return packed_matmul_triton.forward, packed_matmul_triton.backward
    return _forward, _backward


class _PackedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight, transposed: bool) -> Tensor:
        compute, ctx.backward_of = _implementation(x)
        ctx.weight, ctx.transposed = weight, transposed
        n, R = len(x), len(weight.packed)
        out = x.new_empty(R, n) if transposed else x.new_empty(n, R)
        compute(x, weight, bias, out.T if transposed else out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is returned has no history: its own derivative would be wrong
            raise UsageError("packed_matmul has no second derivative (create_graph=True); packed_matmul_reference has")
        grad = grad.T if ctx.transposed else grad
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.new_empty(len(grad), ctx.weight.columns)
            ctx.backward_of(grad, ctx.weight, grad_x)
        return grad_x, grad.sum(0) if ctx.needs_input_grad[1] else None, None, None


def packed_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: Bits,
    group: int,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """The product of x with the packed weights; the equations stand at the top of this file.

    Parameters
    ----------
    x : Tensor (n, K)
        Of any strides; bfloat16, float16, float32 or float64.
    packed, scale, zero : Tensor (R, bytes), (R, G), (R, G)
        As `dequantize` takes them.
    bias : Tensor (R,), optional
    transposed : bool
        Whether the result is y^T.

    Returns
    -------
    Tensor (n, R)                   or (R, n), contiguous; in autocast's dtype where that is enabled, otherwise in x's

    Raises
    ------
    UsageError                      bits other than 1, 2, 3, 4 or 8, or a group below 1
    ShapeError, a ValueError        shapes or dtypes that do not fit
    KernelError                     the Triton kernel does not run on this GPU

    Examples
    --------
    >>> from hyenadna.kernels.packed_weight import pack
    >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 2)
    >>> x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    >>> packed_matmul(x, packed, torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.5]]), bits=2, group=2).tolist()
    [[-1.0], [5.0]]
    """
    weight = PackedWeight(packed, scale, zero, bits, group, x.shape[-1])
    weight.check()
    _check_product(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    bias = None if bias is None else bias.to(x.dtype)
    y: Tensor = _PackedMatmul.apply(x, bias, weight, transposed)  # type: ignore[no-untyped-call]
    return y


def _check_product(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> None:
    if x.dim() != 2 or x.dtype not in _DTYPES or (bias is not None and bias.shape != weight.packed.shape[:1]):
        given = "none" if bias is None else tuple(bias.shape)
        raise ShapeError(
            f"packed_matmul was given x {tuple(x.shape)} {x.dtype} and bias {given} for {len(weight.packed)} rows of "
            f"weights; it takes x (n, K) of a floating dtype, bias ({len(weight.packed)},) or none"
        )
