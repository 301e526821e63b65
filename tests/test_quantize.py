"""The half-quadratic solver against its equations in float64, its theorem, and what the authors' code gives."""

import copy
import importlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from oracles import BENCHMARKS
from quantizing import dense_model

from hyenadna.errors import NotFiniteError, UsageError
from hyenadna.inference.quantize import Solution, packed, quantize, solve
from hyenadna.model.config import Quantization
from hyenadna.model.language_model import HyenaDNA

GOLDEN = {
    ("normal", 8): (0.000089, 0.000086, None), ("normal", 4): (0.001563, 0.001486, 0.0870),
    ("normal", 3): (0.003256, 0.003137, 0.1847), ("normal", 2): (0.007625, 0.007332, 0.4315),
    ("normal", 1): (0.030285, 0.017160, 1.0568), ("laplace", 4): (0.002679, 0.002551, 0.1075),
    ("laplace", 3): (0.005608, 0.005383, 0.2280), ("laplace", 2): (0.013229, 0.011720, 0.5012),
    ("laplace", 1): (0.055990, 0.019895, 0.9579),
}  # fmt: skip
"""Mean absolute error of rounding and of HQQ, and relative RMSE of HQQ: numbers that the authors' program produced."""


def mean_error(weight: torch.Tensor, solution: Solution) -> float:
    return float((weight.double() - solution.dequantized().double()).abs().mean())


def float32_rounding(solution: Solution) -> float:
    """What q - z, its product with the scale, and the solver's own three steps round away, at most six half ulps."""
    size = solution.scale * (solution.zero.abs() + 256)
    return 4 * torch.finfo(torch.float32).eps * float(size.max())


@pytest.fixture(scope="module")
def drawn() -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    return {name: torch.from_numpy(getattr(random, name)(0, 0.02, (1024, 1024))) for name in ("normal", "laplace")}


@pytest.mark.parametrize(("kind", "bits"), GOLDEN)
def test_gives_the_errors_of_the_authors_code(drawn, kind, bits):
    rounding, best, relative = GOLDEN[kind, bits]
    weight = drawn[kind].float()
    found = solve(weight, bits=bits)
    half_a_digit = {"abs": 5.1e-7, "rel": 0}  # of the last digit that is known, which is the third or a later one
    assert found.error_of_rounding == pytest.approx(rounding, **half_a_digit)
    assert found.error == pytest.approx(best, **half_a_digit)
    assert mean_error(weight, found) == pytest.approx(found.error, rel=1e-5)
    if relative is not None:
        squares = (weight - found.dequantized()).double().square().sum() / weight.double().square().sum()
        assert float(squares.sqrt()) == pytest.approx(relative, abs=5.1e-5)


def by_definition(weight: np.ndarray, bits: int, group: int, iterations: int = 20) -> tuple[list[float], float]:
    """Errors of all evaluated zero points and the best of them, group by group in float64."""
    largest, p, beta = 2**bits - 1, 0.7, 10.0
    groups = [row[i : i + group].astype(np.float64) for row in weight for i in range(0, weight.shape[1], group)]
    inverse, zeros = [], []
    for values in groups:
        spread = values.max() - values.min()
        s = min(largest / spread, 2e4) if spread > 1e-4 else 1.0
        inverse.append(s)
        zeros.append(np.round(-values.min() * s) if bits == 4 and spread > 1e-4 else -values.min() * s)
    errors: list[float] = []
    for _ in range(iterations):
        total, following = 0.0, []
        for values, s, z in zip(groups, inverse, zeros, strict=True):
            q = np.clip(np.round(values * s + z), 0, largest)
            e = values - (q - z) / s
            total += np.abs(e).sum()
            with np.errstate(divide="ignore"):
                shrunk = np.sign(e) * np.maximum(0, np.abs(e) - np.abs(e) ** (p - 1) / beta)
            following.append(np.mean(q - (values - shrunk) * s))
        errors.append(total / weight.size)
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
        zeros, beta = following, beta * 1.01
    return errors, min(errors)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize(("R", "K", "group"), [(5, 64, 16), (3, 37, 16), (7, 65, 64), (1, 1, 1), (2, 257, 128)])
@pytest.mark.parametrize("size", [0.02, 3.0])  # errors of the larger one are shrunk, those of the smaller one never
def test_equals_the_definition(bits, R, K, group, size):
    weight = np.random.default_rng(R * K + bits).laplace(0, size, (R, K)).astype(np.float32)
    errors, best = by_definition(weight, bits, group)
    found = solve(torch.from_numpy(weight), bits=bits, group=group)
    assert found.error_of_rounding == pytest.approx(errors[0], rel=1e-5, abs=1e-9)
    # a tie that float32 rounds to the other side moves the search a little
    assert found.error == pytest.approx(best, rel=5e-3, abs=1e-9)
    of_what_is_returned = mean_error(torch.from_numpy(weight), found)
    assert of_what_is_returned == pytest.approx(found.error, rel=0, abs=float32_rounding(found))
    assert found.codes.dtype == torch.uint8 and found.codes.shape == (R, K) and int(found.codes.max()) < 2**bits
    assert found.scale.shape == found.zero.shape == (R, math.ceil(K / group))


