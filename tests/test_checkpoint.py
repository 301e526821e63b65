import dataclasses
import errno
import json
import os
import resource
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import (
    EMBEDDING,
    edit_json,
    edit_tensors,
    one_line,
    same_weights,
    small_model,
)

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.errors import (
    CheckpointError,
    NotFiniteError,
    ProbeError,
    UsageError,
    WriteError,
)
from hyenadna.model import checkpoint
from hyenadna.model.config import named_size

FIXTURE = Path(__file__).parent / "fixtures" / "tiny1k_jit" / "hf"


@pytest.fixture
def model() -> HyenaDNA:
    return small_model()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("fields", [{}, {"tie_head": False}, {"n_token": "pad", "filter_shift": 0.0, "emb_dim": 7}])
def test_a_saved_model_loads_with_the_same_bits_and_configuration(tmp_path, fields):
    model = small_model(**fields)
    model.save_pretrained(tmp_path / "model")
    loaded = HyenaDNA.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert same_weights(model, loaded)
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_model_folder_holds_what_the_design_says(model, tmp_path):
    training = {"data": "a.fa", "loss": float("nan")}
    model.save_pretrained(tmp_path / "m", training=training, extra={"split.json": {"train": []}}, card="# My model")
    assert {file.name for file in tmp_path.iterdir()} == {"m"}
    assert {file.name for file in (tmp_path / "m").iterdir()} == {
        "config.json", "model.safetensors", "probe.json", "README.md", "split.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["training"] == {"data": "a.fa", "loss": None}
    assert {field.name for field in dataclasses.fields(HyenaConfig)} <= config.keys()
    assert (tmp_path / "m" / "README.md").read_text() == "# My model"
    stored = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    assert stored.keys() == {name for name, _ in model.named_parameters()}
    assert (tmp_path / "m" / "probe.json").stat().st_size < 60_000


def test_equal_weights_are_equal_files(model, tmp_path):
    for name in "abcd":
        model.save_pretrained(tmp_path / name)
    contents = {(tmp_path / name / "model.safetensors").read_bytes() for name in "abcd"}
    assert len(contents) == 1
    with safetensors.safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert len(file.metadata()) == 1


def test_loading_and_saving_draw_no_random_numbers(saved, model, tmp_path):
    before = torch.get_rng_state()
    HyenaDNA.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert torch.equal(before, torch.get_rng_state())


def test_the_checksum_covers_names_shapes_and_values():
    tensors = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    digest = checkpoint.base_sha256(tensors)
    assert digest == checkpoint.base_sha256(dict(reversed(tensors.items())))
    assert digest == checkpoint.base_sha256({name: tensor.double() for name, tensor in tensors.items()})
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.tensor([0.0, 1e-30])},
    ]
    assert len({digest, *map(checkpoint.base_sha256, others)}) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_is_cast_to_after_the_probe(saved, model, dtype):
    loaded = HyenaDNA.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.to(dtype))


def test_a_model_in_bfloat16_is_saved_as_the_float32_that_it_is(model, tmp_path):
    half = model.bfloat16()
    half.save_pretrained(tmp_path / "half")
    assert same_weights(HyenaDNA.from_pretrained(tmp_path / "half"), half.float())


