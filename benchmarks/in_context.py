"""In-context learning: the control that must be positive, and then models of ours on real tasks.

    python benchmarks/in_context.py control
    python benchmarks/in_context.py tuning
    python benchmarks/in_context.py real genomic-benchmarks/human_nontata_promoters -m RUN --tune-on DATA DATA

control: tiny models are trained from nothing on prompts of a synthetic task whose labelling every prompt has of its
own, and probed behind 1 to 32 examples of each class, with true and with shuffled labels: accuracy must grow with the
examples, with an interval of the gain that excludes 0, and not with shuffled labels. All-Hyena models and hybrids with
a softmax layer get the same prompts. Training goes from easy to hard, which is what makes it short.

tuning: what of the brief tuning by `hyena finetune --objective in-context` teaches a pretrained model the synthetic
tasks, and what does not: each setting that departs from the defaults beside them.

real: `hyena probe` of models on labelled data, as they are and after the brief tuning on other data. What comes out is
reported, positive or not. The models of the results, with the split of `python benchmarks/starter.py split`:

    hyena pretrain --fasta chr20.fa --split-bed starter.bed --size tiny-1k-hs --max-length 4096 --batch-tokens 4096 \
        --warmup-share 0.4 --tokens 2.2e7 --threads 1 -o long-hs
    hyena finetune synthetic/motif --more-data synthetic/word --objective in-context -m long-hs --shots 32 \
        -o long-hs-tuned

Writes a JSON file, and control a plot beside it; what is in the JSON file is not measured again.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from side_by_side import commit

from hyenadna import HyenaConfig, HyenaDNA, machine, plots
from hyenadna.data import genomic_benchmarks, gue
from hyenadna.data.bit_programs import BITS
from hyenadna.data.in_context_tasks import BitsTask, InContextTask, MotifTask, WordTask
from hyenadna.files import write_json
from hyenadna.finetune import in_context
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.in_context_model import load, next_token_model
from hyenadna.finetune.in_context_prompts import PromptSource, episode
from hyenadna.finetune.in_context_train import InContextTrainer
from hyenadna.inference.many_shot import Probed, probe
from hyenadna.inference.many_shot_config import ProbeConfig
from hyenadna.inference.many_shot_probe import probe_data
from hyenadna.inference.many_shot_prompt import Layout
from hyenadna.progress import notice

SHOTS = (1, 2, 4, 8, 16, 32)
LAYOUT = Layout(("A", "T"), "sep")
"""As short as can be, and each prompt says what it means; models that are trained on it know [SEP] as input."""
LAYERS = ("HS", "HHH")
SEEDS = (0, 1, 2)
EPISODES, QUERIES = 300, 8
SYNTHETIC = ("synthetic/motif", "synthetic/word")
TUNINGS: tuple[dict[str, Any], ...] = (
    {}, {"layout": "suited"}, {"lr": 1e-4}, {"batch_size": 32}, {"method": "lora"}, {"method": "lora", "lr": 1e-2},
    {"method": "soft-prompt"}, {"method": "soft-prompt", "lr": 1e-2},
)  # fmt: skip
"""Departures from the defaults."""
RESULTS = Path(__file__).parent / "results" / "in_context.json"


class Phase(NamedTuple):
    """A part of a training."""

    task: InContextTask
    shots: int
    epochs: int
    """Of 256 prompts each, 8 a step."""


_LOOK_UP = Phase(WordTask(length=1), 8, 8)
"""Look up one letter: what all others build on, and seconds where they alone would take many minutes."""


def _last_bits(n: int) -> tuple[str, ...]:
    """The programs that say one of the last n bits."""
    return tuple(f"bit {place}" for place in range(BITS, BITS - n, -1))


RECIPES: dict[str, tuple[Phase, ...]] = {
    "motif": (
        _LOOK_UP,
        Phase(MotifTask(motif=2, length=2, substituted=0.0), 8, 3),
        Phase(MotifTask(motif=3, length=3, substituted=0.1), 8, 3),
        Phase(MotifTask(motif=4, length=4, substituted=0.2), 8, 6),
        Phase(MotifTask(motif=4, length=4, substituted=0.2), 32, 2),
    ),
    "bits": (
        _LOOK_UP,
        *(Phase(BitsTask(primitives=1, answers=_last_bits(n)), shots, epochs)
          for n, shots, epochs in ((1, 8, 8), (2, 16, 12), (4, 16, 16), (8, 16, 24))),
        Phase(BitsTask(primitives=1), 16, 16),
        Phase(BitsTask(), 16, 24),
        Phase(BitsTask(), 32, 6),
    ),
}  # fmt: skip
"""The last task of each is what is measured."""


def trained(layers: str, recipe: Sequence[Phase], seed: int, *, lr: float = 1.5e-3) -> HyenaDNA:
    """A model of 64 channels that has learnt from nothing but prompts."""
    torch.manual_seed(seed)
    # a short filter that spans an example: long ones are too smooth to tell neighbouring bases apart soon;
    # large weights: at the usual 0.02 softmax layers look at everything alike for very long
    size = HyenaConfig(
        d_model=64, d_inner=128, layers=layers, filter_length=1026, filter_order=32, short_filter_taps=BITS + 1,
        initializer_range=0.1,
    )  # fmt: skip
    model = next_token_model(HyenaDNA(size), Adaptation(dropout=0.0, read_out="next-token"))
    for number, phase in enumerate(recipe):
        source = PromptSource((phase.task,), (LAYOUT,), phase.shots)
        config = in_context.resolved(
            FinetuneConfig(
                objective="in-context", shots=phase.shots, epochs=phase.epochs, patience=phase.epochs, batch_size=8,
                lr=lr, seed=seed, device="cpu", threads=torch.get_num_threads(),
            )
        )  # fmt: skip
        trainer = InContextTrainer(model, source, source, config, seed=1000 * number + seed, batch_tokens=1 << 14)
        while not trainer.done:
            row = trainer.epoch()
        trainer.take_best()
        notice(f"{layers}, {phase.task.name} of {phase.task.longest}, {phase.shots} shots: {row}")
    return model.base.eval()


def measured(model: HyenaDNA, task: InContextTask, *, shuffled: bool, episodes: int) -> Probed:
    """The model's answers to queries of tasks of their own, behind 1 to 32 examples of each class."""
    random = np.random.default_rng(12345)
    drawn = [episode(task, SHOTS[-1], QUERIES, random, shuffled=shuffled) for _ in range(episodes)]
    return probe(model, drawn, LAYOUT, [task.classes * shots for shots in SHOTS])


