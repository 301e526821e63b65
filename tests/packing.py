"""Quantised models by plain rounding, and the dense models that they must equal, decoded in numpy."""

import copy

import numpy as np
import torch
from torch import Tensor

from hyenadna import HyenaDNA
from hyenadna.kernels.packed_weight import unpack
from hyenadna.model.config import Quantization
from hyenadna.model.packed_linear import PackedLinear
from hyenadna.model.weights import packed_model


def rounded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (R, K), scale and zero (R, G): each group's least and largest weight are its first and last code."""
    parts = weight.detach().float().split(group, dim=1)
    least = torch.stack([part.amin(1) for part in parts], 1)
    scale = (torch.stack([part.amax(1) for part in parts], 1) - least).clamp(min=1e-6) / (2**bits - 1)
    zero, column = -least / scale, torch.arange(weight.shape[1]) // group
    codes = (weight.detach() / scale[:, column] + zero[:, column]).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, zero


def packed(layer: torch.nn.Linear, how: Quantization) -> PackedLinear:
    codes = rounded(layer.weight, how.bits, how.group)
    return PackedLinear.of(*codes, bits=how.bits, group=how.group, meta_bits=how.meta_bits, bias=layer.bias)


def quantized(model: HyenaDNA, bits: int = 4, group: int = 16, meta_bits: int = 8) -> HyenaDNA:
    """A quantised child of the model."""
    how = Quantization(bits, group, meta_bits)
    return packed_model(model, {name: packed(layer, how) for name, layer in model.projections.items()}, how)


def decoded(codes: Tensor, ends: Tensor | None, together: int) -> np.ndarray:
    """Float64 (R, G): what the stored scales or zero points stand for."""
    if ends is None:
        return codes.double().numpy()
    flat, ends = codes.flatten().numpy() / 255, ends.double().numpy()
    low, high = (ends[np.arange(flat.size) // together, end] for end in (0, 1))
    return (low + (high - low) * flat).reshape(codes.shape)


def weight_of(layer: PackedLinear) -> Tensor:
    """Float64 (R, K): (code - zero) scale."""
    scale = decoded(layer.scale, getattr(layer, "scale_ends", None), 128)
    zero = decoded(layer.zero, getattr(layer, "zero_ends", None), layer.zero.numel())
    codes = unpack(layer.packed, layer.bits, layer.in_features).double().numpy()
    column = np.arange(layer.in_features) // layer.group
    return torch.from_numpy((codes - zero[:, column]) * scale[:, column])


def dense(model: HyenaDNA) -> HyenaDNA:
    """The dense model with the weights that a quantised one multiplies by."""
    child, plain = copy.deepcopy(model), HyenaDNA(model.config).to(model.device)
    state = {name: tensor for name, tensor in child.state_dict().items() if name in plain.state_dict()}
    state |= {f"{name}.weight": weight_of(layer).float() for name, layer in child.projections.items()}
    plain.load_state_dict(state)
    return plain.train(model.training)


def bytes_of(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().cpu().contiguous().numpy().tobytes() for name, tensor in model.state_dict().items()}