def test_a_pretraining_run_stands_for_the_model_in_it(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    assert same_weights(HyenaDNA.from_pretrained(tmp_path / "run"), model)


def test_a_folder_that_was_set_aside_when_the_process_died_is_read(saved, model):
    saved.rename(saved.with_name(".model.old"))
    assert same_weights(HyenaDNA.from_pretrained(saved), model)
    assert same_weights(HyenaDNA.from_pretrained(saved.parent), model)


def test_the_longest_published_model_is_probed_in_a_second(tmp_path):
    HyenaDNA(named_size("large-1m")).save_pretrained(tmp_path / "m")
    assert HyenaDNA.from_pretrained(tmp_path / "m").config.filter_length == 1_000_002


@pytest.mark.parametrize("name", [EMBEDDING, "backbone.layers.2.mixer.filter_fn.bias", "backbone.ln_f.weight"])
def test_changed_weights_fail_the_probe(saved, name):
    def change(tensors):
        tensors[name][-1] *= 1.5
        if name == EMBEDDING:
            tensors[name][7] += 0.1

    edit_tensors(saved / "model.safetensors", change)
    with pytest.raises(ProbeError, match=r"do not give the logits in probe.json; they differ by .* 0.001 is allowed"):
        HyenaDNA.from_pretrained(saved)


def test_a_change_too_small_for_the_probe_is_seen_by_the_checksum(saved):
    edit_tensors(saved / "model.safetensors", lambda tensors: tensors[EMBEDDING][0].add_(1e-6))
    with pytest.raises(CheckpointError, match=r"the weights have SHA-256 .* do not belong together"):
        HyenaDNA.from_pretrained(saved)


def test_another_filter_shift_or_length_fails_the_probe(saved):
    for fields in ({"filter_shift": 0.0}, {"filter_length": 75}):
        before = (saved / "config.json").read_text()
        edit_json(saved / "config.json", **fields)
        with pytest.raises(ProbeError):
            HyenaDNA.from_pretrained(saved)
        (saved / "config.json").write_text(before)


@pytest.mark.parametrize("contents", [None, "", "{}", "[1]", '{"probes": [1, 2]}', '{"probes": [{"logits": "x"}]}'])
def test_a_missing_or_damaged_probe_is_refused(saved, contents):
    if contents is None:
        (saved / "probe.json").unlink()
    else:
        (saved / "probe.json").write_text(contents)
    with pytest.raises(ProbeError) as error:
        HyenaDNA.from_pretrained(saved)
    assert "probe.json" in one_line(error)


def test_missing_extra_and_misshaped_tensors_are_listed(saved):
    def change(tensors):
        del tensors["backbone.ln_f.bias"]
        tensors["backbone.surprise"] = torch.zeros(2, 3)
        tensors["backbone.ln_f.weight"] = torch.zeros(17)

    edit_tensors(saved / "model.safetensors", change)
    with pytest.raises(CheckpointError) as error:
        HyenaDNA.from_pretrained(saved)
    message = one_line(error)
    assert "mis-shaped: backbone.ln_f.weight (17,) instead of (16,)" in message
    assert "missing: backbone.ln_f.bias (16,)" in message
    assert "not expected: backbone.surprise (2, 3)" in message


def test_many_missing_tensors_are_counted(saved):
    def keep_one(tensors):
        for name in sorted(tensors)[1:]:
            del tensors[name]

    edit_tensors(saved / "model.safetensors", keep_one)
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more") as error:
        HyenaDNA.from_pretrained(saved)
    assert one_line(error).count("backbone.") == 10


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_weights_are_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="could not be read as safetensors"):
        HyenaDNA.from_pretrained(saved)


