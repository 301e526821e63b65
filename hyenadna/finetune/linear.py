"""Linear models of scikit-learn that speak the language of `Task`."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.finetune.task import Task

Matrix = Any  # scipy's sparse matrices and numpy arrays: what scikit-learn takes
Predict = Callable[[Matrix], NDArray[np.float64]]


def fit_linear(task: Task, features: Matrix, targets: NDArray[Any], strength: float) -> Predict:
    """A logistic regression, one a label for multilabel, or a ridge regression; constant where targets are.

    Parameters
    ----------
    task : Task
    features : matrix (n, columns)
    targets : array             as `Task.targets` gives them
    strength : float
        scikit-learn's C; the ridge's alpha is its inverse.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.kind == "regression":
        ridge = Ridge(alpha=1 / strength).fit(features, (targets - task.mean) / task.deviation)
        return lambda asked: (ridge.predict(asked) * task.deviation + task.mean)[:, None]
    if task.kind == "multilabel":
        yes = Task("binary", ("0", "1"))
        each = [fit_linear(yes, features, column.astype(np.int64), strength) for column in targets.T]
        return lambda asked: np.stack([predict(asked)[:, 1] for predict in each], axis=1)
    present = np.unique(targets)
    if len(present) == 1:
        return lambda asked: np.repeat(np.eye(task.outputs)[present], asked.shape[0], axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weak penalty may not converge; valid then prefers another
        model = LogisticRegression(C=strength, max_iter=100).fit(features, targets)

    def predict(asked: Matrix) -> NDArray[np.float64]:
        found = np.zeros((asked.shape[0], task.outputs))
        found[:, present] = model.predict_proba(asked)
        return found

    return predict
