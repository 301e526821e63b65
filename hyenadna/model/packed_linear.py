"""The linear layers of a block: dense, and packed into a few bits a weight. Here alone a quantised model is another.

A packed layer holds codes, and for each group of neighbours in a row a scale and a zero point (Badri and Shaji 2023,
HQQ): W = (code - zero) scale. With 16 bits these two are float16 numbers. With 8 they are codes themselves, c for

    lowest + (highest - lowest) c / 255,

whose float16 ends are those of 128 scales, or of all zero points of the layer. Departs from their code, at the same
bytes: the ends are stored and not a step and an offset, which in float16 underflow where weights are small and overflow
where scales are alike.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.errors import NotFiniteError, ShapeError
from hyenadna.kernels.packed_matmul import packed_matmul
from hyenadna.kernels.packed_weight import Bits, dequantize, pack, packed_bytes
from hyenadna.model.config import Quantization

_SCALES_TOGETHER = 128
_LARGEST_CODE = 255


class DenseLinear(nn.Linear):
    """torch's linear layer, which also gives its result transposed."""

    def columns(self, rows: Tensor) -> Tensor:
        """(n, K) -> (R, n): as a product from the left, so that no (n, R) has to be transposed."""
        return torch.addmm(self.bias[:, None], self.weight, rows.T)


class PackedLinear(nn.Module):
    """A linear layer whose weights are codes of a few bits; made with all codes 0, to be loaded into, or by `of`.

    Only the bias follows casts; the buffers `packed`, `scale` and `zero` (and with 8 bits for these two `scale_ends`
    and `zero_ends`) are the same bytes in memory as on disk, whatever the model computes in.

    Parameters
    ----------
    in_features, out_features : int
        K and R; W is (R, K).
    bits : Bits
        Of a code.
    group : int
        Neighbours in a row that share a scale and a zero point; the last group of a row may hold fewer.
    meta_bits : 8 or 16
        Of a scale and of a zero point.
    bias : bool
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    scale_ends: Tensor
    zero_ends: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Bits,
        group: int,
        meta_bits: Literal[8, 16],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group, self.meta_bits = bits, group, meta_bits
        groups = (out_features, -(-in_features // group))
        self.register_buffer("packed", torch.zeros(out_features, packed_bytes(in_features, bits), dtype=torch.uint8))
        for name, ends in (("scale", -(-groups[0] * groups[1] // _SCALES_TOGETHER)), ("zero", 1)):
            self.register_buffer(name, torch.zeros(groups, dtype=torch.float16 if meta_bits == 16 else torch.uint8))
            if meta_bits == 8:
                self.register_buffer(f"{name}_ends", torch.zeros(ends, 2, dtype=torch.float16))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def of(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor,
        *,
        bits: Bits,
        group: int,
        meta_bits: Literal[8, 16],
        bias: Tensor | None = None,
    ) -> "PackedLinear":
        """The layer of these codes, with scale and zero point rounded to what is stored.

        Parameters
        ----------
        codes : uint8 Tensor (R, K)
        scale, zero : Tensor (R, ceil(K / group))
        bias : Tensor (R,), optional
            Copied.

        Raises
        ------
        ShapeError, a ValueError        shapes that do not fit, or codes of more bits
        NotFiniteError                  a scale or zero point that float16 cannot hold
        """
        layer = cls(codes.shape[1], codes.shape[0], bits=bits, group=group, meta_bits=meta_bits, bias=bias is not None)
        if not scale.shape == zero.shape == layer.scale.shape or (bias is not None and bias.shape != codes.shape[:1]):
            raise ShapeError(
                f"codes {tuple(codes.shape)} in groups of {group} were given with scale {tuple(scale.shape)}, zero "
                f"{tuple(zero.shape)} and bias {None if bias is None else tuple(bias.shape)}; they take scale and zero "
                f"{tuple(layer.scale.shape)}, and a bias ({codes.shape[0]},) or none"
            )
        layer.packed = pack(codes, bits)
        if meta_bits == 16:
            layer.scale, layer.zero = (_half(x, name) for x, name in ((scale, "scale"), (zero, "zero point")))
        else:
            layer.scale, layer.scale_ends = _coded(scale, _SCALES_TOGETHER, "scale")
            layer.zero, layer.zero_ends = _coded(zero, zero.numel(), "zero point")
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., R), in autocast's dtype where that is enabled, otherwise in x's."""
        return self._product(x.reshape(-1, self.in_features), transposed=False).view(*x.shape[:-1], self.out_features)

    def columns(self, rows: Tensor) -> Tensor:
        """(n, K) -> (R, n)."""
        return self._product(rows, transposed=True)

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, (R, ceil(K / group)) each: float16 as stored, or decoded in float32."""
        if self.meta_bits == 16:
            return self.scale, self.zero
        scale = _decoded(self.scale, self.scale_ends, _SCALES_TOGETHER)
        return scale, _decoded(self.zero, self.zero_ends, self.zero.numel())

    def dequantized(self) -> Tensor:
        """The weights that the layer multiplies by, (R, K), in float32."""
        scale, zero = self.scale_and_zero()
        return dequantize(self.packed, scale, zero, bits=self.bits, group=self.group, columns=self.in_features)

    @property
    def stored_bits(self) -> float:
        """Bits a weight, of the bytes that codes, scales and zero points take; the bias is not counted."""
        return bits_per_weight(self)

    def extra_repr(self) -> str:
        """For printing a model."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}, "
            f"meta_bits={self.meta_bits}, bias={self.bias is not None}"
        )

    def _product(self, rows: Tensor, *, transposed: bool) -> Tensor:
        scale, zero = self.scale_and_zero()
        return packed_matmul(
            rows, self.packed, scale, zero, bits=self.bits, group=self.group, bias=self.bias, transposed=transposed
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        # as bytes, which a cast leaves alone: float16 in another dtype would be wider, or other numbers
        stored = {id(buffer) for buffer in self.buffers(recurse=False)}

        def moved(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.uint8)).view(tensor.dtype) if id(tensor) in stored else fn(tensor)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call, no-any-return]


