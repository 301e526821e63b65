"""What chooses the epoch: the loss of the validation rows, and the metric that people read beside it."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import IGNORE
from hyenadna.finetune.task import Task

_SMALLEST = 1e-12
"""Probabilities below count as this, so that one certain error does not make the loss infinite."""


class Validation(NamedTuple):
    """How good a model is on the validation rows."""

    loss: float
    """Mean cross entropy in nats, of the averaged strands if they are averaged; squared standardised error."""
    metric: float
    """NaN where the rows cannot say it, such as a correlation with a constant."""
    name: str
    """Of the metric: mcc for classes, average_precision for several labels, pearson for numbers."""

    @classmethod
    def of(cls, task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> "Validation":
        """Of targets and predictions as `Task.targets` and `apply` give them."""
        from scipy.stats import pearsonr
        from sklearn.metrics import average_precision_score, matthews_corrcoef

        if task.kind == "regression":
            error = (predictions[:, 0] - targets) / task.deviation
            varies = len(targets) > 1 and targets.std() > 0 and predictions.std() > 0
            return cls(
                float(np.mean(error**2)),
                float(pearsonr(targets, predictions[:, 0])[0]) if varies else math.nan,
                "pearson",
            )
        likely = np.clip(predictions, _SMALLEST, 1)
        if task.kind == "multilabel":
            unlikely = np.clip(1 - predictions, _SMALLEST, 1)
            loss = -np.mean(targets * np.log(likely) + (1 - targets) * np.log(unlikely))
            both = [column for column in range(task.outputs) if 0 < targets[:, column].mean() < 1]
            precision = [average_precision_score(targets[:, column], predictions[:, column]) for column in both]
            return cls(float(loss), float(np.mean(precision)) if both else math.nan, "average_precision")
        if task.kind == "nucleotide":
            likely = likely[:, : targets.shape[1]][targets != IGNORE]
            targets = targets[targets != IGNORE]
        loss = -np.mean(np.log(likely[np.arange(len(targets)), targets]))
        return cls(float(loss), float(matthews_corrcoef(targets, likely.argmax(axis=1))), "mcc")

    def better_than(self, other: "Validation") -> bool:
        """Whether its loss is lower: less noisy on few rows than a count of errors, and true to probabilities."""
        return self.loss < other.loss
