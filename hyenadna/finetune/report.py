"""How good a fine-tuned model is, beside the baselines, and which of them to use."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hyenadna.errors import InputError
from hyenadna.files import write_json, write_text
from hyenadna.finetune import report_files
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.comparison import MODEL, Comparison, TestRun, compare
from hyenadna.finetune.metrics import main_metric, metric_names
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import Estimate

__all__ = ["Report", "TestRun", "Verdict"]

FILES = ("report.json", "report.txt", "predictions.tsv", *report_files.PLOTS)
"""What `Report.write` may write."""


class Verdict(NamedTuple):
    """Whether the language model was worth it."""

    outcome: Literal["better", "as good", "worse", "unknown"]
    """Of the language model against the best baseline by the main metric: the paired interval of the difference lies
    above 0, holds 0, or lies below."""
    baseline: str | None
    """The best baseline."""
    text: str
    """What to do, in plain words."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A task's test over splits and seeds, with the baselines of each split.

    Raises
    ------
    InputError              no run
    """

    task: Task
    runs: Sequence[TestRun]
    """Of every split and seed; those of one split have the same test rows."""
    baselines: Mapping[int, Sequence[Baseline]] = dataclasses.field(default_factory=dict)
    """Of each split: the baselines trained on its train part."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where the numbers come from: data, checksum, split, command ... as they stand in report.json."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("there is no test prediction to report; give at least one run")

    @cached_property
    def full(self) -> Comparison:
        """On all test rows."""
        found = compare(self.task, self.runs, self.baselines, seed=self.seed)
        if found is None:
            raise InputError("the test part is empty; there is nothing to report")
        return found

    @cached_property
    def deduplicated(self) -> Comparison | None:
        """On the test rows of which train holds no copy; None if every row has one."""
        if not any(run.duplicated.any() for run in self.runs):
            return self.full
        return compare(self.task, self.runs, self.baselines, deduplicated=True, seed=self.seed)

    @cached_property
    def verdict(self) -> Verdict:
        """On the de-duplicated test rows, where there are any."""
        if self.deduplicated is None:
            text = "Every test row has a copy in train: the numbers show memory alone. Split by sequence cluster."
            return Verdict("unknown", self.full.best, text)
        verdict = self._judged(self.deduplicated)
        on_all = self._judged(self.full)
        text = verdict.text
        if on_all.outcome != verdict.outcome:
            text += f" Judged without the test rows that have a copy in train; with them it reads: {on_all.text}"
        if verdict.outcome != "better" and verdict.baseline == "positional one-hot" and not self._by_position:
            text += " What tells the labels apart stands at fixed positions: --pool positions lets the model use that."
        if len(self.runs) == 1:
            text += " One training alone: the interval does not hold how trainings differ; --seeds 5 adds that."
        return Verdict(verdict.outcome, verdict.baseline, text)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        tests = {"full": self.full, "deduplicated": self.deduplicated}
        return {
            "settings": dict(self.settings),
            "task": self.task.to_json(),
            "main_metric": main_metric(self.task),
            "splits": len(self._splits),
            "runs": [{"split": run.split, "seed": run.seed, "rows": len(run.test)} for run in self.runs],
            "tests": {name: None if test is None else dataclasses.asdict(test) for name, test in tests.items()},
            "baselines": {
                str(split): [{"name": b.name, "seconds": b.seconds, "note": b.note} for b in found]
                for split, found in self.baselines.items()
            },
            "verdict": self.verdict._asdict(),
        }

    def text(self) -> str:
        """For people: a table of each test, what did not apply, and the verdict."""
        lines = [f"# {name}: {_plain(value)}" for name, value in self.settings.items()]
        lines += [f"# {line}" for line in self._what()]
        lines += ["", *self._table("all test rows", self.full)]
        if self.deduplicated is None:
            lines += ["", "Every test row has a copy in train."]
        elif self.deduplicated is not self.full:
            lines += ["", *self._table("rows without a copy in train", self.deduplicated)]
        notes = [f"  {name}: {note}" for name, note in self._notes().items()]
        lines += ["", "Baselines:", *notes] if notes else []
        return "\n".join([*lines, "", self.verdict.text])

    def write(self, folder: Path) -> None:
        """Write report.json, report.txt, predictions.tsv and the plots of the task, each atomically.

        Raises
        ------
        WriteError              the disk is full or the folder read-only
        """
        write_json(folder / "report.json", self.to_json())
        write_text(folder / "report.txt", self.text() + "\n")
        report_files.write_predictions(self.task, self.runs, folder / "predictions.tsv")
        for name in report_files.PLOTS:
            (folder / name).unlink(missing_ok=True)  # of an earlier report of another kind of task
        if self.task.kind == "regression":
            report_files.draw_scatter(self.task, self.runs, self.full, folder / "scatter.png")
            return
        if self.task.kind != "multilabel":
            report_files.draw_confusion(self.task, self.runs, folder / "confusion.png")
        if self.task.kind != "nucleotide":
            report_files.draw_curves(self.task, self.runs, self.baselines, self.full, folder / "curves.png")

    @property
    def _by_position(self) -> bool:
        return "--pool positions" in str(self.settings.get("command", ""))

    @property
    def _splits(self) -> list[int]:
        return sorted({run.split for run in self.runs})

    def _what(self) -> list[str]:
        seeds = len({(run.split, run.seed) for run in self.runs})
        tests = [next(run for run in self.runs if run.split == split) for split in self._splits]
        rows, copies = sum(len(run.test) for run in tests), sum(int(run.duplicated.sum()) for run in tests)
        per_split = "" if len(tests) == 1 else f" in {len(tests)} splits"
        levels = [self.full.drawn] + ["splits"] * (len(tests) > 1) + ["seeds"] * (seeds > len(tests))
        return [
            f"test: {rows:,} rows{per_split}, of which {copies:,} ({copies / max(rows, 1):.1%}) have a copy in train; "
            f"{len(self.runs)} trainings",
            f"95 % intervals: bootstrap over {', '.join(levels)}; the difference is paired",
        ]

    def _table(self, title: str, test: Comparison) -> list[str]:
        metrics, main = metric_names(self.task), main_metric(self.task)
        width = max(len(title), *(len(name) + 2 for name in test.models)) + 2
        heads = "".join(f"{metric:<24}" for metric in metrics)
        lines = [f"{title:<{width}}{heads}{main}: model - this"]
        for name, found in test.models.items():
            cells = "".join(f"{_cell(found[metric]):<24}" for metric in metrics)
            gap = _signed(test.differences[name][main]) if name in test.differences else ""
            lines.append(f"{name + (' *' if name == test.best else ''):<{width}}{cells}{gap}".rstrip())
        counted = "sequences" if self.task.kind == "nucleotide" else "rows"
        return [*lines, f"{test.rows:,} different {counted}" + ("; * best baseline" if test.best else "")]

    def _notes(self) -> dict[str, str]:
        """Of the first split: what each baseline chose or why it did not apply, and of others only what did not."""
        notes: dict[str, str] = {}
        for split in self._splits:
            for baseline in self.baselines.get(split, ()):
                if baseline.predictions is None:
                    notes[baseline.name] = f"does not apply: {baseline.note}"
                else:
                    notes.setdefault(baseline.name, ", ".join(filter(None, (baseline.note, _time(baseline.seconds)))))
        return notes

    def _judged(self, test: Comparison) -> Verdict:
        main, best = main_metric(self.task), test.best
        value = test.models[MODEL][main].value
        if np.isnan(value):
            text = f"Nothing can be said: {main} is not defined on these test rows, which hold one class or value only."
            return Verdict("unknown", None, text)
        if best is None:
            return Verdict("unknown", None, f"No baseline was trained: {main} {value:.3f} stands alone.")
        gap = test.differences[best][main]
        shown = f"{main} {_signed(gap)}, model minus baseline"
        if np.isnan(gap.low):
            return Verdict("unknown", best, f"Too few test rows to tell the model from {best}: {shown}.")
        if gap.low > 0:
            return Verdict("better", best, f"The language model beats the best baseline, {best}: {shown}.")
        instead = "use it instead, it is smaller and quicker."
        if gap.high < 0:
            return Verdict("worse", best, f"A baseline is better than the language model, {best}: {shown}; {instead}")
        text = f"As far as {test.rows:,} test rows tell, a baseline is as good as the language model, {best}: {shown}; "
        return Verdict("as good", best, text + instead)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return str(value)


def _number(value: float) -> str:
    """Three decimals, or three digits of what is not a share or a correlation."""
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _cell(found: Estimate) -> str:
    if np.isnan(found.low):
        return _number(found.value)
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def _signed(found: Estimate) -> str:
    if np.isnan(found.value):
        return "-"
    interval = "" if np.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{interval}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s"
