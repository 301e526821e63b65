"""What the tests hold the package against: sums written out in float64, and the textbook model."""

import importlib.util
from pathlib import Path
from types import ModuleType

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
