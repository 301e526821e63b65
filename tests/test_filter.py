"""The filter module: what it hands to the computation, and in which dtype."""

import numpy as np
import pytest
import torch
from oracles import assert_as_exact_as, benchmark_module, implicit_filter_in_numpy

from hyenadna.model.config import HyenaConfig
from hyenadna.model.filter import HyenaFilter


def make(length=100, *, d_model=6, emb_dim=5, shift=0.05, seed=0):
    torch.manual_seed(seed)
    return HyenaFilter(d_model, length=length, width=16, emb_dim=emb_dim, sine_frequency=10.0, shift=shift)


def filter_in_numpy(filter_fn, L):
    network = dict(filter_fn.implicit_filter.named_parameters())
    names = ["1.freq", *(f"{layer}.{kind}" for layer in "024" for kind in ("weight", "bias")), "6.weight"]
    parameters = tuple(network[name] for name in names)
    return implicit_filter_in_numpy(parameters, np.arange(L), filter_fn.length, filter_fn.shift)


@pytest.mark.parametrize("emb_dim", [3, 5, 7])
@pytest.mark.parametrize("shift", [0.0, 0.05])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 65, 97])
def test_filters_are_the_equation(L, shift, emb_dim):
    filter_fn = make(emb_dim=emb_dim, shift=shift)
    expected = filter_in_numpy(filter_fn, L)
    np.testing.assert_allclose(filter_fn.double()(L).detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(filter_fn.float()(L).detach().numpy(), expected, rtol=0, atol=1e-5)


def test_float32_filters_are_as_exact_as_float32_allows_at_a_million_taps():
    filter_fn = make(1_000_002, d_model=2)
    config = HyenaConfig(d_model=2, filter_length=1_000_002, filter_order=16)
    eager = benchmark_module("textbook").Filter(config)
    eager.load_state_dict(filter_fn.state_dict())
    with torch.no_grad():
        exact = torch.from_numpy(filter_in_numpy(filter_fn, 1_000_002))
        assert_as_exact_as(filter_fn(1_000_002), eager(1_000_002).T, exact)


def test_channels_one_by_one_are_the_whole():
    filter_fn = make().double()
    hidden = filter_fn.hidden(65)
    parts = [filter_fn.taps(hidden, slice(d, d + 1)) for d in range(6)]
    torch.testing.assert_close(torch.cat(parts), filter_fn(65), rtol=0, atol=1e-14)


def test_the_length_scales_time():
    short, long = make(100), make(200)
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), long.parameters(), strict=True))
    assert not torch.allclose(short(100), long(100), atol=1e-3)


def test_half_precision_weights_make_float32_filters():
    filter_fn = make().bfloat16()
    assert filter_fn(65).dtype == torch.float32
    np.testing.assert_allclose(filter_fn(65).detach().numpy(), filter_in_numpy(filter_fn, 65), rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter_of_the_network():
    filter_fn = make().double()
    parameters = dict(filter_fn.implicit_filter.named_parameters())
    loss = (filter_fn(17) ** 2).sum()
    for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert gradient.abs().max() > 0, name
