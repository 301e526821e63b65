"""The folder of a run: what it holds, who may use it, and where a run continues.

training.yaml       the run, with every default filled in; `hyena pretrain --config` runs it again
metrics.csv         a line a step
curves.png          the same, drawn
model/              the model folder with the best validation so far
checkpoints/        step-00000020.ckpt: weights, optimizer, and the best validation so far
"""

import csv
import io
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from hyenadna.errors import CheckpointError, RunFolderError, WriteError
from hyenadna.files import atomic_write, lock, restore_folder, write_text
from hyenadna.pretrain.config import PretrainConfig, differing_fields

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


class RunFolder:
    """A run's files; every one of them is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.checkpoints = path / "model", path / "checkpoints"
        self.training, self.metrics, self.curves = path / "training.yaml", path / "metrics.csv", path / "curves.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the folder."""
        busy = RunFolderError(f"{self.path} is in use by another process; wait for it, or name another folder by --out")
        with lock(self.path / ".lock", busy):
            yield

    def check(self, config: PretrainConfig, *, overwrite: bool) -> None:
        """Nothing, if the folder can take this run; changes nothing.

        Raises
        ------
        RunFolderError          it is a file, holds something else, or a run with another configuration
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"--out {self.path} is a file; name a folder")
        if not self.training.exists():
            foreign = sorted(
                p.name for p in self.path.iterdir() if p.name != ".lock" and not _TEMPORARY.fullmatch(p.name)
            )
            if foreign:
                raise RunFolderError(
                    f"{self.path} holds {', '.join(foreign[:5])} and no run; name a new or an empty folder by --out"
                )
        elif not overwrite and (differing := differing_fields(config, read_yaml(self.training))):
            named = ", ".join(f"{name} ({theirs} there, {ours} now)" for name, (ours, theirs) in differing.items())
            raise RunFolderError(
                f"{self.path} holds a run that differs in {named}; give the same, name another folder by --out, "
                "or start anew with --overwrite"
            )

    def enter(self, config: PretrainConfig, *, overwrite: bool) -> Path | None:
        """Make the folder ready for a run, and say which checkpoint the run continues from, if any.

        Raises
        ------
        RunFolderError          as `check`
        """
        self.check(config, overwrite=overwrite)
        self._sweep()
        restore_folder(self.model)
        if overwrite and self.training.exists():
            self._clear()
        if not self.training.exists():
            write_text(self.training, to_yaml(config))
        checkpoints = self.saved()
        return checkpoints[-1] if checkpoints else None

    def stored(self) -> PretrainConfig | None:
        """The configuration of the run that the folder holds, if any."""
        return read_yaml(self.training) if self.training.exists() else None

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.checkpoints.glob("step-*.ckpt") if re.fullmatch(r"step-\d{8,}", path.stem)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, checkpoint: Checkpoint, keep_last: int) -> None:
        """Write a checkpoint, then drop those beyond the last ones."""
        path = self.checkpoints / f"step-{checkpoint.step:08d}.ckpt"
        with atomic_write(path, verify=lambda written: _check(written, checkpoint.step)) as temporary:
            torch.save(checkpoint._asdict() | {"best": tuple(checkpoint.best)}, temporary)
        for old in self.saved()[:-keep_last]:
            old.unlink()

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of metrics.csv that lie beyond a step: they will be computed again."""
        if not self.metrics.exists():
            return
        rows = [row for row in read_metrics(self.metrics) if row["step"] <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, METRICS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        write_text(self.metrics, text.getvalue())

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add a line to metrics.csv."""
        new = not self.metrics.exists()
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                writer = csv.DictWriter(file, METRICS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow({name: _cell(value) for name, value in row.items()})
        except OSError as error:
            raise WriteError(
                f"{self.metrics} could not be written: {error.strerror or error}; free some space, then run the same "
                "command again: it continues from the last checkpoint"
            ) from error

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
        return Checkpoint(**values | {"best": Best(*values["best"])})
    except Exception as error:  # a damaged file fails in torch's reader in many ways, all of which mean this
        # torch's own words would recommend to run what is pickled there
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged; delete it to go on from the one before"
        ) from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.csv; what is empty is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave half a line
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: float(value) if value else math.nan for name, value in row.items()} for row in rows]


def to_yaml(config: PretrainConfig) -> str:
    """A configuration as YAML that `read_yaml` takes."""
    values = TypeAdapter(PretrainConfig).dump_python(config, mode="json")
    return yaml.safe_dump(values, sort_keys=False)


def read_yaml(path: Path) -> PretrainConfig:
    """The configuration in a YAML file.

    Raises
    ------
    RunFolderError          an unknown field or a value of another type
    """
    try:
        return TypeAdapter(PretrainConfig).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise RunFolderError(
            f"{path} is no configuration of a pretraining run: {' '.join(str(error).split())}"
        ) from error


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"


def _check(path: Path, step: int) -> None:
    if read_checkpoint(path).step != step:
        raise CheckpointError(f"{path} does not read back as it was written; is the disk sound?")
