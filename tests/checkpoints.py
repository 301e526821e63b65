"""Small models and what the tests of model files do with them."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.errors import HyenaError

EMBEDDING = "backbone.embeddings.word_embeddings.weight"


def small_model(**fields) -> HyenaDNA:
    """A model of 3 blocks, every parameter its own random numbers."""
    torch.manual_seed(5)
    model = HyenaDNA(HyenaConfig(**{"d_model": 16, "d_inner": 32, "layers": "HHH", "filter_length": 70, **fields}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def same_weights(a: HyenaDNA, b: HyenaDNA) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(path: Path, change) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def one_line(error: pytest.ExceptionInfo[HyenaError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def read_original(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.ckpt", weights_only=True)["state_dict"]


def write_original(folder: Path, state: dict[str, torch.Tensor], **top) -> None:
    torch.save({"state_dict": OrderedDict(state), **top}, folder / "weights.ckpt")
