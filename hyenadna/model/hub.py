"""Where a model's files are: a folder, a training run, or a repository of the Hugging Face hub."""

import re
from pathlib import Path
from typing import Literal

from hyenadna.errors import CheckpointError, HubError

STARTER: Literal["starter"] = "starter"
"""Name of the model that comes with the package: tiny-1k, pretrained on human chr20; its card says more."""

_FILES = [
    "config.json", "*.safetensors", "model.safetensors.index.json", "weights.ckpt", "probe.json", "split.json",
    "variants.json",
]  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_model(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder that holds the model's files.

    Parameters
    ----------
    source : str or Path
        A model folder, a training run's folder with `model` in it, or a hub id such as
        'LongSafari/hyenadna-tiny-1k-seqlen-hf'. What exists on disk comes first; then 'starter' is the model that
        comes with the package.
    revision : str, optional
        Branch, tag or commit of a hub id. Default: its main branch.
    local_files_only : bool
        Take a hub id from the local cache and do not ask the network; so does the environment's HF_HUB_OFFLINE=1.

    Raises
    ------
    CheckpointError         no such folder, and not a hub id; or a file, or a folder without a config.json
    HubError                a hub id that neither the cache nor the network has
    """
    path = Path(source).expanduser()
    if not path.exists():
        # as replace_folder leaves it if the process dies between its two renames
        set_aside = path.with_name(f".{path.name}.old")
        if not set_aside.is_dir() and str(source) == STARTER:
            return Path(__file__).parent / "starter"
        if not set_aside.is_dir():
            return _fetch(str(source), revision, local_files_only)
        path = set_aside
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a model is a folder with a config.json, here perhaps {path.parent}")
    for folder in (path, path / "model", path / ".model.old"):
        if (folder / "config.json").is_file():
            return folder
    found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
    raise CheckpointError(f"{path} is no model folder: it has no config.json (it holds {found})")


def _fetch(source: str, revision: str | None, local_files_only: bool) -> Path:
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"there is no folder {source}, and it is no hub id either, which reads OWNER/NAME, "
            "such as LongSafari/hyenadna-tiny-1k-seqlen-hf"
        )
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, local_files_only=local_files_only, allow_patterns=_FILES
        )
    except Exception as error:  # of requests, of httpx, or of huggingface_hub, depending on its version
        raise HubError(
            f"there is no folder {source}, and as a hub id{f' at revision {revision}' if revision else ''} "
            f"it could not be had: {_reason(error)}. Check the name and the network, or copy the model's folder "
            "here from a machine that has it and give its path"
        ) from error
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(f"{source} on the hub is no model that hyenadna can read: it has no config.json")
    return Path(folder)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return "it is not in the local cache, and the hub was not reached (no network, or offline mode)"
        case errors.RevisionNotFoundError():
            return "the hub has no such revision"
        case errors.RepositoryNotFoundError():
            return "the hub has no such repository, or it is private"
        case _:
            return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
