"""The long convolution against its sum in float64, value and every gradient."""

import pytest
import torch
from oracles import assert_as_exact_as, direct_long_conv, relative_error

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import fft_conv as module
from hyenadna.kernels.fft_conv import (
    fft_conv,
    fft_conv_reference,
    fft_conv_spectrum,
    filter_spectrum,
    good_size,
    transform_of,
)

LENGTHS = (1, 2, 3, 63, 64, 65, 257, 1000, 1009)
LAYOUTS = ("contiguous", "channels first")
INPUTS = ("v", "h", "skip", "pre_gate", "post_gate")


def operands(L, *, B=2, D=3, layout="contiguous", gates=True, dtype=torch.float32, taps=None):
    """v, h, skip and gates; the v and gates of layout 'channels first' are views of (D, B, L) in memory."""
    random = torch.Generator().manual_seed(L)

    def signal():
        if layout == "contiguous":
            return torch.randn(B, D, L, generator=random, dtype=torch.float64).to(dtype)
        return torch.randn(D, B, L, generator=random, dtype=torch.float64).to(dtype).transpose(0, 1)

    filters = torch.randn(D, taps or L, generator=random, dtype=torch.float64).to(dtype)
    skip = torch.randn(D, generator=random, dtype=torch.float64).to(dtype)
    return [signal(), filters, skip, *((signal(), signal()) if gates else (None, None))]


