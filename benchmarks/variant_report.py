"""The numbers of the variant benchmark for readers: as text, as a plot, and as the card of a model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from variant_parts import HUMAN, MARKOV, RANDOM

from hyenadna import plots
from hyenadna.errors import UsageError

Parts = Mapping[str, Mapping[str, Any]]
Found = Mapping[str, Any]
PANELS = {
    "brca1": ("LOF against FUNC", "BRCA1 saturation editing: loss of function against function"),
    "1000g": ("common against rare", "1000 Genomes chr22: common against rare"),
    "indels": ("real against its random ones", "1000 Genomes chr22: real against random indels"),
}
"""The contrast of each part that is drawn, and its title."""
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
    """AUROC with its interval by stratum and model, one panel a part; writes the PNG, and its numbers beside it.

    Raises
    ------
    UsageError              no part that has AUROC is there
    """
    chosen = {
        name: [case for case in parts[name]["cases"] if case["contrast"] == contrast and case["metric"] == "AUROC"]
        for name, (contrast, _) in PANELS.items()
        if name in parts
    }
    if not chosen:
        raise UsageError(f"--plot draws AUROC, which the parts {', '.join(PANELS)} have: ask for one of them")
    heights = [sum(len(_shown(case)) + 1 for case in cases) for cases in chosen.values()]
    drawn, panels = plots.stacked_figure(heights, 7.6, 1.2 * len(heights) + 0.16 * sum(heights))
    colours, rows = _colours(chosen), []
    for ax, (name, cases) in zip(panels, chosen.items(), strict=True):
        _panel(ax, cases, colours)
        ax.set_title(PANELS[name][1], fontsize="medium", loc="left")
        rows += [[name, case["contrast"], case["stratum"], score, *one.values()]
                 for case in cases for score, one in _shown(case).items()]  # fmt: skip
    panels[-1].set_xlabel("AUROC, 95 % bootstrap interval (above 0.5: as expected)")
    plots.save(drawn, path, ("part", "contrast", "stratum", "score", "auroc", "low", "high"), rows)


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


def _colours(chosen: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
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
    missing = [name for name in PANELS if name not in parts or parts[name]["settings"]["limit"] is not None]
    if missing:
        raise UsageError(f"--card needs {', '.join(PANELS)} measured whole; run without --limit: {', '.join(missing)}")
    settings = parts["brca1"]["settings"]
    model = next(iter(settings["models"]))
    wanted = {"brca1": ("all", "missense"), "1000g": ("as in the file: within classes",), "indels": ("all",)}
    rows = []
    for part, strata in wanted.items():
        contrast, title = PANELS[part]
        for case in parts[part]["cases"]:
            if case["contrast"] == contrast and case["metric"] == "AUROC" and case["stratum"] in strata:
                numbers = {key: case["found"][name] for key, name in (("llr", model), ("markov", MARKOV))}
                rows.append({"what": f"{title}, {case['stratum']}", "metric": "AUROC", "positive": case["positive"],
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
