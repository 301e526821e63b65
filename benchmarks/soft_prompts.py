"""Soft prompts: accuracy, size and time against their length, and the longest one on an untrained medium-160k.

    python benchmarks/soft_prompts.py gue/prom/prom_core_tata gue/mouse/0 --data-dir GUE

Each set is trained with prompts of 0 to 512 embeddings, where they fit beside the longest sequence, and once in full
for the time of an epoch. Then one training step of medium-160k with a prompt of 32,768 before two sequences of 1,000
bases is timed, with its peak of memory. Writes a JSON file and a plot beside it.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import commit, in_fresh_process

from hyenadna import HyenaDNA, machine, plots
from hyenadna.errors import SequenceTooLong
from hyenadna.files import write_json
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.finetune import finetune
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.model.config import named_size
from hyenadna.pretrain.configured_folder import command
from hyenadna.pretrain.metrics_file import read_metrics
from hyenadna.progress import notice

LENGTHS = (0, 2, 8, 32, 128, 512)
LONGEST = 32_768
RESULTS = Path(__file__).parent / "results" / "soft_prompts.json"


def measure(name: str, n: int | None, flags: argparse.Namespace) -> dict[str, Any]:
    """A prompt of n embeddings, or full fine-tuning for None."""
    method: Any = "full" if n is None else "soft-prompt"
    config = FinetuneConfig(
        data=name,
        data_dir=flags.data_dir,
        pool=flags.pool,
        method=method,
        prompt_length=n or 0,
        max_train_rows=flags.max_train_rows,
        seeds=flags.seeds,
        baselines=False,
        threads=flags.threads,
        out=flags.runs / name.replace("/", "-") / (method if n is None else f"{method}-{n}"),
    )
    folder = finetune(config).folder
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    metrics = [row for path in sorted(folder.path.rglob("metrics.csv")) for row in read_metrics(path)]
    return {
        "set": name,
        "method": method,
        "prompt_length": n,
        "rows": report["settings"]["rows"],
        "metric": report["main_metric"],
        "model": report["tests"]["full"]["models"]["language model"][report["main_metric"]],
        "adapter_bytes": sum(path.stat().st_size for path in folder.adapter.rglob("*.safetensors")),
        "epoch_seconds": statistics.median(row["seconds"] for row in metrics),
        "command": command(config),
    }


def longest_prompt(n: int) -> dict[str, float]:
    """Seconds of one training step, after one that warms up."""
    base = HyenaDNA(named_size("medium-160k"))
    adaptation = Adaptation(method="soft-prompt", prompt_length=n)
    model = SequenceModel(base, Task("binary", ("0", "1")), adaptation).train()
    tokens, lengths = torch.randint(7, 11, (2, 1000)), torch.tensor([1000, 1000])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.task.loss(model(tokens, lengths), torch.tensor([0, 1])).backward()
        seconds.append(time.perf_counter() - start)
    return {"prompt_length": n, "parameters": n * base.config.d_model, "step_seconds": seconds[-1]}


def draw(points: list[dict[str, Any]], path: Path) -> None:
    drawn, ax = plots.figure()
    for name, colour in zip(dict.fromkeys(point["set"] for point in points), plots.SERIES, strict=False):
        of_set = [point for point in points if point["set"] == name]
        prompts = [point for point in of_set if point["prompt_length"] is not None]
        found = [point["model"] for point in prompts]
        value, low, high = np.array([[one["value"], one["low"], one["high"]] for one in found], dtype=float).T
        x = np.arange(len(prompts))
        ax.errorbar(x, value, yerr=plots.errors(value, low, high), fmt="o-", markersize=4, color=colour,
                    label=f"{name}, soft prompt")  # fmt: skip
        for point in of_set:
            if point["prompt_length"] is None:
                ax.axhline(point["model"]["value"], linestyle="--", color=colour, label=f"{name}, full fine-tuning")
    ax.set_xticks(range(len(LENGTHS)), [f"{n}" for n in LENGTHS])
    ax.set_xlabel("learnt embeddings before the sequence")
    ax.set_ylabel(points[0]["metric"])
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title("Soft prompts: 95 % intervals over trainings and test rows", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    plots.write_png(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="as hyena finetune takes them")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--pool", default="mean", help="as hyena finetune takes it")
    parser.add_argument("--max-train-rows", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=machine.available_cpus())
    parser.add_argument("--runs", type=Path, default=Path("soft-prompts"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    step, peak = in_fresh_process(longest_prompt, LONGEST)
    report: dict[str, Any] = {
        "benchmark": "soft_prompts", "commit": commit(), "machine": machine.describe(), "threads": flags.threads,
        "load_average": os.getloadavg()[0], "medium-160k": step | {"peak_memory_gb": peak / 1e9}, "points": [],
    }  # fmt: skip
    notice(f"medium-160k with a prompt of {LONGEST:,}: {report['medium-160k']}")
    for name in flags.sets:
        for n in (*LENGTHS, None):
            try:
                report["points"].append(measure(name, n, flags))
            except SequenceTooLong as error:
                notice(f"{name}, prompt of {n}: {error}")
                continue
            notice(f"{name}, prompt of {n}: {report['points'][-1]['model']}")
            write_json(flags.out, report)
    draw(report["points"], flags.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
