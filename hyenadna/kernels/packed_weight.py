"""A weight matrix of a few bits a number: how it is packed, and what it stands for.

    W[r, k] = (code[r, k] - zero[r, j]) scale[r, j],     j = k // g

Badri and Shaji 2023 (HQQ): W (R, K) is held as codes of 1, 2, 3, 4 or 8 bits, and a scale and a zero point for each
group of g neighbours in a row.

Packing. Each row by itself, in whole bytes. With B = ceil(K bits / 8) bytes in a row, byte b holds the columns b,
b + B, b + 2 B ..., the first in its lowest bits, so that a run of bytes, shifted, is a run of columns. 3 bits are the
lower two, packed so, and after them the upper one. Bits beyond column K are zero.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import ShapeError, UsageError

Bits = Literal[1, 2, 3, 4, 8]

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
    weight.check()
    out = torch.empty(len(packed), columns, dtype=dtype, device=packed.device)
    for rows, block in weight.blocks(dtype):
        out[rows] = block
    return out


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

    def check(self) -> None:
        """Raise what `dequantize` raises where bits, group, shapes or dtypes do not fit."""
        packed, scale, zero, bits, group, columns = self
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
                f"weights of {columns} columns in {bits} bits and groups of {group} were given as {given}; they are "
                f"packed (R, {packed_bytes(columns, bits)}) torch.uint8, scale and zero (R, {groups[1]}) float32 or "
                "float16"
            )


def _check_bits(bits: Bits) -> None:
    if bits not in get_args(Bits):
        raise UsageError(f"{bits} bits were asked for; a weight may have {', '.join(map(str, get_args(Bits)))}")
