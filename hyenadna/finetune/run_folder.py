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

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.errors import CheckpointError, RunFolderError
from hyenadna.files import atomic_write, restore_folder, write_text
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.report import FILES
from hyenadna.finetune.train import State
from hyenadna.finetune.validation import Validation
from hyenadna.pretrain.configured_folder import ConfiguredFolder, to_yaml

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


class RunFolder(ConfiguredFolder[FinetuneConfig]):
    """All the files of a command: one run, or several and what they come to together."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "finetune.yaml", FinetuneConfig, _TEMPORARY)
        self.check_json, self.card = path / "check.json", path / "README.md"
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

    def enter(self, config: FinetuneConfig, *, overwrite: bool) -> None:
        """Make the folder ready for a run that starts or continues.

        Raises
        ------
        RunFolderError          as `check`
        """
        self.check(config, overwrite=overwrite)
        _remove_half_written(self.path)
        if overwrite and self.config_file.exists():
            for path in self.path.iterdir():
                if _OURS.fullmatch(path.name):
                    _remove(path)
            self.config_file.unlink()
        if not self.config_file.exists():
            write_text(self.config_file, to_yaml(config))


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


def _remove_half_written(folder: Path) -> None:
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
