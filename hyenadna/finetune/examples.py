"""Labelled sequences as training takes them: tokens and targets, batches of alike lengths, subsets."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.tokenizer import IGNORE, encode, reverse_complement_tokens
from hyenadna.errors import InputError
from hyenadna.finetune.task import Task
from hyenadna.inference.ragged import padded
from hyenadna.model.config import HyenaConfig

_SORTED_BATCHES = 16
"""Batches within which rows are sorted by length: more waste less on pads, fewer mix rows better."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of a part, encoded."""

    ids: tuple[str, ...]
    """Names of the rows, for messages."""
    tokens: tuple[NDArray[np.uint8], ...]
    """Of each sequence."""
    targets: NDArray[Any]
    """As `Task.targets` gives them."""

    @classmethod
    def of(cls, data: LabelledSequences, task: Task, model: HyenaConfig) -> "Examples":
        """The rows with their labels.

        Raises
        ------
        InputError              a label that the task does not know, or labels of bases that are not as many as bases
        """
        assert data.labels is not None
        if task.kind == "nucleotide":
            for name, sequence, label in zip(data.ids, data.sequences, data.labels, strict=True):
                if len(sequence) != len(label):
                    raise InputError(
                        f"{name} has {len(sequence):,} bases but {len(label):,} labels; a nucleotide task takes one "
                        "letter for each base"
                    )
        tokens = tuple(encode(sequence, model.n_token) for sequence in data.sequences)
        return cls(data.ids, tokens, task.targets(data.labels))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """In bases."""
        return np.array([len(sequence) for sequence in self.tokens], dtype=np.int64)

    def batch(
        self, rows: NDArray[np.int64], flipped: NDArray[np.bool_], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L), lengths (B,) and targets of rows, those that are `flipped` as their other strand."""
        chosen = [
            reverse_complement_tokens(self.tokens[row]) if turn else self.tokens[row]
            for row, turn in zip(rows, flipped, strict=True)
        ]
        tokens, lengths = padded(chosen)
        targets = self.targets[rows]
        if targets.ndim == 2 and targets.dtype == np.int64:  # one a base: they turn round with the strand
            targets = targets[:, : tokens.shape[1]].copy()
            for target, turn, length in zip(targets, flipped, lengths.tolist(), strict=True):
                if turn:
                    target[:length] = target[:length][::-1].copy()
        return tokens.to(device), lengths.to(device), torch.from_numpy(targets).to(device)

    def weight(self, rows: NDArray[np.int64]) -> int:
        """Rows, or labelled bases: what the mean loss of these rows is a mean over."""
        targets = self.targets[rows]
        return int((targets != IGNORE).sum()) if targets.ndim == 2 and targets.dtype == np.int64 else len(rows)


def epoch_batches(
    lengths: NDArray[np.int64], size: int, *, reverse_complement: bool, seed: int, epoch: int
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Row numbers of each batch of an epoch and which of them show their other strand; seed and epoch alone decide.

    Rows are shuffled, sorted by length within 16 batches, cut, and the batches shuffled; every row comes once.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), _SORTED_BATCHES * size):
        near = order[first : first + _SORTED_BATCHES * size]
        near = near[np.argsort(lengths[near], kind="stable")]
        batches += [near[start : start + size] for start in range(0, len(near), size)]
    flipped = random.random(len(lengths)) < 0.5 if reverse_complement else np.zeros(len(lengths), dtype=bool)
    return [(batches[index], flipped[batches[index]]) for index in random.permutation(len(batches))]


def subset(labels: Sequence[str], rows: int, *, by_class: bool, seed: int) -> NDArray[np.int64]:
    """About `rows` row numbers in ascending order, each class with its share, rounded, and at least one row of it.

    A smaller subset of the same seed lies within a larger one.

    Parameters
    ----------
    labels : sequence of str
    rows : int
    by_class : bool
        Whether equal labels are a class; otherwise rows are drawn without regard to them.
    seed : int
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if not by_class:
        return np.sort(order[:rows])
    members: dict[str, list[int]] = {}
    for row in order.tolist():
        members.setdefault(labels[row], []).append(row)
    share = min(1.0, rows / len(labels))
    return np.sort([row for found in members.values() for row in found[: max(1, round(share * len(found)))]])
