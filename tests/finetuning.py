"""A planted-motif task, and a small model to fine-tune on it."""

import csv
from pathlib import Path

import numpy as np
import torch

from hyenadna import HyenaConfig, HyenaDNA, plots
from hyenadna.data.labelled import LabelledSequences
from hyenadna.finetune import plan
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.examples import Examples
from hyenadna.finetune.plan import resolved
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.finetune.train import Trainer

MOTIF = "GATAAG"


def planted(rows: int, length: int = 40, seed: int = 0) -> list[tuple[str, str]]:
    """Random sequences: half hold the motif at a random place, the others a shuffled one, of the same letters."""
    random = np.random.default_rng(seed)
    table = []
    for row in range(rows):
        letters = random.choice(list("ACGT"), length)
        shuffled = MOTIF
        while shuffled == MOTIF:
            shuffled = "".join(random.permutation(list(MOTIF)))
        place = random.integers(length - len(MOTIF) + 1)
        letters[place : place + len(MOTIF)] = list(MOTIF if row % 2 else shuffled)
        table.append(("".join(letters), "motif" if row % 2 else "none"))
    return table


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("sequence", "label"), *rows])
    return path


def labelled(rows: list[tuple[str, str]]) -> LabelledSequences:
    sequences, labels = zip(*rows, strict=True)
    return LabelledSequences(tuple(f"r{row}" for row in range(len(rows))), sequences, labels, source="planted")


def base(d_model: int = 16, layers: str = "HH", seed: int = 3) -> HyenaDNA:
    torch.manual_seed(seed)
    architecture = HyenaConfig(d_model=d_model, d_inner=2 * d_model, layers=layers, filter_length=80, embed_dropout=0.0)
    return HyenaDNA(architecture).eval()


def trainer(rows, valid, *, model=None, task=None, seed: int = 0, batch_tokens: int = 10_000, **fields) -> Trainer:
    """A training of a new model in memory."""
    config = resolved(FinetuneConfig(threads=1, device="cpu", **fields))
    model = model or base()
    task = task or Task.of([label for _, label in rows], config.task)
    parts = [Examples.of(labelled(part), task, model.config) for part in (rows, valid)]
    adapted = SequenceModel(model, task, config.adaptation, seed=seed)
    return Trainer(adapted, *parts, config, seed=seed, batch_tokens=batch_tokens)


class NoCheck:
    """In the place of a check of the rows."""

    def text(self) -> str:
        return "not checked"

    def to_json(self) -> dict[str, str]:
        return {}


def leave_out_the_slow(monkeypatch) -> None:
    """Without what other tests test, and what takes most of the time on few rows: the check of the rows, and plots."""
    monkeypatch.setattr(plan, "check", lambda data, kind: NoCheck())
    monkeypatch.setattr(plots, "write_png", lambda drawn, path: path.write_bytes(b""))