def gradients(function, given, grad):
    """Of <grad, function(given)> by every tensor that was given, by name."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given]
    function(*leaves).backward(grad)
    return {name: x.grad for name, x in zip(INPUTS, leaves, strict=True) if x is not None}


def in_float64(given):
    return [None if x is None else x.double() for x in given]


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_convolution_is_the_direct_sum(L, layout, gates):
    given = operands(L, layout=layout, gates=gates)
    exact = direct_long_conv(*given)
    assert_as_exact_as(fft_conv(*given), fft_conv_reference(*given), exact)
    torch.testing.assert_close(fft_conv(*in_float64(given)), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fft_conv_reference(*in_float64(given)), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gates", [(True, False), (False, True)])
def test_either_gate_alone(gates):
    v, h, skip, pre_gate, post_gate = operands(65)
    given = (v, h, skip, pre_gate if gates[0] else None, post_gate if gates[1] else None)
    assert_as_exact_as(fft_conv(*given), fft_conv_reference(*given), direct_long_conv(*given))


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_every_gradient_is_the_references_in_float64(L, layout, gates):
    given = operands(L, layout=layout, gates=gates)
    grad = operands(L + 1, layout=layout)[0][..., :L]
    exact = gradients(fft_conv_reference, in_float64(given), grad.double())
    double = gradients(fft_conv, in_float64(given), grad.double())
    eager, ours = gradients(fft_conv_reference, given, grad), gradients(fft_conv, given, grad)
    for name in exact:
        assert relative_error(double[name], exact[name]) < 1e-12, name
        assert_as_exact_as(ours[name], eager[name], exact[name])


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("L", range(1, 10))
def test_gradcheck(L, gates):
    given = [x for x in operands(L, D=2, gates=gates, dtype=torch.float64) if x is not None]
    given = [x.requires_grad_() for x in given]
    assert torch.autograd.gradcheck(fft_conv, given)
    assert torch.autograd.gradcheck(fft_conv_reference, given)


def test_only_the_gradients_that_are_asked_for():
    given = operands(65)
    exact = gradients(fft_conv_reference, in_float64(given), torch.ones(2, 3, 65).double())
    for number, name in enumerate(INPUTS):
        leaves = [x.clone().requires_grad_(index == number) for index, x in enumerate(given)]
        fft_conv(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == number for index in range(5)]
        assert relative_error(leaves[number].grad, exact[name]) < 1e-5, name


def test_frozen_filters_cost_one_transform_less(monkeypatch):
    inverse, inverses = torch.fft.irfft, []
    monkeypatch.setattr(torch.fft, "irfft", lambda *x, **options: inverses.append(x) or inverse(*x, **options))
    for learnt in (True, False):
        leaves = [x.clone().requires_grad_(learnt or name not in ("h", "skip")) for name, x in named(operands(65))]
        y = fft_conv(*leaves)
        inverses.clear()
        y.sum().backward()
        assert len(inverses) == (2 if learnt else 1)


def named(given):
    return zip(INPUTS, given, strict=True)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_in_groups_kept_or_computed_again_it_is_as_exact(channels, keep, monkeypatch):
    monkeypatch.setattr(module, "channels_at_once", lambda device, row_elements: channels)
    monkeypatch.setattr(module, "bytes_to_keep", lambda device: 1 << 30 if keep else 0)
    given = operands(65, D=5)
    grad = operands(66, D=5)[0][..., :65]
    exact = gradients(fft_conv_reference, in_float64(given), grad.double())
    eager, ours = gradients(fft_conv_reference, given, grad), gradients(fft_conv, given, grad)
    assert_as_exact_as(fft_conv(*given), fft_conv_reference(*given), direct_long_conv(*given))
    for name in exact:
        assert_as_exact_as(ours[name], eager[name], exact[name])


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_beyond_a_limit_only_the_inputs_are_saved(limit, monkeypatch):
    monkeypatch.setattr(module, "bytes_to_keep", lambda device: limit)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    given = operands(65)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fft_conv(*(x.requires_grad_() for x in given))
    inputs = [x for x in saved if any(x.data_ptr() == g.data_ptr() for g in given)]
    assert len(inputs) == 5 and (len(saved) == 5) == (limit == 0)


def test_a_second_derivative_is_refused_instead_of_wrong():
    given = [x.requires_grad_() for x in operands(5)]
    with pytest.raises(UsageError, match="fft_conv has no second derivative"):
        torch.autograd.grad(fft_conv(*given).sum(), given[:1], create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_transformed_in_float32(dtype):
    v, h, skip, pre_gate, post_gate = operands(257)
    v, pre_gate, post_gate = (x.to(dtype) for x in (v, pre_gate, post_gate))
    exact = direct_long_conv(v, h, skip, pre_gate, post_gate)
    y = fft_conv(v, h, skip, pre_gate, post_gate)
    # the result is rounded to dtype, and nothing before it
    assert y.dtype == dtype
    assert relative_error(y, exact) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_with_a_kept_spectrum_it_is_the_same(L, layout, gates):
    v, h, skip, pre_gate, post_gate = operands(L, layout=layout)
    pre_gate = pre_gate if gates else None
    transform = transform_of(L, v)
    y = fft_conv_spectrum(v, filter_spectrum(h, transform), skip, pre_gate, post_gate, transform)
    exact = direct_long_conv(v, h, skip, pre_gate, post_gate)
    assert_as_exact_as(y, fft_conv_reference(v, h, skip, pre_gate, post_gate), exact)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_with_a_kept_spectrum_some_channels_at_a_time(channels, monkeypatch):
    v, h, skip, pre_gate, post_gate = operands(65, D=5)
    transform = transform_of(65, v)
    monkeypatch.setattr(module, "channels_at_once", lambda device, row_elements: channels)
    y = fft_conv_spectrum(v, filter_spectrum(h, transform), skip, pre_gate, post_gate, transform)
    exact = direct_long_conv(v, h, skip, pre_gate, post_gate)
    assert_as_exact_as(y, fft_conv_reference(v, h, skip, pre_gate, post_gate), exact)


def test_one_spectrum_serves_every_length_of_its_size():
    v, h, skip, pre_gate, post_gate = operands(72)
    transform = transform_of(72, v)
    assert transform == transform_of(65, v) == ("torch", 144, 72)
    spectrum = filter_spectrum(h, transform)
    for L in (65, 71, 72):
        cut = [x[..., :L] for x in (v, h, pre_gate, post_gate)]
        y = fft_conv_spectrum(cut[0], spectrum, skip, *cut[2:], transform)
        assert relative_error(y, direct_long_conv(cut[0], cut[1], skip, *cut[2:])) < 1e-6


def test_inputs_are_left_as_they_were():
    given = operands(65)
    before = [x.clone() for x in given]
    fft_conv(*[x.clone().requires_grad_() for x in given]).sum().backward()
    transform = transform_of(65, given[0])
    spectrum = filter_spectrum(given[1], transform)
    out = torch.empty_like(given[0])
    assert fft_conv_spectrum(given[0], spectrum, *given[2:], transform, out=out) is out
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    assert torch.equal(spectrum, filter_spectrum(given[1], transform))


def test_a_filter_longer_than_the_input_is_cut_and_gets_zeros_beyond():
    v, h, skip, *_ = operands(64, gates=False, taps=100)
    assert torch.equal(fft_conv(v, h, skip), fft_conv(v, h[:, :64], skip))
    h.requires_grad_()
    fft_conv(v, h, skip).sum().backward()
    assert (h.grad[:, 64:] == 0).all() and (h.grad[:, :64] != 0).all()


def test_future_input_does_not_reach_the_past():
    v, h, skip, pre_gate, post_gate = operands(257)
    later = v.clone()
    later[..., 100:] += 1
    y, changed = fft_conv(v, h, skip, pre_gate, post_gate), fft_conv(later, h, skip, pre_gate, post_gate)
    assert (changed - y)[..., :100].abs().max() < 1e-5 * y.abs().max()
    assert (changed - y)[..., 100:].abs().max() > 0.1


def test_good_size_is_the_smallest_five_smooth_multiple_of_16():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    sizes = [n for n in range(16, 4000, 16) if smooth(n)]
    for minimum in range(1, 3000):
        assert good_size(minimum) == next(n for n in sizes if n >= minimum)


def test_good_size_of_long_signals_is_a_power_of_two_if_one_is_near():
    published = (1_026, 32_770, 160_002, 450_002, 1_000_002)
    assert [good_size(2 * L - 1) for L in published] == [2160, 69_120, 324_000, 1 << 20, 1 << 21]
    assert good_size((1 << 20) + 1) == 1_049_760  # 2^5 3^8 5
    assert good_size(2 * (1 << 20) - 1) == 1 << 21


@pytest.mark.parametrize(
    ("v", "h", "skip", "message"),
    [
        ((2, 3, 8), (3, 7), (3,), r"v \(2, 3, 8\), h \(3, 7\).*filter as many taps"),
        ((2, 3, 0), (3, 7), (3,), "1 base or more"),
        ((3, 8), (3, 8), (3,), r"takes v \(B, D, L\), h \(D, L\), skip \(D,\)"),
        ((2, 3, 8), (4, 8), (3,), r"v \(2, 3, 8\), h \(4, 8\), skip \(3,\)"),
        ((2, 3, 8), (3, 8), (4,), r"skip \(4,\)"),
        ((2, 3, 8), (3, 8), (3, 1), r"skip \(3, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(v, h, skip, message):
    with pytest.raises(ShapeError, match=message):
        fft_conv(torch.zeros(v), torch.zeros(h), torch.zeros(skip))


@pytest.mark.parametrize("gates", [{"pre_gate": (2, 3, 1)}, {"post_gate": (3, 8)}])
def test_gates_of_another_shape_are_refused(gates):
    ((name, shape),) = gates.items()
    with pytest.raises(ShapeError, match=r"a gate \((2, 3, 1|3, 8)\) on cpu for v \(2, 3, 8\)"):
        fft_conv(torch.zeros(2, 3, 8), torch.zeros(3, 8), torch.zeros(3), **{name: torch.zeros(shape)})


def test_the_refusal_is_a_value_error():
    with pytest.raises(ValueError, match="fft_conv was given"):
        fft_conv(torch.zeros(2, 3, 0), torch.zeros(3, 7), torch.zeros(3))


@pytest.mark.parametrize(
    ("v", "h", "skip"),
    [("int64", "float32", "float32"), ("float32", "float16", "float16"), ("float32",) * 2 + ("float64",)],
)
def test_dtypes_that_cannot_be_computed_are_refused(v, h, skip):
    given = (
        torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in (((2, 3, 8), v), ((3, 8), h), ((3,), skip))
    )
    with pytest.raises(ShapeError, match=rf"v torch\.{v}, h torch\.{h}, skip torch\.{skip}; v may be any floating"):
        fft_conv(*given)


def test_a_spectrum_of_other_channels_or_of_a_shorter_transform_is_refused():
    v, h, skip, pre_gate, post_gate = operands(64)
    transform = transform_of(64, v)
    spectrum = filter_spectrum(h, transform)
    with pytest.raises(ShapeError, match=r"spectrum \(2, 65\).*must have D channels and v 1 to 64 tokens"):
        fft_conv_spectrum(v, spectrum[:2], skip, pre_gate, post_gate, transform)
    longer = operands(65)
    with pytest.raises(ShapeError, match=r"v \(2, 3, 65\), spectrum \(3, 65\)"):
        fft_conv_spectrum(longer[0], spectrum, skip, longer[3], longer[4], transform)
