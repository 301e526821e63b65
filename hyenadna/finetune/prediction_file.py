"""Predictions as lines of text, TSV or JSON."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.finetune.task import Task
from hyenadna.inference.line_file import cell, json_line, table_header


class PredictionLines:
    """One line a sequence: id, prediction, and the probability of each class or label.

    A regression has no probabilities; nucleotides have one class each, written in a row, and the mean of the classes'
    probabilities. A label of a multilabel task is predicted above a probability of 0.5; several are joined by ';'.
    """

    def __init__(self, task: Task, *, as_json: bool = False) -> None:
        self.task, self.as_json = task, as_json

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the predictions come from, in one line, and the columns of a TSV."""
        if self.as_json:
            return json_line(about)
        return table_header(about, self._columns())

    def line(self, name: str, values: NDArray[np.float64]) -> str:
        """The line of one sequence; values (K,), or (its length, K) for nucleotides."""
        prediction, numbers = self._prediction(values)
        if not self.as_json:
            return "\t".join([cell(name), cell(prediction), *numbers.values()]) + "\n"
        row: dict[str, Any] = {"id": name, "prediction": prediction}
        match self.task.kind:
            case "regression":
                row["prediction"] = float(prediction)
            case "nucleotide":
                row |= {name: float(number) for name, number in numbers.items()}
            case _:
                row["probabilities"] = dict(zip(self.task.labels, map(float, numbers.values()), strict=True))
        return json_line(row)

    def name(self, line: str) -> str:
        """The id in a line."""
        return str(json.loads(line)["id"]) if self.as_json else line.split("\t", 1)[0]

    def _columns(self) -> list[str]:
        match self.task.kind:
            case "regression":
                return ["id", "prediction"]
            case "nucleotide":
                return ["id", "prediction", "mean_probability"]
        return ["id", "prediction", *(f"probability_{label}" for label in self.task.labels)]

    def _prediction(self, values: NDArray[np.float64]) -> tuple[str, dict[str, str]]:
        labels = self.task.labels
        match self.task.kind:
            case "regression":
                return f"{values[0]:.6g}", {}
            case "nucleotide":
                classes = "".join(labels[best] for best in values.argmax(axis=1))
                return classes, {"mean_probability": f"{values.max(axis=1).mean():.6g}"}
            case "multilabel":
                prediction = ";".join(label for label, value in zip(labels, values, strict=True) if value > 0.5)
            case _:
                prediction = labels[int(values.argmax())]
        return prediction, {label: f"{value:.6g}" for label, value in zip(labels, values, strict=True)}