Linear = DenseLinear | PackedLinear


def linear_layers(quantization: Quantization | None) -> Callable[[int, int], Linear]:
    """What makes the linear layers of a model's blocks, from in_features and out_features."""
    if quantization is None:
        return DenseLinear
    return functools.partial(
        PackedLinear, bits=quantization.bits, group=quantization.group, meta_bits=quantization.meta_bits
    )


def packed_layers(module: nn.Module) -> list[PackedLinear]:
    """The packed layers in a module."""
    return [part for part in module.modules() if isinstance(part, PackedLinear)]


def weight_count(module: nn.Module) -> int:
    """Numbers that a module multiplies or adds: its parameters, and the weights that are packed."""
    dense = sum(parameter.numel() for parameter in module.parameters())
    return dense + sum(layer.in_features * layer.out_features for layer in packed_layers(module))


def bits_per_weight(module: nn.Module) -> float:
    """Bits a weight over all packed layers of a module, of the bytes that they hold; biases are not counted."""
    layers = packed_layers(module)
    held = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
    return 8 * held / sum(layer.in_features * layer.out_features for layer in layers)


def _half(values: Tensor, what: str) -> Tensor:
    half = values.detach().half()
    if not torch.isfinite(half).all():
        raise NotFiniteError(
            f"a {what} of {values.abs().max():g} was to be stored; float16 holds up to 65,504: are all weights finite?"
        )
    return half.contiguous()


def _coded(values: Tensor, together: int, what: str) -> tuple[Tensor, Tensor]:
    """Codes (R, G), uint8, and the float16 ends (n, 2) of each so many values."""
    values = values.detach().float()
    # the last value again fills the last row, whose ends it does not change
    rows = F.pad(values.flatten()[None], (0, -values.numel() % together), mode="replicate").view(-1, together)
    ends = _half(torch.stack(rows.aminmax(dim=1), dim=1), what)
    lowest, highest = ends.float()[:, :, None].unbind(1)
    width = (highest - lowest).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((rows - lowest) / width * _LARGEST_CODE).round().clamp(0, _LARGEST_CODE).to(torch.uint8)
    return codes.flatten()[: values.numel()].reshape(values.shape), ends


def _decoded(codes: Tensor, ends: Tensor, together: int) -> Tensor:
    rows = F.pad(codes.flatten(), (0, -codes.numel() % together)).view(-1, together)
    lowest, highest = ends.float()[:, :, None].unbind(1)
    return torch.lerp(lowest, highest, rows / _LARGEST_CODE).flatten()[: codes.numel()].view(codes.shape)
