"""The long convolution in Triton against float64, value and every gradient, on chip and through an outer stage.

The interpreter computes float16 products as a GPU does; bfloat16 only enters and leaves the kernels.
"""

import pytest
import torch
from oracles import direct_long_conv

from hyenadna.errors import KernelError, UsageError
from hyenadna.kernels import backend, fft_conv_launches_triton, fft_conv_triton
from hyenadna.kernels.fft_conv import (
    fft_conv,
    fft_conv_reference,
    fft_conv_spectrum,
    filter_spectrum,
    transform_of,
)
from hyenadna.kernels.fft_conv_launches_triton import TUNING, good_size, launches_of, plan_of
from hyenadna.kernels.fft_conv_triton import configurations

LENGTHS = (1, 2, 63, 64, 65, 257, 1000, 1024, 4097)
INPUTS = ("v", "h", "skip", "pre_gate", "post_gate")
FAST, EXACT = 1e-3, 1e-6
"""Relative error in the L2 norm that each precision may have; exact also twice that of torch in float32."""


def operands(device, L, *, B=2, D=3, dtype=torch.float32, gates=(True, True), layout="contiguous"):
    random = torch.Generator().manual_seed(L)

    def normal(*shape):
        return torch.randn(*shape, generator=random).to(device, dtype)

    def signal():
        match layout:
            case "channels first":
                return normal(D, B, L).transpose(0, 1)
            case "a part of the channels":
                return normal(B, 3 * D, L)[:, D : 2 * D]
            case "tokens first":
                return normal(B, L, D).transpose(1, 2)
        return normal(B, D, L)

    filters, skip = torch.randn(D, L, generator=random).to(device), torch.randn(D, generator=random).to(device)
    return [signal(), filters, skip, *(signal() if gate else None for gate in gates)]


def in_float64(given):
    return [None if x is None else x.double() for x in given]


def error(given, exact):
    """Relative, in the L2 norm."""
    return float((given.detach().double() - exact).norm() / exact.norm())


