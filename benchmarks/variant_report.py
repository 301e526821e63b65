"""The numbers of the variant benchmark for readers: as text, as a plot, and as the card of a model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from variant_parts import HUMAN, MARKOV, RANDOM

from hyenadna import plots
from hyenadna.errors import UsageError

Parts = Mapping[str, Mapping[str, Any]]
Found = Mapping[str, Any]


class Panel(NamedTuple):
    """A contrast that is drawn."""

    part: str
    contrast: str
    title: str
    told: tuple[str, ...]
    """The strata of it that the card tells."""
    ending: str = ""
    """Of the strata that are drawn."""


_WITHIN = ": within classes"
"""What is fair between classes of mutation; of them one by one and mixed, the table tells."""
PANELS = (
    Panel("brca1", "LOF against FUNC", "BRCA1 saturation editing: loss of function against function",
          ("all", "missense")),
    Panel("1000g", "common against rare", "1000 Genomes chr22: common against rare",
          (f"as in the file{_WITHIN}", f"derived against ancestral{_WITHIN}"), _WITHIN),
    Panel("1000g", "ALT ancestral against REF ancestral", "1000 Genomes chr22: ancestral ALT against ancestral REF",
          (f"any frequency{_WITHIN}",), _WITHIN),
    Panel("indels", "real against its random ones", "1000 Genomes chr22: real against random indels", ("all",)),
)  # fmt: skip
_PARTS = list(dict.fromkeys(panel.part for panel in PANELS))
_OTHERS = ("0.2", "0.5", "0.7")


def table(parts: Parts) -> str:
    """All numbers as text."""
    lines: list[str] = []
    for name, part in parts.items():
        head = ", ".join(f"{key} {value}" for key, value in part.items() if key not in _NOT_SHOWN and _short(value))
        lines += ["", f"== {name}: {head}"]
        for title, found in _tables(part):
            lines += ["", title]
            lines += [f"  {row:52} {_interval(one)}" for row, one in found.items()]
        for row, seconds in part.get("seconds_of_models", {}).items():
            lines.append(f"  {seconds:10.1f} s  {row}")
    return "\n".join(lines[1:])


_NOT_SHOWN = ("settings", "seconds_of_models")


def _short(value: Any) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, dict) and all(map(_plain, value.values())))


def _plain(value: Any) -> bool:
    return isinstance(value, int | float)


def _tables(part: Mapping[str, Any]) -> Iterator[tuple[str, Found]]:
    for case in part.get("cases", ()):
        rows = f"{case['rows']:,}" if "rows" in case else f"{case['positive']:,} against {case['negative']:,}"
        yield f"{case['metric']}, {case['contrast']}, {case['stratum']} ({rows})", case["found"]
    if "power_at_3_over_around" in part:
        yield "power at a period of 3 over that around it; differences of logarithms", part["power_at_3_over_around"]
        yield "bits per base at the codon positions 1, 2, 3", part["bits_by_codon_position"]
    for name, found in part.get("sets", {}).items():
        yield f"bits per base, {name} ({found['bases']:,} bases)", found["bits_per_base"]


def _interval(one: Any) -> str:
    if isinstance(one, list):
        return "  ".join(f"{value:.4f}" for value in one)
    value, low, high = (float("nan") if one[key] is None else one[key] for key in ("value", "low", "high"))
    return f"{value:8.4f}  [{low:.4f}, {high:.4f}]"


def draw(parts: Parts, path: Path) -> None:
    """AUROC with its interval by stratum and model, one panel a contrast; writes the PNG, and its numbers beside it.

    Raises
    ------
    UsageError              no part that has AUROC is there
    """
    chosen = {
        panel: [case for case in _cases(parts, panel) if case["stratum"].endswith(panel.ending)]
        for panel in PANELS
        if panel.part in parts
    }
    if not chosen:
        raise UsageError(f"--plot draws AUROC, which the parts {', '.join(_PARTS)} have: ask for one of them")
    heights = [sum(len(_shown(case)) + 1 for case in cases) for cases in chosen.values()]
    drawn, panels = plots.stacked_figure(heights, 7.6, 1.2 * len(heights) + 0.16 * sum(heights))
    colours, rows = _colours(chosen), []
    for ax, (panel, cases) in zip(panels, chosen.items(), strict=True):
        _panel(ax, cases, colours)
        ax.set_title(panel.title, fontsize="medium", loc="left")
        rows += [[panel.part, panel.contrast, case["stratum"], score, *one.values()]
                 for case in cases for score, one in _shown(case).items()]  # fmt: skip
    panels[-1].set_xlabel("AUROC, 95 % bootstrap interval (above 0.5: as expected)")
    plots.save(drawn, path, ("part", "contrast", "stratum", "score", "auroc", "low", "high"), rows)


def _cases(parts: Parts, panel: Panel) -> list[dict[str, Any]]:
    wanted = panel.contrast, "AUROC"
    return [case for case in parts[panel.part]["cases"] if (case["contrast"], case["metric"]) == wanted]


def _panel(ax: Any, cases: list[dict[str, Any]], colours: Mapping[str, str]) -> None:
    place, ticks, labelled = 0, [], set[str]()
    for case in cases:
        found = _shown(case)
        ticks.append(place + (len(found) - 1) / 2)
        for score, one in found.items():
            ends = (np.array([_number(one[key])]) for key in ("value", "low", "high"))
            value, low, high = ends
            label = None if score in labelled else score
            labelled.add(score)
            ax.errorbar(value, [place], xerr=plots.errors(value, low, high), fmt="o", markersize=4,
                        color=colours[score], label=label)  # fmt: skip
            place += 1
        place += 1
    ax.axvline(0.5, color="0.6", linewidth=1)
    names = [f"{case['stratum']}\n{case['positive']:,} against {case['negative']:,}" for case in cases]
    ax.set_yticks(ticks, names, fontsize="small")
    ax.set_ylim(place - 0.5, -0.8)
    ax.legend(frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines[["top", "right"]].set_visible(False)


def _shown(case: Mapping[str, Any]) -> dict[str, Any]:
    """Without differences, single strands and single seeds of random weights."""
    return {
        name: one
        for name, one in case["found"].items()
        if " - " not in name and " strand" not in name and not name.startswith(f"{RANDOM} ")
    }


def _colours(chosen: Mapping[Panel, list[dict[str, Any]]]) -> dict[str, str]:
    """Ours in colours, what others know of the variants in greys."""
    known = {MARKOV: plots.BASELINE, HUMAN: plots.SERIES[3], RANDOM: plots.EXTRA}
    names = dict.fromkeys(name for cases in chosen.values() for case in cases for name in _shown(case))
    greys = dict(zip((name for name in names if name in _NOT_MODELS), _OTHERS * 2, strict=False))
    ours = iter((plots.MODEL, *plots.SERIES[4:]) * 4)
    return {name: known.get(name) or greys.get(name) or next(ours) for name in names}


_NOT_MODELS = ("consequence class", "phyloP", "CADD", "slack")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def card(report: Mapping[str, Any]) -> dict[str, Any]:
    """What `hyena score` says of the first model: a few measured numbers beside those of the Markov model.

    Raises
    ------
    UsageError              a part that it needs is missing, or was measured on some of its rows
    """
    parts = report["parts"]
    missing = [name for name in _PARTS if name not in parts or parts[name]["settings"]["limit"] is not None]
    if missing:
        raise UsageError(f"--card needs {', '.join(_PARTS)} measured whole; run without --limit: {', '.join(missing)}")
    settings = parts["brca1"]["settings"]
    model = next(iter(settings["models"]))
    rows = []
    for panel in PANELS:
        for case in _cases(parts, panel):
            if case["stratum"] not in panel.told:
                continue
            numbers = {key: case["found"][name] for key, name in (("llr", model), ("markov", MARKOV))}
            rows.append({"what": f"{panel.title}, {case['stratum']}", "metric": "AUROC", "positive": case["positive"],
                         "negative": case["negative"], **numbers})  # fmt: skip
    return {
        "benchmark": "benchmarks/variants.py",
        "commit": report["commit"],
        "model_sha256": settings["models"][model],
        "window": settings["window"],
        "strand": "both",
        "performance": "AUROC of the LLR, 0.5 is chance: " + "; ".join(map(_sentence, rows)),
        "measured": rows,
    }


def _sentence(row: Mapping[str, Any]) -> str:
    llr, markov = row["llr"], row["markov"]
    interval = f"{llr['value']:.3f} [{llr['low']:.3f} to {llr['high']:.3f}]"
    return f"{row['what']} {interval} (Markov {markov['value']:.3f})"
