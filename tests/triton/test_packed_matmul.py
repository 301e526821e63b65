"""The Triton kernels of the product with packed weights against float64, value and every gradient."""

import pytest
import torch
from oracles import assert_as_exact_as, relative_error

from hyenadna.errors import KernelError
from hyenadna.kernels import backend, packed_matmul_triton
from hyenadna.kernels.packed_matmul import packed_matmul, packed_matmul_reference
from hyenadna.kernels.packed_weight import dequantize, pack

BITS = (1, 2, 3, 4, 8)


def operands(n, R, K, group, bits, device, *, dtype=torch.float32, meta=torch.float16):
    random = torch.Generator().manual_seed(1000 * R + K + bits)
    groups = -(-K // group)
    codes = torch.randint(0, 1 << bits, (R, K), generator=random, dtype=torch.uint8)
    scale = (torch.rand(R, groups, generator=random) + 0.1).to(meta)
    zero = (torch.rand(R, groups, generator=random) * ((1 << bits) - 1)).to(meta)
    x, grad = (torch.randn(*shape, generator=random).to(device, dtype) for shape in ((n, K), (n, R)))
    bias = torch.randn(R, generator=random).to(device, dtype)
    weight = [tensor.to(device) for tensor in (pack(codes, bits), scale, zero)]
    return x, bias, grad, weight, {"bits": bits, "group": group}


def value_and_gradients(function, x, bias, grad, weight, how, *, transposed=False):
    x, bias = (leaf.detach().requires_grad_() for leaf in (x, bias))
    y = function(x, *weight, **how, bias=bias, transposed=transposed)
    return [y.detach(), *torch.autograd.grad(y, (x, bias), grad.T if transposed else grad)]


def assert_exact(given, *, transposed=False):
    """Float32: within twice the error of torch's own operations. Half precision: rounded once."""
    x, bias, grad, weight, how = given
    W = dequantize(*weight, **how, columns=x.shape[1], dtype=x.dtype).double()
    y = x.double() @ W.T + bias.double()
    exact = [y.T if transposed else y, grad.double() @ W, grad.double().sum(0)]
    ours = value_and_gradients(packed_matmul, *given, transposed=transposed)
    with backend.use("torch"):
        eager = value_and_gradients(packed_matmul_reference, *given, transposed=transposed)
    assert ours[0].is_contiguous()
    for value, plain, right in zip(ours, eager, exact, strict=True):
        assert value.dtype == x.dtype
        if x.dtype == torch.float32:
            assert_as_exact_as(value, plain, right)
        else:
            assert relative_error(value, right) <= torch.finfo(x.dtype).eps / 2 + 2**-16


@pytest.mark.parametrize(
    ("n", "R", "K", "group", "bits"),
    [
        *(
            (n, R, K, group, bits)
            for bits in BITS
            for n, R, K, group in ((1, 1, 1, 16), (2, 3, 70, 48), (3, 33, 64, 16))
        ),
        (17, 33, 130, 64, 3),
        (17, 33, 128, 128, 2),
    ],
)
def test_value_and_gradients_at_every_shape(device, n, R, K, group, bits):
    assert_exact(operands(n, R, K, group, bits, device))


@pytest.mark.parametrize(("bits", "K"), [(4, 64), (3, 37)])
@pytest.mark.parametrize("transposed", [False, True])
def test_half_precision_and_transposed(device, transposed, bits, K):
    assert_exact(operands(17, 5, K, 64, bits, device, dtype=torch.float16), transposed=transposed)


def test_transposed_x_and_float32_scales(device):
    x, *rest = operands(17, 5, 64, 32, 4, device, meta=torch.float32)
    assert_exact((x.T.contiguous().T, *rest), transposed=True)


@pytest.mark.parametrize(("bits", "K", "in_runs"), [(4, 128, True), (1, 128, True), (3, 128, True), (3, 130, False)])
def test_tiles_lie_in_one_run_of_bytes_where_they_can(device, bits, K, in_runs):
    _, _, _, (packed, scale, zero), how = operands(1, 2, K, 64, bits, device)
    weight = packed_matmul_triton.PackedWeight(packed, scale, zero, **how, columns=K)
    width, found = packed_matmul_triton.width(weight)
    assert found is in_runs and width == (16 if bits in (1, 3) and in_runs else 32)


def test_both_ways_of_finding_bytes_agree(device, monkeypatch):
    given = operands(3, 5, 128, 64, 3, device)
    in_runs = value_and_gradients(packed_matmul, *given)
    monkeypatch.setattr(packed_matmul_triton, "width", lambda weight: (32, False))
    torch.testing.assert_close(value_and_gradients(packed_matmul, *given), in_runs, rtol=1e-5, atol=1e-4)


def test_no_rows_and_no_bias(device):
    x, _, _, weight, how = operands(3, 5, 64, 64, 4, device)
    assert packed_matmul(x[:0], *weight, **how).shape == (0, 5)
    with backend.use("torch"):
        expected = packed_matmul(x, *weight, **how)
    torch.testing.assert_close(packed_matmul(x, *weight, **how), expected, rtol=1e-5, atol=1e-4)


def test_backward_runs_what_forward_ran(device, monkeypatch):
    calls, backward = [], packed_matmul_triton.backward
    monkeypatch.setattr(packed_matmul_triton, "backward", lambda *given: calls.append(given) or backward(*given))
    x, _, grad, weight, how = operands(3, 5, 64, 64, 4, device)
    y = packed_matmul(x.requires_grad_(), *weight, **how)
    with backend.use("torch"):
        y.backward(grad)
    assert len(calls) == 1


def test_a_failure_says_how_to_do_without(device, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(packed_matmul_triton.triton, "cdiv", fail)
    x, _, _, weight, how = operands(3, 5, 64, 64, 4, device)
    with pytest.raises(KernelError, match=r"packed_matmul failed on .*: no such instruction; .*HYENA_KERNELS=torch"):
        packed_matmul(x, *weight, **how)