def test_a_header_that_promises_gigabytes_is_refused(saved):
    header = json.dumps({EMBEDDING: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="could not be read as safetensors"):
        HyenaDNA.from_pretrained(saved)


def test_integers_and_values_that_are_not_finite_are_no_weights(saved):
    edit_tensors(saved / "model.safetensors", lambda t: t.update({"backbone.ln_f.bias": torch.zeros(16).long()}))
    with pytest.raises(CheckpointError, match=r"backbone.ln_f.bias holds torch.int64"):
        HyenaDNA.from_pretrained(saved)
    edit_tensors(saved / "model.safetensors", lambda t: t.update({"backbone.ln_f.bias": torch.full((16,), torch.inf)}))
    with pytest.raises(CheckpointError, match=r"backbone\.ln_f\.bias holds values that are not finite"):
        HyenaDNA.from_pretrained(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surprise": 1}, "surprise: Unexpected"),
        ({"d_model": "16"}, "d_model: Input should be a valid integer"),
        ({"d_model": 16.5}, "d_model: Input should be a valid integer"),
        ({"d_model": 10**12}, "d_model is 1000000000000; allowed are 1 to 65536"),
        ({"filter_length": 1 << 40}, "filter_length is"),
        ({"layers": "H" * 5000}, "layers is"),
        ({"layers": "HX"}, "layers is"),
        ({"n_token": "x"}, "n_token: Input should be 'n' or 'pad'"),
        ({"format_version": 2}, "format_version 2; this hyenadna reads 1"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(saved, fields, message):
    edit_json(saved / "config.json", **fields)
    with pytest.raises(CheckpointError) as error:
        HyenaDNA.from_pretrained(saved)
    assert message in one_line(error)


@pytest.mark.parametrize("contents", ["", "{", "[]", "7", '{"d_model": NaN}', "\xff\x00", "[" * 100_000])
def test_a_config_that_is_not_json_is_refused(saved, contents):
    (saved / "config.json").write_bytes(contents.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        HyenaDNA.from_pretrained(saved)
    one_line(error)


def test_a_model_of_absurd_size_is_refused_before_anything_is_allocated(saved):
    edit_json(saved / "config.json", d_model=65_536, d_inner=1 << 20, layers="H" * 64)
    with pytest.raises(CheckpointError, match="mis-shaped"):
        HyenaDNA.from_pretrained(saved)


def test_options_that_do_not_exist_are_refused(saved):
    with pytest.raises(UsageError, match="'gpu' is no device"):
        HyenaDNA.from_pretrained(saved, device="gpu")
    with pytest.raises(UsageError, match=r"dtype is torch\.int8; allowed are float32"):
        HyenaDNA.from_pretrained(saved, dtype=torch.int8)
    with pytest.raises(UsageError, match="records its own filter shift"):
        HyenaDNA.from_pretrained(saved, filter_shift=0.0)
    with pytest.raises(UsageError, match=r"cuda:99 was asked for, but torch sees \d+ CUDA devices"):
        HyenaDNA.from_pretrained(saved, device="cuda:99")


def test_a_model_that_gives_no_numbers_is_not_saved(model, tmp_path):
    model.embedding.weight.data[7, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        model.save_pretrained(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_on_request_and_as_a_whole(saved, model):
    with pytest.raises(UsageError, match="is not empty; name another folder, or say --overwrite"):
        model.save_pretrained(saved)
    model.save_pretrained(saved, overwrite=True, extra={"split.json": {}})
    other = small_model(d_inner=64)
    other.save_pretrained(saved, overwrite=True)
    assert not (saved / "split.json").exists()
    assert same_weights(HyenaDNA.from_pretrained(saved), other)
    assert [file.name for file in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["notes.txt", "split.json"])
def test_a_folder_with_anything_else_in_it_is_never_replaced(saved, model, name):
    (saved / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds {name}, which hyenadna did not write"):
        model.save_pretrained(saved, overwrite=True)
    assert (saved / name).read_text() == "mine"


def test_a_foreign_model_is_never_replaced(model, tmp_path):
    place = tmp_path / "hf"
    place.mkdir()
    for file in FIXTURE.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="which hyenadna did not write"):
        model.save_pretrained(place, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        model.save_pretrained(place / "config.json", overwrite=True)


@pytest.mark.parametrize("name", ["config.json", "../x.json", "notes.txt", "a/b.json"])
def test_further_files_have_plain_names(model, tmp_path, name):
    with pytest.raises(UsageError, match="cannot be a further file"):
        model.save_pretrained(tmp_path / "m", extra={name: {}})


def test_no_space_left_keeps_the_earlier_folder(saved, model):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(WriteError, match="what was there before is unchanged") as error:
            small_model(d_inner=64).save_pretrained(saved, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(saved) in one_line(error)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [file.name for file in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["mkdir", "write_bytes", "rename"])
def test_a_failure_at_any_point_keeps_the_earlier_folder(saved, model, monkeypatch, code, where):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "rename", fail) if where == "rename" else (Path, where, fail)))
    with pytest.raises(WriteError, match=os.strerror(code)):
        small_model(d_inner=64).save_pretrained(saved, overwrite=True)
    monkeypatch.undo()
    assert same_weights(HyenaDNA.from_pretrained(saved), model)
    assert [file.name for file in saved.parent.iterdir()] == ["model"]


def test_what_does_not_read_back_is_not_put_in_place(saved, model, monkeypatch):
    monkeypatch.setattr(checkpoint, "safetensors_bytes", lambda tensors, digest: b"garbage")
    with pytest.raises(CheckpointError, match="could not be read as safetensors"):
        small_model(d_inner=64).save_pretrained(saved, overwrite=True)
    assert same_weights(HyenaDNA.from_pretrained(saved), model)
