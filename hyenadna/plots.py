"""Drawing: each function takes arrays and axes and returns the axes; `save` writes the figure and its numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.files import atomic_write
from hyenadna.progress import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL, BASELINE, EXTRA = "#0072B2", "#D55E00", "#009E73"
"""Colours that the colour-blind tell apart (Okabe and Ito 2008)."""
SERIES = (MODEL, BASELINE, EXTRA, "#E69F00", "#CC79A7", "#56B4E9")
"""One after another, where a plot has more than two things to tell apart."""
BASE_COLOURS = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#CC3311"}
"""The same letters in every plot: green, blue, orange, red."""
_LENGTH_TICKS = {1: "1", 8: "8", 64: "64", 1 << 10: "1k", 1 << 15: "32k", 1_000_000: "1M"}
_DOTS_PER_INCH = 150


def figure(width: float = 6.4, height: float = 4.0) -> "tuple[Figure, Axes]":
    """An empty figure of one panel, in inches; it belongs to no window and to no global state."""
    drawn, panels = stacked_figure((1,), width, height)
    return drawn, panels[0]


def stacked_figure(heights: Sequence[float], width: float = 6.4, height: float = 7.0) -> "tuple[Figure, list[Axes]]":
    """An empty figure of panels one above the other with a common x axis; `heights` are relative to each other."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    panels = drawn.subplots(len(heights), sharex=True, squeeze=False, height_ratios=list(heights))
    return drawn, list(panels[:, 0])


def side_by_side(width: float = 9.6, height: float = 4.6) -> "tuple[Figure, list[Axes]]":
    """An empty figure of two square panels beside each other, in inches."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    panels = drawn.subplots(1, 2)
    return drawn, list(panels)


def save(drawn: "Figure", path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write the figure as PNG to `path`, and the numbers that it shows beside it as TSV.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    write_png(drawn, path)
    write_tsv(path.with_suffix(".tsv"), header, rows)


def write_png(drawn: "Figure", path: Path) -> None:
    """Write the figure as PNG.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(drawn))


def png(drawn: "Figure") -> bytes:
    """The figure as the contents of a PNG file."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    return file.getvalue()


def write_tsv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with a header; an empty cell is something that could not be measured.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if cell is None or cell != cell else cell for cell in row] for row in rows)


def length_axis(ax: "Axes", longest: int) -> "Axes":
    """Make x a log2 axis of lengths in bases, with ticks at 64, 1k, 32k, 1M."""
    ax.set_xscale("log", base=2)
    ticks = {length: label for length, label in _LENGTH_TICKS.items() if length <= longest}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    return ax


def errors(value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of error bars, (2, n): none where the interval of a resampled ratio leaves out the value itself."""
    return np.maximum(np.stack((value - low, high - value)), 0)


def context_curve(
    ax: "Axes",
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    model: NDArray[np.float64],
    interpolated: NDArray[np.float64],
    bases: int,
) -> "Axes":
    """Bits per base against the number of bases before, with 95 % bands.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    starts, ends : int arrays (bins,)
        The context of each bin, in bases; the end is not in it.
    model, interpolated : float64 arrays (3, bins)
        Bits per base of the language model and of the interpolated Markov model: value, low, high.
    bases : int
        Number of bases that the curve rests on, for the caption.
    """
    middle = np.sqrt(starts * (ends - 1.0))
    for (value, low, high), colour, label in (
        (model, MODEL, "language model"),
        (interpolated, BASELINE, "interpolated Markov model, same bases"),
    ):
        ax.plot(middle, value, "o-", color=colour, markersize=3, label=label)
        ax.fill_between(middle, low, high, color=colour, alpha=0.2, linewidth=0)
    length_axis(ax, int(ends.max()))
    ax.set_xlabel("bases of the window before (bp)")
    ax.set_ylabel("bits per base")
    ax.legend(frameon=False)
    ax.set_title(f"What context buys: {bases:,} bases, 95 % block bootstrap", fontsize="medium")
    return ax


def markov_orders(
    ax: "Axes", plain: NDArray[np.float64], interpolated: NDArray[np.float64], model: NDArray[np.float64], bases: int
) -> "Axes":
    """Bits per base of the plain Markov orders, with the interpolated and the language model as lines.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    plain : float64 array (3, orders)
        Bits per base of order 0, 1 ...: value, low, high.
    interpolated, model : float64 arrays (3,)
        Bits per base of the two: value, low, high.
    bases : int
        Number of bases scored, for the caption.
    """
    orders = np.arange(plain.shape[1])
    value, low, high = plain
    ax.errorbar(orders, value, yerr=errors(value, low, high), fmt="o", color=EXTRA, markersize=4, label="plain Markov")
    for (level, bottom, top), colour, label in (
        (interpolated, BASELINE, "interpolated Markov"),
        (model, MODEL, "language model"),
    ):
        ax.axhline(level, color=colour, label=label)
        ax.axhspan(bottom, top, color=colour, alpha=0.15, linewidth=0)
    ax.set_xticks(orders)
    ax.set_xlabel("order of the Markov model (bases of context)")
    ax.set_ylabel("bits per base")
    ax.legend(frameon=False)
    ax.set_title(f"{bases:,} bases, both strands, 95 % block bootstrap", fontsize="medium")
    return ax


