"""The Triton kernel of the implicit filters against numpy in float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from oracles import assert_as_exact_as, implicit_filter_in_numpy, relative_error

from hyenadna.errors import KernelError
from hyenadna.kernels import implicit_filter_triton
from hyenadna.kernels.implicit_filter import implicit_filter, implicit_filter_reference
from hyenadna.kernels.sine_network import SineNetwork, decay_rates, positional_features

T, SHIFT = 1000, 0.05
WIDTHS = [(1, 64, 3), (64, 16, 5), (65, 24, 7), (200, 128, 17), (3, 24, 33)]


def make(device, *, D=6, F=64, E=5):
    random = torch.Generator().manual_seed(D + F + E)

    def uniform(*shape):
        # as torch initialises a linear layer
        bound = 1 / shape[-1] ** 0.5
        return (2 * bound * torch.rand(*shape, generator=random) - bound).to(device)

    return SineNetwork(
        10 + uniform(1, F),
        uniform(F, E), uniform(F), uniform(F, F), uniform(F), uniform(F, F), uniform(F),
        uniform(D, F),
    )  # fmt: skip


def exact_filters(network, L, length=T):
    return torch.from_numpy(implicit_filter_in_numpy(network, np.arange(L), length, SHIFT)).to(network.output.device)


@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 257, 1000])
def test_filters_are_the_equation(device, L):
    network = make(device)
    plain = implicit_filter_reference(network, L, T, SHIFT)
    assert_as_exact_as(implicit_filter(network, L, T, SHIFT), plain, exact_filters(network, L))


@pytest.mark.parametrize(("D", "F", "E"), WIDTHS)
def test_other_widths(device, D, F, E):
    network = make(device, D=D, F=F, E=E)
    plain = implicit_filter_reference(network, 70, T, SHIFT)
    assert_as_exact_as(implicit_filter(network, 70, T, SHIFT), plain, exact_filters(network, 70))


def rounded_to_tf32(x):
    """Ten bits after the leading one, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def product(a, b, parts):
    """A matrix product as the tensor cores form it with one or three TF32 parts."""
    high_a, high_b = rounded_to_tf32(a), rounded_to_tf32(b)
    if parts == 1:
        return high_a @ high_b
    return high_a @ high_b + (high_a @ rounded_to_tf32(b - high_b) + rounded_to_tf32(a - high_a) @ high_b)


@pytest.mark.parametrize(("parts", "exact_enough"), [(1, False), (3, True)])
def test_three_parts_of_tf32_are_as_exact_as_float32_and_one_is_not(parts, exact_enough):
    """By emulation: the interpreter multiplies in float32 whatever it is told."""
    network, length = make("cpu"), 1_000_002
    t = np.arange(0, length, 4999)
    exact = torch.from_numpy(implicit_filter_in_numpy(network, t, length, SHIFT))
    positions = torch.from_numpy(t).double()

    def error(multiply):
        x = positional_features(positions, length, 5).float().T
        for weight, bias in zip(network[1:7:2], network[2:7:2], strict=True):
            x = torch.sin(network.frequency.T * (multiply(weight, x) + bias[:, None]))
        window = torch.exp(-torch.outer(decay_rates(6, positions.device), positions / (length - 1))) + SHIFT
        return relative_error(multiply(network.output, x) * window, exact)

    allowed = 2 * error(torch.matmul) + 4 * torch.finfo(torch.float32).eps
    assert (error(lambda a, b: product(a, b, parts)) <= allowed) == exact_enough


def test_the_first_of_a_million_taps(device):
    network = make(device)
    plain = implicit_filter_reference(network, 130, 1_000_002, SHIFT)
    ours = implicit_filter(network, 130, 1_000_002, SHIFT)
    assert_as_exact_as(ours, plain, exact_filters(network, 130, 1_000_002))


def gradients(function, network, L, grad):
    leaves = [x.detach().clone().requires_grad_() for x in network]
    return torch.autograd.grad(function(SineNetwork(*leaves), L, T, SHIFT), leaves, grad)


def assert_exact_gradients(network, grad):
    L, double = grad.shape[1], SineNetwork(*(x.double() for x in network))
    for ours, plain, exact in zip(
        gradients(implicit_filter, network, L, grad),
        gradients(implicit_filter_reference, network, L, grad),
        gradients(implicit_filter_reference, double, L, grad.double()),
        strict=True,
    ):
        assert_as_exact_as(ours, plain, exact)


def output_gradient(D, L, device):
    return torch.randn(D, L, generator=torch.Generator().manual_seed(L)).to(device)


@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 257, 1000])
def test_every_gradient_is_the_references(device, L):
    assert_exact_gradients(make(device), output_gradient(6, L, device))


@pytest.mark.parametrize(("D", "F", "E"), WIDTHS)
def test_every_gradient_with_other_widths(device, D, F, E):
    assert_exact_gradients(make(device, D=D, F=F, E=E), output_gradient(D, 70, device))


def test_gradients_of_more_tiles_than_programs(device, monkeypatch):
    monkeypatch.setattr(implicit_filter_triton, "_BACKWARD_PROGRAMS", 3)
    assert_exact_gradients(make(device), output_gradient(6, 1000, device))


def test_gradients_that_lie_strided(device):
    grad = output_gradient(6, 100, device)
    assert_exact_gradients(make(device), grad[:, :65])
    assert_exact_gradients(make(device), grad[:, :1].expand(6, 65))


@triton.jit
def sines(a, sin, cos, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sin + at, implicit_filter_triton._sin(tl.load(a + at)))
    tl.store(cos + at, implicit_filter_triton._cos(tl.load(a + at)))


def test_sines_are_exact_up_to_four_thousand_half_turns(device):
    a = torch.cat([torch.linspace(-reach, reach, 1 << 16) for reach in (1e-3, 10, 100, 4095 * torch.pi)]).to(device)
    sin, cos = torch.empty_like(a), torch.empty_like(a)
    sines[(len(a) // 1024,)](a, sin, cos, BLOCK=1024)
    for ours, exact in ((sin, a.double().sin()), (cos, a.double().cos())):
        assert (ours - exact).abs().max() < 2 * torch.finfo(torch.float32).eps


def test_a_failure_says_how_to_do_without(device, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(implicit_filter_triton, "_constants", fail)
    with pytest.raises(KernelError, match=r"implicit_filter failed on .*: no such instruction; .*HYENA_KERNELS=torch"):
        implicit_filter(make(device), 5, T, SHIFT)
