"""Plots of a fine-tuned model's test: confusion matrix, ROC and precision-recall curves, target against prediction."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.plots import BASELINE, EXTRA, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (MODEL, BASELINE, EXTRA, "#E69F00", "#CC79A7", "#56B4E9", "#999999", "#000000")
MOST_CURVES = len(_COLOURS)
_NAMED_CELLS = 12


class Curve(NamedTuple):
    """The ROC and the precision-recall curve of one set of predictions."""

    name: str
    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    colour: int
    """Curves of one number have one colour; 0 is the language model."""
    auroc: str = ""
    """In the legend of the ROC curves; a curve without one is not named there."""
    auprc: str = ""
    """In the legend of the precision-recall curves."""


def roc_and_precision_recall(axes: "Sequence[Axes]", curves: Sequence[Curve], positives: float) -> "Sequence[Axes]":
    """ROC curves on the first axes, precision-recall curves on the second.

    Parameters
    ----------
    axes : two Axes
    curves : sequence of Curve
        Drawn in order, the last on top.
    positives : float
        Share of positives, which is the precision of guessing; NaN where curves differ in it.
    """
    left, right = axes
    for curve in curves:
        look: dict[str, Any] = {
            "color": _COLOURS[curve.colour],
            "linewidth": 1.2,
            "alpha": 0.85,
        }
        left.plot(curve.false_positive, curve.true_positive, label=curve.auroc or None, **look)
        # precision holds from one threshold to the next: average precision is the area under these steps
        right.step(curve.recall, curve.precision, where="post", label=curve.auprc or None, **look)
    left.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1, label="guessing")
    if positives == positives:
        right.axhline(positives, linestyle="--", color="0.6", linewidth=1, label="guessing")
    left.set_xlabel("false positive rate")
    left.set_ylabel("true positive rate")
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    left.legend(frameon=False, fontsize="small", loc="lower right")
    right.legend(frameon=False, fontsize="small", loc="lower left")
    for axis in axes:
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.01)
        axis.set_aspect("equal")
        axis.spines[["top", "right"]].set_visible(False)
    return axes


def confusion(ax: "Axes", table: NDArray[np.integer], names: Sequence[str]) -> "Axes":
    """How often each class was taken for each: colour by share of the true class, numbers in the cells.

    Parameters
    ----------
    ax : Axes
    table : int array (classes, classes)
        Row: the true class; column: the predicted one.
    names : str, ...
    """
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(names))
    turned = max(map(len, names)) > 8 or len(names) > 6
    ax.set_xticks(ticks, names, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.set_yticks(ticks, names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    if len(names) <= _NAMED_CELLS:
        for (row, column), count in np.ndenumerate(table):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{count:,}\n{shares[row, column]:.0%}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def target_and_prediction(
    ax: "Axes", targets: NDArray[np.float64], predictions: NDArray[np.float64], name: str
) -> "Axes":
    """Prediction against target, with the line on which they are equal.

    Parameters
    ----------
    ax : Axes
    targets, predictions : float64 arrays (n,)
    name : str
        Of the quantity, with its unit.
    """
    both = np.concatenate([targets, predictions])
    low, high = float(both.min()), float(both.max())
    edge = 0.03 * (high - low) or 1.0
    ends = (low - edge, high + edge)
    alpha = float(np.clip(200 / max(len(targets), 1), 0.08, 0.7))
    ax.plot(targets, predictions, "o", color=MODEL, markersize=3, alpha=alpha, markeredgewidth=0)
    ax.plot(ends, ends, "--", color="0.6", linewidth=1)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    ax.set_aspect("equal")
    ax.set_xlabel(f"{name}, measured")
    ax.set_ylabel(f"{name}, predicted")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
