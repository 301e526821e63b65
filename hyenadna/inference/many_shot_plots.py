"""The plot of a many-shot probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyenadna.plots import SERIES, errors, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hyenadna.inference.many_shot_scores import Curve

_MARKERS = "os^vDPX"
_ASIDE = 0.09  # of a doubling
_DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2))


def accuracy_by_shots(
    ax: "Axes", arms: "Mapping[str, Curve]", baselines: "Mapping[str, Curve]", chance: float
) -> "Axes":
    """Accuracy against the number of examples of each class, a line an arm with its 95 % intervals.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    arms, baselines : mapping of str to Curve
        What the model answered, and simple models trained on the same examples, dashed.
    chance : float
        Accuracy of a guess.
    """
    every = sorted({k for curve in (*arms.values(), *baselines.values()) for k in curve.by_shots}) or [0]
    aside = np.linspace(-_ASIDE, _ASIDE, len(arms)) if len(arms) > 1 else np.zeros(1)
    looks = zip(arms.items(), (*SERIES, "0.35"), _MARKERS, aside, strict=False)
    for (name, curve), colour, marker, beside in looks:
        shots = sorted(curve.by_shots)
        if not shots:  # of longer examples the context may not hold one
            continue
        found = [curve.accuracy(k) for k in shots]
        value, low, high = (np.array([getattr(one, of) for one in found]) for of in ("value", "low", "high"))
        # side by side, or the intervals of arms that are alike would hide each other
        at = [k * 2**beside if k else beside / 2 for k in shots]
        ax.errorbar(
            at, value, yerr=errors(value, low, high), fmt=f"{marker}-", color=colour, markersize=4, linewidth=1.2,
            elinewidth=0.8, label=name,
        )  # fmt: skip
    for (name, curve), dashes in zip(baselines.items(), _DASHES, strict=False):
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
    ax.set_title("In-context answers; 95 % intervals over seeds and queries", fontsize="medium")
    rows = []
    for name, curve in (*arms.items(), *baselines.items()):
        for k in sorted(curve.by_shots):
            one = curve.accuracy(k)
            rows.append([name, k, len(curve.by_shots[k]), *np.round([one.value, one.low, one.high], 6).tolist()])
    save(drawn, path, ("arm", "shots", "seeds", "accuracy", "low", "high"), rows)
