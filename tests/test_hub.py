import builtins
from pathlib import Path

import pytest
from checkpoints import one_line, same_weights, small_model

from hyenadna import HyenaDNA
from hyenadna.errors import (
    CheckpointError,
    HubError,
)


@pytest.fixture
def model() -> HyenaDNA:
    return small_model()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "a/b/c", "../x/y", "~/no where/x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_said_to_be_neither(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **o: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError, match=r"there is no folder .* and it is no hub id either") as error:
        HyenaDNA.from_pretrained(source)
    one_line(error)


def test_folders_without_a_model_are_refused(tmp_path, saved):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"has no config\.json \(it holds notes\.txt\)"):
        saved.rename(tmp_path.with_name(tmp_path.name + "-away"))
        HyenaDNA.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; a model is a folder"):
        HyenaDNA.from_pretrained(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text('{"d_model": 16, "n_layer": 1, "max_seq_len": 70}')
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor weights\.ckpt"):
        HyenaDNA.from_pretrained(tmp_path)


def test_a_hub_id_is_fetched_with_the_files_that_are_needed(saved, model, monkeypatch):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = HyenaDNA.from_pretrained("LongSafari/hyenadna-tiny-1k-seqlen-hf", revision="abc", local_files_only=True)
    assert same_weights(loaded, model)
    assert asked["repo_id"] == "LongSafari/hyenadna-tiny-1k-seqlen-hf"
    assert asked["revision"] == "abc" and asked["local_files_only"]
    assert {"config.json", "*.safetensors", "weights.ckpt", "probe.json", "variants.json"} <= set(
        asked["allow_patterns"]
    )
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_a_folder_comes_before_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **o: pytest.fail("the hub was asked"))
    model.save_pretrained(Path("owner/name"))
    assert same_weights(HyenaDNA.from_pretrained("owner/name"), model)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("LocalEntryNotFoundError", "not in the local cache, and the hub was not reached"),
        ("OfflineModeIsEnabled", "not in the local cache, and the hub was not reached"),
        ("OSError", "a long story"),
        ("ValueError", "a long story"),
    ],
)
def test_no_network_is_one_line_that_says_both(monkeypatch, failure, reason):
    from huggingface_hub import errors

    kind = getattr(errors, failure, None) or getattr(builtins, failure)

    def download(repo_id, **options):
        raise kind("a long story.\nTold in\nlines.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        HubError, match="there is no folder nobody/nothing, and as a hub id it could not be had"
    ) as error:
        HyenaDNA.from_pretrained("nobody/nothing")
    assert reason in one_line(error)


def test_offline_mode_is_honoured_and_told(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match="not in the local cache"):
        HyenaDNA.from_pretrained("LongSafari/hyenadna-tiny-1k-seqlen-hf")
