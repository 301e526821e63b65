"""Experts against a loop over all of them, and what stays of gates that are zero."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.model.config import Quantization
from hyenadna.model.experts import Experts, expert_layers, gates_of
from hyenadna.model.packed_linear import linear_layers

D, E = 16, 5


def layer(seed=0, *, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    made = Experts(D, 24, **{"experts": E, "active_experts": 2} | changes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(dtype)


def tokens(*shape, dtype=torch.float32):
    """Some of which no expert is on for, with the routers of `layer`."""
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(shape[0]), dtype=torch.float64).to(dtype)


def dense(experts, x):
    """Every expert on every token, one token after the other."""
    y = torch.zeros_like(x)
    for place in range(x.reshape(-1, D).shape[0]):
        token = x.reshape(-1, D)[place]
        gates = (experts.router.weight @ token).clamp(min=0)
        y.reshape(-1, D)[place] = sum(
            gate * expert(token[None])[0] for gate, expert in zip(gates, experts.experts, strict=True)
        )
    return y


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (40,)])
def test_sparse_dispatch_is_the_dense_loop(shape, with_gradients, dtype, tolerance):
    experts, x = layer(dtype=dtype), tokens(*shape, dtype=dtype)
    with torch.no_grad():
        expected = dense(experts, x)
    with torch.set_grad_enabled(with_gradients):
        y = experts(x)
    assert y.shape == x.shape and y.dtype == dtype and y.requires_grad == with_gradients
    assert (y - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


def test_the_width_is_shared_by_the_active_experts():
    experts = layer()
    assert len(experts.experts) == E and {expert.fc1.out_features for expert in experts.experts} == {12}
    one = layer(experts=1, active_experts=1)
    assert one.experts[0].fc1.out_features == 24


def test_gradients_are_those_of_the_dense_loop():
    experts, x = layer(dtype=torch.float64), tokens(2, 9, dtype=torch.float64).requires_grad_()
    other, x_other = copy.deepcopy(experts), x.detach().clone().requires_grad_()
    grad = torch.randn(2, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    experts(x).backward(grad)
    gates = torch.relu(other.router(x_other))
    torch.stack([gates[..., e, None] * expert(x_other) for e, expert in enumerate(other.experts)]).sum(0).backward(grad)
    assert (x.grad - x_other.grad).abs().max() < 1e-12
    for (name, one), two in zip(experts.named_parameters(), other.parameters(), strict=True):
        assert (one.grad - two.grad).abs().max() < 1e-12, name


def test_a_gate_that_is_zero_gives_no_gradient_and_others_do():
    experts, x = layer(), tokens(30)
    with torch.no_grad():
        experts.router.weight[3] = 0  # off for all
        experts.router.weight[0] = 0
        experts.router.weight[0, 2] = 1.0  # on where channel 2 is positive
    experts(x).square().sum().backward()
    router = experts.router.weight.grad
    assert (router[3] == 0).all() and (router[0] != 0).any()
    for parameter in experts.experts[3].parameters():
        assert (
            parameter.grad is not None and (parameter.grad == 0).all()
        )  # zero and not missing: other ranks add theirs
    on = x[:, 2] > 0
    experts.zero_grad()
    experts(x[~on]).sum().backward()
    assert (experts.router.weight.grad[0] == 0).all() and (experts.experts[0].fc1.weight.grad == 0).all()
    experts.zero_grad()
    experts(x[on][:1]).sum().backward()
    assert (experts.router.weight.grad[0] != 0).all()


def test_a_token_that_switches_on_no_expert_gets_zero():
    experts, x = layer(), tokens(12)
    with torch.no_grad():
        experts.router.weight.zero_()
        experts.router.weight[:, 0] = 1.0
        x[:, 0] = torch.tensor([-1.0, 1.0]).repeat(6)
        with gates_of(experts) as gates:
            y = experts(x)
    assert (y[::2] == 0).all() and (y[1::2] != 0).any(dim=1).all()
    assert ((gates.all() == 0).all(dim=-1)[0] == (torch.arange(12) % 2 == 0)).all()


def test_not_a_number_is_not_lost():
    experts, x = layer(), tokens(4)
    x[2, 3] = float("nan")
    with torch.no_grad():
        assert torch.isnan(experts(x)[2]).all() and torch.isfinite(experts(x)[[0, 1, 3]]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_stays_in_float32(dtype):
    experts, x = layer(), tokens(50)
    weight = experts.router.weight.detach().clone()
    with gates_of(experts) as exact, torch.no_grad():
        y = experts(x)
    experts.to(dtype)
    assert experts.router.weight.dtype == torch.float32 and torch.equal(experts.router.weight, weight)
    assert experts.experts[0].fc1.weight.dtype == dtype
    rounded = x.to(dtype)
    with gates_of(experts) as half, torch.no_grad():
        found = experts(rounded)
    assert torch.equal(half.all()[0], torch.relu(rounded.float() @ weight.T))
    assert found.dtype == torch.float32 and (found - y).norm() < 0.02 * y.norm()
    assert experts.double().router.weight.dtype == torch.float64 and torch.equal(experts.router.weight.float(), weight)
    assert exact.all().dtype == torch.float32


def test_autocast_leaves_the_gates_alone():
    experts, x = layer(), tokens(20)
    with gates_of(experts) as plain:
        experts(x)
    with gates_of(experts) as cast, torch.autocast("cpu", torch.bfloat16):
        y = experts(x)
    assert torch.equal(plain.all(), cast.all()) and y.dtype == torch.float32
    y.sum().backward()


@pytest.mark.parametrize("with_gradients", [True, False])
def test_packed_experts(with_gradients):
    packed = Experts(D, 32, experts=4, active_experts=1, linear=linear_layers(Quantization(bits=4, group=16)))
    plain = Experts(D, 32, experts=4, active_experts=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        packed.router.weight[3] = -packed.router.weight[3].abs()
        plain.router.weight.copy_(packed.router.weight)
        for ours, theirs in zip(packed.experts, plain.experts, strict=True):
            for name in ("fc1", "fc2"):
                layer, dense_layer = getattr(ours, name), getattr(theirs, name)
                layer.packed.random_(0, 256, generator=generator)
                layer.scale_ends.copy_(torch.tensor([0.01, 0.02]))
                layer.zero_ends.copy_(torch.tensor([7.0, 8.0]))
                dense_layer.weight.copy_(layer.dequantized())
                dense_layer.bias.copy_(layer.bias)
    x = tokens(17).abs()  # the last expert is on for none
    with torch.set_grad_enabled(with_gradients):
        y, expected = packed(x.requires_grad_()), plain(x)
        assert (y - expected).abs().max() < 1e-6 * expected.abs().max()
        if with_gradients:
            y.sum().backward()
            assert packed.router.weight.grad.abs().max() > 0


def test_activation_checkpointing_changes_no_gradient_and_gates_are_heard_once():
    experts, x = layer(dtype=torch.float64), tokens(23, dtype=torch.float64)
    found = []
    for recompute in (False, True):
        experts.zero_grad()
        with gates_of(experts) as gates:
            y = checkpoint(experts, x, use_reentrant=False) if recompute else experts(x)
        loss = y.square().sum() + gates.all().sum() * 0.3
        loss.backward()
        assert gates.all().shape == (1, 23, E)  # the recomputation has been in between
        found.append(torch.cat([parameter.grad.flatten() for parameter in experts.parameters()]))
    assert torch.equal(*found) and not experts.router._forward_hooks


CONFIG = HyenaConfig(
    d_model=D, d_inner=32, layers="HH", filter_length=66, filter_order=8, embed_dropout=0.0, feed_forward="remoe",
    experts=4, active_experts=2,
)  # fmt: skip


def test_gates_of_a_model_are_by_layer_and_token_however_it_goes_through():
    torch.manual_seed(0)
    model = HyenaDNA(CONFIG).double().eval()
    given = torch.randint(7, 11, (3, 64), generator=torch.Generator().manual_seed(0))
    with gates_of(model) as whole:
        logits = model(given).logits
    gates = whole.all()
    assert gates.shape == (2, 192, 4) and gates.requires_grad and (gates > 0).any() and (gates == 0).any()
    with gates_of(model) as parts, torch.no_grad():
        assert (model(given).logits - logits).abs().max() < 1e-12
    assert (parts.all() - gates).abs().max() < 1e-12
    with gates_of(HyenaDNA(HyenaConfig(d_model=16, d_inner=16))) as none:
        pass
    assert not none and whole
    assert [layer.active_experts for layer in expert_layers(model)] == [2, 2]


def test_the_initial_weights_are_the_models():
    torch.manual_seed(0)
    model = HyenaDNA(CONFIG.__class__(**{**CONFIG.__dict__, "d_model": 64, "d_inner": 256, "experts": 8}))
    for block in model.backbone.layers:
        assert float(block.mlp.router.weight.detach().std()) == pytest.approx(0.02, rel=0.15)
        for expert in block.mlp.experts:
            assert float(expert.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            assert float(expert.fc2.weight.detach().std()) == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2 layers)
            assert (expert.fc1.bias == 0).all() and (expert.fc2.bias == 0).all()


def test_all_experts_open_and_alike_are_one_dense_layer():
    experts, x = layer(experts=3, active_experts=1, dtype=torch.float64), tokens(6, dtype=torch.float64)
    with torch.no_grad():
        experts.router.weight.zero_()
        experts.router.weight[:, 0] = 1 / 3
        x[:, 0] = 1.0
        for expert in experts.experts[1:]:
            expert.load_state_dict(experts.experts[0].state_dict())
        assert (experts(x) - experts.experts[0](x)).abs().max() < 1e-12
