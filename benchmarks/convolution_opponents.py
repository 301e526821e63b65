"""What the long convolution is measured against; fft_conv.py says of each what it is."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from hyenadna.kernels.fft_conv import good_size
from hyenadna.progress import notice

FRIENDLY = (1_024, 8_192, 32_768, 163_840, 1_048_576)
"""Lengths whose doubles have no large prime factor."""

Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Opponent = Callable[[int, torch.dtype], Forward | None]
"""For inputs of this length and dtype; None where they are not its own."""


def textbook(v: Tensor, h: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor, n: int | None = None) -> Tensor:
    """As `Operator` of textbook.py computes it, with transforms of length n, or 2 L."""
    L = v.shape[-1]
    n = n or 2 * L
    u = (v * pre_gate).to(h.dtype)
    h_spectrum = torch.fft.rfft(h, n=n) / n
    y = torch.fft.irfft(torch.fft.rfft(u, n=n) * h_spectrum, n=n, norm="forward")[..., :L]
    return (y + u * skip[:, None]).to(v.dtype) * post_gate


def friendly(length: int, dtype: torch.dtype) -> Forward | None:
    n = good_size(2 * length - 1)
    return None if n == 2 * length else lambda *inputs: textbook(*inputs, n)


def compiled(length: int, dtype: torch.dtype) -> Forward | None:
    """In half precision alone, since it takes long to compile."""
    if length not in FRIENDLY or dtype == torch.float32:
        return None
    torch.compiler.reset()  # else the ninth shape of this function would run uncompiled, without a word
    return torch.compile(textbook, dynamic=False)


def flash_fft_conv(length: int, dtype: torch.dtype) -> Forward | None:
    """It takes half precision, transforms of a power of two, and has no skip: that is one more of the first tap."""
    if dtype == torch.float32:
        return None
    from flashfftconv import FlashFFTConv

    convolution = FlashFFTConv(2 << (length - 1).bit_length(), dtype=dtype).cuda()
    return lambda v, h, skip, pre, post: convolution(v, _with_skip(h, skip), pre, post)


def subquadratic_ops(length: int, dtype: torch.dtype) -> Forward:
    """It wants one dtype for both, pads to a power of two by itself, and has neither gates nor a skip."""
    from subquadratic_ops_torch.fft_causal_conv1d import fft_causal_conv1d

    return lambda v, h, skip, pre, post: fft_causal_conv1d(v * pre, _with_skip(h, skip).to(v.dtype)) * post


def _with_skip(h: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([h[:, :1] + skip[:, None], h[:, 1:]], dim=1)


OPPONENTS: dict[str, Opponent] = {"textbook": lambda *_: textbook, "friendly": friendly}
ON_CUDA = {"torch.compile": compiled, "FlashFFTConv": flash_fft_conv, "subquadratic-ops": subquadratic_ops}
PACKAGES = {"FlashFFTConv": "flashfftconv", "subquadratic-ops": "subquadratic_ops_torch"}


def opponents(device: torch.device) -> dict[str, Opponent]:
    """Those that can run here; says which cannot."""
    if device.type == "cpu":
        return OPPONENTS
    missing = {name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
    for name in sorted(missing):
        notice(f"{name} is left out: {PACKAGES[name]} is not installed")
    return OPPONENTS | {name: opponent for name, opponent in ON_CUDA.items() if name not in missing}