def value_and_gradients(function, given, grad):
    """The gradients are of <grad, value>, by name."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in given]
    y = function(*leaves)
    y.backward(grad)
    return y.detach(), {name: x.grad for name, x in zip(INPUTS, leaves, strict=True) if x is not None}


def assert_value_and_gradients(given, allowed):
    """Every result within `allowed`, or within twice the error of torch in float32 where that is larger."""
    grad = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).to(given[0])
    exact_y, exact = value_and_gradients(fft_conv_reference, in_float64(given), grad.double())
    in_float32 = [None if x is None else x.float() for x in given]
    eager_y, eager = value_and_gradients(fft_conv_reference, in_float32, grad.float())
    y, ours = value_and_gradients(fft_conv, given, grad)
    assert y.dtype == given[0].dtype
    assert error(y, exact_y) <= max(allowed, 2 * error(eager_y, exact_y))
    # tap 0 of the filter's gradient: one number of a vector, of which the error holds for the norm
    typical = exact["h"].norm(dim=1) / exact["h"].shape[1] ** 0.5
    assert ((ours.pop("skip") - exact["skip"]).abs() <= 4 * allowed * typical).all()
    for name, x in ours.items():
        assert x.dtype == given[INPUTS.index(name)].dtype
        assert error(x, exact[name]) <= max(allowed, 2 * error(eager[name], exact[name])), name


@pytest.fixture
def retune(monkeypatch):
    """Changes the tuning of both precisions for one test."""

    def change(**changes):
        for precision, tuning in TUNING.items():
            monkeypatch.setitem(TUNING, precision, tuning._replace(**changes))
        launches_of.cache_clear()

    yield change
    launches_of.cache_clear()


@pytest.fixture
def wide_tiles(retune):
    """Fewer programs where the interpreter runs them one after another."""
    if backend.interpreting():
        retune(outer_width=4096)


@pytest.fixture
def short_stages(retune):
    """Sizes from 4096 on go through an outer stage of several blocks and inner transforms of 1024 points."""
    on_chip = dict.fromkeys((256, 512, 1024, 2048), (2, 2))
    width = 1024 if backend.interpreting() else 128
    retune(on_chip_warps=on_chip, inner=1024, outer_block=16, outer_sum=16, outer_width=width)


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, EXACT), (torch.float16, FAST)])
def test_value_and_every_gradient(device, wide_tiles, L, dtype, allowed):
    assert_value_and_gradients(operands(device, L, D=2 if L <= 1024 else 1, dtype=dtype), allowed)


@pytest.mark.parametrize("L", [1, 2, 63, 64, 65, 257, 1000])
def test_it_is_the_direct_sum(device, L):
    given = operands(device, L)
    assert error(fft_conv(*given).cpu(), direct_long_conv(*(x.cpu() for x in given))) <= EXACT


def test_the_tiles_that_a_gpu_uses(device):
    v, h, skip, *_ = operands(device, 16_386, B=1, D=1, dtype=torch.float16, gates=(False, False))
    assert error(fft_conv(v, h, skip), fft_conv_reference(v.double(), h.double(), skip.double())) <= FAST


@pytest.mark.parametrize("L", [16_386, 160_002])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, EXACT), (torch.float16, FAST)])
def test_long_inputs(device, wide_tiles, L, dtype, allowed):
    assert_value_and_gradients(operands(device, L, B=1, D=1, dtype=dtype), allowed)


@pytest.mark.parametrize(("L", "factor"), [(32_000, 1), (24_000, 3), (20_000, 5), (28_002, 7)])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, EXACT), (torch.float16, FAST)])
def test_every_outer_factor(device, wide_tiles, L, factor, dtype, allowed):
    outer = good_size(L) // TUNING["fast"].inner
    assert outer % factor == 0 and (outer // factor).bit_count() == 1
    assert_value_and_gradients(operands(device, L, B=1, D=1, dtype=dtype), allowed)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, EXACT), (torch.float16, FAST)])
def test_several_blocks_of_the_outer_stage(device, short_stages, dtype, allowed):
    assert_value_and_gradients(operands(device, 20_000, B=1, D=1, dtype=dtype), allowed)


@pytest.mark.parametrize("L", [257, 4000])
@pytest.mark.parametrize("gates", [(False, False), (True, False), (False, True)])
def test_gates_are_optional(device, short_stages, L, gates):
    assert_value_and_gradients(operands(device, L, B=1, D=2, gates=gates), EXACT)


@pytest.mark.parametrize("L", [65, 4000])
@pytest.mark.parametrize("layout", ["channels first", "a part of the channels", "tokens first"])
def test_any_strides(device, short_stages, L, layout):
    assert_value_and_gradients(operands(device, L, B=2, D=2, layout=layout), EXACT)


def test_a_gradient_that_is_one_number_repeated(device):
    leaves = [x.requires_grad_() for x in operands(device, 65)]
    _, exact = value_and_gradients(fft_conv_reference, in_float64(leaves), torch.ones_like(leaves[0]).double())
    fft_conv(*leaves).sum().backward()
    for name, x in zip(INPUTS, leaves, strict=True):
        assert error(x.grad, exact[name]) <= EXACT, name


@pytest.mark.parametrize("warps", [1, 6, 1000])
def test_the_batch_may_be_a_loop_within_a_program(device, monkeypatch, warps):
    monkeypatch.setattr(fft_conv_launches_triton, "_WARPS", warps)
    assert_value_and_gradients(operands(device, 65, B=3, D=3), EXACT)


@pytest.mark.parametrize(
    ("rows", "dtype", "allowed"),
    [(2, torch.float32, EXACT), (8, torch.float32, EXACT), (2, torch.float16, FAST)],
)
def test_rows_in_any_groups(device, short_stages, monkeypatch, rows, dtype, allowed):
    monkeypatch.setattr(
        fft_conv_launches_triton, "_SCRATCH_BYTES", rows * 2 * 4096 * (8 if dtype == torch.float32 else 4)
    )
    assert_value_and_gradients(operands(device, 3000, B=3, D=3, dtype=dtype), allowed)


def test_bfloat16_enters_and_leaves(device):
    given = operands(device, 257, dtype=torch.bfloat16)
    exact = fft_conv_reference(*in_float64(given))
    # the result is rounded to 8 bits
    assert error(fft_conv(*given), exact) <= FAST + torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("L", [1000, 4000])
@pytest.mark.parametrize("signal", ["tiny", "huge", "spike", "constant", "zero", "falling"])
@pytest.mark.parametrize(("precision", "allowed"), [("fast", FAST), ("exact", EXACT)])
def test_any_range(device, short_stages, L, signal, precision, allowed):
    u, h, skip, *_ = operands(device, L, B=2, D=1, gates=(False, False))
    match signal:
        case "tiny":
            u *= 1e-6
        case "huge":
            u *= 1e4
        case "spike":
            u = torch.zeros_like(u)
            u[..., L // 3] = 3e4
        case "constant":
            u = torch.full_like(u, 0.7)
        case "zero":
            u[1] = 0
        case "falling":
            u *= torch.logspace(12, -12, L, device=device)
    exact = fft_conv_reference(u.double(), h.double(), skip.double())
    y = fft_conv(u, h, skip, precision=precision)
    eager = fft_conv_reference(u, h, skip)
    for row in range(2):
        if signal == "zero" and row == 1:
            assert (y[row] == 0).all()
        else:
            assert error(y[row], exact[row]) <= max(allowed, 2 * error(eager[row], exact[row]))


@pytest.mark.parametrize("L", [257, 4000])
def test_future_input_does_not_reach_the_past(device, short_stages, L):
    given = operands(device, L, B=1, D=2)
    later = [given[0].clone(), *given[1:]]
    later[0][..., 100:] += 1
    change = (fft_conv(*later) - fft_conv(*given)).abs()
    assert change[..., :100].max() < 1e-5 * change.max()


@pytest.mark.parametrize("L", [200, 4000])
def test_with_a_kept_spectrum_it_is_the_same(device, short_stages, L):
    v, h, skip, pre_gate, post_gate = operands(device, L, B=1)
    transform = transform_of(L, v)
    spectrum = filter_spectrum(h, transform)
    out = torch.empty_like(v)
    for channels in (slice(0, 1), slice(1, 3)):
        signals = [x[:, channels] for x in (v, pre_gate, post_gate)]
        at = out[:, channels]
        y = fft_conv_spectrum(signals[0], spectrum[channels], skip[channels], *signals[1:], transform, out=at)
        assert y is at
    assert torch.equal(out, fft_conv(v, h, skip, pre_gate, post_gate))


def test_the_result_may_go_anywhere(device):
    v, h, skip, pre_gate, post_gate = operands(device, 65)
    transform = transform_of(65, v)
    out = torch.empty(2, 65, 3, device=device).transpose(1, 2)
    y = fft_conv_spectrum(v, filter_spectrum(h, transform), skip, pre_gate, post_gate, transform, out=out)
    assert y is out
    assert torch.equal(out, fft_conv(v, h, skip, pre_gate, post_gate))


def test_one_spectrum_serves_every_length_of_its_size(device):
    v, h, skip, pre_gate, post_gate = operands(device, 512)
    transform = transform_of(512, v)
    assert transform == transform_of(300, v) == ("triton", 512, 512)
    spectrum = filter_spectrum(h, transform)
    for L in (300, 511):
        cut = [x[..., :L] for x in (v, h, pre_gate, post_gate)]
        y = fft_conv_spectrum(cut[0], spectrum, skip, *cut[2:], transform)
        assert error(y, fft_conv_reference(*in_float64([cut[0], cut[1], skip, *cut[2:]]))) <= EXACT


@pytest.mark.parametrize("size", [256, 4096])
def test_the_spectrum_is_at_the_frequencies_k_and_a_quarter(device, short_stages, size):
    h = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    n = torch.arange(size)
    turns = (n[:, None] * (4 * n + 1) % (4 * size)).double() / (4 * size)
    exact = h[0].to(torch.complex128) @ torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    re, im = fft_conv_triton.filter_spectrum(h.to(device), size)[0].double().cpu()
    columns = 16 if size == 256 else 64
    stored = torch.complex(re, im).view(size // columns, columns).T.flatten()  # k = p + (N / columns) q
    assert (stored - exact).norm() <= EXACT * exact.norm()


def test_only_the_gradients_that_are_asked_for(device):
    given = operands(device, 65)
    _, exact = value_and_gradients(fft_conv_reference, in_float64(given), torch.ones_like(given[0]).double())
    for number, name in enumerate(INPUTS):
        leaves = [x.clone().requires_grad_(index == number) for index, x in enumerate(given)]
        fft_conv(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == number for index in range(5)]
        assert error(leaves[number].grad, exact[name]) <= EXACT, name


def test_inputs_are_left_as_they_were(device):
    given = operands(device, 65)
    leaves = [x.clone().requires_grad_() for x in given]
    fft_conv(*leaves).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(given, leaves, strict=True))


def test_backward_runs_what_forward_chose(device):
    given = operands(device, 65)
    leaves = [x.clone().requires_grad_() for x in given]
    y = fft_conv(*leaves)
    with backend.use("torch"):
        y.sum().backward()
    _, expected = value_and_gradients(fft_conv, given, torch.ones_like(given[0]))
    assert all(torch.equal(x.grad, expected[name]) for name, x in zip(INPUTS, leaves, strict=True))


def test_a_second_derivative_is_refused_instead_of_wrong(device):
    given = [x.requires_grad_() for x in operands(device, 5)]
    with pytest.raises(UsageError, match="fft_conv has no second derivative"):
        torch.autograd.grad(fft_conv(*given).sum(), given[:1], create_graph=True)


def test_a_failure_names_the_operator_and_the_way_out(device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(fft_conv_triton, "launches_of", refuse)
    with pytest.raises(
        KernelError, match=r"fft_conv failed on .*: out of resource: shared memory; .*HYENA_KERNELS=torch"
    ):
        fft_conv(*operands(device, 5))


def test_good_size_is_the_least_of_its_kind():
    sizes = sorted({m << a for m in (1, 3, 5, 7) for a in range(8, 22)})
    for L in (1, 256, 257, 4097, 16_384, 16_385, 20_481, 32_770, 160_002, 450_002, 1_000_002, 1 << 20):
        of_this_kind = [n for n in sizes if n >= L and (n > 16_384 or n.bit_count() == 1)]
        assert good_size(L) == of_this_kind[0]


def test_every_precision_lays_out_spectra_in_one_way():
    for size in (256, 512, 1024, 2048, 4096, 8192, 16_384, 20_480, 1 << 20):
        plans = [plan_of(size, precision) for precision in TUNING]
        assert {plan.size for plan in plans} == {size}
        assert len({plan.columns for plan in plans}) == 1


def test_configurations_describe_kernels_completely():
    every = list(configurations())
    assert len(every) <= 48
    assert len({configuration.name for configuration in every}) == len(every)
    for configuration in every:
        assert list(configuration.signature) == configuration.kernel.arg_names
        constants = {name for name, kind in configuration.signature.items() if kind == "constexpr"}
        assert constants == set(configuration.constants)
