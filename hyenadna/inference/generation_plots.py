"""Drawings of what was generated, beside held-out sequence."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hyenadna.plots import BASELINE, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (MODEL, "0.35", BASELINE)
"""Of generated, held-out and Markov sequences."""


def spectrum_distances(
    ax: "Axes",
    k: NDArray[np.integer],
    generated: NDArray[np.float64],
    markov: NDArray[np.float64],
    mean: NDArray[np.float64],
    largest: NDArray[np.float64],
) -> "Axes":
    """Jensen-Shannon divergence of k-mer spectra from those of held-out sequence.

    Parameters
    ----------
    ax : Axes
    k : int array (n,)
    generated, markov : float64 arrays (n,)
        Of the generated sequences, and of the Markov samples, in bits.
    mean, largest : float64 arrays (n,)
        Of other held-out samples.
    """
    ax.fill_between(k, np.zeros(len(k)), largest, color="0.85", label="held-out, largest of its samples")
    ax.plot(k, mean, "--", color="0.35", linewidth=1, label="held-out, mean")
    ax.plot(k, markov, "s-", color=BASELINE, markersize=4, label="Markov, order 6")
    ax.plot(k, generated, "o-", color=MODEL, markersize=4, label="generated")
    ax.set_yscale("log")
    ax.set_ylim(bottom=max(1e-7, 0.3 * float(np.min([mean, generated, markov]))))
    ax.set_xticks(k)
    ax.set_xlabel("k (bp)")
    ax.set_ylabel("divergence from held-out k-mers (bits)")
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def distributions(ax: "Axes", values: Mapping[str, NDArray[np.floating]], name: str, *, log: bool = False) -> "Axes":
    """The share of sequences with at most so much of a quantity, one curve a sample.

    Parameters
    ----------
    ax : Axes
    values : mapping of float arrays (n,)
        By sample; NaN where it could not be measured.
    name : str
        Of the quantity, with its unit.
    log : bool
        Whether the axis is logarithmic.
    """
    for (sample, of_sample), colour in zip(values.items(), _COLOURS, strict=False):
        ascending = np.sort(of_sample[~np.isnan(of_sample)])
        if len(ascending):
            shares = np.arange(1, len(ascending) + 1) / len(ascending)
            ax.step(np.append(ascending[0], ascending), np.append(0, shares), where="post", color=colour, label=sample)
    if log:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
    ax.set_xlabel(name)
    ax.set_ylabel("share of sequences with at most that")
    ax.set_ylim(0, 1.02)
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