def annotation_differences(
    ax: "Axes", names: Sequence[str], differences: NDArray[np.float64], bases: Sequence[int]
) -> "Axes":
    """Language model minus interpolated Markov model, in bits per base, in each class of bases.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    names : str, ...
        Classes of bases.
    differences : float64 array (3, classes)
        Of each class: value, low, high.
    bases : int, ...
        Number of bases in each class.
    """
    rows = np.arange(len(names))
    value, low, high = differences
    ax.errorbar(value, rows, xerr=errors(value, low, high), fmt="o", color=MODEL, markersize=5)
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set_yticks(rows, [f"{name}\nn = {quantity(n).strip()}" for name, n in zip(names, bases, strict=True)])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("bits per base: model - interpolated Markov (below 0: model is better)")
    ax.set_title("95 % block bootstrap", fontsize="medium")
    return ax


def time_by_length(
    ax: "Axes", lengths: Sequence[int], seconds: Mapping[str, NDArray[np.float64]], floor: NDArray[np.float64]
) -> "Axes":
    """What an operator costs at each length, on two logarithmic axes.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    lengths : int, ...
        In bases, ascending.
    seconds : mapping of float64 arrays (lengths,)
        Median of each contender, ours first; NaN where it was not measured.
    floor : float64 array (lengths,)
        The time that a plain copy of the bytes that must move would take.
    """
    x = np.asarray(lengths)
    for (name, values), colour, marker in zip(seconds.items(), SERIES, "os^vDP", strict=False):
        known = ~np.isnan(values)
        ax.plot(x[known], values[known], f"{marker}-", color=colour, markersize=4, linewidth=1.2, label=name)
    ax.plot(x, floor, "--", color="0.2", linewidth=1, label="copying the bytes that must move")
    length_axis(ax, int(x.max()))
    ax.set_xlim(x.min() / 1.4, x.max() * 1.4)
    ax.set_yscale("log")
    ax.set_xlabel("length (bp)")
    ax.set_ylabel("seconds")
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def training_curves(axes: "Sequence[Axes]", metrics: Mapping[str, NDArray[np.float64]]) -> "Sequence[Axes]":
    """A pretraining run: bits per base, gradient norm, and the length of the windows, against the tokens seen.

    Parameters
    ----------
    axes : three Axes
        One above the other, with a common x axis.
    metrics : mapping of float64 arrays (steps,)
        The columns of metrics.csv; NaN where a step was not validated.
    """
    tokens, bits, valid = metrics["tokens"], metrics["bits_per_base"], metrics["valid_bits_per_base"]
    window = max(1, len(bits) // 100)
    smooth = np.convolve(bits, np.ones(window) / window, mode="valid")
    validated = ~np.isnan(valid)
    top, middle, bottom = axes
    top.plot(tokens, bits, color=MODEL, alpha=0.25, linewidth=0.8)
    top.plot(tokens[window - 1 :], smooth, color=MODEL, label=f"train, mean of {window} steps")
    top.plot(tokens[validated], valid[validated], "o-", color=BASELINE, markersize=4, label="valid, longest context")
    # the first steps fall from the uniform model's 2 bits and would flatten all the rest
    seen = np.concatenate([smooth[len(smooth) // 20 :], valid[validated]])
    top.set_ylim(seen.min() - 0.01, seen.max() + 0.02)
    top.set_ylabel("bits per base")
    top.legend(frameon=False)
    middle.plot(tokens, metrics["gradient_norm"], color=EXTRA, linewidth=0.8)
    middle.set_yscale("log")
    middle.set_ylabel("gradient norm")
    bottom.step(tokens, metrics["length"], where="pre", color="0.2")
    bottom.set_yscale("log", base=2)
    bottom.set_ylabel("window (bp)")
    bottom.set_xlabel("tokens trained on")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return axes


def sparsity_curve(ax: "Axes", metrics: Mapping[str, NDArray[np.float64]], target: float) -> "Axes":
    """How many gates of the experts are off, how many tokens have no expert, and the coefficient that steers both.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    metrics : mapping of float64 arrays (steps,)
        The columns of metrics.csv.
    target : float
        Of the sparsity.
    """
    tokens = metrics["tokens"]
    ax.axhline(target, color="0.2", linewidth=0.8, linestyle="--", label=f"target {target:.3g}")
    ax.plot(tokens, metrics["sparsity"], color=MODEL, linewidth=0.8, label="gates that are off")
    ax.plot(tokens, metrics["tokens_without_expert"], color=EXTRA, linewidth=0.8, label="tokens without expert")
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("share")
    ax.legend(frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98))
    other = ax.twinx()
    other.plot(tokens, metrics["sparsity_coefficient"], color=BASELINE, linewidth=0.8)
    other.set_yscale("log")
    other.set_ylabel("penalty's coefficient", color=BASELINE)
    for axis in (ax, other):
        axis.spines["top"].set_visible(False)
    return ax
