import dataclasses
import errno
import math
import os
from pathlib import Path

import pytest
import torch

from hyenadna import files
from hyenadna.errors import CheckpointError, RunFolderError, WriteError
from hyenadna.pretrain import run_folder
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.metrics_file import append_metrics, cut_metrics, read_metrics
from hyenadna.pretrain.run_folder import METRICS, Best, Checkpoint, RunFolder, read_checkpoint

CONFIG = PretrainConfig(max_length=128, steps=10, lr=1e-3)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    with made.locked():
        assert made.enter(CONFIG, overwrite=False) is None
    return made


def checkpoint(step):
    torch.manual_seed(step)
    weights = {"w": torch.randn(50, 50)}
    return Checkpoint(
        step, weights, {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}, Best(1.9, 3), 2, ("ab",), (4, 2)
    )


def row(step, **fields):
    return dict.fromkeys(METRICS, 0.5) | {"step": step, "valid_bits_per_base": math.nan} | fields


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_is_found_again(folder):
    assert folder.stored() == CONFIG
    for step in (5, 10, 15):
        folder.save(checkpoint(step), keep_last=2)
    assert [path.name for path in folder.saved()] == ["step-00000010.ckpt", "step-00000015.ckpt"]
    found = folder.enter(CONFIG, overwrite=False)
    assert found == folder.saved()[-1]
    read = read_checkpoint(found)
    assert read.step == 15 and read.best == Best(1.9, 3) and read.threads == 2
    assert torch.equal(read.model["w"], checkpoint(15).model["w"])


def test_steps_are_ordered_as_numbers(folder):
    for step in (99_999_999, 100_000_000, 5):
        folder.save(checkpoint(step), keep_last=9)
    assert [read_checkpoint(path).step for path in folder.saved()] == [5, 99_999_999, 100_000_000]


def test_another_configuration_is_refused_by_name(folder):
    other = dataclasses.replace(CONFIG, lr=2e-3, steps=11, threads=7, keep_last=5, out=Path("elsewhere"))
    with pytest.raises(RunFolderError, match="differs in") as told:
        folder.enter(other, overwrite=False)
    said = str(told.value)
    assert "steps (10 there, 11 now), lr (0.001 there, 0.002 now); give the same" in said and "--overwrite" in said
    assert "threads" not in said and "keep_last" not in said and "\n" not in said
    assert folder.enter(dataclasses.replace(CONFIG, threads=7, keep_last=5), overwrite=False) is None


def test_overwrite_starts_anew(folder):
    folder.save(checkpoint(5), keep_last=2)
    append_metrics(folder.metrics, row(1))
    folder.model.mkdir()
    other = dataclasses.replace(CONFIG, steps=11)
    assert folder.enter(other, overwrite=True) is None
    assert contents(folder.path).keys() == {".lock", "training.yaml"} and folder.stored() == other


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["model/weights.bin", "notes.txt", ".model.old/a"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, overwrite, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=rf"holds {name.split('/')[0]} and no run; name a new or an empty"):
        RunFolder(tmp_path).enter(CONFIG, overwrite=overwrite)
    assert contents(tmp_path) == {name: b"mine"}


def test_what_a_killed_process_left_is_swept(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / ".training.yaml.0123456789ab.tmp").write_text("ha")
    assert run.enter(CONFIG, overwrite=False) is None
    run.save(checkpoint(5), keep_last=2)
    (run.checkpoints / ".step-00000010.ckpt.0123456789ab.tmp").write_text("ha")
    (tmp_path / ".model.0123456789ab.tmp").mkdir()
    (tmp_path / ".metrics.csv.0123456789ab.tmp").write_text("ha")
    assert run.enter(CONFIG, overwrite=False) == run.saved()[-1]
    assert contents(tmp_path).keys() == {"training.yaml", "checkpoints/step-00000005.ckpt"}
    assert not (tmp_path / ".model.0123456789ab.tmp").exists()


def test_a_model_set_aside_comes_back(folder):
    aside = folder.path / ".model.old"
    aside.mkdir()
    (aside / "config.json").write_text("{}")
    folder.enter(CONFIG, overwrite=False)
    assert (folder.model / "config.json").exists() and not aside.exists()


