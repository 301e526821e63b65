"""Product with a weight matrix of a few bits a number, without ever making the whole matrix.

    y[n, r] = bias[r] + sum over k < K of x[n, k] W[r, k]
    W[r, k] = (code[r, k] - zero[r, j]) scale[r, j],     j = k // g

Badri and Shaji 2023 (HQQ): W (R, K) is held as codes of 1, 2, 3, 4 or 8 bits, and a scale and a zero point for each
group of g neighbours in a row. With `transposed` the result is y^T (R, n), as the Hyena operator reads it.

Packing. Each row by itself, in whole bytes. With B = ceil(K bits / 8) bytes in a row, byte b holds the columns b,
b + B, b + 2 B ..., the first in its lowest bits, so that a run of bytes, shifted, is a run of columns. 3 bits are the
lower two, packed so, and after them the upper one. Bits beyond column K are zero.

Cost. 2 n K R FLOPs, and some 4 K R for the weights; it reads bits / 8 + (bytes of scale and zero) / g bytes a weight.
On a CPU as many rows of W as half a megabyte holds are made in x's dtype and multiplied, then the next; the result is
written in place, whichever way round. The backward pass makes them again, so that nothing of x or W is saved. It pays
in memory: with 16 positions or fewer the time is that of making W, several times that of a dense product.
x float32, float64, bfloat16 or float16; scale and zero float32 or float16. W is computed in float32 (in float64 for
x of float64) and rounded once, so the result is that of a dense layer with the weights of `dequantize`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import backend

Bits = Literal[1, 2, 3, 4, 8]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_WEIGHTS_AT_ONCE = 1 << 17
"""On a CPU, half a megabyte in float32: with fewer rows of W, each product reads x for too little arithmetic."""
_WEIGHTS_AT_ONCE_ELSEWHERE = 1 << 24


def planes(bits: Bits) -> tuple[Bits, ...]:
    """The bits that are packed together, from the lowest."""
    return (2, 1) if bits == 3 else (bits,)


def packed_bytes(columns: int, bits: Bits) -> int:
    """Bytes of one packed row."""
    return sum(-(-columns * plane // 8) for plane in planes(bits))


def pack(codes: Tensor, bits: Bits) -> Tensor:
    """Codes (R, K), uint8, as (R, packed_bytes(K, bits)); the layout stands at the top of this file.

    Raises
    ------
    UsageError                      bits other than 1, 2, 3, 4 or 8
    ShapeError, a ValueError        codes that are not uint8 (R, K), or that need more bits

    Examples
    --------
    >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist()
    [[49, 2]]
    """
    _check_bits(bits)
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise ShapeError(f"pack was given {codes.dtype} {tuple(codes.shape)}; it takes codes (R, K) in torch.uint8")
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ShapeError(f"pack was given the code {int(codes.max())}; {bits} bits hold 0 to {(1 << bits) - 1}")
    packed, done = [], 0
    for plane in planes(bits):
        size = packed_bytes(codes.shape[1], plane)
        part = (codes >> done) & ((1 << plane) - 1)
        part = F.pad(part, (0, size * 8 // plane - codes.shape[1])).unflatten(1, (8 // plane, size))
        packed.append((part << _shifts(plane, codes.device)).sum(1, dtype=torch.uint8))  # no bit is set twice
        done += plane
    return torch.cat(packed, dim=1)


def _shifts(plane: Bits, device: torch.device) -> Tensor:
    """How far up in its byte each run of columns lies: (8 / plane, 1)."""
    return torch.arange(0, 8, plane, dtype=torch.uint8, device=device)[:, None]


def unpack(packed: Tensor, bits: Bits, columns: int) -> Tensor:
    """The codes (R, columns), uint8, that `pack` was given.

    Raises
    ------
    UsageError                      bits other than 1, 2, 3, 4 or 8
    ShapeError, a ValueError        not uint8 (R, packed_bytes(columns, bits))
    """
    _check_bits(bits)
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] != packed_bytes(columns, bits):
        raise ShapeError(
            f"unpack was given {packed.dtype} {tuple(packed.shape)} for {columns} columns of {bits} bits; "
            f"it takes torch.uint8 (R, {packed_bytes(columns, bits)})"
        )
    return _unpack(packed, bits, columns).contiguous()


def _unpack(packed: Tensor, bits: Bits, columns: int) -> Tensor:
    if bits == 8:
        return packed.clone()
    low, *high = packed.split([packed_bytes(columns, plane) for plane in planes(bits)], dim=1)
    codes = _unpack_plane(low, planes(bits)[0], columns)
    for part in high:  # the upper bit of 3
        codes |= _unpack_plane(part, 1, columns) << 2
    return codes


def _unpack_plane(packed: Tensor, plane: Bits, columns: int) -> Tensor:
    runs = packed[:, None] >> _shifts(plane, packed.device)
    return runs.bitwise_and_((1 << plane) - 1).flatten(1)[:, :columns]


def dequantize(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: Bits,
    group: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weights (R, columns) in `dtype`: (code - zero) scale, computed in float32 or, if asked for that, float64.

    Parameters
    ----------
    packed : Tensor (R, packed_bytes(columns, bits))
        From `pack`.
    scale, zero : Tensor (R, ceil(columns / group))
        Float32 or float16; a group covers `group` columns, the last what is left.

    Raises
    ------
    UsageError                      bits other than 1, 2, 3, 4 or 8, or a group below 1
    ShapeError, a ValueError        shapes or dtypes that do not fit

    Examples
    --------
    >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 2)
    >>> dequantize(packed, torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.5]]), bits=2, group=2, columns=4)
    tensor([[-1.,  0., -5.,  5.]])
    """
    weight = PackedWeight(packed, scale, zero, bits, group, columns)
    _check(weight)
    out = torch.empty(len(packed), columns, dtype=dtype, device=packed.device)
    for rows, block in weight.blocks(dtype):
        out[rows] = block
    return out


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


