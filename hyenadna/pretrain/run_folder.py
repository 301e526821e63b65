"""The folder of a run: what it holds, who may use it, and where a run continues.

training.yaml       the run, with every default filled in; `hyena pretrain --config` runs it again
metrics.csv         a line a step
curves.png          the same, drawn
model/              the model folder with the best validation so far
checkpoints/        step-00000020.ckpt: weights, optimizer, and the best validation so far
"""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hyenadna.errors import CheckpointError
from hyenadna.files import atomic_write, restore_folder, write_text
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.configured_folder import ConfiguredFolder, to_yaml
from hyenadna.pretrain.sparsity import SparsityState

METRICS = (
    "step", "length", "tokens", "bits_per_base", "gradient_norm", "learning_rate", "nt_per_second",
    "valid_bits_per_base",
)  # fmt: skip
_OURS = ("metrics.csv", "curves.png", "model", "checkpoints", "logs", "training.yaml")
"""What a new start removes; the last says that the folder is a run's, and goes last."""
_TEMPORARY = re.compile(r"\.(training\.yaml|metrics\.csv|curves\.png|model|step-\d+\.ckpt)\.[0-9a-f]{12}\.tmp")
"""What a killed process was writing."""


class Best(NamedTuple):
    """The best validation of a run."""

    bits_per_base: float
    step: int


class Checkpoint(NamedTuple):
    """A run as it stood after a step."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best: Best
    threads: int
    """CPU threads that computed it; another number rounds differently."""
    sequences: tuple[str, ...]
    """SHA-256 of each genome's sequence."""
    windows: tuple[int, ...]
    """Windows of a step in each stage."""
    sparsity: SparsityState | None = None
    """Of the experts, if the model has any."""


class RunFolder(ConfiguredFolder[PretrainConfig]):
    """A run's files; every one of them is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "training.yaml", PretrainConfig, _TEMPORARY)
        self.model, self.checkpoints = path / "model", path / "checkpoints"
        self.metrics, self.curves = path / "metrics.csv", path / "curves.png"

    def enter(self, config: PretrainConfig, *, overwrite: bool) -> Path | None:
        """Make the folder ready for a run, and say which checkpoint the run continues from, if any.

        Raises
        ------
        RunFolderError          as `check`
        """
        self.check(config, overwrite=overwrite)
        self._sweep()
        restore_folder(self.model)
        if overwrite and self.config_file.exists():
            self._clear()
        if not self.config_file.exists():
            write_text(self.config_file, to_yaml(config))
        checkpoints = self.saved()
        return checkpoints[-1] if checkpoints else None

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.checkpoints.glob("step-*.ckpt") if re.fullmatch(r"step-\d{8,}", path.stem)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, checkpoint: Checkpoint, keep_last: int) -> None:
        """Write a checkpoint, then drop those beyond the last ones."""
        path = self.checkpoints / f"step-{checkpoint.step:08d}.ckpt"
        with atomic_write(path, verify=lambda written: _check(written, checkpoint.step)) as temporary:
            plain = {"best": tuple(checkpoint.best), "sparsity": checkpoint.sparsity and tuple(checkpoint.sparsity)}
            torch.save(checkpoint._asdict() | plain, temporary)
        for old in self.saved()[:-keep_last]:
            old.unlink()

    def result(self) -> dict[str, Any]:
        """What a finished run came to: where things are, and the validation that chose the model."""
        checkpoint = read_checkpoint(self.saved()[-1])
        stored = self.stored()
        fasta = f" --fasta {stored.fasta[0].rpartition(':')[0] or stored.fasta[0]}" if stored and stored.fasta else ""
        bits, step = checkpoint.best
        text = (
            f"model     {self.model}\ncurves    {self.curves}\nmetrics   {self.metrics}\n"
            f"valid     {bits:.4f} bits per base at step {step:,} of {checkpoint.step:,}\n"
            f"next      hyena evaluate -m {self.model}{fasta}"
        )
        return {"text": text, "model": str(self.model), "step": step, "valid_bits_per_base": bits}

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for path in (*self.path.iterdir(), *self.checkpoints.glob(".*")):
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _clear(self) -> None:
        for name in _OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises
    ------
    CheckpointError         the file is damaged
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        sparsity = values.get("sparsity")
        named = {"best": Best(*values["best"]), "sparsity": sparsity and SparsityState(*sparsity)}
        return Checkpoint(**values | named)
    except Exception as error:  # a damaged file fails in torch's reader in many ways, all of which mean this
        # torch's own words would recommend to run what is pickled there
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged; delete it to go on from the one before"
        ) from error


def _check(path: Path, step: int) -> None:
    if read_checkpoint(path).step != step:
        raise CheckpointError(f"{path} does not read back as it was written; is the disk sound?")
