"""A fine-tuning command from its rows to its report: split, check, runs, test, baselines."""

import dataclasses
import json
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch

from hyenadna import __version__, plots
from hyenadna.data.duplicates import duplicated
from hyenadna.data.splits import PARTS
from hyenadna.errors import Interrupted
from hyenadna.files import atomic_write, replace_folder, write_json, write_text
from hyenadna.finetune import adapter
from hyenadna.finetune.apply import apply
from hyenadna.finetune.baselines import Baseline, baselines
from hyenadna.finetune.card import model_card
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.curves import epoch_curves
from hyenadna.finetune.examples import Examples
from hyenadna.finetune.plan import Plan, resolved
from hyenadna.finetune.report import Report, TestRun
from hyenadna.finetune.run_folder import Run, RunFolder
from hyenadna.finetune.train import State, Trainer
from hyenadna.machine import keep_freed_memory
from hyenadna.pretrain.configured_folder import command
from hyenadna.pretrain.metrics_file import append_metrics, cut_metrics, read_metrics
from hyenadna.progress import Job, notice

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The last is what SLURM sends when the job's time runs out."""


@dataclasses.dataclass(frozen=True)
class FinetuneRun:
    """A finished command."""

    folder: RunFolder
    report: Report
    best: Run
    """The run with the best validation, whose adapter is the command's."""

    def result(self) -> dict[str, Any]:
        """The report and where things are; `text` is for a person."""
        folder = self.folder
        text = (
            f"{self.report.text()}\n\n"
            f"adapter   {folder.adapter}\nreport    {folder.path / 'report.json'}\ncard      {folder.card}\n"
            f"next      hyena predict NEW.csv -m {folder.path}"
        )
        return {"text": text, "adapter": str(folder.adapter), "report": self.report.to_json()}


def finetune(config: FinetuneConfig, *, overwrite: bool = False, baselines_in: Path | None = None) -> FinetuneRun:
    """Fit a model to labelled sequences and measure it, or continue where the run in `config.out` stopped.

    Parameters
    ----------
    config : FinetuneConfig
    overwrite : bool
        Drop the run in the folder and start anew.
    baselines_in : Path, optional
        Where predictions of the baselines are kept, for several runs on the same rows. Default: in the run's folder.

    Raises
    ------
    RunFolderError          the folder is in use, or holds something else, or a run with another configuration
    NotFiniteError          a loss is not a number; the epochs before it are saved
    Interrupted             a signal ended the run; the epochs before it are saved
    HyenaError              data, configuration or disk; see `hyenadna.errors`
    """
    folder = RunFolder(config.out)
    config = resolved(config, None if overwrite else folder.stored())
    assert config.threads
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    folder.check(config, overwrite=overwrite)
    plan = Plan.of(config)
    with folder.locked(), interruptible(folder.path):
        folder.enter(config, overwrite=overwrite)
        write_json(folder.check_json, plan.check.to_json())
        runs = folder.runs(len(plan.splits), config.seeds)
        notice(plan.describe(plan.trainer(0, 0)))
        tests, states = [], []
        for number, run in enumerate(runs):
            name = f"run {number + 1} of {len(runs)}" if len(runs) > 1 else "fine-tuning"
            test, state = _run(plan, run, name)
            tests.append(test)
            states.append(state)
        best = max(range(len(runs)), key=lambda index: states[index].best.rank)  # type: ignore[union-attr]
        report = _report(plan, baselines_in or folder.baselines, tests)
        _publish(plan, folder, runs[best], report)
    return FinetuneRun(folder, report, runs[best])


def _run(plan: Plan, run: Run, name: str) -> tuple[TestRun, State]:
    """Train, choose the epoch, and predict the test rows, or whatever of this is not done yet."""
    run.enter()
    trainer, origin = plan.trainer(run.split, run.seed), plan.origin(run.split)
    state, predictions = run.saved(origin), run.predictions()
    if state is not None:
        trainer.restore(state)
    if predictions is None or state is None:
        fit(trainer, run, origin, name)
        predictions = _test(plan, run, trainer)
    train, _, test = plan.rows(run.split)
    assert test.labels is not None
    targets = trainer.model.task.targets(test.labels)
    copies = duplicated(train.sequences, test.sequences).any
    return TestRun(run.split, plan.config.seed + run.seed, test, targets, predictions, copies), trainer.state


def fit(trainer: Trainer, run: Run, origin: str, name: str) -> None:
    """Train all epochs that are not done yet, with progress; every one is saved in the run's folder."""
    cut_metrics(run.metrics, "epoch", trainer.state.epoch)
    if trainer.state.epoch:
        notice(f"{name}: continued after epoch {trainer.state.epoch}")
    epochs, bases = trainer.config.epochs or 0, int(trainer.train.lengths.sum())
    job = Job(name, epochs * bases, "nt", trainer.state.epoch * bases)
    detail = ""
    try:
        while not trainer.done:
            row = trainer.epoch(lambda done: job.advance(done, detail))  # noqa: B023
            append_metrics(run.metrics, row)
            run.save(trainer.state, origin)
            best = trainer.state.best
            assert best is not None
            detail = (
                f"epoch {trainer.state.epoch}/{epochs}  loss {row['train_loss']:.4f}, valid {row['valid_loss']:.4f}"
                f"  (best {best.loss:.4f}, {best.name} {best.metric:.3f})"
            )
    finally:
        job.close()
    _draw_curves(run)
    best = trainer.state.best
    assert best is not None
    notice(
        f"{name}: epoch {trainer.state.best_epoch} of {trainer.state.epoch} is the best on the validation rows: "
        f"loss {best.loss:.4f}, {best.name} {best.metric:.3f}"
    )