class PackedWeight(NamedTuple):
    """What W is made of; (R, bytes), (R, G), (R, G)."""

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bits: Bits
    group: int
    columns: int

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some rows, and W (rows, K) there, in memory that the next block overwrites."""
        R, K, device = len(self.packed), self.columns, self.packed.device
        at_once = _WEIGHTS_AT_ONCE if device.type == "cpu" else _WEIGHTS_AT_ONCE_ELSEWHERE
        step = max(1, min(R, at_once // max(1, K)))
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        # of whole groups: what the last has beyond column K is computed and never read
        groups = torch.empty(step, self.scale.shape[1], min(self.group, K), dtype=computed, device=device)
        block = groups.flatten(1).narrow(1, 0, K)
        rounded = block if dtype == computed else torch.empty(step, K, dtype=dtype, device=device)
        parts = (self.packed, self.scale.to(computed)[..., None], self.zero.to(computed)[..., None])
        first = 0
        for packed, scale, zero in zip(*(part.split(step) for part in parts), strict=True):
            size = len(packed)
            if size < step:
                groups, block, rounded = (x[:size] for x in (groups, block, rounded))
            block.copy_(packed if self.bits == 8 else _unpack(packed, self.bits, K))
            groups.sub_(zero).mul_(scale)
            if dtype != computed:
                rounded.copy_(block)
            yield slice(first, first + size), rounded
            first += size


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
    >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 2)
    >>> x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    >>> packed_matmul(x, packed, torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.5]]), bits=2, group=2).tolist()
    [[-1.0], [5.0]]
    """
    weight = PackedWeight(packed, scale, zero, bits, group, x.shape[-1])
    _check(weight)
    _check_product(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    bias = None if bias is None else bias.to(x.dtype)
    y: Tensor = _PackedMatmul.apply(x, bias, weight, transposed)  # type: ignore[no-untyped-call]
    return y


def _check_bits(bits: Bits) -> None:
    if bits not in get_args(Bits):
        raise UsageError(f"{bits} bits were asked for; a weight may have {', '.join(map(str, get_args(Bits)))}")


def _check(weight: PackedWeight) -> None:
    packed, scale, zero, bits, group, columns = weight
    _check_bits(bits)
    if group < 1:
        raise UsageError(f"a group of {group} weights was asked for; it holds at least 1")
    groups = (len(packed), -(-columns // group))
    if (
        (packed.dim(), packed.dtype) != (2, torch.uint8)
        or packed.shape[1] != packed_bytes(columns, bits)
        or not scale.shape == zero.shape == groups
        or {scale.dtype, zero.dtype} - {torch.float32, torch.float16}
    ):
        given = ", ".join(
            f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            for name, tensor in (("packed", packed), ("scale", scale), ("zero", zero))
        )
        raise ShapeError(
            f"weights of {columns} columns in {bits} bits and groups of {group} were given as {given}; they are packed "
            f"(R, {packed_bytes(columns, bits)}) torch.uint8, scale and zero (R, {groups[1]}) float32 or float16"
        )


def _check_product(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> None:
    if x.dim() != 2 or x.dtype not in _DTYPES or (bias is not None and bias.shape != weight.packed.shape[:1]):
        given = "none" if bias is None else tuple(bias.shape)
        raise ShapeError(
            f"packed_matmul was given x {tuple(x.shape)} {x.dtype} and bias {given} for {len(weight.packed)} rows of "
            f"weights; it takes x (n, K) of a floating dtype, bias ({len(weight.packed)},) or none"
        )
