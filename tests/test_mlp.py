"""The feed-forward layer against torch's own operations in float64, value and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_as_exact_as, relative_error

from hyenadna.errors import UsageError
from hyenadna.kernels import mlp as module
from hyenadna.kernels.mlp import mlp, mlp_reference

NAMES = ("x", "weight1", "bias1", "weight2", "bias2")


def operands(*shape, inner=48, dtype=torch.float32):
    random = torch.Generator().manual_seed(shape[0])
    D = shape[-1]
    sizes = (shape, (inner, D), (inner,), (D, inner), (D,))
    return [torch.randn(size, generator=random, dtype=torch.float64).to(dtype) for size in sizes]


def gradients(function, given, grad):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    function(*leaves).backward(grad)
    return {name: leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)}


def in_float64(given):
    return [x.double() for x in given]


@pytest.fixture(params=[True, False], ids=["kept", "recomputed"])
def keep(request, monkeypatch):
    monkeypatch.setattr(module, "bytes_to_keep", lambda device: 1 << 30 if request.param else 0)
    return request.param


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 65, 16), (130, 16)])
def test_value_and_gradients_are_as_exact_as_torchs(shape, rows, keep, monkeypatch):
    monkeypatch.setattr(module, "rows_at_once", lambda device: rows)
    given, grad = operands(*shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert_as_exact_as(mlp(*given), mlp_reference(*given), mlp_reference(*in_float64(given)))
    exact = gradients(mlp_reference, in_float64(given), grad.double())
    double = gradients(mlp, in_float64(given), grad.double())
    eager, ours = gradients(mlp_reference, given, grad), gradients(mlp, given, grad)
    for name in NAMES:
        assert relative_error(double[name], exact[name]) < 1e-12, name
        assert_as_exact_as(ours[name], eager[name], exact[name])


def test_gradcheck(keep):
    assert torch.autograd.gradcheck(mlp, [x.requires_grad_() for x in operands(5, 3, inner=4, dtype=torch.float64)])


def test_gelu_and_its_slope_wherever_they_are_not_0_or_1():
    p = torch.linspace(-12, 12, 48001)
    leaves = [p.clone().requires_grad_(), p.double().requires_grad_()]
    for leaf in leaves:
        F.gelu(leaf, approximate="tanh").sum().backward()
    a, slope = module._gelu_and_gradient(p, torch.ones_like(p))
    assert torch.equal(a, module.gelu(p))
    assert_as_exact_as(a, *(F.gelu(leaf.detach(), approximate="tanh") for leaf in leaves))
    assert_as_exact_as(slope, *(leaf.grad for leaf in leaves))
    far = torch.tensor([-1e4, -100.0, 100.0, 1e4])
    a, slope = module._gelu_and_gradient(far, torch.ones(4))
    assert a.tolist() == [0.0, 0.0, 100.0, 1e4] and slope.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_as_exact_as_torchs(autocast, keep, monkeypatch):
    monkeypatch.setattr(module, "rows_at_once", lambda device: 64)
    given = operands(2, 257, 16, dtype=torch.float32 if autocast else torch.bfloat16)
    grad = torch.randn(2, 257, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = gradients(mlp_reference, in_float64(given), grad.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, eager_y = mlp(*given), mlp_reference(*given)
        ours, eager = gradients(mlp, given, grad), gradients(mlp_reference, given, grad)
    assert y.dtype == eager_y.dtype == torch.bfloat16
    assert_as_exact_as(y, eager_y, mlp_reference(*in_float64(given)))
    for name in NAMES:
        assert ours[name].dtype == eager[name].dtype
        allowed = 2 * relative_error(eager[name], exact[name]) + 4 * torch.finfo(torch.bfloat16).eps
        assert relative_error(ours[name], exact[name]) <= allowed, name


def test_only_the_gradients_that_are_asked_for(keep):
    given = operands(2, 65, 16)
    exact = gradients(mlp_reference, in_float64(given), torch.ones(2, 65, 16).double())
    for number, name in enumerate(NAMES):
        leaves = [x.clone().requires_grad_(index == number) for index, x in enumerate(given)]
        mlp(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == number for index in range(5)]
        assert relative_error(leaves[number].grad, exact[name]) < 1e-5, name


def test_used_twice_the_gradients_add_up(keep):
    given = operands(2, 65, 16)
    grad = torch.ones(2, 65, 16)
    once = gradients(mlp, given, grad)
    twice = gradients(lambda *leaves: mlp(*leaves) + mlp(*leaves), given, grad)
    for name in NAMES:
        torch.testing.assert_close(twice[name], 2 * once[name])


def test_strided_inputs_are_the_contiguous_ones():
    x, *weights = operands(2, 65, 16)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(mlp(strided, *weights), mlp(x, *weights))


def test_a_second_derivative_is_refused_instead_of_wrong():
    given = [x.requires_grad_() for x in operands(5, 16)]
    with pytest.raises(UsageError, match="mlp has no second derivative"):
        torch.autograd.grad(mlp(*given).sum(), given[:1], create_graph=True)


def saved_bytes(L):
    """Of all tensors that one call saves for its backward pass, the weights left out."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, *weights = operands(L, 16, inner=64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mlp(x.requires_grad_(), *weights)
    return sum(sizes.values()) - sum(w.nbytes for w in weights[:3])


def test_beyond_a_limit_only_the_input_is_saved(monkeypatch):
    monkeypatch.setattr(module, "bytes_to_keep", lambda device: 4 * 64 * 100)
    assert saved_bytes(100) == 4 * (16 + 64) * 100
    assert saved_bytes(101) == 4 * 16 * 101


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (1024, 33)])
def test_gelu_is_the_definition(shape, dtype):
    x = (4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    before = x.clone()
    exact = F.gelu(x.double(), approximate="tanh")
    assert module.gelu(x).dtype == dtype and module.gelu(x).shape == shape
    if x.numel():
        assert_as_exact_as(module.gelu(x), F.gelu(x, approximate="tanh"), exact)
    assert torch.equal(x, before)


def test_gelu_far_out_is_zero_or_its_input():
    x = torch.tensor([-1e30, -1e4, -20.0, -0.0, 0.0, 20.0, 1e4, 1e30])
    assert torch.equal(module.gelu(x), F.gelu(x, approximate="tanh"))
