"""The computation of the implicit filters against numpy in float64, value and every gradient."""

import numpy as np
import pytest
import torch
from oracles import (
    assert_as_exact_as,
    implicit_filter_in_numpy,
    positional_features_in_numpy,
    relative_error,
)

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import implicit_filter as module
from hyenadna.kernels.implicit_filter import hidden_layer, implicit_filter, implicit_filter_reference, taps
from hyenadna.kernels.sine_network import SineNetwork, positional_features

LENGTHS = (1, 2, 3, 63, 64, 65, 257, 1000)
T, SHIFT = 1000, 0.05


def make(*, D=6, F=16, E=5, dtype=torch.float32):
    random = torch.Generator().manual_seed(D + F + E)

    def uniform(*shape):
        # as torch initialises a linear layer
        bound = 1 / shape[-1] ** 0.5
        return (2 * bound * torch.rand(*shape, generator=random, dtype=torch.float64) - bound).to(dtype)

    frequency = 10 + uniform(1, F)
    return SineNetwork(
        frequency, uniform(F, E), uniform(F), uniform(F, F), uniform(F), uniform(F, F), uniform(F), uniform(D, F)
    )


def double(network):
    return SineNetwork(*(x.double() for x in network))


def gradients(function, network, L, grad, length=T):
    leaves = [x.detach().clone().requires_grad_() for x in network]
    return torch.autograd.grad(function(SineNetwork(*leaves), L, length, SHIFT), leaves, grad)


def output_gradient(D, L):
    return torch.randn(D, L, generator=torch.Generator().manual_seed(L), dtype=torch.float64)