def control(layers: str, name: str, seed: int) -> dict[str, Any]:
    """One model: accuracy behind so many shots and the gain from the first to the last, by what the labels are."""
    start, recipe = time.monotonic(), RECIPES[name]
    model, task = trained(layers, recipe, seed), recipe[-1].task
    found: dict[str, Any] = {"layers": layers, "task": name, "seed": seed, "shots": SHOTS}
    for arm in ("true", "shuffled"):
        answers = measured(model, task, shuffled=arm == "shuffled", episodes=EPISODES)
        counts = answers.counts
        found[arm] = {
            "accuracy": [dataclasses.asdict(answers.accuracy(count)) for count in counts],
            "gain": dataclasses.asdict(answers.gain(counts[0], counts[-1])),
        }
    true, chance = found["true"]["gain"], found["shuffled"]["gain"]
    found["passes"] = bool(true["low"] > 0 and chance["low"] <= 0 <= chance["high"])
    return found | {"seconds": round(time.monotonic() - start, 1)}


def tuning(model: str, departs: dict[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """A model before and after the brief tuning on synthetic tasks, with settings of its own."""
    name = "-".join(str(value) for value in departs.values()) or "defaults"
    config = FinetuneConfig(
        objective="in-context", data=SYNTHETIC[0], more_data=SYNTHETIC[1:], model=model, shots=flags.shots,
        out=flags.runs / Path(model).name / f"tuning-{name}", threads=flags.threads, **departs,
    )  # fmt: skip
    start = time.monotonic()
    report = in_context.finetune(config).report
    return {"model": model, "departs": departs, "seconds": round(time.monotonic() - start, 1)} | report


def real(data: str, model: str, flags: argparse.Namespace) -> dict[str, Any]:
    """A model on a data set by `hyena probe`, as it is and tuned on the data sets of --tune-on but this one."""
    place = flags.runs / Path(model).name / data.replace("/", "-")
    found: dict[str, Any] = {"data": data, "model": model, "before": probed(data, model, place / "before", flags)}
    others = tuple(name for name in flags.tune_on if name != data)
    if others:
        tuned = flags.runs / Path(model).name / "+".join(name.replace("/", "-") for name in others)
        config = FinetuneConfig(
            objective="in-context", data=others[0], more_data=others[1:], data_dir=_folder_of(others, flags),
            model=model, out=tuned, shots=flags.shots, threads=flags.threads,
        )  # fmt: skip
        found["tuning"] = in_context.finetune(config).report
        found["after"] = probed(data, str(config.out), place / "after", flags)
    return found


def probed(data: str, model: str, out: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """The report of one probe."""
    config = ProbeConfig(
        data=data, data_dir=_folder_of((data,), flags), model=model, out=out, seeds=flags.seeds, queries=flags.queries,
        arms=("true", "shuffled", "flipped"), threads=flags.threads,
    )  # fmt: skip
    tuned = load(model)
    found = probe_data(config, model=tuned.model, tuned_on=tuned.training.get("layout"))
    return {name: value for name, value in found.items() if name != "text"}


def _folder_of(names: Sequence[str], flags: argparse.Namespace) -> Path | None:
    """--data-dir, if any of the names is looked for in it."""
    return flags.data_dir if any(name.startswith((genomic_benchmarks.PREFIX, gue.PREFIX)) for name in names) else None


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against shots: a panel a task, a colour an architecture, dashed where labels were shuffled."""
    names = list(dict.fromkeys(point["task"] for point in points))
    drawn, panels = plots.stacked_figure([1] * len(names), 6.4, 2.8 * len(names))
    for ax, name in zip(panels, names, strict=True):
        for layers, colour in zip(LAYERS, plots.SERIES, strict=False):
            chosen = [point for point in points if (point["task"], point["layers"]) == (name, layers)]
            for arm, style in (("true", "o-"), ("shuffled", "x--")) if chosen else ():
                values = np.array([[one["value"] for one in point[arm]["accuracy"]] for point in chosen])
                ax.plot(SHOTS, values.mean(axis=0), style, color=colour, markersize=4, label=f"{layers}, {arm} labels")
                ax.fill_between(SHOTS, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        ax.axhline(0.5, color="0.6", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
        ax.set_ylabel("accuracy")
        ax.set_title(f"{name}: {len(SEEDS)} trainings, their range shaded", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    panels[-1].set_xlabel("examples of each class")
    plots.write_png(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("control", "tuning", "real"))
    parser.add_argument("data", nargs="*", help="of real: as hyena probe takes them")
    parser.add_argument("-m", "--model", nargs="+", default=["starter"], help="of tuning and real")
    parser.add_argument("--tune-on", nargs="*", default=[], help="of real: tasks to tune on before a second probe")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shots", type=int, default=16, help="of tunings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="of a probe (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=200, help="of a probe (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=machine.available_cpus())
    parser.add_argument("--runs", type=Path, default=Path("in-context"), help="folder of tunings and probes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    report: dict[str, Any] = {"control": [], "tuning": [], "real": []}
    if flags.out.exists():
        report |= json.loads(flags.out.read_text(encoding="utf-8"))

    def keep(part: str, found: dict[str, Any]) -> None:
        about = {"commit": commit(), "machine": machine.describe(), "threads": flags.threads,
                 "load_average": os.getloadavg()[0]}  # fmt: skip
        report[part].append(found | about)
        write_json(flags.out, {"benchmark": "in_context"} | report)

    if flags.what == "control":
        done = {(point["task"], point["layers"], point["seed"]) for point in report["control"]}
        for wanted in ((name, layers, seed) for name in RECIPES for layers in LAYERS for seed in SEEDS):
            if wanted not in done:
                keep("control", control(wanted[1], wanted[0], wanted[2]))
                notice(f"{wanted}: {report['control'][-1]['true']['gain']}")
        draw(report["control"], flags.out.with_suffix(".png"))
        return
    if flags.what == "tuning":
        known = [(point["model"], point["departs"]) for point in report["tuning"]]
        for wanted in ((model, departs) for model in flags.model for departs in TUNINGS):
            if wanted not in known:
                keep("tuning", tuning(*wanted, flags))
        return
    known = {(point["data"], point["model"]) for point in report["real"]}
    for data, model in ((data, model) for data in flags.data for model in flags.model):
        if (data, model) not in known:
            keep("real", real(data, model, flags))


if __name__ == "__main__":
    main()
