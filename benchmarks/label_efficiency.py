"""What pretraining is worth when labels are few: full fine-tuning from the pretrained and from random weights.

Each set is trained on 1, 3, 10, 30 and 100 % of --max-train-rows (classes keep their shares; a smaller set is used
whole sooner), several seeds each, and tested on all of its test rows; the simple models see the same rows. Writes a
JSON file and a plot beside it. A run that was stopped goes on where it was.

    python benchmarks/label_efficiency.py gue/prom/prom_core_tata gue/mouse/0 --data-dir GUE
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import commit

from hyenadna import machine, plots
from hyenadna.files import write_json
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.finetune import finetune
from hyenadna.pretrain.configured_folder import command
from hyenadna.progress import notice

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
INITS = ("pretrained", "random")
RESULTS = Path(__file__).parent / "results" / "label_efficiency.json"


def measure(name: str, share: float, init: Any, flags: argparse.Namespace) -> dict[str, Any]:
    """One point: the main metric of the model and, where they were trained, of the best simple model."""
    config = FinetuneConfig(
        data=name,
        data_dir=flags.data_dir,
        pool=flags.pool,
        model=flags.model,
        init=init,
        max_train_rows=max(2, round(share * flags.max_train_rows)),
        seeds=flags.seeds,
        threads=flags.threads,
        out=flags.runs / name.replace("/", "-") / f"{init}-{share:g}",
    )
    folder = finetune(config, baselines_in=config.out.parent / f"baselines-{share:g}").folder
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    test, metric = report["tests"]["full"], report["main_metric"]
    found = {"language model": test["models"]["language model"][metric]}
    if test["best"] is not None:
        found[test["best"]] = test["models"][test["best"]][metric]
    rows = report["settings"]["rows"]
    return {"set": name, "share": share, "init": init, "rows": rows, "metric": metric, "models": found,
            "command": command(config)}  # fmt: skip


def draw(points: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(point["set"] for point in points))
    drawn, panels = plots.stacked_figure([1] * len(names), 6.4, 2.8 * len(names))
    for ax, name in zip(panels, names, strict=True):
        of_set = [point for point in points if point["set"] == name]
        for init, colour in zip(INITS, plots.SERIES, strict=False):
            chosen = [point for point in of_set if point["init"] == init]
            found = [point["models"]["language model"] for point in chosen]
            value, low, high = np.array([[one["value"], one["low"], one["high"]] for one in found], dtype=float).T
            x = [point["rows"]["train"] for point in chosen]
            ax.errorbar(x, value, yerr=plots.errors(value, low, high), fmt="o-", markersize=4, color=colour,
                        label=f"full fine-tuning, {init} weights")  # fmt: skip
        simple = [
            (point["rows"]["train"], found["value"])
            for point in of_set
            for model, found in point["models"].items()
            if model != "language model" and point["init"] == INITS[0]
        ]
        ax.plot(*zip(*simple, strict=True), "D--", markersize=4, color="0.4", label="best simple model")
        ax.set_xscale("log")
        ax.set_ylabel(of_set[0]["metric"])
        ax.set_title(f"{name}: {of_set[0]['rows']['test']:,} test rows", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    panels[-1].set_xlabel("training rows")
    plots.write_png(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="as hyena finetune takes them")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--pool", default="mean", help="as hyena finetune takes it")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--max-train-rows", type=int, default=5_000, help="what 100 %% are (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.available_cpus())
    parser.add_argument("--runs", type=Path, default=Path("label-efficiency"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    points: list[dict[str, Any]] = []
    for name in flags.sets:
        for share in SHARES:
            for init in INITS:
                points.append(measure(name, share, init, flags))
                notice(f"{name} {share:.0%} {init}: {points[-1]['models']}")
                report = {"benchmark": "label_efficiency", "commit": commit(), "machine": machine.describe(),
                          "threads": flags.threads, "load_average": os.getloadavg()[0], "points": points}  # fmt: skip
                write_json(flags.out, report)
    draw(points, flags.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