@pytest.fixture(params=[8, 64, 1 << 20], ids=lambda tile: f"tiles of {tile}")
def _tiles(request, monkeypatch):
    monkeypatch.setattr(module, "rows_at_once", lambda device: request.param // 4)


@pytest.mark.parametrize("E", [3, 5, 7])
@pytest.mark.parametrize(("L", "length"), [(1, 2), (7, 7), (100, 1026), (4097, 1_000_002)])
def test_positional_features(L, length, E):
    features = positional_features(torch.arange(L, dtype=torch.float64), length, E)
    assert features.dtype == torch.float64
    expected = positional_features_in_numpy(np.arange(L), length, E)
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("E", [3, 5, 7])
@pytest.mark.parametrize("L", LENGTHS)
def test_filters_are_the_equation(L, E):
    network = make(E=E)
    exact = torch.from_numpy(implicit_filter_in_numpy(network, np.arange(L), T, SHIFT))
    plain = implicit_filter_reference(network, L, T, SHIFT)
    assert_as_exact_as(implicit_filter(network, L, T, SHIFT), plain, exact)
    for function in (implicit_filter, implicit_filter_reference):
        torch.testing.assert_close(function(double(network), L, T, SHIFT), exact, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("L", LENGTHS)
def test_every_gradient_is_the_references_in_float64(L):
    network, grad = make(), output_gradient(6, L)
    for ours, plain, ours64, exact in zip(
        gradients(implicit_filter, network, L, grad.float()),
        gradients(implicit_filter_reference, network, L, grad.float()),
        gradients(implicit_filter, double(network), L, grad),
        gradients(implicit_filter_reference, double(network), L, grad),
        strict=True,
    ):
        assert_as_exact_as(ours, plain, exact)
        assert relative_error(ours64, exact) < 1e-12


@pytest.mark.parametrize("function", [implicit_filter, implicit_filter_reference])
@pytest.mark.parametrize("L", range(1, 10))
def test_gradcheck(L, function, monkeypatch):
    monkeypatch.setattr(module, "rows_at_once", lambda device: 1)
    network = make(D=2, F=3, E=3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in network]
    assert torch.autograd.gradcheck(lambda *leaves: function(SineNetwork(*leaves), L, 10, SHIFT), leaves)


def test_the_last_of_a_million_taps():
    length, network = 1_000_002, make(D=3, F=64)
    tiles = [slice(0, 64), slice(524_250, 524_320), slice(999_938, length)]
    with torch.no_grad():
        ours = implicit_filter(network, length, length, SHIFT)
        for tile in tiles:
            t = np.arange(length)[tile]
            exact = torch.from_numpy(implicit_filter_in_numpy(network, t, length, SHIFT))
            x = torch.from_numpy(positional_features_in_numpy(t, length, 5)).float()
            for weight, bias in zip(network[1:7:2], network[2:7:2], strict=True):
                x = torch.sin(network.frequency * (x @ weight.T + bias))
            rates = torch.from_numpy(np.linspace(np.log(100) / 1.5, np.log(100) / 0.3, 3)).float()
            time = torch.from_numpy(t / (length - 1)).float()
            plain = (x @ network.output.T).T * (torch.exp(-torch.outer(rates, time)) + SHIFT)
            assert_as_exact_as(ours[:, tile], plain, exact)


@pytest.mark.parametrize("L", [1, 2, 64, 999])
def test_fewer_taps_are_a_prefix_of_more(L):
    network = make(dtype=torch.float64)
    whole = implicit_filter(network, 1000, T, SHIFT)
    torch.testing.assert_close(implicit_filter(network, L, T, SHIFT), whole[:, :L], rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_tiles")
def test_channels_out_of_the_hidden_layer_are_the_whole():
    network = make(dtype=torch.float64)
    hidden = hidden_layer(network, 65, T)
    parts = [taps(network, hidden, T, SHIFT, slice(d, d + 4)) for d in (0, 4)]
    torch.testing.assert_close(torch.cat(parts), implicit_filter(network, 65, T, SHIFT), rtol=0, atol=1e-14)


def test_only_the_parameters_are_saved():
    network = SineNetwork(*(x.requires_grad_() for x in make()))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        implicit_filter(network, 1000, T, SHIFT)
    assert saved == [x.data_ptr() for x in network]


def test_autocast_leaves_values_and_gradients_alone():
    network, grad = make(), output_gradient(6, 65).float()
    exact = implicit_filter(network, 65, T, SHIFT), *gradients(implicit_filter, network, 65, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = implicit_filter(network, 65, T, SHIFT), *gradients(implicit_filter, network, 65, grad)
        hidden = hidden_layer(network, 65, T)
        parts = taps(network, hidden, T, SHIFT, slice(None))
    torch.testing.assert_close(given, exact, rtol=0, atol=0)
    assert_as_exact_as(parts, exact[0], exact[0].double())


def test_second_derivatives_are_refused():
    network = SineNetwork(*(x.requires_grad_() for x in make()))
    loss = implicit_filter(network, 5, T, SHIFT).square().sum()
    with pytest.raises(UsageError, match="no second derivative"):
        torch.autograd.grad(loss, list(network), create_graph=True)


@pytest.mark.parametrize("name", SineNetwork._fields)
def test_parameters_that_do_not_fit_are_refused(name):
    network = make()
    wrong = network._replace(**{name: torch.zeros(getattr(network, name).numel() + 1)})
    with pytest.raises(
        ShapeError, match=rf"implicit_filter was given .*{name} \(\d+,\).*; it takes frequency \(1, F\)"
    ):
        implicit_filter(wrong, 5, T, SHIFT)


def test_other_dtypes_are_refused():
    half = SineNetwork(*(x.half() for x in make()))
    mixed = make()._replace(output=make().output.double())
    for network in (half, mixed):
        with pytest.raises(ShapeError, match="must be float32, or all float64"):
            implicit_filter(network, 5, T, SHIFT)


def test_no_taps_are_refused():
    with pytest.raises(ShapeError, match="asked for 0 taps; it makes 1 or more"):
        implicit_filter(make(), 0, T, SHIFT)