def test_large_errors_are_shrunk(drawn):
    weight = 100 * drawn["laplace"][:8].float()  # far above (1 / beta)^(1 / 1.3), where the power is taken
    errors, best = by_definition(weight.numpy(), 2, 64)
    assert solve(weight, bits=2).error == pytest.approx(best, rel=1e-3) and best < errors[0]


MATRICES = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=41),
    elements=st.floats(-1e4, 1e4, width=32) | st.just(0.0) | st.floats(-(2.0**-20), 2.0**-20, width=32),
)  # fmt: skip


def one_outlier(size: float) -> np.ndarray:
    weight = np.random.default_rng(1).normal(0, 0.02, (6, 40)).astype(np.float32)
    weight[3, 7] = size
    return weight


@settings(max_examples=100, deadline=None, derandomize=True)
@given(MATRICES, st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 41), st.sampled_from([0, 1]))
@example(one_outlier(1e4), 4, 16, 1)
@example(one_outlier(-1e9), 2, 16, 0)
@example(np.zeros((3, 5), np.float32), 4, 2, 1)
@example(np.full((2, 17), 0.3, np.float32), 4, 16, 1)
def test_is_never_worse_than_rounding(weight, bits, group, axis):
    matrix = torch.from_numpy(weight)
    group = min(group, matrix.shape[axis])
    found, rounded = (solve(matrix, bits=bits, group=group, axis=axis, iterations=n) for n in (20, 1))
    assert found.error <= found.error_of_rounding == rounded.error
    # which are the errors of the matrices that are returned, and not of zero points before or after theirs
    for solution in (found, rounded):
        assert mean_error(matrix, solution) == pytest.approx(solution.error, rel=0, abs=float32_rounding(solution))
    assert int(found.codes.max()) < 2**bits


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_constant_groups_are_exact(bits):
    weight = torch.tensor([0.0, 0.3, -2.5, 1e-7, -1000.125]).repeat_interleave(16).view(1, -1).expand(3, -1)
    found = solve(weight, bits=bits, group=16)
    torch.testing.assert_close(found.dequantized(), weight, rtol=2e-7, atol=0)


def test_weights_on_the_grid_are_exact():
    codes = torch.randint(0, 8, (9, 48), generator=torch.Generator().manual_seed(0))
    codes[:, ::16], codes[:, 1::16] = 0, 7
    found = solve(0.25 * (codes - 3.0), bits=3, group=16)
    assert torch.equal(found.codes, codes.to(torch.uint8)) and found.error == 0


@pytest.mark.parametrize("bits", [4, 2])
def test_axis_0_is_axis_1_of_the_transpose(bits):
    weight = torch.randn(33, 20, generator=torch.Generator().manual_seed(0))
    down, along = solve(weight, bits=bits, group=16, axis=0), solve(weight.T, bits=bits, group=16)
    assert torch.equal(down.codes, along.codes.T) and torch.equal(down.scale, along.scale.T)
    assert torch.equal(down.dequantized(), along.dequantized().T) and down.scale.shape == (3, 20)


