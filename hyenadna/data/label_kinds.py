"""What kind of labels a column holds, read off the labels themselves."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.data_config import Kind as Kind
from hyenadna.errors import InputError

MANY = 20
"""Numbers with more different values than this are taken for a regression."""


def kind_of(labels: Sequence[str]) -> Kind:
    """The kind that labels ask for by themselves; one class a nucleotide must be asked for by the user.

    Examples
    --------
    >>> kind_of(["0", "1", "1"]), kind_of(["a", "b", "c"]), kind_of(["a;b", "b"])
    ('binary', 'multiclass', 'multilabel')
    """
    if any(";" in label for label in labels):
        return "multilabel"
    different = set(labels)
    if len(different) > MANY and all(is_number(label) for label in different):
        return "regression"
    return "binary" if len(different) <= 2 else "multiclass"


def several(label: str) -> list[str]:
    """The labels of a multilabel row: 'a;b' are two, '' none."""
    return [part.strip() for part in label.split(";") if part.strip()]


def names_of(labels: Sequence[str], kind: Kind) -> list[list[str]]:
    """The classes that each row has, or each nucleotide of it; none for a regression."""
    match kind:
        case "regression":
            return [[] for _ in labels]
        case "multilabel":
            return [sorted(set(several(label))) for label in labels]
        case "nucleotide":
            return [list(label) for label in labels]
        case _:
            return [[label] for label in labels]


def values_of(labels: Sequence[str]) -> NDArray[np.float64]:
    """The numbers of a regression: (n,).

    Raises
    ------
    InputError              one that is missing, or no finite number
    """
    values = np.array([float(label) if is_number(label) else np.nan for label in labels])
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"row {bad[0] + 1} has the target {labels[bad[0]]!r}; a regression takes finite numbers")
    return values


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number, infinite and NaN included."""
    try:
        float(text)
    except ValueError:
        return False
    return True
