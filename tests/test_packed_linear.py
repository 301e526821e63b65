"""A packed layer is the dense layer of its decoded weights, holds few bytes, and keeps them whatever it is cast to."""

import itertools

import pytest
import torch
from oracles import relative_error
from packing import decoded, rounded, weight_of

from hyenadna.errors import NotFiniteError, ShapeError, UsageError
from hyenadna.model.config import Quantization
from hyenadna.model.packed_linear import DenseLinear, PackedLinear, bits_per_weight, linear_layers, weight_count

HOW = list(itertools.product((1, 2, 3, 4, 8), (8, 16)))
SHAPES = ((24, 48), (37, 77), (5, 3))


def layer_of(R=37, K=77, bits=4, group=16, meta_bits=8, scale=0.1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight, bias = scale * torch.randn(R, K, generator=draw), torch.randn(R, generator=draw)
    codes = rounded(weight, bits, group)
    return PackedLinear.of(*codes, bits=bits, group=group, meta_bits=meta_bits, bias=bias)


def rows(n=9, K=77, dtype=torch.float32):
    return torch.randn(n, K, generator=torch.Generator().manual_seed(n)).to(dtype)


@pytest.mark.parametrize(("bits", "meta_bits"), HOW)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_dense_layer_of_its_decoded_weights(shape, bits, meta_bits):
    layer = layer_of(*shape, bits=bits, meta_bits=meta_bits)
    x = rows(6, shape[1]).view(2, 3, -1)
    exact = x.double() @ weight_of(layer).T + layer.bias.double()
    assert relative_error(layer(x), exact) < 1e-6
    assert relative_error(layer.columns(x.view(6, -1)), exact.view(6, -1).T) < 1e-6
    assert relative_error(layer.dequantized(), weight_of(layer)) < 1e-6
    bare = PackedLinear.of(*rounded(torch.eye(4), bits, 2), bits=bits, group=2, meta_bits=meta_bits)
    assert torch.allclose(bare(torch.eye(4)), torch.eye(4), atol=5e-3) and bare.bias is None


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("meta_bits", [8, 16])
def test_it_computes_in_the_dtype_of_its_input(dtype, allowed, meta_bits):
    layer, x = layer_of(meta_bits=meta_bits), rows(dtype=dtype)
    exact = x.double() @ weight_of(layer).T + layer.bias.detach().double()
    y = layer.to(dtype)(x)
    assert y.dtype == dtype and relative_error(y, exact) < allowed
    assert layer.columns(x).dtype == dtype and relative_error(layer.columns(x), exact.T) < allowed


def test_autocast_decides_as_for_a_dense_layer():
    layer, x = layer_of(), rows()
    plain = DenseLinear(77, 37)
    with torch.no_grad():
        plain.weight.copy_(layer.dequantized())
        plain.bias.copy_(layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == plain(x).dtype == torch.bfloat16
        assert torch.allclose(layer(x).float(), plain(x).float(), rtol=1e-2, atol=1e-2)
        assert layer.columns(x).dtype == plain.columns(x).dtype == torch.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_reach_input_and_bias_and_no_code(transposed):
    layer, x = layer_of(), rows().requires_grad_(True)
    W, other, bias = weight_of(layer), rows().double().requires_grad_(True), layer.bias.detach().double()
    bias.requires_grad_(True)
    (layer.columns(x).T if transposed else layer(x)).square().sum().backward()
    (other @ W.T + bias).square().sum().backward()
    assert relative_error(x.grad, other.grad) < 1e-5 and relative_error(layer.bias.grad, bias.grad) < 1e-5
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


class TestScalesAndZeroPoints:
    def test_16_bits_are_float16(self):
        scale, zero = torch.rand(6, 4), 15 * torch.rand(6, 4)
        codes = torch.zeros(6, 64, dtype=torch.uint8)
        layer = PackedLinear.of(codes, scale, zero, bits=4, group=16, meta_bits=16)
        assert torch.equal(layer.scale, scale.half()) and torch.equal(layer.zero, zero.half())
        assert all(a is b for a, b in zip(layer.scale_and_zero(), (layer.scale, layer.zero), strict=True))

    # small: scales of 8-bit weights; alike: a step that float16 cannot hold
    @pytest.mark.parametrize(("low", "width"), [(0.005, 0.01), (1e-4, 2e-4), (0.01, 1e-6), (0.01, 0.0), (-30.0, 60.0)])
    def test_8_bits_are_off_by_half_a_step_and_the_rounding_of_their_ends(self, low, width):
        values = low + width * torch.rand(50, 7, generator=torch.Generator().manual_seed(1))
        codes = torch.zeros(50, 7 * 16, dtype=torch.uint8)
        layer = PackedLinear.of(codes, values, values, bits=4, group=16, meta_bits=8)
        for found, together, ends in zip(
            layer.scale_and_zero(), (128, 350), (layer.scale_ends, layer.zero_ends), strict=True
        ):
            flat, parts = found.double().flatten(), values.double().flatten()
            assert len(ends) == -(-350 // together)
            for start in range(0, 350, together):
                part = parts[start : start + together]
                allowed = (part.max() - part.min()) / 510 + 1.01 * 2**-11 * part.abs().max()
                assert (flat[start : start + together] - part).abs().max() <= allowed
        exact = torch.from_numpy(decoded(layer.scale, layer.scale_ends, 128))
        assert relative_error(layer.scale_and_zero()[0], exact) < 1e-6

    @pytest.mark.parametrize("meta_bits", [8, 16])
    @pytest.mark.parametrize(("scale", "zero"), [(float("nan"), 1.0), (1.0, 1e6), (float("inf"), 1.0)])
    def test_what_float16_cannot_hold_is_refused(self, meta_bits, scale, zero):
        codes, ones = torch.zeros(2, 16, dtype=torch.uint8), torch.ones(2, 1)
        with pytest.raises(NotFiniteError, match=r"was to be stored; float16 holds up to 65,504"):
            PackedLinear.of(codes, scale * ones, zero * ones, bits=4, group=16, meta_bits=meta_bits)


# the bits of methods that quantise scales in groups of 128: b + 2 (16 or 8 + 32 / 128 for scales) / g
@pytest.mark.parametrize(
    ("bits", "group", "raw", "coded"),
    [(2, 16, 4.0, 3.016), (2, 32, 3.0, 2.508), (2, 64, 2.5, 2.254), (4, 64, 4.5, 4.254), (4, 128, 4.25, 4.127)],
)
def test_the_bits_of_a_weight_are_counted_from_the_bytes(bits, group, raw, coded):
    for meta_bits, expected in ((16, raw), (8, coded)):
        layer = layer_of(1024, 1024, bits=bits, group=group, meta_bits=meta_bits)
        counted = sum(buffer.untyped_storage().nbytes() for buffer in layer.buffers())
        assert layer.stored_bits == bits_per_weight(layer) == 8 * counted / 1024**2
        assert abs(layer.stored_bits - expected) < 1e-3


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_every_width_takes_its_own_bits(bits):
    assert layer_of(64, 128, bits=bits, group=128, meta_bits=16).packed.nbytes * 8 == bits * 64 * 128


@pytest.mark.parametrize("meta_bits", [8, 16])
def test_casts_leave_what_is_stored_as_it_is(meta_bits):
    layer = layer_of(meta_bits=meta_bits)
    before = {name: (buffer.dtype, buffer.clone()) for name, buffer in layer.named_buffers()}
    assert set(before) == {"packed", "scale", "zero"} | ({"scale_ends", "zero_ends"} if meta_bits == 8 else set())
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer.bias.dtype == dtype
        for name, buffer in layer.named_buffers():
            assert buffer.dtype == before[name][0] and torch.equal(buffer, before[name][1])
    empty = layer.to("meta")
    assert {name: buffer.dtype for name, buffer in empty.named_buffers()} == {
        name: dtype for name, (dtype, _) in before.items()
    }


def test_a_new_layer_takes_the_state_of_another():
    layer = layer_of(meta_bits=16)
    other = PackedLinear(77, 37, bits=4, group=16, meta_bits=16)
    assert not other.packed.any() and other.state_dict().keys() == layer.state_dict().keys()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(rows()), layer(rows()))
    assert repr(other).startswith("PackedLinear(in_features=77, out_features=37, bits=4, group=16, meta_bits=16")


def test_shapes_that_do_not_fit_are_named():
    codes, scale, zero = rounded(torch.randn(4, 40), 4, 16)
    given = {"bits": 4, "group": 16, "meta_bits": 8}
    with pytest.raises(
        ShapeError, match=r"codes \(4, 40\) in groups of 16 .* scale \(4, 2\).* take scale and zero \(4, 3"
    ):
        PackedLinear.of(codes, scale[:, :2], zero, **given)
    with pytest.raises(ShapeError, match=r"bias \(3,\); they take .* a bias \(4,\) or none"):
        PackedLinear.of(codes, scale, zero, bias=torch.zeros(3), **given)
    with pytest.raises(ShapeError, match=r"code 15; 2 bits hold 0 to 3"):
        PackedLinear.of(codes, scale, zero, **given | {"bits": 2})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 5}, "bits is 5; allowed are 1, 2, 3, 4, 8"),
        ({"meta_bits": 4}, "meta_bits is 4; allowed are 8, 16"),
        ({"group": 8}, "group is 8; allowed are 16 to 128"),
        ({"group": 256}, "group is 256; allowed are 16 to 128"),
    ],
)
def test_settings_that_there_are_not(fields, message):
    with pytest.raises(UsageError, match=message):
        Quantization(**fields)


def test_what_a_model_is_made_of_is_chosen_in_one_place():
    assert type(linear_layers(None)(8, 4)) is DenseLinear
    made = linear_layers(Quantization(3, 32, 16))(80, 4)
    assert (made.bits, made.group, made.meta_bits, tuple(made.packed.shape)) == (3, 32, 16, (4, 30))
    assert weight_count(made) == weight_count(DenseLinear(80, 4)) == 324
