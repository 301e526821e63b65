"""The kinds of tasks, apart from what computes with them, so that the command line knows them without torch."""

from typing import Literal

Kind = Literal["binary", "multiclass", "multilabel", "regression", "nucleotide"]
