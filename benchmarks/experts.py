"""Experts against one dense feed-forward layer at equal active weights, on held-out sequence.

    python benchmarks/experts.py --fasta chr20.fa.gz --runs experts-runs

Three contenders: a dense model; a ReMoE whose sparsity is steered as we do; and one steered as published. Each is
trained on the same windows with several seeds of its weights and scored on the same held-out windows. Writes a JSON
file and a plot beside it: held-out bits per base, and the sparsity on the way. A training takes about as long as
--tokens over the rate of `hyena pretrain --dry-run`; one that is finished is kept, so that the command goes on where it
was stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import commit
from trainings import Plan, interval, kept, matched, paired

from hyenadna import machine, plots
from hyenadna.errors import HyenaError, UsageError
from hyenadna.files import write_json
from hyenadna.progress import notice

RESULTS = Path(__file__).parent / "results" / "experts.json"
CONTENDERS = (
    ("dense", "mlp", "damped"),
    ("ReMoE, damped", "remoe", "damped"),
    ("ReMoE, as published", "remoe", "sign"),
)
LATE = 0.5
"""Share of the steps, the last ones, of which the sparsity is told."""


def sparsity_of(trainings: list[dict[str, Any]]) -> dict[str, float]:
    """Of the late steps, over all seeds: mean, spread over the steps of a training, and tokens without expert."""
    late = [training["sparsity"][int(len(training["sparsity"]) * (1 - LATE)) :] for training in trainings]
    without = [training["tokens_without_expert"][-len(part) :] for training, part in zip(trainings, late, strict=True)]
    return {
        "mean": float(np.mean([np.mean(part) for part in late])),
        "deviation": float(np.mean([np.std(part) for part in late])),
        "largest": float(np.max([np.max(training["sparsity"]) for training in trainings])),
        "tokens_without_expert": float(np.mean([np.mean(part) for part in without])),
    }


def compare(flags: argparse.Namespace, plan: Plan) -> list[dict[str, Any]]:
    of_each = {}
    for name, feed_forward, control in CONTENDERS:
        contender = matched(flags.layers, feed_forward, plan, like=flags.layers)
        of_each[name] = [
            kept(flags.runs, contender, seed, plan._replace(sparsity_control=control)) for seed in range(flags.seeds)
        ]
    rows = []
    for name, trainings in of_each.items():
        row = {
            "name": name,
            **{field: trainings[0][field] for field in ("weights", "active_weights")},
            "d_inner": trainings[0]["contender"]["d_inner"],
            "bits_per_base": interval([training["bits_per_base"] for training in trainings]),
            "minus_dense": paired(trainings, of_each["dense"]),
            "nt_per_cpu_second": interval([training["nt_per_cpu_second"] for training in trainings]),
            "by_seed": [training["bits_per_base"] for training in trainings],
        }
        rows.append(row | ({"sparsity": sparsity_of(trainings)} if trainings[0]["sparsity"] else {}))
    draw(of_each, rows, flags.out.with_suffix(".png"))
    return rows


def draw(of_each: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 7.0), layout="constrained")
    top, middle, bottom = drawn.subplots(3)
    for x, (row, colour) in enumerate(zip(rows, plots.SERIES, strict=False)):
        found = {key: np.array([row["bits_per_base"][key]]) for key in ("value", "low", "high")}
        top.plot([x] * len(row["by_seed"]), row["by_seed"], "o", color=colour, alpha=0.5, markersize=4)
        top.errorbar([x + 0.1], found["value"], yerr=plots.errors(**found), fmt="D", color=colour, markersize=5)
        for trace in of_each[row["name"]]:
            middle.plot(trace["sparsity"], color=colour, linewidth=0.7)
            bottom.plot(trace["sparsity_coefficient"], color=colour, linewidth=0.7)
    top.set_xticks(range(len(rows)), [row["name"] for row in rows])
    top.set_ylabel("held-out bits per base")
    top.set_title("each seed, and the mean with 95 % interval", fontsize="medium")
    middle.axhline(1 - 1 / 8, color="0.2", linewidth=0.8, linestyle="--")
    middle.set_ylabel("gates that are off")
    bottom.set_yscale("log")
    bottom.set_ylabel("penalty's coefficient")
    bottom.set_xlabel("step")
    for axis in (top, middle, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    plots.write_png(drawn, path)


def parser_of(description: str | None, out: Path) -> argparse.ArgumentParser:
    """The flags that both comparisons of architectures have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan = Plan("")
    parser.add_argument("--fasta", required=True, help="genome to train on; its held-out part is scored")
    parser.add_argument("--runs", type=Path, required=True, help="folder that keeps finished trainings")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    for name in ("length", "tokens", "batch_tokens", "d_model", "test_windows", "generated", "threads"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(plan, name), help="default: %(default)s"
        )
    parser.add_argument("--lr", type=float, default=plan.lr, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few steps of small models: does it run?")
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    return parser


def plan_of(flags: argparse.Namespace) -> Plan:
    counts = {name: value for name, value in vars(flags).items() if isinstance(value, int)}
    for name, value in counts.items():
        if value < 1 and name != "quick":
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    plan = Plan(**{name: getattr(flags, name) for name in Plan._fields if name != "sparsity_control"})
    if flags.quick:
        return plan._replace(length=64, tokens=512, batch_tokens=128, d_model=32, test_windows=4, generated=4)
    return plan


def report_of(name: str, flags: argparse.Namespace, plan: Plan, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written: the rows, and where they come from."""
    shown = plan._asdict() | {"fasta": Path(plan.fasta).name, "seeds": flags.seeds}
    return {"benchmark": name, "commit": commit(), "machine": machine.describe(), "plan": shown,
            "load_average": os.getloadavg()[0], "contenders": rows}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, RESULTS)
    parser.add_argument("--layers", default="HH", help="mixers of the blocks (default: %(default)s)")
    flags = parser.parse_args(argv)
    try:
        plan = plan_of(flags)
        write_json(flags.out, report_of("experts", flags, plan, compare(flags, plan)))
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
