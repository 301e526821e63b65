"""The plot of a many-shot probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyenadna.plots import SERIES, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hyenadna.inference.many_shot_report import Curve

_MARKERS = "os^vDPX"
_DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2))


def accuracy_by_shots(
    ax: "Axes", arms: "Mapping[str, Curve]", baselines: "Mapping[str, Curve]", chance: float
) -> "Axes":
    """Accuracy against the number of examples of each class, a line an arm with its 95 % band.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    arms, baselines : mapping of str to Curve
        What the model answered, and simple models trained on the same examples, dashed.
    chance : float
        Accuracy of a guess.
    """
    every = sorted({k for curve in (*arms.values(), *baselines.values()) for k in curve.by_shots})
    for (name, curve), colour, marker in zip(arms.items(), (*SERIES, "0.35"), _MARKERS, strict=False):
        shots = sorted(curve.by_shots)
        found = [curve.accuracy(k) for k in shots]
        ax.plot(shots, [one.value for one in found], f"{marker}-", color=colour, markersize=4, label=name)
        low, high = ([getattr(one, end) for one in found] for end in ("low", "high"))
        ax.fill_between(shots, low, high, color=colour, alpha=0.12, linewidth=0)
    for (name, curve), dashes in zip(baselines.items(), _DASHES, strict=True):
        shots = sorted(curve.by_shots)
        values = [curve.accuracy(k).value for k in shots]
        ax.plot(shots, values, color="0.2", linewidth=1.2, dashes=dashes, label=name)
    ax.axhline(chance, color="0.7", linewidth=0.8, label="a guess")
    # up to one example the axis is linear, so that none has a place on it
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(every, [f"{k:,}" for k in every])
    ax.minorticks_off()
    ax.set_xlim(-0.15 if every[0] == 0 else every[0] / 1.15, every[-1] * 1.15)
    ax.set_xlabel("examples of each class in the prompt")
    ax.set_ylabel("accuracy")
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def write_plot(path: Path, arms: "Mapping[str, Curve]", baselines: "Mapping[str, Curve]", chance: float) -> None:
    """Write the plot, and its numbers beside it as TSV."""
    drawn, ax = figure(8.0, 4.4)
    accuracy_by_shots(ax, arms, baselines, chance)
    ax.set_title("In-context answers; 95 % bands over seeds and queries", fontsize="medium")
    rows = []
    for name, curve in (*arms.items(), *baselines.items()):
        for k in sorted(curve.by_shots):
            one = curve.accuracy(k)
            rows.append([name, k, len(curve.by_shots[k]), *np.round([one.value, one.low, one.high], 6).tolist()])
    save(drawn, path, ("arm", "shots", "seeds", "accuracy", "low", "high"), rows)