def test_training_yaml_that_is_none(folder):
    folder.config_file.write_text("steps: many\n")
    with pytest.raises(RunFolderError, match=r"training\.yaml is no configuration of hyena pretrain: .*steps"):
        folder.stored()


def test_metrics_are_cut_to_the_checkpoint(folder):
    for step in range(1, 8):
        append_metrics(
            folder.metrics, row(step, bits_per_base=1 / step, valid_bits_per_base=2.0 if step == 4 else math.nan)
        )
    lines = folder.metrics.read_text().splitlines(keepends=True)
    with folder.metrics.open("a") as file:
        file.write("8,64,12")  # a process died here
    cut_metrics(folder.metrics, "step", 5)
    assert folder.metrics.read_text() == "".join(lines[:6])
    rows = read_metrics(folder.metrics)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5] and rows[2]["bits_per_base"] == pytest.approx(1 / 3, rel=1e-8)
    assert [math.isnan(r["valid_bits_per_base"]) for r in rows] == [True, True, True, False, True]
    cut_metrics(folder.metrics, "step", 0)
    assert not folder.metrics.exists()
    append_metrics(folder.metrics, row(1, bits_per_base=1.0))
    assert folder.metrics.read_text().splitlines()[0] == ",".join(METRICS)
    assert len(read_metrics(folder.metrics)) == 1


def test_half_a_line_is_not_read(folder):
    append_metrics(folder.metrics, row(1))
    append_metrics(folder.metrics, row(2))
    folder.metrics.write_text(folder.metrics.read_text()[:-7])
    assert [r["step"] for r in read_metrics(folder.metrics)] == [1]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named(folder, damage):
    folder.save(checkpoint(5), keep_last=2)
    path = folder.saved()[0]
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "garbage":
            path.write_bytes(b"\x00garbage" * 99)
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            torch.save({"epoch": 3}, path)
    with pytest.raises(
        CheckpointError, match=r"step-00000005\.ckpt cannot be read as a checkpoint: .*; delete it"
    ) as told:
        read_checkpoint(path)
    assert "\n" not in str(told.value)


def test_a_checkpoint_runs_no_code(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    folder.checkpoints.mkdir()
    torch.save(checkpoint(5)._asdict() | {"model": Payload()}, folder.checkpoints / "step-00000005.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(folder.saved()[0])
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("where", ["torch.save", "fsync", "replace"])
def test_no_space_for_a_checkpoint(folder, monkeypatch, where):
    folder.save(checkpoint(5), keep_last=1)
    before = contents(folder.path)
    if where == "torch.save":
        monkeypatch.setattr(run_folder.torch, "save", full)
    else:
        monkeypatch.setattr(files.os, where, full)
    with pytest.raises(WriteError, match=r"step-00000010\.ckpt could not be written: No space left on device"):
        folder.save(checkpoint(10), keep_last=1)
    assert contents(folder.path) == before


def test_a_write_that_does_not_read_back_is_told(folder, monkeypatch):
    save = torch.save
    monkeypatch.setattr(run_folder.torch, "save", lambda value, path: save(value | {"step": 4}, path))
    with pytest.raises(CheckpointError, match="does not read back as it was written; is the disk sound"):
        folder.save(checkpoint(5), keep_last=1)


def test_no_space_for_metrics(folder):
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"metrics\.csv could not be written: No space left on device; free some"):
        append_metrics(folder.metrics, row(1))


def test_the_lock_is_told(folder):
    with folder.locked(), pytest.raises(RunFolderError, match="in use by another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_best_of_a_finished_run(folder):
    folder.enter(dataclasses.replace(CONFIG, fasta=("a.fa:2", "b.fa:1")), overwrite=True)
    folder.save(checkpoint(4), keep_last=1)
    result = folder.result()
    assert result["step"] == 3 and result["valid_bits_per_base"] == 1.9
    assert "1.9000 bits per base at step 3 of 4" in result["text"]
    assert result["text"].endswith(f"next      hyena evaluate -m {folder.model} --fasta a.fa")
