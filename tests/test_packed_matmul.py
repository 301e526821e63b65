"""Packed weights: the bits against numpy's, the product against dense weights in float64, value and every gradient."""

import importlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import BENCHMARKS, assert_as_exact_as, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from hyenadna.errors import ShapeError, UsageError
from hyenadna.kernels import packed_weight
from hyenadna.kernels.packed_matmul import packed_matmul, packed_matmul_reference
from hyenadna.kernels.packed_weight import dequantize, pack, packed_bytes, unpack

BITS = (1, 2, 3, 4, 8)
SHAPES = ((1, 1, 16), (3, 5, 16), (7, 64, 64), (65, 63, 16), (5, 130, 48), (33, 257, 128))
"""Rows, columns and the group: fewer columns than a group, whole groups, and some left over."""


def codes_in_numpy(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The codes from single bits: byte b of a row holds the columns b, b + B, b + 2 B ..., lowest bits first."""
    if bits == 3:
        size = -(-columns // 4)
        low, high = packed[:, :size], packed[:, size:]
        return codes_in_numpy(low, 2, columns) + 4 * codes_in_numpy(high, 1, columns)
    R, B = packed.shape
    digits = np.unpackbits(packed, axis=1, bitorder="little").reshape(R, B, 8 // bits, bits)
    values = digits.astype(int) @ (1 << np.arange(bits))
    return values.transpose(0, 2, 1).reshape(R, B * 8 // bits)[:, :columns]


def weights_in_numpy(packed, scale, zero, *, bits, group, columns):
    """Float64 (R, columns), number by number."""
    codes = codes_in_numpy(packed.numpy(), bits, columns)
    scale, zero = scale.double().numpy(), zero.double().numpy()
    W = [[(c - zero[r, k // group]) * scale[r, k // group] for k, c in enumerate(row)] for r, row in enumerate(codes)]
    return torch.tensor(np.array(W))


def operands(R, K, group, bits, *, n=9, dtype=torch.float32, meta=torch.float32):
    random = torch.Generator().manual_seed(1000 * R + K + bits)
    groups = -(-K // group)
    codes = torch.randint(0, 1 << bits, (R, K), generator=random, dtype=torch.uint8)
    scale = (torch.rand(R, groups, generator=random) + 0.1).to(meta)
    zero = (torch.rand(R, groups, generator=random) * ((1 << bits) - 1)).to(meta)
    x = torch.randn(n, K, generator=random).to(dtype)
    bias, grad = torch.randn(R, generator=random).to(dtype), torch.randn(n, R, generator=random).to(dtype)
    return x, bias, grad, (pack(codes, bits), scale, zero), {"bits": bits, "group": group}


@st.composite
def matrices_of_codes(draw):
    bits, R, K = draw(st.sampled_from(BITS)), draw(st.integers(0, 9)), draw(st.integers(0, 70))
    seed = draw(st.integers(0, 2**32 - 1))
    return bits, np.random.default_rng(seed).integers(0, 1 << bits, (R, K), dtype=np.uint8)


@settings(deadline=None, max_examples=80)
@given(matrices_of_codes())
def test_packing_is_exact_and_wastes_less_than_a_byte_a_plane(given_codes):
    bits, codes = given_codes
    R, K = codes.shape
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.dtype == torch.uint8 and packed.shape == (R, packed_bytes(K, bits))
    assert 0 <= 8 * packed_bytes(K, bits) - K * bits < (16 if bits == 3 else 8)
    assert np.array_equal(unpack(packed, bits, K).numpy(), codes)
    assert np.array_equal(codes_in_numpy(packed.numpy(), bits, K), codes)
    assert np.unpackbits(packed.numpy()).sum() == sum(int(code).bit_count() for code in codes.flat)


@pytest.mark.parametrize(
    ("bits", "codes", "by_hand"),
    [
        (8, [7, 255], [7, 255]),
        (4, [1, 6, 11, 0, 6], [0b0000_0001, 0b0110_0110, 0b1011]),
        (2, [1, 3, 2, 1, 0, 2], [0b00_10_01, 0b10_01_11]),
        (3, [1, 7, 6, 5, 4], [0b00_10_01, 0b01_11, 0b11110]),
        (1, [1, 0, 1, 1, 1, 0, 0, 0, 1, 1], [0b10111, 0b10010]),
    ],
)
def test_packing_by_hand(bits, codes, by_hand):
    assert pack(torch.tensor([codes], dtype=torch.uint8), bits).tolist() == [by_hand]


def test_rows_do_not_share_bytes():
    codes = torch.randint(0, 2, (77, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, 1)
    assert torch.equal(unpack(packed[3:50], 1, 13), codes[3:50])


@pytest.mark.parametrize(
    ("R", "K", "group", "meta"),
    [*((*shape, torch.float16) for shape in SHAPES), (33, 257, 128, torch.float32)],
)
@pytest.mark.parametrize("bits", BITS)
def test_dequantized_weights_are_the_formulas(R, K, group, bits, meta):
    _, _, _, weight, how = operands(R, K, group, bits, meta=meta)
    exact = weights_in_numpy(*weight, **how, columns=K)
    single, double = (dequantize(*weight, **how, columns=K, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert single.shape == (R, K) and relative_error(single, exact) <= 2 * torch.finfo(torch.float32).eps
    assert torch.equal(double, exact)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(dequantize(*weight, **how, columns=K, dtype=dtype), single.to(dtype))


def value_and_gradients(function, x, bias, grad, weight, how, *, transposed=False):
    x, bias = (leaf.detach().requires_grad_() for leaf in (x, bias))
    y = function(x, *weight, **how, bias=bias, transposed=transposed)
    return [y.detach(), *torch.autograd.grad(y, (x, bias), grad.T if transposed else grad)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("R", "K", "group", "dtype"),
    [*((*shape, torch.float32) for shape in SHAPES)]
    + [(33, 257, 128, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)],
)
def test_value_and_gradients_are_those_of_dense_weights(R, K, group, bits, dtype, transposed):
    x, bias, grad, weight, how = operands(R, K, group, bits, dtype=dtype)
    W = dequantize(*weight, **how, columns=K, dtype=dtype).double()
    y = x.double() @ W.T + bias.double()
    exact = [y.T if transposed else y, grad.double() @ W, grad.double().sum(0)]
    ours = value_and_gradients(packed_matmul, x, bias, grad, weight, how, transposed=transposed)
    eager = value_and_gradients(packed_matmul_reference, x, bias, grad, weight, how, transposed=transposed)
    assert ours[0].is_contiguous()
    for given_value, plain, right in zip(ours, eager, exact, strict=True):
        assert given_value.dtype == dtype and given_value.shape == right.shape
        assert_as_exact_as(given_value, plain, right)


@pytest.mark.parametrize("n", [0, 1, 2, 65, 257])
def test_any_number_of_rows_and_no_bias(n):
    x, _, _, weight, how = operands(33, 130, 64, 4, n=n)
    y = packed_matmul(x, *weight, **how)
    torch.testing.assert_close(y, packed_matmul_reference(x, *weight, **how), rtol=1e-4, atol=1e-3)
    assert torch.equal(packed_matmul(x, *weight, **how, bias=torch.zeros(33)), y)


@pytest.mark.parametrize("transposed", [False, True])
def test_x_of_any_strides(transposed):
    x, bias, grad, weight, how = operands(33, 130, 64, 4)
    wide = torch.zeros(x.shape[0], 200)
    wide[:, 20:150] = x
    dense = value_and_gradients(packed_matmul, x, bias, grad, weight, how, transposed=transposed)
    for same in (x.T.contiguous().T, wide[:, 20:150], x[:1].expand(9, -1)):
        right = value_and_gradients(packed_matmul, same.contiguous(), bias, grad, weight, how, transposed=transposed)
        given_values = value_and_gradients(packed_matmul, same, bias, grad, weight, how, transposed=transposed)
        for value, value_of_copy in zip(given_values, right, strict=True):
            torch.testing.assert_close(value, value_of_copy, rtol=1e-4, atol=1e-3)
    assert dense[0].shape == ((33, 9) if transposed else (9, 33))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("at_once", [1, 300, 1 << 20])
def test_in_blocks_is_the_whole(monkeypatch, at_once, bits):
    x, bias, grad, weight, how = operands(33, 130, 48, bits, dtype=torch.float64)
    whole = value_and_gradients(packed_matmul_reference, x, bias, grad, weight, how)
    monkeypatch.setattr(packed_weight, "_WEIGHTS_AT_ONCE", at_once)
    in_blocks = value_and_gradients(packed_matmul, x, bias, grad, weight, how)
    torch.testing.assert_close(in_blocks, whole, rtol=1e-12, atol=1e-12)


def test_blocks_are_summed_in_float32(monkeypatch):
    """Positive products, 512 of them: a sum in bfloat16 would stand still at 256 times one of them."""
    monkeypatch.setattr(packed_weight, "_WEIGHTS_AT_ONCE", 1)
    x, bias, grad, (packed, scale, zero), how = operands(512, 8, 16, 4, n=3, dtype=torch.bfloat16)
    weight, grad = (packed, scale, torch.zeros_like(zero)), grad.abs()
    W = dequantize(*weight, **how, columns=8, dtype=torch.bfloat16)
    _, found, _ = value_and_gradients(packed_matmul, x, bias, grad, weight, how)
    exact = grad.double() @ W.double()
    # half an ulp of every product, and of their sum
    assert ((found - exact).abs() <= torch.finfo(torch.bfloat16).eps * exact).all()


class LargestStorage(TorchDispatchMode):
    """The most bytes that any one result of an operation holds."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("R", "K"), [(256, 1024), (1000, 256)])
@pytest.mark.parametrize("transposed", [False, True])
def test_dense_weights_are_never_held_whole(R, K, transposed):
    x, bias, grad, weight, how = operands(R, K, 64, 4, n=2)
    with LargestStorage() as largest:
        value_and_gradients(packed_matmul, x, bias, grad, weight, how, transposed=transposed)
    assert largest.bytes == 4 * packed_weight._WEIGHTS_AT_ONCE < 4 * R * K


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("K", [1, 9, 16])
def test_gradcheck(K, transposed):
    x, bias, _, weight, how = operands(4, K, 8, 3, n=2, dtype=torch.float64)

    def product(x, bias):
        return packed_matmul(x, *weight, **how, bias=bias, transposed=transposed)

    assert torch.autograd.gradcheck(product, (x.requires_grad_(), bias.requires_grad_()))


def test_only_the_gradients_that_are_asked_for_and_nothing_saved():
    x, bias, grad, weight, how = operands(5, 37, 16, 4)
    whole = value_and_gradients(packed_matmul, x, bias, grad, weight, how)[1:]
    saved = []
    for number in range(2):
        leaves = [leaf.clone().requires_grad_(index == number) for index, leaf in enumerate((x, bias))]
        with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
            packed_matmul(leaves[0], *weight, **how, bias=leaves[1]).backward(grad)
        assert saved == [] and [leaf.grad is not None for leaf in leaves] == [index == number for index in range(2)]
        assert torch.equal(leaves[number].grad, whole[number])
    assert not packed_matmul(x, *weight, **how, bias=bias).requires_grad


def test_second_derivatives_are_refused():
    x, bias, _, weight, how = operands(5, 37, 16, 4)
    y = packed_matmul(x.requires_grad_(), *weight, **how, bias=bias)
    with pytest.raises(UsageError, match=r"no second derivative.*packed_matmul_reference"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_autocast_rounds_x_and_the_result():
    x, bias, _, weight, how = operands(5, 37, 16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed_matmul(x, *weight, **how, bias=bias)
        assert packed_matmul(x.double(), *weight, **how).dtype == torch.float64
    assert torch.equal(y, packed_matmul(x.bfloat16(), *weight, **how, bias=bias))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack(torch.zeros(2, 3, dtype=torch.uint8), 5), UsageError, "5 bits .* may have 1, 2, 3, 4, 8"),
        (lambda: unpack(torch.zeros(2, 3, dtype=torch.uint8), 6, 4), UsageError, "6 bits were asked for"),
        (lambda: pack(torch.zeros(3, dtype=torch.uint8), 4), ShapeError, r"given torch.uint8 \(3,\); it takes codes"),
        (lambda: pack(torch.zeros(2, 3), 4), ShapeError, r"given torch.float32 \(2, 3\); it takes .* in torch.uint8"),
        (lambda: pack(torch.full((1, 1), 4, dtype=torch.uint8), 2), ShapeError, "the code 4; 2 bits hold 0 to 3"),
        (
            lambda: unpack(torch.zeros(2, 3, dtype=torch.uint8), 4, 7),
            ShapeError,
            r"\(2, 3\) for 7 columns of 4 bits; it takes torch.uint8 \(R, 4\)",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_weights_that_do_not_fit_are_refused():
    x, bias, _, (packed, scale, zero), how = operands(5, 37, 16, 4)
    for weight in (
        (packed[:, :-1], scale, zero),
        (packed.int(), scale, zero),
        (packed, scale[:, :-1], zero),
        (packed, scale, zero[:-1]),
        (packed, scale.double(), zero),
    ):
        with pytest.raises(ShapeError, match=r"37 columns in 4 bits and groups of 16 .*\(R, 19\).* \(R, 3\) float32"):
            packed_matmul(x, *weight, **how)
    with pytest.raises(UsageError, match="a group of 0 weights"):
        packed_matmul(x, packed, scale, zero, bits=4, group=0)
    for wrong_x, wrong_bias in ((x[None], None), (x.int(), None), (x, bias[1:])):
        with pytest.raises(ShapeError, match=r"5 rows of weights; it takes x \(n, K\) .* bias \(5,\)"):
            packed_matmul(wrong_x, packed, scale, zero, **how, bias=wrong_bias)


def test_the_benchmark_compares_before_it_times(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("side_by_side"), "_cpu_seconds_of_others", lambda: 0.0)
    benchmark = importlib.import_module("packed_matmul")
    monkeypatch.setitem(benchmark.FLOPS_OF_A_REPETITION, "cpu", 1e5)
    out, threads = tmp_path / "packed_matmul.json", torch.get_num_threads()
    assert benchmark.main(["-o", str(out), "--threads", "1"], [benchmark.Case(3, 70, 5)]) == 0
    torch.set_num_threads(threads)
    (case,) = json.loads(out.read_text())["cases"]
    assert case["seconds"]["ours"]["n"] == 7 and case["bar_met"] == (case["dequantized_over_ours"] >= 1)
