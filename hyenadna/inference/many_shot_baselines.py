"""Simple models that are trained on the very examples of a prompt, and answer the same queries."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import BASES
from hyenadna.inference.many_shot_task import ProbeTask

NAMES = ("majority", "5 nearest", "k-mer regression")
"""majority says of every query the class that most rows have; the others learn from the examples alone."""
_K = 4
_NEIGHBOURS = 5
_STRENGTH = 10.0  # C of the regression, whose features have length 1


class Baselines:
    """The simple models for one task; k-mers of all sequences are counted once."""

    def __init__(self, task: ProbeTask) -> None:
        self.task = task
        self._shown, self._asked = _features(task.sequences), _features(task.queries)
        self._commonest = int(np.bincount(task.labels).argmax())

    def correct(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Of each model, (Q,): 1 where it is right, after training on the examples of these rows."""
        said = {NAMES[0]: np.full(len(self.task.queries), self._commonest)}
        said |= {NAMES[1]: self._said(_nearest, rows), NAMES[2]: self._said(_regression, rows)}
        return {name: (found == self.task.answers).astype(np.float64) for name, found in said.items()}

    def _said(self, fit: Callable[[Any, NDArray[np.int64]], Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = fit(self._shown[rows], self.task.labels[rows]).predict(self._asked)
        return found


def _features(sequences: Sequence[str]) -> Any:
    """log(1 + count) of each 4-mer, rows scaled to length 1: sparse (n, 256)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    words = ["".join(word) for word in itertools.product(BASES, repeat=_K)]
    counter = CountVectorizer(analyzer="char", ngram_range=(_K, _K), lowercase=False, vocabulary=words)
    counts = counter.transform(sequences).astype(np.float64)
    counts.data = np.log1p(counts.data)
    return normalize(counts)


def _nearest(features: Any, labels: NDArray[np.int64]) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    # the nearer count more, or a few examples would tie
    number = min(_NEIGHBOURS, len(labels))
    return KNeighborsClassifier(n_neighbors=number, metric="cosine", weights="distance").fit(features, labels)


def _regression(features: Any, labels: NDArray[np.int64]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_STRENGTH, max_iter=1000).fit(features, labels)
