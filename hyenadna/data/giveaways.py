"""What alone gives the label away: GC, CpG and length, each as a classifier of its own, measured on the test rows.

Each property is fitted to the train rows by a straight line (logistic or linear regression) and by decision trees with
at least 5, 20 or 100 rows a leaf; three folds of the train rows choose among them, the test rows measure the chosen.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.label_kinds import Kind, names_of, values_of
from hyenadna.data.labelled import LabelledSequences

TOGETHER = "GC and CpG"
_FEATURES: dict[str, tuple[int, ...]] = {"GC": (0,), "CpG": (1,), TOGETHER: (0, 1), "length": (2,)}
_SHORTEST_SHUFFLED = 20
_LEAVES = (5, 20, 100)
_FOLDS = 3


@dataclasses.dataclass(frozen=True)
class Alone:
    """How well one simple property predicts the label by itself."""

    feature: str
    """GC: share of G and C; CpG: observed over expected; length in bases."""
    value: float
    """AUROC on the test rows (of several classes or labels the mean, each against the rest); for a regression,
    Spearman's correlation. NaN where the test rows do not allow it."""
    accuracy: float | None
    """Share of right classes on the test rows; None for multilabel and regression."""


def giveaways(data: LabelledSequences, kind: Kind) -> tuple[float | None, tuple[Alone, ...]]:
    """Share of test rows in the most frequent class of train (None but for classes), and what each property reaches.

    Nothing is measured for labels of nucleotides.

    Parameters
    ----------
    data : LabelledSequences
        With labels, and train and test parts.
    kind : str
        What the labels are.
    """
    if kind == "nucleotide":
        return None, ()
    part = np.array(data.parts)
    train, test = part == "train", part == "test"
    table, targets = composition(data.sequences), _targets(data, kind, train)
    found = []
    for feature, columns in _FEATURES.items():
        inputs = table[:, columns]
        model = _fitted(inputs[train], targets[train], kind)
        value = _value(kind, targets[test], model, inputs[test])
        right = float((model.predict(inputs[test]) == targets[test]).mean()) if _of_classes(kind) else None
        found.append(Alone(feature, value, right))
    if not _of_classes(kind):
        return None, tuple(found)
    names, counts = np.unique(targets[train], return_counts=True)
    return float((targets[test] == names[counts.argmax()]).mean()), tuple(found)


def composition(sequences: Sequence[str]) -> NDArray[np.float64]:
    """(n, 3): share of G and C among A, C, G, T; CpG observed over expected, #CG L / (#C #G); length in bases.

    Gardiner-Garden and Frommer 1987 define the second, L being the number of A, C, G, T. Undefined ones are 0.

    Examples
    --------
    >>> composition(["ACGT", "NNAA"]).tolist()
    [[0.5, 4.0, 4.0], [0.0, 0.0, 4.0]]
    """
    counted = [[sequence.count(letters) for letters in ("A", "C", "G", "T", "CG")] for sequence in sequences]
    a, c, g, t, cg = np.array(counted, dtype=np.float64).reshape(-1, 5).T
    known = a + c + g + t
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.float64)
    return np.stack([(c + g) / np.maximum(known, 1), cg * known / np.maximum(c * g, 1), lengths], axis=1)


def shuffled(data: LabelledSequences, kind: Kind) -> int:
    """Rows of 20 bases and more with exactly the dinucleotides of another sequence that has another label.

    Such pairs arise where negatives are made from positives by a shuffle that keeps dinucleotides (Altschul and
    Erickson 1985), hardly ever by chance. 0 for a regression and for labels of nucleotides.
    """
    if kind in ("regression", "nucleotide"):
        return 0
    assert data.labels is not None
    alike: dict[bytes, list[tuple[str, str]]] = {}
    for sequence, label in zip(data.sequences, data.labels, strict=True):
        if len(sequence) >= _SHORTEST_SHUFFLED:
            letters = np.frombuffer(sequence.encode(), dtype=np.uint8).astype(np.int64) & 31
            counts = np.bincount(letters[:-1] * 32 + letters[1:], minlength=1024)
            alike.setdefault(counts.astype(np.int32).tobytes(), []).append((sequence, label))
    return sum(
        any(other != sequence and name != label for other, name in rows)
        for rows in alike.values()
        if len(rows) > 1
        for sequence, label in rows
    )


def _of_classes(kind: Kind) -> bool:
    return kind in ("binary", "multiclass")


def _targets(data: LabelledSequences, kind: Kind, train: NDArray[np.bool_]) -> NDArray[Any]:
    assert data.labels is not None
    if kind == "regression":
        return values_of(data.labels)
    names = names_of(data.labels, kind)
    if kind == "multilabel":
        known = sorted({name for row, trained in zip(names, train, strict=True) if trained for name in row})
        return np.array([[name in row for name in known] for row in names], dtype=np.int64)
    return np.array([row[0] for row in names])


def _fitted(inputs: NDArray[np.float64], targets: NDArray[Any], kind: Kind) -> Any:
    """The line or tree that three folds of the train rows choose; a tree of 20 rows a leaf where that is needless."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    tree = DecisionTreeRegressor if kind == "regression" else DecisionTreeClassifier
    models = [tree(min_samples_leaf=leaf, random_state=0) for leaf in _LEAVES]
    _, counts = np.unique(targets, return_counts=True)
    least = len(targets) if kind in ("regression", "multilabel") else int(counts.min())
    if least < _FOLDS or kind == "multilabel" or not np.ptp(inputs, axis=0).any():
        return models[1].fit(inputs, targets)
    line = LinearRegression() if kind == "regression" else LogisticRegression()
    models.append(make_pipeline(StandardScaler(), line))
    search = GridSearchCV(
        Pipeline([("model", models[0])]),
        {"model": models},
        scoring="r2" if kind == "regression" else "neg_log_loss",
        cv=_FOLDS,
    )
    return search.fit(inputs, targets)


def _value(kind: Kind, targets: NDArray[Any], model: Any, inputs: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    if kind == "regression":
        predicted = model.predict(inputs)
        varied = len(np.unique(predicted)) > 1 and len(np.unique(targets)) > 1
        return float(spearmanr(targets, predicted).statistic) if varied else math.nan
    scores = model.predict_proba(inputs)
    if kind == "multilabel":
        # a list of one array a label, or one array where there is one label
        each = scores if isinstance(scores, list) else [scores]
        columns = [(targets[:, label] == 1, of[:, -1]) for label, of in enumerate(each)]
    else:
        classes = list(model.classes_)
        wanted = classes[-1:] if kind == "binary" else classes
        columns = [(targets == name, scores[:, classes.index(name)]) for name in wanted]
    values = [float(roc_auc_score(truth, score)) for truth, score in columns if 0 < truth.sum() < len(truth)]
    return float(np.mean(values)) if values else math.nan
