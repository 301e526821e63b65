"""A benchmark suite in one command: every set by every method, beside simple models and published numbers."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hyenadna.errors import UsageError
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.recipe import Recipe
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.finetune.bench_report import Entry

Method = Literal["full", "head", "lora", "soft-prompt"]
Init = Literal["pretrained", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A benchmark. What is None is left to the recipe, and then to `hyena finetune`.

    Raises
    ------
    UsageError              a number below 1
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    model: str = "starter"
    """The pretrained model: a folder, a hub id, or the one that comes with the package."""
    out: Path = Path("hyena-bench")
    """Folder of the table, the plot and all runs. The same command continues a benchmark that stopped."""
    sets: tuple[str, ...] = ()
    """Sets of the suite (default: all)."""
    methods: tuple[Method, ...] = ("full",)
    """Methods to train each set by."""
    control: bool = False
    """Also begin with random weights, by full and head where they are among the methods: what was pretraining worth?"""
    data_dir: Path | None = None
    """Folder with the suite's files, for work without a network."""
    seeds: int = 3
    """Runs of each set and method."""
    max_train_rows: int | None = None
    """Train on this many rows at most; the table says how many (default: all)."""
    epochs: int | None = None
    """Most passes over the training rows."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads (default: the CPUs that this process may use)."""

    def __post_init__(self) -> None:
        for name in ("seeds", "max_train_rows", "epochs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def runs(recipe: Recipe, config: BenchConfig) -> Iterator[tuple[str, FinetuneConfig]]:
    """The fine-tuning runs of a benchmark with the names of their sets, set by set."""
    for name in recipe.chosen(config.sets):
        ways: list[tuple[Method, Init]] = [(method, "pretrained") for method in config.methods]
        if config.control:
            # the other methods on random weights say nothing that `head` does not
            ways += [(method, "random") for method in config.methods if method in ("full", "head")]
        for method, init in ways:
            settings: dict[str, Any] = recipe.settings | recipe.settings_of.get(name, {}) | {"method": method}
            given = {"epochs": config.epochs, "max_train_rows": config.max_train_rows}
            settings |= {field: value for field, value in given.items() if value is not None}
            yield (
                name,
                FinetuneConfig(
                    data=f"{recipe.suite}/{name}",
                    data_dir=config.data_dir,
                    model=config.model,
                    init=init,
                    seeds=config.seeds,
                    out=config.out / name.replace("/", "-") / f"{method}-{init}",
                    device=config.device,
                    threads=config.threads,
                    **settings,
                ),
            )


def bench(recipe: Recipe, config: BenchConfig, *, overwrite: bool = False) -> "list[Entry]":
    """Train everything that is not trained yet, and write the tables after each run."""
    # these import torch and pydantic, which the command's help does not need
    from hyenadna.finetune import bench_report
    from hyenadna.finetune.finetune import finetune
    from hyenadna.pretrain.configured_folder import command
    from hyenadna.pretrain.metrics_file import read_metrics

    entries = list[bench_report.Entry]()
    for name, run in runs(recipe, config):
        notice(f"{name}: {run.method}, {run.init} weights")
        # simple models depend on neither method nor weights
        folder = finetune(run, overwrite=overwrite, baselines_in=run.out.parent / "baselines").folder
        report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
        seconds = sum(row["seconds"] for path in folder.path.rglob("metrics.csv") for row in read_metrics(path))
        entries.append(bench_report.Entry(name, run.method, run.init, command(run), seconds, report))
        bench_report.write(recipe, entries, config.out)
    return entries
