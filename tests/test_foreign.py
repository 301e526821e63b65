import dataclasses
import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import (
    EMBEDDING,
    edit_json,
    one_line,
    read_original,
    same_weights,
    small_model,
    write_original,
)

from hyenadna import HyenaDNA
from hyenadna.errors import (
    CheckpointError,
    HyenaWarning,
    UsageError,
)
from hyenadna.model import checkpoint
from hyenadna.model.config import named_size

FIXTURE = Path(__file__).parent / "fixtures" / "tiny1k_jit" / "hf"


@pytest.fixture
def published() -> HyenaDNA:
    return small_model(n_token="pad")


@pytest.fixture
def original(published, tmp_path) -> Path:
    checkpoint.export(published, tmp_path / "original", "original")
    return tmp_path / "original"


def test_the_hugging_face_layout_is_the_published_one(tmp_path):
    model = HyenaDNA.from_pretrained(FIXTURE)
    assert model.config == dataclasses.replace(named_size("tiny-1k"), n_token="pad", filter_shift=0.05)
    checkpoint.export(model, tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads(
        (FIXTURE / "config.json").read_text()
    )
    ours = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    theirs = safetensors.torch.load_file(FIXTURE / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=0, atol=1e-6 if "pos_emb" in name or "deltas" in name else 0
        )


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("fields", [{"d_model": 256, "layers": "HH"}, {"layers": "HHHH", "short_filter_taps": 5}])
def test_layouts_there_and_back_keep_every_bit(tmp_path, layout, fields):
    model = small_model(n_token="pad", **fields)
    checkpoint.export(model, tmp_path / layout, layout)
    loaded = HyenaDNA.from_pretrained(tmp_path / layout)
    assert same_weights(loaded, model)
    assert loaded.config == model.config
    loaded.save_pretrained(tmp_path / "ours")
    assert same_weights(HyenaDNA.from_pretrained(tmp_path / "ours"), model)


def test_an_untied_head_lives_in_the_hugging_face_layout_only(tmp_path):
    model = small_model(tie_head=False, n_token="pad")
    checkpoint.export(model, tmp_path / "hf", "hf")
    loaded = HyenaDNA.from_pretrained(tmp_path / "hf")
    assert not loaded.config.tie_head and same_weights(loaded, model)
    with pytest.raises(UsageError, match="output head is not its embedding"):
        checkpoint.export(model, tmp_path / "original", "original")


def test_another_filter_shift_lives_in_the_original_layout_only(tmp_path):
    model = small_model(filter_shift=0.0, n_token="pad")
    checkpoint.export(model, tmp_path / "original", "original")
    assert HyenaDNA.from_pretrained(tmp_path / "original").config == model.config
    with pytest.raises(UsageError, match=r"filter shift is 0 and the Hugging Face port always adds 0\.05"):
        checkpoint.export(model, tmp_path / "hf", "hf")


def test_an_exported_folder_is_replaced_as_ours(original, published):
    checkpoint.export(published, original, "hf", overwrite=True)
    assert {file.name for file in original.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    (original / "README.md").write_text("somebody's own words")
    with pytest.raises(UsageError, match="which hyenadna did not write"):
        checkpoint.export(published, original, "hf", overwrite=True)


def test_keys_of_activation_checkpointing_are_read(original, published):
    state = read_original(original)
    renamed = {
        name.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer."): tensor
        for name, tensor in state.items()
    }
    write_original(original, renamed)
    edit_json(original / "config.json", checkpoint_mixer=True, checkpoint_mlp=True)
    assert same_weights(HyenaDNA.from_pretrained(original), published)


@pytest.mark.parametrize("style", ["original", "hf"])
@pytest.mark.parametrize("taps", ["local_order", "short_filter_order"])
def test_both_conventions_of_the_config_are_read(original, published, style, taps):
    if style == "hf":
        checkpoint.export(published, original.with_name("hf"), "hf")
        (original / "config.json").write_bytes((original.with_name("hf") / "config.json").read_bytes())
    else:
        config = json.loads((original / "config.json").read_text())
        config["layer"][taps] = config["layer"].pop("local_order")
        (original / "config.json").write_text(json.dumps(config))
    loaded = HyenaDNA.from_pretrained(original)
    assert same_weights(loaded, published) and loaded.config == published.config


def test_half_precision_and_absent_buffers_are_read(original, published):
    state = read_original(original)
    write_original(original, {name: tensor.bfloat16() for name, tensor in state.items()})
    loaded = HyenaDNA.from_pretrained(original)
    assert same_weights(loaded, published.bfloat16().float())
    kept = {name: t for name, t in state.items() if not name.endswith((".z", ".t", ".deltas", "lm_head.weight"))}
    write_original(original, kept)
    assert HyenaDNA.from_pretrained(original).config.tie_head


def test_sharded_weights_are_read(published, tmp_path):
    checkpoint.export(published, tmp_path / "hf", "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, held in shards.items():
        safetensors.torch.save_file({name: tensors[name] for name in held}, path.with_name(file))
    places = {name: file for file, held in shards.items() for name in held}
    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    assert same_weights(HyenaDNA.from_pretrained(tmp_path / "hf"), published)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../model.safetensors")}))
    with pytest.raises(CheckpointError, match="is not a file beside it"):
        HyenaDNA.from_pretrained(tmp_path / "hf")


def test_the_head_of_a_fine_tuned_classifier_is_left_out_with_a_warning(original, published):
    state = read_original(original)
    write_original(original, {**state, "decoder.0.output_transform.weight": torch.zeros(2, 16)})
    with pytest.warns(HyenaWarning, match=r"left out decoder\.0\.output_transform\.weight"):
        assert same_weights(HyenaDNA.from_pretrained(original), published)


def test_a_config_that_contradicts_the_weights_is_one_clear_error(tmp_path):
    checkpoint.export(small_model(d_model=128, d_inner=512, layers="HH"), tmp_path / "m", "original")
    edit_json(tmp_path / "m" / "config.json", d_model=256, d_inner=1024)
    with pytest.raises(CheckpointError) as error:
        HyenaDNA.from_pretrained(tmp_path / "m")
    message = one_line(error)
    assert f"{EMBEDDING} (16, 128) instead of (16, 256)" in message
    assert "mixer.in_proj.weight (384, 128) instead of (768, 256)" in message
    assert re.search(r" and \d+ more$", message)


def test_sizes_that_no_memory_holds_are_refused_before_anything_is_computed(original):
    config = json.loads((original / "config.json").read_text())
    config["layer"] |= {"l_max": 1 << 26, "emb_dim": 1025}
    (original / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"pos_emb\.z \(1, 70, 5\) instead of \(1, 67108864, 1025\)"):
        HyenaDNA.from_pretrained(original)


@pytest.mark.parametrize("stretch", [False, True])
def test_buffers_of_another_length_are_refused_by_name(original, stretch):
    state = read_original(original)
    name = "model.backbone.layers.1.mixer.filter_fn.pos_emb.z"
    state[name] = state[name] * 1.01 if stretch else state[name][:, :-2].clone()
    write_original(original, state)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mixer\.filter_fn\.pos_emb\.z (differs|\(1, 68, 5\) instead of \(1, 70, 5\))"
    ):
        HyenaDNA.from_pretrained(original)


def test_frequencies_that_are_not_shared_are_refused(original):
    state = read_original(original)
    name = "model.backbone.layers.0.mixer.filter_fn.implicit_filter.3.freq"
    state[name] = state[name] + 1
    write_original(original, state)
    with pytest.raises(CheckpointError, match=r"implicit_filter\.3\.freq is not the same"):
        HyenaDNA.from_pretrained(original)


@pytest.mark.parametrize(
    ("layer", "top", "message"),
    [
        ({"order": 3}, {}, "order is 3; models with order 2 are supported"),
        ({}, {"hyena_order": 3}, "hyena_order is 3"),
        ({}, {"use_bias": False}, "use_bias is False"),
        ({"num_inner_mlps": 4}, {}, "num_inner_mlps is 4"),
        ({"_name_": "mha"}, {}, "_name_ is 'mha'"),
        ({}, {"attn_layer_idx": [1]}, "attn_layer_idx is"),
        ({}, {"n_layer": 10**9}, "n_layer is 1000000000; allowed are 1 to 1024"),
        ({"l_max": 10**12}, {}, "filter_length is 1000000000000"),
        ({"l_max": None}, {}, "does not say l_max or max_seq_len"),
        ({}, {"d_model": "big"}, "d_model: Input should be a valid integer"),
        ({}, {"vocab_size": 36}, "vocabulary has 36 tokens"),
        ({"emb_dim": 4}, {}, "emb_dim is 4; it must be odd"),
    ],
)
def test_another_architecture_is_refused(original, layer, top, message):
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, **top, "layer": {**config["layer"], **layer}}))
    with pytest.raises(CheckpointError) as error:
        HyenaDNA.from_pretrained(original)
    assert message in one_line(error)
