"""What is to be predicted: classes, several labels at once, a number, or a class of every nucleotide."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.label_kinds import Kind as Kind
from hyenadna.data.label_kinds import kind_of, several, values_of
from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import InputError


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of prediction and the names of what is predicted."""

    kind: Kind
    """binary and multiclass: one class a sequence; multilabel: each label yes or no; regression: a number; nucleotide:
    one class a base."""
    labels: tuple[str, ...]
    """Names of the classes or labels, sorted, never by order of the file; the second one of a binary task is the
    positive one. Name of the quantity of a regression."""
    mean: float = 0.0
    """Of the training targets of a regression, which the model sees standardised."""
    deviation: float = 1.0
    """Standard deviation of the same."""

    @property
    def outputs(self) -> int:
        """K: numbers that a model gives for a sequence, or for a base."""
        return len(self.labels)

    @classmethod
    def of(cls, labels: Sequence[str], kind: Kind | None = None, *, name: str = "value") -> "Task":
        """The task that training labels ask for.

        Parameters
        ----------
        labels : sequence of str
            As they stand in the data, of the training rows alone. 'a;b' are two labels at once, '' none.
        kind : optional
            What the user says it is. By default: numbers of more than 20 values are a regression, labels with ';' are
            multilabel, two values binary, others multiclass; per-nucleotide labels must be asked for.
        name : str
            What the number of a regression is called.

        Raises
        ------
        InputError              labels missing, one class only, targets that are no finite numbers
        """
        if kind is None:
            kind = kind_of(labels)
        if kind == "regression":
            values = values_of(labels)
            deviation = float(values.std())
            if deviation == 0:
                raise InputError(f"all targets are {values[0]:g}; a regression needs at least two different values")
            return cls(kind, (name,), float(values.mean()), deviation)
        if kind == "multilabel":
            names = sorted({part for label in labels for part in several(label)})
        elif kind == "nucleotide":
            names = sorted({letter for label in labels for letter in label})
        else:
            _check_present(labels)
            names = sorted(set(labels))
        if len(names) < (1 if kind == "multilabel" else 2):
            raise InputError(
                f"there is one class only, {names[0]!r}; a classifier needs two" if names else "there are no labels"
            )
        if kind == "binary" and len(names) > 2:
            raise InputError(f"{len(names)} classes ({_some(names)}) are not binary; the task is multiclass")
        return cls(kind, tuple(names))

    def targets(self, labels: Sequence[str]) -> NDArray[Any]:
        """The numbers that labels stand for.

        Returns
        -------
        int64 array (n,) of class numbers; float64 array (n, K) of zeros and ones for multilabel; float64 array (n,) in
        the data's own unit for regression; for nucleotide, int64 array (n, longest), IGNORE behind each sequence.

        Raises
        ------
        InputError              a label that the task does not know, one that is missing, or no finite number
        """
        if self.kind == "regression":
            return values_of(labels)
        number = {name: index for index, name in enumerate(self.labels)}
        if self.kind == "multilabel":
            present = np.zeros((len(labels), self.outputs))
            for row, label in enumerate(labels):
                present[row, [self._number(number, part, row) for part in several(label)]] = 1
            return present
        if self.kind == "nucleotide":
            table = np.full((len(labels), max(map(len, labels), default=0)), IGNORE, dtype=np.int64)
            for row, label in enumerate(labels):
                table[row, : len(label)] = [self._number(number, letter, row) for letter in label]
            return table
        _check_present(labels)
        return np.array([self._number(number, label, row) for row, label in enumerate(labels)], dtype=np.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch: cross entropy, binary cross entropy of each label, or squared standardised error.

        Parameters
        ----------
        outputs : Tensor (B, K), or (B, L, K) for nucleotide
        targets : Tensor        as `targets` gives them; a nucleotide batch cut to (B, L)
        """
        match self.kind:
            case "regression":
                return F.mse_loss(outputs[:, 0].float(), ((targets - self.mean) / self.deviation).float())
            case "multilabel":
                return F.binary_cross_entropy_with_logits(outputs.float(), targets.float())
            case _:
                return F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What the outputs say: probabilities, of which those of classes sum to 1, or the number in its own unit."""
        match self.kind:
            case "regression":
                return outputs.double() * self.deviation + self.mean
            case "multilabel":
                return torch.sigmoid(outputs.double())
            case _:
                return torch.softmax(outputs.double(), dim=-1)

    def to_json(self) -> dict[str, Any]:
        """For adapter.json."""
        return dataclasses.asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Task":
        """The task that `to_json` wrote."""
        return cls(value["kind"], tuple(value["labels"]), float(value["mean"]), float(value["deviation"]))

    def _number(self, number: dict[str, int], label: str, row: int) -> int:
        if label not in number:
            raise InputError(f"row {row + 1} has the label {label!r}; the training rows have {_some(self.labels)}")
        return number[label]


def _check_present(labels: Sequence[str]) -> None:
    missing = [row + 1 for row, label in enumerate(labels) if not label]
    if missing:
        raise InputError(f"{len(missing)} rows have no label, the first is row {missing[0]}; fill them in or drop them")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
