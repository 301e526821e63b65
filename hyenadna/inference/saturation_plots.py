"""The plot of in-silico saturation: the reference as a logo above a heat-map of all substitutions."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.intervals import Interval
from hyenadna.plots import BASE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASES_A_ROW = 100
_LETTER = 0.94
"""Width of a letter, in bases."""


def saturation_figure(interval: Interval, letters: str, ratios: NDArray[np.float64], *, title: str) -> "Figure":
    """A logo and a heat-map of a region, in rows of up to 100 bases.

    Parameters
    ----------
    interval : Interval
        Of L bases.
    letters : str
        The reference, L letters in upper case.
    ratios : float64 array (L, 4)
        ln p(alternative) - ln p(reference) in nats, for A, C, G, T on the forward strand; NaN where it is not known.
    title : str
        What stands above it.
    """
    from matplotlib.figure import Figure

    L = len(letters)
    rows = -(-L // _BASES_A_ROW)
    width = -(-L // rows)
    drawn = Figure(figsize=(3.0 + 0.11 * max(width, 30), 0.6 + 2.6 * rows), layout="constrained")
    panels = drawn.subplots(2 * rows, 1, squeeze=False, height_ratios=[1.5, 1.0] * rows)[:, 0]
    losses = mean_losses(letters, ratios)
    known = np.abs(ratios[np.isfinite(ratios)])
    limit = float(np.quantile(known, 0.99)) if known.any() else 1.0
    edges = _edges(losses)
    image: Any = None
    for row in range(rows):
        some = slice(row * width, (row + 1) * width)
        first = interval.start + row * width
        upper, lower = panels[2 * row], panels[2 * row + 1]
        logo(upper, letters[some], losses[some], first)
        image = heat_map(lower, letters[some], ratios[some], first, limit)
        upper.set_ylim(*edges)
        for panel in (upper, lower):
            panel.set_xlim(first + 0.5, first + width + 0.5)
    _label(panels, interval, title)
    bar = drawn.colorbar(image, ax=list(panels), extend="both", aspect=18 * rows, pad=0.01, fraction=0.03)
    bar.set_label("ln p(alternative) - ln p(reference), nats", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return drawn


def mean_losses(letters: str, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the substitutions of each base cost on average, in nats, (L,): minus the mean of its three ratios.

    Examples
    --------
    >>> mean_losses("C", np.array([[-1.0, 0.0, -2.0, -3.0]])).tolist()
    [2.0]
    """
    own = np.array(list(letters))[:, None] == np.array(list(BASE_COLOURS))
    others = np.where(own, 0.0, ratios)
    return np.where(own.any(axis=1), 0.0 - others.sum(axis=1) / 3, math.nan)


def logo(ax: "Axes", letters: str, heights: NDArray[np.float64], first: int) -> "Axes":
    """The letters of the reference as tall as their heights; those below zero are upside down and pale.

    Parameters
    ----------
    ax : Axes
    letters : str
        L letters in upper case.
    heights : float64 array (L,)
        NaN for a letter that is not drawn.
    first : int
        Position of the first letter, 0-based; drawn 1-based.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    font = FontProperties(family="DejaVu Sans", weight="bold")
    glyphs = {letter: TextPath((0, 0), letter, size=1, prop=font) for letter in BASE_COLOURS}
    for place, (letter, height) in enumerate(zip(letters, heights.tolist(), strict=True), first + 1):
        if letter not in glyphs or not math.isfinite(height):
            continue
        box = glyphs[letter].get_extents()
        move = Affine2D().translate(-box.x0, -box.y0).scale(_LETTER / box.width, height / box.height)
        move.translate(place - _LETTER / 2, 0)
        shape = PathPatch(glyphs[letter], color=BASE_COLOURS[letter], linewidth=0, alpha=1 if height >= 0 else 0.5)
        shape.set_transform(move + ax.transData)
        ax.add_patch(shape)
    ax.axhline(0, color="0.2", linewidth=0.6)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    ax.tick_params(axis="x", length=0, labelbottom=False)
    ax.tick_params(axis="y", labelsize="small")
    return ax


def heat_map(ax: "Axes", letters: str, ratios: NDArray[np.float64], first: int, limit: float) -> Any:
    """The ratios of all substitutions as colours, blue where one is likelier than the reference, red where it is less.

    Parameters
    ----------
    ax : Axes
    letters : str
        L letters in upper case; a dot marks the cell of each.
    ratios : float64 array (L, 4)
        Nats, for A, C, G, T; NaN is grey.
    first : int
        Position of the first letter, 0-based; drawn 1-based.
    limit : float
        Where the colours end, in nats.

    Returns
    -------
    the image, for a colour bar
    """
    import matplotlib
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    L = len(letters)
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="0.75")
    extent = (first + 0.5, first + L + 0.5, len(BASE_COLOURS) - 0.5, -0.5)
    shown: dict[str, Any] = {
        "cmap": colours,
        "vmin": -limit,
        "vmax": limit,
        "interpolation": "nearest",
        "aspect": "auto",
    }
    image = ax.imshow(np.ma.masked_invalid(ratios.T), extent=extent, **shown)
    own = [(at, "ACGT".index(letter)) for at, letter in enumerate(letters) if letter in BASE_COLOURS]
    ax.plot([first + 1 + at for at, _ in own], [row for _, row in own], ".", color="0.15", markersize=2.5)
    ax.set_yticks(range(len(BASE_COLOURS)), list(BASE_COLOURS), fontsize="small", fontweight="bold")
    for label, colour in zip(ax.get_yticklabels(), BASE_COLOURS.values(), strict=True):
        label.set_color(colour)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
    ax.tick_params(axis="x", labelsize="small")
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    return image


def _edges(losses: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the logo's axis, the same in all rows, with some room."""
    known = losses[np.isfinite(losses)]
    low, high = min(0.0, known.min(initial=0.0)), max(0.0, known.max(initial=0.0))
    room = 0.04 * (high - low) or 1.0
    return low - room * (low < 0), high + room


def _label(panels: "NDArray[Any]", interval: Interval, title: str) -> None:
    panels[0].set_title(title, fontsize="medium")
    for upper in panels[::2]:
        upper.set_ylabel("mean loss of\nsubstitutions (nats)", fontsize="small")
    panels[-1].set_xlabel(f"position on {interval.contig}, forward strand; dots mark the reference", fontsize="small")
