"""What chooses the epoch: the metric of the validation rows that the report is judged by, then their loss."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import IGNORE
from hyenadna.finetune.metrics import main_metric, point
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
    """Of the metric."""

    @classmethod
    def of(cls, task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> "Validation":
        """Of targets and predictions as `Task.targets` and `apply` give them."""
        name = main_metric(task)
        return cls(_loss(task, targets, predictions), point(task, targets, predictions)[name], name)

    def better_than(self, other: "Validation") -> bool:
        """Whether its metric is higher, or the same and its loss lower; a metric that is NaN counts as -1.

        The loss alone would stop early: it grows by a few certain errors while the order of the rows still improves.
        """
        return self.rank > other.rank

    @property
    def rank(self) -> tuple[float, float]:
        """Grows with how good the model is."""
        return -1.0 if math.isnan(self.metric) else self.metric, -self.loss


def _loss(task: Task, targets: NDArray[Any], predictions: NDArray[np.float64]) -> float:
    if task.kind == "regression":
        return float(np.mean(((predictions[:, 0] - targets) / task.deviation) ** 2))
    if task.kind == "multilabel":
        likely = np.where(targets == 1, predictions, 1 - predictions)
    elif task.kind == "nucleotide":
        likely = np.take_along_axis(predictions, np.maximum(targets, 0)[..., None], axis=2)[targets != IGNORE]
    else:
        likely = predictions[np.arange(len(targets)), targets]
    return float(-np.mean(np.log(np.maximum(likely, _SMALLEST))))
