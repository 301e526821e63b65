"""The model against numbers that the reference implementation printed (standalone HyenaDNA and its Hugging Face port).

The Hugging Face layout and the lengths 37 and 512 are part of this repository; the two other layouts and the length
1,024 are read from the data shared beside it, where there are any.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from hyenadna import HyenaDNA
from hyenadna.model.config import named_size

FIXTURE = Path(__file__).parent / "fixtures" / "tiny1k_jit"
SHARED = Path(__file__).parents[1].parent / "shared" / "reference" / "tiny1k_jit"
TOLERANCE = 1e-4  # what the package promises in float32; measured are 3e-6
LENGTHS = ("short", "mid", "full")  # 37, 512, 1024; row 0 begins with five PAD, row 1 ends in SEP


def folder(layout: str) -> Path:
    place = (FIXTURE if layout == "hf" else SHARED) / layout
    if not place.is_dir():
        pytest.skip(f"shared/reference/tiny1k_jit/{layout} is not beside this repository")
    return place


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    found = SHARED / "expected.npz"
    return dict(np.load(found if found.is_file() else FIXTURE / "expected.npz"))


def ids(expected: dict[str, np.ndarray], length: str) -> torch.Tensor:
    if f"{length}_ids" not in expected:
        pytest.skip("shared/reference/tiny1k_jit/expected.npz is not beside this repository")
    return torch.from_numpy(expected[f"{length}_ids"])


def nll(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None].long())[..., 0]


def assert_close(given: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(given.detach().numpy(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("layout", ["hf", "original", "slim"])
def test_logits_hidden_states_and_likelihoods_are_those_of_the_reference(expected, layout, length, gradients):
    model = HyenaDNA.from_pretrained(folder(layout))
    tokens = ids(expected, length)
    with torch.set_grad_enabled(gradients):
        output = model(tokens)
    assert output.logits.requires_grad == gradients
    assert_close(output.logits, expected[f"{length}_logits"])
    assert_close(output.hidden, expected[f"{length}_hidden"])
    assert_close(nll(output.logits, tokens), expected[f"{length}_nll"])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_logits_without_the_filter_shift(expected, layout, length):
    model = HyenaDNA.from_pretrained(folder(layout), filter_shift=0.0)
    with torch.no_grad():
        logits = model(ids(expected, length)).logits
    assert_close(logits, expected[f"{length}_logits_shift0"])
    assert np.abs(logits.numpy() - expected[f"{length}_logits"]).max() > 100 * TOLERANCE  # so the test can fail


@pytest.mark.parametrize("length", LENGTHS)
def test_float64_agrees_with_the_reference(expected, length):
    model = HyenaDNA.from_pretrained(folder("hf"), dtype=torch.float64)
    with torch.no_grad():
        output = model(ids(expected, length))
    assert output.logits.dtype == output.hidden.dtype == torch.float64
    assert_close(output.logits, expected[f"{length}_logits"])
    assert_close(output.hidden, expected[f"{length}_hidden"])


@pytest.mark.parametrize("gradients", [False, True])
def test_filter_and_mixer_of_the_first_block(expected, gradients):
    mixer = HyenaDNA.from_pretrained(folder("hf")).backbone.layers[0].mixer
    with torch.set_grad_enabled(gradients):
        assert_close(mixer.filter_fn(512).T, expected["filter_layer0_L512"])
        assert_close(mixer(torch.from_numpy(expected["mixer0_in"])), expected["mixer0_out"])


@pytest.mark.parametrize(
    ("size", "parameters", "filter_length"),
    [
        ("tiny-1k", 436_096, 1_026),
        ("tiny-1k-d256", 1_641_088, 1_026),
        ("tiny-16k", 436_096, 16_386),
        ("small-32k", 3_277_568, 32_770),
        ("medium-160k", 6_550_528, 160_002),
        ("medium-450k", 6_550_528, 450_002),
        ("large-1m", 6_550_528, 1_000_002),
    ],
)
def test_published_sizes_have_the_published_parameters(size, parameters, filter_length):
    model = HyenaDNA(named_size(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.filter_length == filter_length
