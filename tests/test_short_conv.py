"""The short depthwise convolution against its sum in float64, value and every gradient."""

import pytest
import torch
from oracles import assert_as_exact_as, direct_short_conv, relative_error

from hyenadna.errors import UsageError
from hyenadna.kernels.short_conv import short_conv, short_conv_reference

LENGTHS = (1, 2, 3, 63, 64, 65, 257, 1000, 1009)
LAYOUTS = ("contiguous", "channels first")


def operands(L, *, M=3, B=2, C=6, layout="contiguous", dtype=torch.float32):
    random = torch.Generator().manual_seed(100 * L + M)
    x = torch.randn(C, B, L, generator=random, dtype=torch.float64).to(dtype).transpose(0, 1)
    x = x.contiguous() if layout == "contiguous" else x
    return [
        x,
        torch.randn(C, M, generator=random, dtype=torch.float64).to(dtype),
        torch.randn(C, generator=random, dtype=torch.float64).to(dtype),
    ]


def gradients(function, given, grad):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    function(*leaves).backward(grad)
    return [x.grad for x in leaves]


@pytest.mark.parametrize("M", [1, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_convolution_is_the_direct_sum(L, layout, M):
    given = operands(L, M=M, layout=layout)
    exact = direct_short_conv(*given)
    assert_as_exact_as(short_conv(*given), short_conv_reference(*given), exact)
    double = [x.double() for x in given]
    torch.testing.assert_close(short_conv(*double), exact, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(short_conv_reference(*double), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_every_gradient_is_the_references_in_float64(L, layout):
    given = operands(L, layout=layout)
    grad = torch.randn(2, 6, L, generator=torch.Generator().manual_seed(L))
    exact = gradients(short_conv_reference, [x.double() for x in given], grad.double())
    double = gradients(short_conv, [x.double() for x in given], grad.double())
    eager, ours = gradients(short_conv_reference, given, grad), gradients(short_conv, given, grad)
    for d, e, o, x in zip(double, eager, ours, exact, strict=True):
        assert relative_error(d, x) < 1e-13
        assert_as_exact_as(o, e, x)


@pytest.mark.parametrize("L", range(1, 10))
def test_gradcheck(L):
    given = [x.requires_grad_() for x in operands(L, dtype=torch.float64)]
    assert torch.autograd.gradcheck(short_conv, given)
    assert torch.autograd.gradcheck(short_conv_reference, given)


def test_future_input_does_not_reach_the_past():
    x, weight, bias = operands(65)
    later = x.clone()
    later[..., 30:] += 1
    assert torch.equal(short_conv(x, weight, bias)[..., :30], short_conv(later, weight, bias)[..., :30])


def test_weights_take_the_dtype_of_the_input():
    x, weight, bias = operands(65)
    y = short_conv(x.bfloat16(), weight, bias)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, direct_short_conv(x, weight, bias)) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [((2, 6), (6, 3), (6,)), ((2, 6, 8), (5, 3), (6,)), ((2, 6, 8), (6, 3), (5,))]
)
def test_shapes_that_do_not_fit_are_refused(x, weight, bias):
    with pytest.raises(UsageError, match=r"short_conv was given x .*; it takes x \(B, C, L\)"):
        short_conv(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))
