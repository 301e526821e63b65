"""The Triton kernels of lightning attention against float64, value and every gradient, those of the states included."""

import pytest
import torch
from oracles import assert_as_exact_as, relative_error

from hyenadna.errors import KernelError
from hyenadna.kernels import backend, lightning_attention_triton
from hyenadna.kernels.lightning_attention import lightning_attention_extend, lightning_attention_reference

SLOPES = torch.tensor([0.0, 0.01, 40.0])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, device):
    """In the interpreter, where an operation costs the same for any tile, several blocks and segments of few tokens."""
    if device.type == "cpu":
        tiles = dict.fromkeys(lightning_attention_triton._WIDEST, (16, 16, 16))
        monkeypatch.setattr(lightning_attention_triton, "_WIDEST", tiles)
        monkeypatch.setattr(lightning_attention_triton, "_BLOCK", 16)
        monkeypatch.setattr(lightning_attention_triton, "_SHORTEST_SEGMENT", 32)


def operands(L, device, *, B=1, H=3, K=4, V=5, dtype=torch.float32, contiguous=True):
    random = torch.Generator().manual_seed(100 * L + K)
    q, k, v, grad_o = (torch.randn(B, L, H, n, generator=random).to(dtype) for n in (K, K, V, V))
    state, grad_state = (torch.randn(B, H, K, V, generator=random) for _ in range(2))
    q, k, v, grad_o = (x.transpose(1, 2).to(device) for x in (q, k, v, grad_o))
    if not contiguous:  # along K and V
        q, k, v, grad_o = (x.mT.contiguous().mT for x in (q, k, v, grad_o))
    return [q, k, v, state.to(device)], [grad_o, grad_state.to(device)]


def value_and_gradients(function, given, grads):
    leaves = [x.detach().requires_grad_() for x in given]
    slopes = SLOPES[: given[0].shape[1]].to(given[0].device)
    results = function(*leaves[:3], slopes, leaves[3])
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads)]


def assert_exact(given, grads):
    """Float32: within twice the error of torch's own operations. Half precision: rounded once in the interpreter."""
    dtype = given[0].dtype
    single, double = [([x.to(d) for x in given], [x.to(d) for x in grads]) for d in (torch.float32, torch.float64)]
    with backend.use("torch"):
        eager = value_and_gradients(lightning_attention_reference, *single)
        exact = value_and_gradients(lightning_attention_reference, *double)
    for ours, plain, right in zip(
        value_and_gradients(lightning_attention_extend, given, grads), eager, exact, strict=True
    ):
        if dtype == torch.float32:
            assert_as_exact_as(ours, plain, right)
        else:
            error = (ours.double() - right).square().mean().sqrt() / right.square().mean().sqrt()
            assert float(error) < 0.005
            assert ours.device.type == "cuda" or relative_error(ours, right) <= torch.finfo(dtype).eps / 2 + 2**-18


@pytest.mark.parametrize("L", [2, 16, 17, 40])
def test_value_and_gradients_at_every_length(device, L):
    assert_exact(*operands(L, device))


def test_many_segments_and_a_last_one_of_another_length(device):
    assert lightning_attention_triton._segment(100, 1) == 48 or device.type == "cuda"
    assert_exact(*operands(100, device, H=1))


def test_half_precision(device):
    assert_exact(*operands(34, device, H=2, dtype=torch.float16))


@pytest.mark.parametrize(("K", "V"), [(20, 3), (3, 20)])
def test_keys_and_values_wider_than_a_tile(device, K, V):
    assert_exact(*operands(18, device, H=2, K=K, V=V))


def test_batches_and_any_strides(device):
    assert_exact(*operands(18, device, B=2, H=2, contiguous=False))


def test_gradients_that_repeat_one_number(device):
    given, _ = operands(18, device, H=1)
    ones = torch.ones((), device=device)
    assert_exact(given, [ones.expand(1, 1, 18, 5), ones.expand(1, 1, 4, 5)])


def test_backward_runs_what_forward_ran(device, monkeypatch):
    calls, forward = [], lightning_attention_triton.forward
    monkeypatch.setattr(
        lightning_attention_triton, "forward", lambda *given: calls.append(given[-1]) or forward(*given)
    )
    given, grads = operands(5, device, H=1)
    leaves = [x.requires_grad_() for x in given]
    results = lightning_attention_extend(*leaves[:3], SLOPES[:1].to(device), leaves[3])
    with backend.use("torch"):
        torch.autograd.grad(results, leaves, grads)
    assert calls == [False, False, True, True]


def test_a_failure_says_how_to_do_without(device, monkeypatch):
    monkeypatch.setattr(lightning_attention_triton, "_lightning_blocks", {})
    given, _ = operands(5, device, H=1)
    with pytest.raises(KernelError, match=r"lightning_attention failed on .*; run with HYENA_KERNELS=torch"):
        lightning_attention_extend(*given[:3], SLOPES[:1].to(device), given[3])
