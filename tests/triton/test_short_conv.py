"""The Triton kernels of the gated short convolution against float64, value and every gradient."""

import pytest
import torch
from oracles import assert_as_exact_as, direct_short_conv, relative_error

from hyenadna.errors import KernelError
from hyenadna.kernels import backend, short_conv_triton
from hyenadna.kernels.short_conv import gated_short_conv, gated_short_conv_reference

LAYOUTS = ("channels first", "channels last")


def operands(L, device, *, M=3, B=1, D=5, layout="channels first", dtype=torch.float32):
    random = torch.Generator().manual_seed(100 * L + M)
    projected = torch.randn(3, D, B, L, generator=random).to(dtype).transpose(1, 2)
    if layout == "channels last":
        projected = projected.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
    weight, bias = torch.randn(3, D, M, generator=random), torch.randn(3, D, generator=random)
    grads = [torch.randn(D, B, L, generator=random).to(dtype).transpose(0, 1).to(device) for _ in range(2)]
    return [x.to(device) for x in (projected, weight, bias)], grads


def value_and_gradients(function, given, grads):
    leaves = [x.detach().requires_grad_() for x in given]
    results = function(*leaves)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads)]


def assert_exact(given, grads):
    """Float32: within twice the error of torch's own operations. Half precision: rounded once."""
    dtype = given[0].dtype
    single, double = [[x.to(d) for x in given] for d in (torch.float32, torch.float64)]
    single_grads, double_grads = [[x.to(d) for x in grads] for d in (torch.float32, torch.float64)]
    for ours, plain, exact in zip(
        value_and_gradients(gated_short_conv, given, grads),
        value_and_gradients(gated_short_conv_reference, single, single_grads),
        value_and_gradients(gated_short_conv_reference, double, double_grads),
        strict=True,
    ):
        if ours.dtype == torch.float32:
            assert_as_exact_as(ours, plain, exact)
        else:
            assert ours.dtype == dtype
            assert relative_error(ours, exact) <= torch.finfo(dtype).eps / 2 + 2**-20


@pytest.mark.parametrize(
    ("L", "layout"),
    [*((L, layout) for L in (1, 2, 3, 63, 64, 65, 257) for layout in LAYOUTS), (1000, "channels first")],
)
def test_value_and_gradients_at_every_length(device, L, layout):
    assert_exact(*operands(L, device, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", [1, 65])
def test_half_precision(device, L, layout):
    assert_exact(*operands(L, device, layout=layout, dtype=torch.float16))


@pytest.mark.parametrize(("M", "B", "D"), [(1, 3, 5), (2, 1, 33), (4, 3, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_taps_batches_and_widths(device, layout, M, B, D):
    assert_exact(*operands(33, device, M=M, B=B, D=D, layout=layout))


def test_value_is_the_direct_sum(device):
    (projected, weight, bias), _ = operands(65, device, B=2)
    gate, x1, v = (direct_short_conv(projected[i].cpu(), weight[i].cpu(), bias[i].cpu()) for i in range(3))
    for ours, exact in zip(gated_short_conv(projected, weight, bias), (x1 * v, gate), strict=True):
        assert relative_error(ours.cpu(), exact) < 4 * torch.finfo(torch.float32).eps


def test_channels_out_of_a_larger_tensor_into_given_memory(device):
    (projected, weight, bias), _ = operands(65, device, B=2, D=8)
    part, room = projected[:, :, 2:5], torch.full((2, 4, 3, 70), torch.nan, device=device)
    out = room[0, :2, :, :65], room[1, 2:, :, :65]
    assert gated_short_conv(part, weight[:, 2:5], bias[:, 2:5], out=out) is out
    torch.testing.assert_close(out, gated_short_conv(part.clone(), weight[:, 2:5], bias[:, 2:5]), rtol=0, atol=0)
    assert room[..., 65:].isnan().all() and room[0, 2:].isnan().all() and room[1, :2].isnan().all()


def test_gradients_that_repeat_one_number(device):
    given, _ = operands(65, device)
    ones = [torch.ones((), device=device).expand(1, 5, 65) for _ in range(2)]
    assert_exact(given, ones)


def test_gradients_of_frozen_weights_are_left_out(device):
    given, grads = operands(65, device)
    whole = value_and_gradients(gated_short_conv, given, grads)[2]
    given[0].requires_grad_()
    (alone,) = torch.autograd.grad(gated_short_conv(*given), given[:1], grads)
    assert torch.equal(alone, whole)


def test_backward_runs_what_forward_ran(device, monkeypatch):
    calls, backward = [], short_conv_triton.backward
    monkeypatch.setattr(short_conv_triton, "backward", lambda *given: calls.append(given) or backward(*given))
    given, grads = operands(5, device)
    leaves = [x.requires_grad_() for x in given]
    results = gated_short_conv(*leaves)
    with backend.use("torch"):
        torch.autograd.grad(results, leaves, grads)
    assert len(calls) == 1


def test_a_failure_says_how_to_do_without(device, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(short_conv_triton, "_grid", fail)
    given, _ = operands(5, device)
    with pytest.raises(KernelError, match=r"gated_short_conv failed on .*: no such instruction; .*HYENA_KERNELS=torch"):
        gated_short_conv(*given)
