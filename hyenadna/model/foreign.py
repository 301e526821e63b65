"""The published layouts: the original HyenaDNA checkpoint, and the Hugging Face port.

Both name their tensors as we do, behind a prefix (`model.` and `hyena.`). Both store what is computed here: the
positional features z and t and the decay rates deltas. The original stores the shared sine frequency three times, and
calls a block's parts `mixer.layer` and `mlp.layer` when it was trained with activation checkpointing.
"""

import dataclasses
import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyenadna.errors import CheckpointError, HyenaWarning, UsageError
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import (
    blank_model,
    check_shapes,
    own_float32,
    parse_config,
    read_json,
    read_pickle,
    read_safetensors,
)

PUBLISHED_SHIFT = 0.05
_FIELDS = {
    "d_model": ("d_model",),
    "d_inner": ("d_inner",),
    "n_layer": ("n_layer",),
    "filter_length": ("l_max", "max_seq_len"),
    "filter_order": ("filter_order",),
    "emb_dim": ("emb_dim",),
    "sine_frequency": ("w", "activation_freq"),
    "short_filter_taps": ("short_filter_order", "local_order"),
    "filter_shift": ("shift",),
    "embed_dropout": ("embed_dropout",),
    "resid_dropout": ("resid_dropout",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "initializer_range": ("initializer_range",),
}
"""Our fields, and what the two layouts call them; the original keeps those of the operator under `layer`."""
_ONLY = {
    "_name_": "hyena", "hyena_order": 2, "order": 2, "num_inner_mlps": 2, "use_bias": True, "train_freq": True,
    "modulate": True, "normalized": False, "num_heads": 1, "inner_factor": 1, "num_blocks": 1, "activation": "id",
    "bidirectional": False, "outer_mixing": False, "post_order_ffn": False, "attn_layer_idx": None,
}  # fmt: skip
"""Settings of the reference code that our operator knows one value of, which all published models have."""
_EMBEDDING = "backbone.embeddings.word_embeddings.weight"
_BUFFER = re.compile(r"backbone\.layers\.\d+\.mixer\.filter_fn\.(pos_emb\.z|pos_emb\.t|modulation\.deltas)")
_COPIED_FREQ = re.compile(r"(.*\.implicit_filter\.)[35](\.freq)")
_FOREIGN_HEAD = re.compile(r"(decoder|score)\.")


def read_foreign(folder: Path, filter_shift: float | None = None) -> tuple[HyenaConfig, dict[str, Tensor]]:
    """Configuration and float32 weights of a published layout.

    A tensor of a fine-tuned classifier (`decoder.`, `score.`) is left out with a warning: the rest is the language
    model that the classifier was tuned from.

    Parameters
    ----------
    folder : Path
        Holds config.json and either weights.ckpt, model.safetensors or model.safetensors.index.json.
    filter_shift : float, optional
        The filters' shift, which neither layout records. Default: 0.05, as in the Hugging Face port.

    Raises
    ------
    CheckpointError         another architecture; damaged files; tensors or buffers that contradict config.json
    """
    where = folder / "config.json"
    config = _config(read_json(where), where, filter_shift)
    path, raw = _read_tensors(folder)
    tensors = _renamed(raw, path)
    for name in [name for name in tensors if _COPIED_FREQ.fullmatch(name)]:
        shared = tensors.get(_COPIED_FREQ.sub(r"\g<1>1\2", name))
        if shared is None or not torch.equal(tensors.pop(name), shared):
            raise CheckpointError(
                f"{path}: {name} is not the same as the filter's first frequency; they are one tensor"
            )
    head = tensors.get("lm_head.weight")
    untied = head is not None and _EMBEDDING in tensors and not torch.equal(head, tensors[_EMBEDDING])
    if head is not None and not untied:
        del tensors["lm_head.weight"]
    config = dataclasses.replace(config, tie_head=not untied)
    buffers = {name: found.group(1) for name in tensors if (found := _BUFFER.fullmatch(name))}
    shapes = {name: torch.empty(_buffer_shape(kind, config), device="meta") for name, kind in buffers.items()}
    check_shapes(tensors, blank_model(config).state_dict() | shapes, path)
    for kind in sorted(set(buffers.values())):
        expected = _buffer(kind, config)
        for name in (name for name in buffers if buffers[name] == kind):
            _check_buffer(name, tensors.pop(name), expected, path)
    return config, own_float32(tensors, path)


def hugging_face_files(model: HyenaDNA, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files of the Hugging Face layout.

    Raises
    ------
    UsageError              the filters' shift is not the one that the port is fixed to, or blocks that it cannot hold
    """
    import safetensors.torch

    config = model.config
    _check_blocks(config)
    if config.filter_shift != PUBLISHED_SHIFT:
        raise UsageError(
            f"this model's filter shift is {config.filter_shift:g} and the Hugging Face port always adds "
            f"{PUBLISHED_SHIFT:g}, so it would be another model there; write the layout `original` or `hyena`"
        )
    stored = {f"hyena.{name}": tensor for name, tensor in {**tensors, **_buffers(config)}.items()}
    stored["lm_head.weight"] = stored.pop("hyena.lm_head.weight", tensors[_EMBEDDING]).clone()
    fields = {
        "activation_freq": _plain(config.sine_frequency), "architectures": ["HyenaDNAForCausalLM"],
        "d_inner": config.d_inner, "d_model": config.d_model, "emb_dim": config.emb_dim,
        "embed_dropout": config.embed_dropout, "filter_order": config.filter_order, "hyena_dropout": 0.0,
        "hyena_filter_dropout": 0.0, "hyena_order": 2, "initializer_range": config.initializer_range,
        "layer_norm_epsilon": config.layer_norm_eps, "max_seq_len": config.filter_length, "model_type": "hyenadna",
        "n_layer": config.n_layer, "num_inner_mlps": 2, "pad_token_id": 4, "pad_vocab_size_multiple": 8,
        "short_filter_order": config.short_filter_taps, "tie_word_embeddings": False, "train_freq": True,
        "use_bias": True, "vocab_size": 12,
    }  # fmt: skip
    contents = safetensors.torch.save(stored, metadata={"format": "pt"})
    return {"config.json": _json(fields), "model.safetensors": contents}


def original_files(model: HyenaDNA, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files of the original layout, with a checkpoint that holds the state_dict alone.

    Raises
    ------
    UsageError              the head is not the embedding, which the original code takes for granted, or blocks that it
                            cannot hold
    """
    config = model.config
    _check_blocks(config)
    if not config.tie_head:
        raise UsageError("this model's output head is not its embedding, as the original layout has it; write `hf`")
    stored = {}
    for name, tensor in {**tensors, **_buffers(config)}.items():
        stored[f"model.{name}"] = tensor
        if name.endswith("implicit_filter.1.freq"):
            for index in "35":
                stored[f"model.{name.replace('.1.freq', f'.{index}.freq')}"] = tensor
    stored["model.lm_head.weight"] = tensors[_EMBEDDING]
    layer = {
        "_name_": "hyena", "emb_dim": config.emb_dim, "filter_order": config.filter_order,
        "local_order": config.short_filter_taps, "l_max": config.filter_length, "modulate": True,
        "w": _plain(config.sine_frequency), "lr": 6e-4, "wd": 0.0, "lr_pos_emb": 0.0,
    }  # fmt: skip
    if config.filter_shift != PUBLISHED_SHIFT:
        layer["shift"] = config.filter_shift
    if config.short_filter_taps != 3:
        layer["short_filter_order"] = config.short_filter_taps  # the reference code reads this name alone
    fields = {
        "d_model": config.d_model, "n_layer": config.n_layer, "d_inner": config.d_inner, "vocab_size": 12,
        "resid_dropout": config.resid_dropout, "embed_dropout": config.embed_dropout, "fused_mlp": False,
        "fused_dropout_add_ln": True, "residual_in_fp32": True, "pad_vocab_size_multiple": 8,
        "return_hidden_state": True, "layer": layer,
    }  # fmt: skip
    checkpoint = io.BytesIO()
    torch.save({"state_dict": stored}, checkpoint)
    return {"config.json": _json(fields), "weights.ckpt": checkpoint.getvalue()}


def _check_blocks(config: HyenaConfig) -> None:
    if set(config.layers) != {"H"} or config.feed_forward != "mlp":
        raise UsageError(
            f"this model's blocks are {config.blocks}, and the published layouts hold Hyena blocks with dense "
            "feed-forward layers only; write the layout `hyena`"
        )


def _config(description: Mapping[str, Any], where: Path, filter_shift: float | None) -> HyenaConfig:
    layer = description.get("layer")
    given = {**description, **(layer if isinstance(layer, dict) else {})}
    for name, only in _ONLY.items():
        if name in given and given[name] != only and not (name == "attn_layer_idx" and not given[name]):
            raise CheckpointError(f"{where}: {name} is {given[name]!r}; models with {name} {only!r} are supported")
    values: dict[str, Any] = {}
    for field, names in _FIELDS.items():
        value = next((given[name] for name in names if given.get(name) is not None), None)
        if value is not None:
            values[field] = value
    absent = [" or ".join(_FIELDS[field]) for field in ("d_model", "n_layer", "filter_length") if field not in values]
    if absent:
        raise CheckpointError(f"{where} does not say {', '.join(absent)}: is it a HyenaDNA model?")
    n_layer = values.pop("n_layer")
    if not isinstance(n_layer, int) or not 0 < n_layer <= 1024:
        raise CheckpointError(f"{where}: n_layer is {n_layer!r}; allowed are 1 to 1024")
    vocabulary, multiple = given.get("vocab_size", 12), given.get("pad_vocab_size_multiple", 8)
    if vocabulary not in (12, 16) or multiple not in (1, 8):
        raise CheckpointError(
            f"{where}: the vocabulary has {vocabulary!r} tokens; models of the 12 published are supported"
        )
    if isinstance(values["d_model"], int):
        values.setdefault("d_inner", 4 * values["d_model"])
    values.setdefault("filter_shift", PUBLISHED_SHIFT)
    if filter_shift is not None:
        values["filter_shift"] = filter_shift
    return parse_config({**values, "layers": "H" * n_layer, "n_token": "pad"}, where)


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    for name, read in (
        ("model.safetensors", read_safetensors),
        ("model.safetensors.index.json", _read_shards),
        ("weights.ckpt", read_pickle),
    ):
        if (folder / name).exists():
            return folder / name, read(folder / name)
    raise CheckpointError(f"{folder} has a config.json but no weights: neither model.safetensors nor weights.ckpt")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a file beside it")
        tensors |= read_safetensors(index.parent / file)
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} tensors are in none of the files, {absent[0]} first")
    return tensors


def _renamed(raw: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under our names, without the counters and the task heads of training."""
    tensors: dict[str, Tensor] = {}
    heads = []
    for name, tensor in raw.items():
        short = name.removeprefix("model.").removeprefix("hyena.")
        short = short.replace(".mixer.layer.", ".mixer.").replace(".mlp.layer.", ".mlp.")
        if _FOREIGN_HEAD.match(short):
            heads.append(name)
        elif short in tensors:
            raise CheckpointError(f"{path} holds {short} twice, under different names")
        elif "torchmetrics" not in name:
            tensors[short] = tensor
    if heads:
        warnings.warn(
            f"{path}: left out {', '.join(heads[:10])}, the head of a fine-tuned task; "
            "the language model that it stands on was loaded",
            HyenaWarning,
            stacklevel=5,
        )
    return tensors


def _check_buffer(name: str, given: Tensor, expected: Tensor, path: Path) -> None:
    tolerance = (
        1e-4 if given.dtype in (torch.float32, torch.float64) else 0.05
    )  # deltas reach 15, bfloat16 has 3 digits
    difference = float((given.float() - expected).abs().max())
    if not difference <= tolerance:
        raise CheckpointError(
            f"{path}: {name} differs by up to {difference:.2g} from what config.json makes it; the filters of these "
            "weights have another form (a trained position, another decay), which is not supported"
        )


def _buffers(config: HyenaConfig) -> dict[str, Tensor]:
    """The buffers that both layouts store, by name without prefix."""
    parts = {kind: _buffer(kind, config) for kind in ("pos_emb.z", "pos_emb.t", "modulation.deltas")}
    return {
        f"backbone.layers.{layer}.mixer.filter_fn.{name}": tensor.clone()
        for layer in range(config.n_layer)
        for name, tensor in parts.items()
    }


def _buffer_shape(kind: str, config: HyenaConfig) -> tuple[int, int, int]:
    width = {"pos_emb.z": config.emb_dim, "pos_emb.t": 1, "modulation.deltas": config.d_model}[kind]
    return 1, 1 if kind == "modulation.deltas" else config.filter_length, width


def _buffer(kind: str, config: HyenaConfig) -> Tensor:
    """A buffer of `_buffer_shape`, in float32 as the reference code computes it."""
    length, bands = config.filter_length, (config.emb_dim - 1) // 2
    time = torch.linspace(0, 1, length)[None, :, None]
    match kind:
        case "pos_emb.t":
            return time
        case "modulation.deltas":
            return torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, config.d_model)[None, None]
    phase = 2 * math.pi * torch.linspace(0, length - 1, length)[None, :, None] / length
    wave = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands)[None, None] * phase)
    return torch.cat([time, wave.real, wave.imag], dim=-1)


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