def test_half_precision_and_gradients_do_not_matter():
    weight = torch.nn.Parameter(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).half())
    found = solve(weight, bits=4, group=16)
    assert found.scale.dtype == torch.float32 and not found.scale.requires_grad
    assert found.error == solve(weight.float(), bits=4, group=16).error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_that_are_not_finite_are_named(value):
    weight = torch.zeros(4, 32)
    weight[2, 3], weight[2, 4] = value, -3e38
    with pytest.raises(NotFiniteError, match=r"mlp\.fc1 holds weights that are not finite, or too large"):
        solve(weight, bits=4, group=16, name="mlp.fc1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 9}, "to 9 bits .* it takes a matrix, 1 to 8 bits"),
        ({"bits": 0}, "to 0 bits"),
        ({"bits": 4, "axis": 2}, "along axis 2"),
        ({"bits": 4, "iterations": 0}, "in 0 iterations"),
        ({"bits": 4, "group": 64}, "the matrix has 32 weights along a group's direction; groups of 64 do not fit"),
        ({"bits": 4, "group": 0}, "groups of 0 do not fit"),
        ({"bits": 4, "group": 8, "axis": 0}, "has 4 weights"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        solve(torch.zeros(4, 32), **options)


def matrices(model: HyenaDNA) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach() for name, layer in model.projections.items()}


@pytest.mark.parametrize("setting", [Quantization(4, 16, 8), Quantization(2, 32, 16), Quantization(8, 24, 8)])
def test_the_child_is_the_parent_with_other_matrices(setting):
    dense = dense_model()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    child = quantize(dense, bits=setting.bits, group=setting.group, meta_bits=setting.meta_bits)
    assert child.quantization == setting and dense.quantization is None
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    kept = {name for name, _ in dense.named_parameters()} - {f"{name}.weight" for name in dense.projections}
    assert kept == {name for name, _ in child.named_parameters()}
    assert all(torch.equal(before[name], tensor) for name, tensor in child.named_parameters())
    # a dense model of the very weights that are stored
    stored = copy.deepcopy(dense)
    for name, layer in child.projections.items():
        stored.projections[name].weight.data = layer.dequantized()
    tokens = torch.randint(7, 12, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(child(tokens).logits, stored(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("meta_bits", [8, 16])
def test_codes_are_the_nearest_to_what_is_stored(meta_bits):
    dense = dense_model()
    child = quantize(dense, bits=3, group=16, meta_bits=meta_bits)
    for name, weight in matrices(dense).items():
        layer = child.projections[name]
        scale, zero = (part.double().repeat_interleave(16, 1)[:, : weight.shape[1]] for part in layer.scale_and_zero())
        every = (torch.arange(8.0, dtype=torch.float64)[:, None, None] - zero) * scale
        nearest = (every - weight.double()).abs().amin(dim=0)
        torch.testing.assert_close((layer.dequantized() - weight).abs().double(), nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "group", "raw", "coded"),
    [(2, 16, 4.0, 3.016), (2, 32, 3.0, 2.508), (2, 64, 2.5, 2.254), (4, 64, 4.5, 4.254), (4, 128, 4.25, 4.127)],
)
def test_bits_a_weight_and_what_eight_bits_for_scales_cost(drawn, bits, group, raw, coded):
    """The fact sheet: effective bits, and a relative RMSE that changes by no more than 0.0002."""
    dense = torch.nn.Linear(512, 512)
    dense.weight.data = drawn["normal"][:512, :512].float()
    layers = [packed("the matrix", dense, Quantization(bits, group, meta_bits)) for meta_bits in (16, 8)]
    errors = [(layer.dequantized() - dense.weight).norm() / dense.weight.norm() for layer in layers]
    assert [layer.stored_bits for layer in layers] == pytest.approx([raw, coded], abs=7e-4)
    assert abs(errors[0] - errors[1]) < 2e-4


def test_models_that_cannot_be_quantised_are_refused():
    dense = dense_model()
    with pytest.raises(UsageError, match=r"groups of 64 .* backbone\.layers\.0\.mixer\.in_proj, whose rows have 32"):
        quantize(dense, bits=4)
    with pytest.raises(UsageError, match="bits is 5; allowed are 1, 2, 3, 4, 8"):
        quantize(dense, bits=5, group=16)
    with pytest.raises(UsageError, match="quantised already, to 4 bits"):
        quantize(quantize(dense, bits=4, group=16), bits=2, group=16)
    dense.projections["backbone.layers.1.mlp.fc2"].weight.data[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"backbone\.layers\.1\.mlp\.fc2 holds weights that are not finite"):
        quantize(dense, bits=4, group=16)
    dense.projections["backbone.layers.1.mlp.fc2"].weight.data[0, 0] = 1e9
    with pytest.raises(NotFiniteError, match=r"backbone\.layers\.1\.mlp\.fc2: a scale .* float16 holds up to 65,504"):
        quantize(dense, bits=4, group=16)


def test_the_benchmark_at_a_toy_size(monkeypatch, tmp_path, capsys):
    """With our solver in the place of the authors' package, which is no dependency."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("quantize")
    threads = torch.get_num_threads()
    monkeypatch.setattr(benchmark, "matrices", lambda: {"one": [torch.randn(8, 64)], "other": [torch.randn(4, 100)]})
    monkeypatch.setattr(benchmark, "GROUPS", (64,))
    monkeypatch.setitem(benchmark.CONTENDERS, "hqq", benchmark.ours)
    monkeypatch.setattr(benchmark, "_version", lambda: "none")
    benchmark.main(["-o", str(tmp_path / "quantize.json")])
    torch.set_num_threads(threads)
    cases = json.loads((tmp_path / "quantize.json").read_text())["cases"]
    wanted = [(name, bits) for name in ("one", "other") for bits in (8, 4, 3, 2, 1)]
    assert [(case["matrices"], case["bits"]) for case in cases] == wanted
    for case in cases:
        assert case["ours"]["mean_absolute_error"] <= case["rounding"]["mean_absolute_error"] * (1 + 1e-6)
        assert case["ours"]["relative_rmse"] == case["hqq"]["relative_rmse"]
    assert (tmp_path / "quantize.png").read_bytes().startswith(b"\x89PNG") and "of rounding" in capsys.readouterr().err
