"""The folder of a fine-tuning run: what it holds, who may use it, and where a run continues.

finetune.yaml       the run, with every default filled in; `hyena finetune --config` runs it again
check.json          what `hyena data check` finds in the rows as they were split
report.*            how good the model is on the test rows, beside the baselines; its plots are beside it
predictions.tsv     of the test rows
adapter/            what was learnt, of the run with the best validation, for `hyena predict`
model/              the random weights that the adapter belongs to, with --init random; a model that was trained as a
                    whole lies in adapter/model/
baselines/          predictions of the simple models on each split
metrics.csv, training.png, state.ckpt, test.npz
                    a line an epoch; the same drawn; where the run continues; predictions, once the run is over.
                    Of several runs each has these, and its adapter, in a folder of its own: split-0-seed-0/
"""

import csv
import io
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from hyenadna.errors import CheckpointError, RunFolderError, WriteError
from hyenadna.files import atomic_write, lock, restore_folder, write_text
from hyenadna.finetune.config import FinetuneConfig, differing_fields
from hyenadna.finetune.report import FILES
from hyenadna.finetune.train import State
from hyenadna.finetune.validation import Validation

_CONFIG = "finetune.yaml"
_OURS = re.compile(
    r"adapter|model|baselines|split-\d+-seed-\d+|check\.json|metrics\.csv|training\.png|state\.ckpt|test\.npz|"
    r"README\.md|\.(adapter|model)\.old|" + "|".join(map(re.escape, FILES))
)
"""What a new start removes, besides finetune.yaml, which says that the folder is a run's and goes last."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
"""What a killed process was writing."""


class Run:
    """The files of one run on one split; every one of them is written whole or not at all."""

    def __init__(self, path: Path, split: int, seed: int) -> None:
        self.path, self.split, self.seed = path, split, seed
        self.adapter, self.model = path / "adapter", path / "model"
        self.metrics, self.curves = path / "metrics.csv", path / "training.png"
        self.state, self.test = path / "state.ckpt", path / "test.npz"

    def enter(self) -> None:
        """Make the folder ready: nothing half-written is left in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        _remove_half_written(self.path)
        restore_folder(self.adapter)
        restore_folder(self.model)

    def save(self, state: State, origin: str) -> None:
        """Write the state after an epoch.

        Parameters
        ----------
        state : State
        origin : str
            SHA-256 of the rows and of the model that the run started from.
        """
        best = None if state.best is None else tuple(state.best)
        with atomic_write(self.state, verify=_check_state) as temporary:
            torch.save({**vars(state), "best": best, "origin": origin}, temporary)

    def saved(self, origin: str) -> State | None:
        """The state that the run continues from, if any.

        Raises
        ------
        CheckpointError         the file is damaged
        RunFolderError          it is of other rows, or of another model
        """
        if not self.state.exists():
            return None
        state, theirs = _read_state(self.state)
        if theirs != origin:
            raise RunFolderError(
                f"{self.path} holds a run on other rows or from another model than those given now; give the same, "
                "name another folder by --out, or start anew with --overwrite"
            )
        return state

    def finish(self, predictions: NDArray[np.float64]) -> None:
        """Write the predictions of the test rows, which says that the run is over."""
        with atomic_write(self.test) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, predictions=predictions)

    def predictions(self) -> NDArray[np.float64] | None:
        """Of the test rows, if the run is over."""
        if not self.test.exists():
            return None
        with np.load(self.test) as arrays:
            return np.asarray(arrays["predictions"])

    def cut_metrics(self, epoch: int) -> None:
        """Drop the lines of metrics.csv that lie beyond an epoch: they will be computed again."""
        if not self.metrics.exists():
            return
        rows = [row for row in read_metrics(self.metrics) if row["epoch"] <= epoch]
        if not rows:
            self.metrics.unlink()
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        write_text(self.metrics, text.getvalue())

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add a line to metrics.csv."""
        new = not self.metrics.exists()
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow({name: _cell(value) for name, value in row.items()})
        except OSError as error:
            raise WriteError(
                f"{self.metrics} could not be written: {error.strerror or error}; free some space, then run the same "
                "command again: it continues from the last epoch"
            ) from error


class RunFolder:
    """All the files of a command: one run, or several and what they come to together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.check_json, self.card = path / _CONFIG, path / "check.json", path / "README.md"
        self.adapter, self.model, self.baselines = path / "adapter", path / "model", path / "baselines"

    def runs(self, splits: int, seeds: int) -> list[Run]:
        """The runs in the order in which they are made; a single one has the folder for itself."""
        if splits * seeds == 1:
            return [Run(self.path, 0, 0)]
        return [
            Run(self.path / f"split-{split}-seed-{seed}", split, seed)
            for split in range(splits)
            for seed in range(seeds)
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the folder."""
        busy = RunFolderError(f"{self.path} is in use by another process; wait for it, or name another folder by --out")
        with lock(self.path / ".lock", busy):
            yield

    def check(self, config: FinetuneConfig, *, overwrite: bool) -> None:
        """Nothing, if the folder can take this run; changes nothing.

        Raises
        ------
        RunFolderError          it is a file, holds something else, or a run with another configuration
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"--out {self.path} is a file; name a folder")
        if not self.config.exists():
            foreign = sorted(
                p.name for p in self.path.iterdir() if p.name != ".lock" and not _TEMPORARY.fullmatch(p.name)
            )
            if foreign:
                raise RunFolderError(
                    f"{self.path} holds {', '.join(foreign[:5])} and no run; name a new or an empty folder by --out"
                )
        elif not overwrite and (differing := differing_fields(config, read_yaml(self.config))):
            named = ", ".join(f"{name} ({theirs} there, {ours} now)" for name, (ours, theirs) in differing.items())
            raise RunFolderError(
                f"{self.path} holds a run that differs in {named}; give the same, name another folder by --out, "
                "or start anew with --overwrite"
            )

    def enter(self, config: FinetuneConfig, *, overwrite: bool) -> None:
        """Make the folder ready for a run that starts or continues.

        Raises
        ------
        RunFolderError          as `check`
        """
        self.check(config, overwrite=overwrite)
        _remove_half_written(self.path)
        if overwrite and self.config.exists():
            for path in self.path.iterdir():
                if _OURS.fullmatch(path.name):
                    _remove(path)
            self.config.unlink()
        if not self.config.exists():
            write_text(self.config, to_yaml(config))

    def stored(self) -> FinetuneConfig | None:
        """The configuration of the run that the folder holds, if any."""
        return read_yaml(self.config) if self.config.exists() else None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.csv; what is empty is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave half a line
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: float(value) if value else math.nan for name, value in row.items()} for row in rows]


def to_yaml(config: FinetuneConfig) -> str:
    """A configuration as YAML that `read_yaml` takes."""
    return yaml.safe_dump(TypeAdapter(FinetuneConfig).dump_python(config, mode="json"), sort_keys=False)


def read_yaml(path: Path) -> FinetuneConfig:
    """The configuration in a YAML file.

    Raises
    ------
    RunFolderError          an unknown field or a value of another type
    """
    try:
        return TypeAdapter(FinetuneConfig).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise RunFolderError(
            f"{path} is no configuration of a fine-tuning run: {' '.join(str(error).split())}"
        ) from error


def _read_state(path: Path) -> tuple[State, str]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        origin, best = values.pop("origin"), values.pop("best")
        return State(**values, best=None if best is None else Validation(*best)), origin
    except Exception as error:  # a damaged file fails in torch's reader in many ways, all of which mean this
        # torch's own words would recommend to run what is pickled there
        raise CheckpointError(
            f"{path} cannot be read as the state of a run: it is damaged; delete it, and this run starts anew"
        ) from error


def _check_state(path: Path) -> None:
    _read_state(path)


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"


def _remove_half_written(folder: Path) -> None:
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
