"""The curves of a fine-tuning run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hyenadna.plots import BASELINE, EXTRA, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def epoch_curves(axes: "Sequence[Axes]", metrics: Mapping[str, NDArray[np.float64]]) -> "Sequence[Axes]":
    """Loss of training and validation rows, and the metric of the latter, against epochs; the best one is marked.

    Parameters
    ----------
    axes : two Axes
        One above the other, with a common x axis.
    metrics : mapping of float64 arrays (epochs,)
        The columns of metrics.csv.
    """
    epochs, valid = metrics["epoch"], metrics["valid_loss"]
    name = next(name for name in metrics if name.startswith("valid_") and name != "valid_loss")
    best = int(np.argmin(valid))
    top, bottom = axes
    top.plot(epochs, metrics["train_loss"], color=MODEL, label="train")
    top.plot(epochs, valid, "o-", color=BASELINE, markersize=3, label="valid")
    top.axvline(epochs[best], color="0.6", linewidth=1, linestyle="--", label=f"kept: epoch {epochs[best]:.0f}")
    top.set_ylabel("loss")
    top.legend(frameon=False)
    bottom.plot(epochs, metrics[name], "o-", color=EXTRA, markersize=3)
    bottom.axvline(epochs[best], color="0.6", linewidth=1, linestyle="--")
    bottom.set_ylabel(f"{name.removeprefix('valid_').replace('_', ' ')}, valid")
    bottom.set_xlabel("epoch")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return axes
