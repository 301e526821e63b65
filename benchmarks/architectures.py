"""What mixers and experts are worth: all-H, all-L, H+S and H+L+S, each dense and with experts, on equal terms.

    python benchmarks/architectures.py --fasta chr20.fa.gz --runs architectures-runs

All have as many active weights as the dense all-H model, to 2 %: the width of the feed-forward layers makes up for what
the mixers differ in. All are trained on the same windows, with several seeds of the weights. Writes a JSON file, and
beside it a table (TSV) and a plot: held-out bits per base, minus all-H of the same seed; nucleotides trained on in a
second of CPU; the most memory that the training's process held; tokens generated one by one in a second of CPU. Every
finished training is kept, so that the command goes on where it was stopped, and tells what there is after each.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experts import parser_of, plan_of, report_of
from trainings import Plan, interval, kept, matched, paired

from hyenadna import plots
from hyenadna.errors import HyenaError
from hyenadna.files import write_json
from hyenadna.progress import notice

RESULTS = Path(__file__).parent / "results" / "architectures.json"
PATTERNS = ("HHHH", "LLLL", "HHHS", "HLLS")
FEED_FORWARDS = ("mlp", "remoe")
MEASURED = ("nt_per_cpu_second", "nt_per_second", "peak_memory_gb", "generated_per_cpu_second")


def row_of(trainings: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table; the reference is all-H, of which as many seeds are taken as there are of these."""
    first = trainings[0]
    return {
        "layers": first["contender"]["layers"],
        "feed_forward": first["contender"]["feed_forward"],
        "d_inner": first["contender"]["d_inner"],
        "weights": first["weights"],
        "active_weights": first["active_weights"],
        "seeds": len(trainings),
        "bits_per_base": interval([training["bits_per_base"] for training in trainings]),
        "minus_all_h": paired(trainings, reference[: len(trainings)]),
        **{name: interval([training[name] for training in trainings]) for name in MEASURED},
        "sparsity": float(np.mean([t["sparsity"][-1] for t in trainings])) if first["sparsity"] else None,
    }


def table_of(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    header, lines = [], []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, dict):
                cells |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
            else:
                cells[name] = value
        header = list(cells)
        lines.append(list(cells.values()))
    return header, lines


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.0, 3.2 + 0.2 * len(rows)), layout="constrained")
    titles = {"minus_all_h": "bits per base - all-H dense", "nt_per_cpu_second": "nt trained on / CPU s",
              "peak_memory_gb": "peak memory (GB)", "generated_per_cpu_second": "tokens generated / CPU s"}  # fmt: skip
    panels = drawn.subplots(1, len(titles), sharey=True)
    names = [row["layers"] + (" + ReMoE" if row["feed_forward"] == "remoe" else "") for row in rows]
    for ax, (field, title) in zip(panels, titles.items(), strict=True):
        for y, row in enumerate(rows):
            found = {key: np.array([row[field][key]]) for key in ("value", "low", "high")}
            colour = plots.BASELINE if row["feed_forward"] == "remoe" else plots.MODEL
            ax.errorbar(found["value"], [y], xerr=plots.errors(**found), fmt="o", color=colour, markersize=5)
        ax.set_xlabel(title, fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].axvline(0, color="0.6", linewidth=1)
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].invert_yaxis()
    plots.write_png(drawn, path)


def compare(flags: argparse.Namespace, plan: Plan) -> None:
    """Seed by seed, so that a run that is stopped early has something of every architecture."""
    contenders = [matched(layers, kind, plan, like=PATTERNS[0]) for layers in PATTERNS for kind in FEED_FORWARDS]
    found: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for seed in range(flags.seeds):
        for contender in contenders:
            found[contender.name].append(kept(flags.runs, contender, seed, plan))
            rows = [row_of(trainings, found[PATTERNS[0]]) for trainings in found.values() if trainings]
            write_json(flags.out, report_of("architectures", flags, plan, rows))
    plots.write_tsv(flags.out.with_suffix(".tsv"), *table_of(rows))
    draw(rows, flags.out.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser_of(__doc__, RESULTS).parse_args(argv)
    try:
        compare(flags, plan_of(flags))
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
