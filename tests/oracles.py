"""What the tests hold the package against: sums written out in float64, and the textbook model."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def direct_long_conv(
    v: Tensor, h: Tensor, skip: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None
) -> Tensor:
    """Float64 (B, D, L): post (skip u + sum over s <= t of h[t - s] u[s]) with u = v pre, term by term."""
    v, h, skip = v.double(), h.double(), skip.double()
    L = v.shape[-1]
    u = v if pre_gate is None else v * pre_gate.double()
    lag = torch.arange(L)[:, None] - torch.arange(L)  # t - s
    y = torch.stack([u[:, d] @ (h[d, lag.clamp(min=0)] * (lag >= 0)).T for d in range(v.shape[1])], dim=1)
    y = y + skip[:, None] * u
    return y if post_gate is None else y * post_gate.double()


def direct_short_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Float64 (B, C, L): bias + sum over m of weight[m] x[t - (M - 1) + m], position by position."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    M = weight.shape[1]
    positions = []
    for t in range(x.shape[-1]):
        taps = [weight[:, m] * x[..., t - M + 1 + m] for m in range(M) if t - M + 1 + m >= 0]
        positions.append(bias + sum(taps))
    return torch.stack(positions, dim=-1)


def positional_features_in_numpy(t: np.ndarray, T: int, E: int) -> np.ndarray:
    """Float64 (L, E): time, and the cosine and negative sine of each band's phase, at the positions t."""
    bands = (E - 1) // 2
    w = 2 * math.pi * t / T
    f = np.linspace(1e-4, bands - 1, bands) if bands > 1 else np.array([1e-4])
    return np.stack([t / (T - 1)] + [np.cos(a * w) for a in f] + [-np.sin(a * w) for a in f], axis=1)


def implicit_filter_in_numpy(parameters: tuple[Tensor, ...], t: np.ndarray, T: int, shift: float) -> np.ndarray:
    """Float64 (D, L): the filters at the positions t; parameters as in SineNetwork."""
    frequency, *layers, output = (x.detach().cpu().double().numpy() for x in parameters)
    x = positional_features_in_numpy(t, T, layers[0].shape[1])
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        x = np.sin(frequency * (x @ weight.T + bias))
    delta = np.abs(np.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, len(output)))
    return ((x @ output.T) * (np.exp(-np.outer(t / (T - 1), delta)) + shift)).T


def relative_error(given: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest exact value."""
    return float((given.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max())


def assert_as_exact_as(given: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Err(given) <= 2 err(eager) + 4 eps, where eager is the plain computation in the same dtype."""
    allowed = 2 * relative_error(eager, exact) + 4 * torch.finfo(given.dtype).eps
    assert relative_error(given, exact) <= allowed


def benchmark_module(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
