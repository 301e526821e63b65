"""The gated short convolution against its sums in float64, value and every gradient."""

import pytest
import torch
from oracles import assert_as_exact_as, direct_short_conv, relative_error

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import short_conv
from hyenadna.kernels.short_conv import gated_short_conv, gated_short_conv_reference

LENGTHS = (1, 2, 3, 63, 64, 65, 257, 1000)
LAYOUTS = ("channels first", "channels last", "part of a larger one")


def operands(L, *, M=3, B=3, D=6, layout="channels first", dtype=torch.float32):
    """Projected (3, B, D, L), weight (3, D, M), bias (3, D)."""
    random = torch.Generator().manual_seed(100 * L + M)
    projected = torch.randn(3, D, B, L, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(3, D, M, generator=random, dtype=torch.float64).to(dtype)
    bias = torch.randn(3, D, generator=random, dtype=torch.float64).to(dtype)
    match layout:
        case "channels first":  # (3 D, B, L)
            projected = projected.transpose(1, 2)
        case "channels last":  # (B, L, 3 D)
            projected = projected.permute(2, 3, 0, 1).contiguous().permute(2, 0, 3, 1)
        case "part of a larger one":
            projected = torch.stack([projected, projected], dim=2)[:, :, 0].transpose(1, 2)
    return [projected, weight, bias]


def exact_value(projected, weight, bias):
    gate, x1, v = (direct_short_conv(projected[i], weight[i], bias[i]) for i in range(3))
    return x1 * v, gate


def gradients(function, given, grads):
    leaves = [x.detach().requires_grad_() for x in given]  # detach keeps the strides
    return torch.autograd.grad(function(*leaves), leaves, grads)


def output_gradients(L, *, B=3, D=6):
    random = torch.Generator().manual_seed(L)
    return [torch.randn(B, D, L, generator=random, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_value_is_the_direct_sum(L, layout, M):
    given = operands(L, M=M, layout=layout)
    double = [x.double() for x in given]
    for ours, plain, exact, ours64, plain64 in zip(
        gated_short_conv(*given),
        gated_short_conv_reference(*given),
        exact_value(*given),
        gated_short_conv(*double),
        gated_short_conv_reference(*double),
        strict=True,
    ):
        assert_as_exact_as(ours, plain, exact)
        torch.testing.assert_close(ours64, exact, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(plain64, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_every_gradient_is_the_sums_own(L, layout, M, B):
    given, grads = operands(L, M=M, B=B, layout=layout), output_gradients(L, B=B)
    double, single = [x.double() for x in given], [grad.float() for grad in grads]
    exact = gradients(exact_value if L < 100 else gated_short_conv_reference, double, grads)
    for ours, ours64, plain, x in zip(
        gradients(gated_short_conv, given, single),
        gradients(gated_short_conv, double, grads),
        gradients(gated_short_conv_reference, given, single),
        exact,
        strict=True,
    ):
        assert relative_error(ours64, x) < 1e-13
        assert_as_exact_as(ours, plain, x)


def test_only_the_gradients_that_are_asked_for():
    given, grads = operands(65), output_gradients(65)
    exact = gradients(exact_value, [x.double() for x in given], grads)
    for number in range(3):
        leaves = [x.clone().requires_grad_(index == number) for index, x in enumerate(given)]
        torch.autograd.backward(gated_short_conv(*leaves), [grad.float() for grad in grads])
        assert [leaf.grad is not None for leaf in leaves] == [index == number for index in range(3)]
        assert relative_error(leaves[number].grad, exact[number]) < 1e-5


def test_gradients_of_frozen_weights_are_not_computed(monkeypatch):
    given, computed = operands(65), []
    original = short_conv._short_conv_backward
    monkeypatch.setattr(short_conv, "_short_conv_backward", lambda *x: computed.append(x[3]) or original(*x))
    for frozen in (False, True):
        leaves = [given[0].clone().requires_grad_(), *(x.clone().requires_grad_(not frozen) for x in given[1:])]
        sum(x.sum() for x in gated_short_conv(*leaves)).backward()
    assert [into is None for into in computed] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_in_groups_is_the_whole(monkeypatch, channels):
    given, grads = operands(65, dtype=torch.float64), output_gradients(65)
    whole = [*gated_short_conv(*given), *gradients(gated_short_conv, given, grads)]
    monkeypatch.setattr(short_conv, "channels_at_once", lambda device, row_elements: channels)
    in_groups = [*gated_short_conv(*given), *gradients(gated_short_conv, given, grads)]
    torch.testing.assert_close(in_groups, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("function", [gated_short_conv, gated_short_conv_reference])
@pytest.mark.parametrize(("L", "M"), [*((L, 3) for L in range(1, 10)), (5, 1), (5, 2), (5, 4)])
def test_gradcheck(L, M, function):
    given = [x.requires_grad_() for x in operands(L, M=M, B=2, D=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(function, given)


def test_second_derivatives_are_refused():
    given = [x.requires_grad_() for x in operands(5)]
    u, gate = gated_short_conv(*given)
    with pytest.raises(UsageError, match="no second derivative"):
        torch.autograd.grad((u + gate).sum(), given, create_graph=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_into_given_memory(dtype, layout):
    projected, weight, bias = operands(65, layout=layout)
    projected = projected.to(dtype)
    room = torch.full((3, 6, 2, 70), torch.nan, dtype=dtype)
    out = room[..., 0, :65], room[..., 1, :65]
    assert gated_short_conv(projected, weight.requires_grad_(), bias, out=out) is out
    torch.testing.assert_close(out, gated_short_conv(projected, weight.detach(), bias), rtol=0, atol=0)
    assert room[..., 65:].isnan().all()


def test_results_lie_as_the_long_convolution_reads_them():
    for layout in LAYOUTS:
        for result in gated_short_conv(*operands(65, layout=layout)):
            assert result.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_operands_are_saved(layout):
    given = [x.requires_grad_() for x in operands(65, layout=layout)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        gated_short_conv(*given)
    assert saved == [x.data_ptr() for x in given]


def test_a_batch_of_three_is_three_batches():
    projected, weight, bias = operands(65)
    each = [gated_short_conv(projected[:, b : b + 1], weight, bias) for b in range(3)]
    torch.testing.assert_close(
        gated_short_conv(projected, weight, bias), tuple(torch.cat(parts) for parts in zip(*each, strict=True))
    )


def test_future_input_does_not_reach_the_past():
    projected, weight, bias = operands(65)
    later = projected.clone()
    later[..., 30:] += 1
    for before, after in zip(
        gated_short_conv(projected, weight, bias), gated_short_conv(later, weight, bias), strict=True
    ):
        assert torch.equal(before[..., :30], after[..., :30])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(dtype):
    projected, weight, bias = operands(257)
    given, grads = [projected.to(dtype), weight, bias], [grad.to(dtype) for grad in output_gradients(257)]
    single, single_grads = [x.float() for x in given], [grad.float() for grad in grads]
    double, double_grads = [x.double() for x in given], [grad.double() for grad in grads]
    for ours, plain, exact in zip(
        [*gated_short_conv(*given), *gradients(gated_short_conv, given, grads)],
        [*gated_short_conv(*single), *gradients(gated_short_conv_reference, single, single_grads)],
        [*exact_value(*double), *gradients(gated_short_conv_reference, double, double_grads)],
        strict=True,
    ):
        rounding = torch.finfo(dtype).eps / 2 if ours.dtype == dtype else 0
        assert relative_error(ours, exact) <= rounding + 2 * relative_error(plain, exact) + 4 * 2**-23


@pytest.mark.parametrize(
    ("projected", "weight", "bias"),
    [
        ((3, 2, 6), (3, 6, 3), (3, 6)),
        ((2, 2, 6, 8), (3, 6, 3), (3, 6)),
        ((3, 2, 6, 8), (3, 5, 3), (3, 6)),
        ((3, 2, 6, 8), (3, 6, 3), (3, 5)),
        ((3, 2, 6, 8), (18, 3), (18,)),
        ((3, 2, 6, 0), (3, 6, 3), (3, 6)),
        ((3, 2, 6, 8), (3, 6, 0), (3, 6)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(projected, weight, bias):
    named = f"projected {projected}, weight {weight}, bias {bias}; it takes".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ShapeError, match=named):
        gated_short_conv(torch.zeros(projected), torch.zeros(weight), torch.zeros(bias))


def test_other_dtypes_are_refused():
    with pytest.raises(ShapeError, match=r"was given torch.int64; it takes any floating dtype"):
        gated_short_conv(torch.zeros(3, 1, 1, 1, dtype=torch.int64), torch.zeros(3, 1, 1), torch.zeros(3, 1))
