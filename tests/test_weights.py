import os
import sys
import types
import typing
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from checkpoints import one_line, read_original, same_weights, small_model, write_original

from hyenadna import HyenaDNA
from hyenadna.errors import (
    CheckpointError,
)
from hyenadna.model import checkpoint

OMEGACONF = {
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": ("AnyNode",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
}


@pytest.fixture
def published() -> HyenaDNA:
    return small_model(n_token="pad")


@pytest.fixture
def original(published, tmp_path) -> Path:
    checkpoint.export(published, tmp_path / "original", "original")
    return tmp_path / "original"


@pytest.fixture
def omegaconf(monkeypatch):
    """Classes under OmegaConf's names, with its way of pickling, which vanish before anything is loaded."""
    assert "omegaconf" not in sys.modules
    classes = {}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        for module, names in OMEGACONF.items():
            patch.setitem(sys.modules, module, types.ModuleType(module))
            for name in names:
                classes[name] = type(name, (), {"__module__": module})
                setattr(sys.modules[module], name, classes[name])
        yield types.SimpleNamespace(**classes)


def omegaconf_tree(omegaconf, value):
    def metadata(kind, **fields):
        node = kind()
        node.__dict__.update(key=None, ref_type=typing.Any, flags=defaultdict(dict, {}), **fields)
        return node

    if isinstance(value, dict | list):
        kind = omegaconf.DictConfig if isinstance(value, dict) else omegaconf.ListConfig
        items = value.items() if isinstance(value, dict) else enumerate(value)
        children = {key: omegaconf_tree(omegaconf, child) for key, child in items}
        meta = metadata(omegaconf.ContainerMetadata, object_type=type(value), key_type=int, element_type=typing.Any)
        content = children if isinstance(value, dict) else list(children.values())
    else:
        kind, content, meta = omegaconf.AnyNode, value, metadata(omegaconf.Metadata)
    node = kind()
    node.__dict__.update(_metadata=meta, _parent=None, _content=content, _val=content)
    return node


def test_a_full_training_checkpoint_is_read_without_omegaconf(original, published, omegaconf, monkeypatch):
    state = read_original(original)
    state |= {f"{part}_torchmetrics.num_tokens.count": torch.tensor(7) for part in ("train", "val", "test")}
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)} for i in range(3)}
    hyper_parameters = {
        "model": {"d_model": 16, "layer": {"l_max": 70}},
        "callbacks": [1, "x", None, 2.5],
        "seed": 1 << 40,
    }
    write_original(
        original,
        state,
        epoch=3,
        global_step=10_000,
        **{"pytorch-lightning_version": "1.8.6"},
        optimizer_states=[{"state": moments, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.999)}]}],
        lr_schedulers=[{"_step_count": 3}],
        callbacks={"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        loops={"fit_loop": {"state_dict": {}}},
        hparams_name="config",
        hyper_parameters=omegaconf_tree(omegaconf, hyper_parameters),
    )
    named = (original / "weights.ckpt").read_bytes()
    assert all(name.encode() in named for names in OMEGACONF.values() for name in names)
    for module in ["omegaconf", *OMEGACONF]:
        monkeypatch.delitem(sys.modules, module)
    assert same_weights(HyenaDNA.from_pretrained(original), published)
    assert "omegaconf" not in sys.modules


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Evaluates:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("payload", [RunsCode, Evaluates])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    original, tmp_path, payload, legacy, variable, monkeypatch
):
    if variable:
        monkeypatch.setenv(variable, "1")
    state = read_original(original)
    content = {"hyper_parameters": payload(tmp_path / "touched"), "state_dict": state}
    torch.save(content, original / "weights.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"names (posix\.system|eval), which is no tensor and could run code"
    ) as error:
        HyenaDNA.from_pretrained(original)
    one_line(error)
    assert not (tmp_path / "touched").exists()


def test_a_legacy_checkpoint_is_read(original, published):
    state = read_original(original)
    torch.save({"state_dict": state}, original / "weights.ckpt", _use_new_zipfile_serialization=False)
    assert same_weights(HyenaDNA.from_pretrained(original), published)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(original, keep):
    path = original / "weights.ckpt"
    contents = path.read_bytes()
    path.write_bytes(contents[: int(keep * len(contents)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"weights\.ckpt") as error:
        HyenaDNA.from_pretrained(original)
    one_line(error)


def test_an_inflating_archive_and_a_tensor_without_bytes_are_refused(original):
    path = original / "weights.ckpt"
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, contents in entries.items():
            target.writestr(name, contents)
    with pytest.raises(CheckpointError, match="is a compressed archive"):
        HyenaDNA.from_pretrained(original)
    torch.save({"state_dict": {"model.x": torch.zeros(1).expand(1 << 40)}}, path)
    with pytest.raises(CheckpointError, match=r"model\.x claims more elements"):
        HyenaDNA.from_pretrained(original)


@pytest.mark.parametrize("content", [{}, [torch.zeros(2)], {"state_dict": {}}, {"epoch": 3}, torch.zeros(3)])
def test_a_checkpoint_without_weights_is_refused(original, content):
    torch.save(content, original / "weights.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no (state_dict|tensors)"):
        HyenaDNA.from_pretrained(original)