def _test(plan: Plan, run: Run, trainer: Trainer) -> Any:
    """Save the best epoch's model, then predict the test rows with it: the only time that they are looked at."""
    trainer.take_best()
    model, config = trainer.model, plan.config
    # a folder by its whole path, so that it is found from any working directory
    base = str(Path(config.model).expanduser().resolve()) if Path(config.model).expanduser().exists() else config.model
    text = _run_card(plan, trainer.state)
    if config.init == "random" and config.adaptation.frozen:
        plan.new_base(config.seed + run.seed).save_pretrained(run.model, card=text, overwrite=True)
        base = "../model"
    training = _training(plan, run, trainer.state)
    adapter.save(model, run.adapter, base=base, card=text, training=training, overwrite=True)
    test = plan.rows(run.split)[2]
    examples = Examples.of(test, model.task, plan.base.config)
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        predictions = apply(
            model, examples.tokens, batch_tokens=plan.batch_tokens, reverse_complement=config.reverse_complement
        )
    run.finish(predictions)
    return predictions


def _training(plan: Plan, run: Run, state: State) -> dict[str, Any]:
    assert state.best is not None
    return {
        "hyenadna": __version__,
        "command": command(plan.config),
        "data": plan.splits[run.split].source,
        "rows_sha256": plan.rows_sha256(run.split),
        "split": run.split,
        "seed": plan.config.seed + run.seed,
        "epoch": state.best_epoch,
        "valid_loss": state.best.loss,
        f"valid_{state.best.name}": state.best.metric,
        "reverse_complement": plan.config.reverse_complement,
        "threads": torch.get_num_threads(),
    }


def _run_card(plan: Plan, state: State) -> str:
    """README.md of what one run learnt, before anything is measured."""
    assert state.best is not None
    return f"""# {plan.task.kind} task, {plan.config.method} on {plan.config.model}

    {command(plan.config)}

Epoch {state.best_epoch} of {state.epoch}, the one with the best validation: loss {state.best.loss:.4f},
{state.best.name} {state.best.metric:.3f}. These numbers chose the epoch and are therefore too good; the report of the
run's folder has those of the test rows.
"""


def _report(plan: Plan, kept_in: Path, tests: Sequence[TestRun]) -> Report:
    splits = range(len(plan.splits)) if plan.config.baselines else ()
    simple = {split: _baselines(plan, kept_in, split) for split in splits}
    settings = {
        "data": plan.splits[0].source,
        "split": plan.rule(0) + (f" (and {len(plan.splits) - 1} more)" if len(plan.splits) > 1 else ""),
        "rows": {name: len(part) for name, part in zip(PARTS, plan.rows(0), strict=True)},
        "model": _model_in_words(plan),
        "method": plan.config.method,
        "command": command(plan.config),
        "hyenadna": __version__,
    }
    return Report(plan.task, tests, simple, settings)


def _model_in_words(plan: Plan) -> str:
    """The model that the runs started from, with the SHA-256 of its weights if they were taken."""
    if plan.config.init == "random":
        return f"{plan.config.model} with random weights"
    return f"{plan.config.model}, pretrained weights {plan.base_sha256}"


def _baselines(plan: Plan, folder: Path, split: int) -> list[Baseline]:
    """Those of a split; kept in a file, since some take as long as a run. They depend on the rows alone."""
    path, origin = folder / f"split-{split}.npz", plan.rows_sha256(split)
    if path.exists():
        with np.load(path) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["origin"] == origin:
                kept = about["baselines"]
                predictions = [arrays.get(f"predictions_{index}") for index in range(len(kept))]
                return [Baseline(**item, predictions=found) for item, found in zip(kept, predictions, strict=True)]
    train, valid, test = plan.rows(split)
    start = time.monotonic()
    found = baselines(plan.task_of(train), train, test, valid=valid, seed=plan.config.seed, cnn=True)
    notice(f"baselines of split {split}: {time.monotonic() - start:.0f} s")
    kept = [{"name": item.name, "seconds": item.seconds, "note": item.note} for item in found]
    arrays = {f"predictions_{index}": p for index, item in enumerate(found) if (p := item.predictions) is not None}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=json.dumps({"origin": origin, "baselines": kept}), **arrays)
    return found


def _publish(plan: Plan, folder: RunFolder, best: Run, report: Report) -> None:
    """Put the report, and the best run's adapter with a card that tells of it, into the top of the folder."""
    report.write(folder.path)
    config = plan.config
    text = model_card(
        report,
        method=config.method,
        base=_model_in_words(plan),
        data=plan.splits[best.split].source,
        rows_sha256=plan.rows_sha256(best.split),
        split_rule=plan.rule(best.split),
        command=command(config),
        rows={name: len(part) for name, part in zip(PARTS, plan.rows(best.split), strict=True)},
    )
    for source, target in ((best.model, folder.model), (best.adapter, folder.adapter)):
        if source != target and source.is_dir():
            staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
            shutil.copytree(source, staging)
            replace_folder(staging, target)
    write_text(folder.adapter / "README.md", text)
    write_text(folder.card, text)


def _draw_curves(run: Run) -> None:
    rows = read_metrics(run.metrics)
    drawn, panels = plots.stacked_figure((3, 2))
    epoch_curves(panels, {name: np.array([row[name] for row in rows]) for name in rows[0]})
    plots.write_png(drawn, run.curves)


@contextmanager
def interruptible(path: Path) -> Iterator[None]:
    """Signals end the run at once: every file is whole or absent, so that the last epoch saved is what continues."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, f"interrupted; the same command continues after the last epoch saved in {path}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
