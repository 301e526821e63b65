"""The table of a benchmark: each set by each method, beside the best simple model and published numbers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyenadna import __version__, machine, plots
from hyenadna.files import write_json
from hyenadna.finetune.comparison import MODEL
from hyenadna.finetune.recipe import Recipe

_METRICS = ("accuracy", "mcc", "auroc")
_HEADER = (
    "set", "method", "weights", "train_rows", "test_rows", "copies_in_train", "trainings",
    *(f"{metric}{end}" for metric in _METRICS for end in ("", "_low", "_high")),
    "without_copies", "without_copies_low", "without_copies_high", "best_baseline", "baseline", "difference",
    "difference_low", "difference_high", "published", "seconds", "command",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One set, trained in one way."""

    name: str
    """The set."""
    method: str
    init: str
    command: str
    """What repeats it."""
    seconds: float
    """Of all epochs of all its trainings."""
    report: dict[str, Any]
    """The run's report.json."""


def write(recipe: Recipe, entries: Sequence[Entry], folder: Path) -> None:
    """Write bench.tsv, bench.json and bench.png."""
    plots.write_tsv(folder / "bench.tsv", _HEADER, [_row(recipe, entry) for entry in entries])
    about = {"suite": recipe.suite, "hyenadna": __version__, "machine": machine.describe()}
    write_json(folder / "bench.json", about | {"entries": [dataclasses.asdict(entry) for entry in entries]})
    names = list(dict.fromkeys(entry.name for entry in entries))
    drawn, ax = plots.figure(7.0, 1.2 + 0.75 * len(names))
    draw(ax, recipe, entries)
    plots.write_png(drawn, folder / "bench.png")


def text(recipe: Recipe, entries: Sequence[Entry]) -> str:
    """For people: a block for each set, with the suite's own metric in percent and what stands beside it."""
    lines = [f"{recipe.title}, {recipe.metric} in percent [95 % interval over trainings and test rows]"]
    for name in dict.fromkeys(entry.name for entry in entries):
        chosen = [entry for entry in entries if entry.name == name]
        (train, test, copies), _, _, baseline = _found(recipe, chosen[0])
        lines += [
            "",
            f"{name}: {train:,} training rows; {test:,} test rows, of which {copies:,} have a copy in train",
            _line("", "weights", "all test rows", "without copies", "minus best simple model"),
        ]
        for entry in chosen:
            _, full, without, _ = _found(recipe, entry)
            percents = (_percent(full), _percent(without), _percent(_difference(recipe, entry), "+"))
            lines.append(_line(entry.method, entry.init, *percents))
        if baseline is not None:
            lines.append(f"  best simple model: {baseline[0]}, {_percent(baseline[1])}")
        if recipe.sets[name]:
            lines.append(f"  published: {_published(recipe, name)}")
    return "\n".join(lines)


def _line(method: str, weights: str, full: str, without: str, difference: str) -> str:
    return f"  {method:<13}{weights:<12}{full:<21}{without:<21}{difference}".rstrip()


def draw(ax: Any, recipe: Recipe, entries: Sequence[Entry]) -> Any:
    """Each set a group of rows: ours with 95 % intervals, the best simple model, and published numbers as ticks."""
    ways = list(dict.fromkeys((entry.method, entry.init) for entry in entries))
    names = list(dict.fromkeys(entry.name for entry in entries))
    step = 0.7 / (len(ways) + 1)
    for index, (way, colour) in enumerate(zip(ways, plots.SERIES, strict=False)):
        chosen = [entry for entry in entries if (entry.method, entry.init) == way]
        places = [names.index(entry.name) - 0.35 + step * (index + 0.5) for entry in chosen]
        found = [_found(recipe, entry)[1] for entry in chosen]
        value, low, high = 100 * np.array([[one["value"], one["low"], one["high"]] for one in found], dtype=float).T
        ax.errorbar(
            value, places, xerr=plots.errors(value, low, high), fmt="o", markersize=4, color=colour,
            label=way[0] + (", random weights" if way[1] == "random" else ""),
        )  # fmt: skip
    for row, name in enumerate(names):
        baseline = next(_found(recipe, entry)[3] for entry in entries if entry.name == name)
        if baseline is not None and (level := baseline[1]["value"]) is not None:
            ax.plot(
                100 * level, row + 0.35 - step / 2, "D", color="0.2", markersize=4,
                label="best simple model" if row == 0 else None,
            )  # fmt: skip
        for number, value in enumerate(recipe.sets[name].values()):
            label = "published (see the table)" if row == number == 0 else None
            ax.plot([value] * 2, [row - 0.4, row + 0.4], color="0.7", linewidth=1, zorder=0, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{recipe.metric} (%), all test rows")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title(f"{recipe.title}: 95 % intervals over trainings and test rows", fontsize="medium")
    return ax


_Numbers = dict[str, float | None]


def _found(
    recipe: Recipe, entry: Entry
) -> tuple[tuple[int, int, int], _Numbers, _Numbers | None, tuple[str, _Numbers] | None]:
    """Rows (train, test, copies), the metric on all test rows and on those without copies, and the best baseline."""
    report = entry.report
    full, without = report["tests"]["full"], report["tests"]["deduplicated"]
    rows = report["settings"]["rows"]
    copies = rows["test"] - (0 if without is None else without["rows"])
    best = _best(recipe, full)
    baseline = None if best is None else (best, full["models"][best][recipe.metric])
    ours = None if without is None else without["models"][MODEL][recipe.metric]
    return (rows["train"], rows["test"], copies), full["models"][MODEL][recipe.metric], ours, baseline


def _row(recipe: Recipe, entry: Entry) -> list[Any]:
    rows, _, without, baseline = _found(recipe, entry)
    full = entry.report["tests"]["full"]
    cells: list[Any] = [entry.name, entry.method, entry.init, *rows, len(entry.report["runs"])]
    for metric in _METRICS:
        cells += _triple(full["models"][MODEL].get(metric))
    return [
        *cells,
        *_triple(without),
        None if baseline is None else baseline[0],
        None if baseline is None else baseline[1]["value"],
        *_triple(_difference(recipe, entry)),
        _published(recipe, entry.name),
        round(entry.seconds, 1),
        entry.command,
    ]


def _best(recipe: Recipe, test: dict[str, Any]) -> str | None:
    """The baseline that is best by the suite's metric, which need not be the one that the report compares by."""
    known = {name: found[recipe.metric]["value"] for name, found in test["models"].items() if name != MODEL}
    known = {name: value for name, value in known.items() if value is not None}
    return max(known, key=lambda name: known[name], default=None)


def _triple(found: _Numbers | None) -> tuple[float | None, ...]:
    return (None,) * 3 if found is None else (found["value"], found["low"], found["high"])


def _difference(recipe: Recipe, entry: Entry) -> _Numbers | None:
    """The model minus the best baseline, paired."""
    full = entry.report["tests"]["full"]
    best = _best(recipe, full)
    return None if best is None else full["differences"][best][recipe.metric]


def _percent(found: _Numbers | None, sign: str = "") -> str:
    if found is None or found["value"] is None:
        return "-"
    value, low, high = (f"{100 * (found[end] or 0):{sign}.1f}" for end in ("value", "low", "high"))
    return value if found["low"] is None else f"{value} [{low}, {high}]"


def _published(recipe: Recipe, name: str) -> str:
    return ", ".join(f"{who} {value:g}" for who, value in recipe.sets[name].items())
