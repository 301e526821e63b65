"""Putting a model folder in its place: complete or not at all, and never over what hyenadna did not write."""

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from hyenadna.errors import CheckpointError, UsageError, WriteError
from hyenadna.files import replace_folder, restore_folder
from hyenadna.model.weights import read_json

MODEL_FILES = ("config.json", "model.safetensors", "probe.json", "README.md")
ADAPTER_FILES = ("adapter.json", "adapter.safetensors", "README.md", "model")
"""Of an adapted model; the last is the folder of a model that was fine-tuned as a whole."""
HEAD_FILES = ("diversity.json", "diversity.safetensors", "README.md", "diversity.png", "diversity.tsv")
"""Of a diversity head."""
MARK = "<!-- written by hyenadna: this folder may be replaced as a whole -->"
"""The last line of README.md in the published layouts, whose config.json has no room to say so."""


def place(folder: Path, files: Mapping[str, bytes], *, overwrite: bool, verify: Callable[[Path], object]) -> None:
    """Write a folder beside its place, verify it, and put it there in one step.

    Parameters
    ----------
    folder : Path
        May not exist yet, or be empty, or (with `overwrite`) hold nothing but what hyenadna wrote.
    files : mapping
        Contents by name; 'model/config.json' is the file of a folder within.
    overwrite : bool
        Replace a folder.
    verify : callable
        Called with the complete folder before it is put in place; raises if it does not read back.

    Raises
    ------
    UsageError              the folder may not be replaced
    WriteError              no space, or read-only; what was there before is unchanged
    """
    folder = folder.expanduser().resolve()
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        restore_folder(folder)
        check_replaceable(folder, overwrite=overwrite)
        staging.mkdir(parents=True)
        for name, contents in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(contents)
        verify(staging)
        replace_folder(staging, folder)
    except OSError as error:
        raise WriteError(
            f"{folder} could not be written: {error.strerror or error}; what was there before is unchanged. "
            "Free some space or name another place, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Nothing, if the folder is free, or holds nothing but what hyenadna wrote and may be replaced.

    Raises
    ------
    UsageError              a file; not empty, without `overwrite`; or with files that are not ours
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the model")
    present = {file.name for file in folder.iterdir()}
    if not present:
        return
    if not overwrite:
        raise UsageError(f"{folder} is not empty; name another folder, or say --overwrite to replace a model")
    foreign = sorted(present - _written(folder))
    if foreign:
        raise UsageError(
            f"{folder} holds {', '.join(foreign[:5])}, which hyenadna did not write there, so it is not replaced; "
            "name another folder"
        )


def _written(folder: Path) -> set[str]:
    """The names in a folder that hyenadna wrote."""
    try:
        if (folder / "adapter.json").is_file() and "format_version" in read_json(folder / "adapter.json"):
            return set(ADAPTER_FILES)
        if (folder / "diversity.json").is_file() and "format_version" in read_json(folder / "diversity.json"):
            return set(HEAD_FILES)
        description = read_json(folder / "config.json")
        if "format_version" in description:
            return {*MODEL_FILES, *map(str, description.get("extra", ()))}
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except (CheckpointError, OSError, TypeError):
        return set()
    return {"config.json", "model.safetensors", "weights.ckpt", "README.md"} if card.rstrip().endswith(MARK) else set()
