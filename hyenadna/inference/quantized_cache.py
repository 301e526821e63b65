"""Keys and values of a softmax layer's cache in few bits.

A channel of the keys has its own level and spread, which are alike at all tokens, and a value vector those of its token
(Liu et al. 2024, KIVI): so keys are quantised along the tokens of each channel, and values along the channels of each
token, by the solver of `hyenadna.inference.quantize`. Stored are packed codes, and of each group scale and least value
in float16, W = code scale + least; each code is the nearest on that grid. Rows are solved one by one, so that a
sequence's cache does not depend on its neighbours in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hyenadna.inference.quantize import solve
from hyenadna.kernels.packed_weight import Bits, dequantize, pack

GROUP = 64
_ITERATIONS = 5
"""Of the solver: the error falls hardly after them, and a cache is quantised again and again as it grows."""


class PackedMatrices(NamedTuple):
    """Matrices (rows, R, n) in few bits, in groups along n."""

    packed: Tensor
    """uint8 (rows, R, bytes)."""
    scale: Tensor
    """float16 (rows, R, groups)."""
    least: Tensor
    """float16 (rows, R, groups): what the code 0 stands for."""
    bits: Bits
    n: int

    @classmethod
    def of(cls, matrices: Tensor, bits: Bits) -> "PackedMatrices":
        """The nearest to matrices (rows, R, n) of any floating-point dtype."""
        packed, scales, leasts = zip(*(_packed(matrix, bits) for matrix in matrices), strict=True)
        return cls(torch.stack(packed), torch.stack(scales), torch.stack(leasts), bits, matrices.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.packed.nbytes + self.scale.nbytes + self.least.nbytes

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """(rows, R, n)."""
        packed, scale, least = (x.flatten(0, 1) for x in (self.packed, self.scale.float(), self.least.float()))
        group = min(GROUP, self.n)
        flat = dequantize(packed, scale, -least / scale, bits=self.bits, group=group, columns=self.n, dtype=dtype)
        return flat.view(*self.packed.shape[:2], self.n)

    def select(self, rows: Tensor) -> "PackedMatrices":
        """A copy of some rows."""
        return PackedMatrices(self.packed[rows], self.scale[rows], self.least[rows], self.bits, self.n)


class QuantizedSegment(NamedTuple):
    """A `Segment` in few bits."""

    keys: PackedMatrices
    """(rows, kv_heads K, n): channels by tokens."""
    values: PackedMatrices
    """(rows, kv_heads n, K): tokens by channels."""
    kv_heads: int
    dtype: torch.dtype
    """Of the keys and values that it gives."""

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, bits: Bits) -> "QuantizedSegment":
        """The nearest to keys and values (rows, kv_heads, n, K)."""
        by_channel, by_token = keys.transpose(2, 3).flatten(1, 2), values.flatten(1, 2)
        packed = PackedMatrices.of(by_channel, bits), PackedMatrices.of(by_token, bits)
        return cls(*packed, keys.shape[1], keys.dtype)

    @property
    def rows(self) -> int:
        """1, or one row an item."""
        return self.keys.packed.shape[0]

    @property
    def tokens(self) -> int:
        """n, of each head."""
        return self.keys.n

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and least values."""
        return self.keys.nbytes + self.values.nbytes

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, kv_heads, n, K), computed anew at each call."""
        keys = self.keys.dequantized(self.dtype).unflatten(1, (self.kv_heads, -1)).transpose(2, 3)
        return keys, self.values.dequantized(self.dtype).unflatten(1, (self.kv_heads, -1))

    def select(self, rows: Tensor) -> "QuantizedSegment":
        """A copy of some rows."""
        return self._replace(keys=self.keys.select(rows), values=self.values.select(rows))


def _packed(matrix: Tensor, bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and least values of a matrix (R, n)."""
    group = min(GROUP, matrix.shape[1])
    found = solve(matrix, bits=bits, group=group, iterations=_ITERATIONS, name="the cache")
    scale, least = found.scale.half(), (-found.zero * found.scale).half()
    scale_of, least_of = (part.float().repeat_interleave(group, dim=1)[:, : matrix.shape[1]] for part in (scale, least))
    codes = ((matrix.float() - least_of) / scale_of).round_().clamp_(0, (1 << bits) - 1).to(torch.uint8)
    return pack(codes, bits), scale, least
