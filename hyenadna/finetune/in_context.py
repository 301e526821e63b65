"""`hyena finetune --objective in-context`: the brief tuning after which a model answers by the examples of a prompt.

Instruction tuning on prompts of labelled tables (Nguyen et al. 2023), of all weights, of low-rank updates, or of a soft
prompt before a frozen model. The tables should be of other tasks than the one that is probed afterwards: words change
their meaning from prompt to prompt, so that what is learnt is to look at the examples.
"""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna import __version__
from hyenadna.data.duplicates import distinct
from hyenadna.data.in_context_tasks import SYNTHETIC, InContextTask, RowsTask
from hyenadna.data.label_split import carve
from hyenadna.data.splits import PARTS, Part
from hyenadna.data.tables import read_labelled
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.files import write_json, write_text
from hyenadna.finetune import adapter
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.apply import apply
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.finetune import fit, interruptible
from hyenadna.finetune.in_context_model import next_token_model, tuning
from hyenadna.finetune.in_context_prompts import PromptSource, layout_of, right_answers
from hyenadna.finetune.in_context_train import BATCH_SIZE, EPOCHS, LR, PATIENCE, TEST, InContextTrainer
from hyenadna.finetune.plan import tokens_at_once
from hyenadna.finetune.run_folder import Run, RunFolder
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import Bootstrap
from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
from hyenadna.model.checkpoint import read
from hyenadna.model.language_model import HyenaDNA
from hyenadna.pretrain.configured_folder import command
from hyenadna.progress import duration, notice


@dataclasses.dataclass(frozen=True)
class InContextRun:
    """A finished command."""

    folder: RunFolder
    report: dict[str, Any]

    def result(self) -> dict[str, Any]:
        """What was measured and where the model is; `text` is for a person."""
        path = self.folder.path
        text = f"{report_text(self.report)}\n\nrun       {path}\nnext      hyena probe DATA -m {path}"
        return {"text": text, "run": str(path), "report": self.report}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is known before the first step."""

    config: FinetuneConfig
    """Resolved, with the layout that suits the model."""
    base: HyenaDNA
    """On the CPU."""
    sources: dict[Part, PromptSource]
    origin: str
    """SHA-256 of the rows and of the model."""

    @classmethod
    def of(cls, config: FinetuneConfig) -> "Plan":
        """Read the rows and the model, and split the rows.

        Raises
        ------
        InputError              rows that cannot be read or learnt from: one class, or too few of one for --shots
        SequenceTooLong         prompts that the model cannot take
        UsageError              a data set that is given twice, or more classes than the layout has words for
        """
        names = (config.data, *config.more_data)
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{twice[0] or 'the bundled table'} is given twice; every task is one of its own")
        checkpoint = read(config.model)
        if checkpoint.layout == "hyena":
            checkpoint.verify()
        # a frozen model has learnt nothing of the tokens of the published one
        usual = "published" if config.method == "full" else "suited"
        layout = config.layout or tuning(checkpoint.description).get("layout", usual)
        config = dataclasses.replace(config, layout=layout)
        digest, tasks = hashlib.sha256(checkpoint.base_sha256.encode()), []
        for name in names:
            tasks.append(_task(name, config, checkpoint.model.config.n_token, digest))
        layouts = tuple(layout_of(layout, task["train"].classes, checkpoint.model.config.n_token) for task in tasks)
        sources = {
            part: PromptSource(tuple(task[part] for task in tasks), layouts, config.shots, config.permute_labels)
            for part in PARTS
        }
        plan = cls(config, checkpoint.model, sources, digest.hexdigest())
        plan._check_lengths()
        return plan

    def trainer(self) -> InContextTrainer:
        """The training, before its first step."""
        config = self.config
        base = copy.deepcopy(self.base) if config.method == "full" else self.base
        model = next_token_model(base, _adaptation(config), seed=config.seed)
        return InContextTrainer(
            model.to(torch_device(config.device)),
            self.sources["train"],
            self.sources["valid"],
            config,
            seed=config.seed,
            batch_tokens=self.batch_tokens,
        )

    @property
    def batch_tokens(self) -> int:
        """As `tokens_at_once`, on the device of the run."""
        return tokens_at_once(self.base, torch_device(self.config.device).type)

    def _check_lengths(self) -> None:
        config = self.config
        prompt = config.prompt_length if config.method == "soft-prompt" else 0
        room = self.base.config.filter_length - prompt - 2
        for source in self.sources.values():
            for task, layout in zip(source.tasks, source.layouts, strict=True):
                each, examples = source.example_tokens(task, layout), source.examples_of(task)
                if each * examples <= room:
                    continue
                most = (room // each - 1) // task.classes
                advice = f"take --shots {most}" if most > 0 else "shorten the sequences"
                raise SequenceTooLong(
                    f"--shots {config.shots} of {task.name} are prompts of up to {each * examples:,} tokens "
                    f"({examples} examples of up to {task.longest:,} bases); {config.model}"
                    f"{f' behind a soft prompt of {prompt:,}' if prompt else ''} takes {room:,}: {advice}, or a model "
                    "with a longer context by --model"
                )


def finetune(config: FinetuneConfig, *, overwrite: bool = False) -> InContextRun:
    """Tune a model on prompts and measure what it brought, or continue where the run in `config.out` stopped.

    Parameters
    ----------
    config : FinetuneConfig
        With objective in-context.
    overwrite : bool
        Drop the run in the folder and start anew.

    Raises
    ------
    RunFolderError          the folder is in use, or holds something else, or a run with another configuration
    NotFiniteError          a loss is not a number; the epochs before it are saved
    Interrupted             a signal ended the run; the epochs before it are saved
    HyenaError              as `Plan.of`
    """
    folder = RunFolder(config.out)
    config = resolved(config, None if overwrite else folder.stored())
    _set_up(config)
    folder.check(config, overwrite=overwrite)
    plan = Plan.of(config)
    config = plan.config
    with folder.locked(), interruptible(folder.path):
        folder.enter(config, overwrite=overwrite)
        run, path = folder.runs(1, 1)[0], folder.path / "report.json"
        run.enter()
        trainer, state = plan.trainer(), run.saved(plan.origin)
        if state is not None:
            trainer.restore(state)
        if not (trainer.done and path.exists()):
            notice(_describe(plan, trainer))
            before = _curves(
                plan, next_token_model(plan.base, _adaptation(config, "lora"))
            )  # a new update adds nothing
            fit(trainer, run, plan.origin, "tuning in context")
            trainer.take_best()
            report = _report(plan, trainer, before, _curves(plan, trainer.model))
            _save(plan, run, trainer, report)
            write_json(path, report)
        report = json.loads(path.read_text(encoding="utf-8"))
    return InContextRun(folder, report)


def dry_run(config: FinetuneConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Check all inputs, train for a few seconds in memory, and say what the whole run will take."""
    folder = RunFolder(config.out)
    config = resolved(config, None if overwrite else folder.stored())
    _set_up(config)
    folder.check(config, overwrite=overwrite)
    plan = Plan.of(config)
    trainer = plan.trainer()
    seconds = trainer.cost().whole(config)
    return {"text": f"{_describe(plan, trainer)}\nnothing was written (--dry-run)", "seconds": seconds}


def resolved(config: FinetuneConfig, stored: FinetuneConfig | None = None) -> FinetuneConfig:
    """The same run with everything that was left open set to what suits the method and the machine.

    What depends on the machine or the model stays what it was in a stored run.
    """
    dtype = config.dtype
    if dtype == "auto":
        on_gpu = torch_device(config.device).type == "cuda"
        dtype = stored.dtype if stored is not None else "bfloat16" if on_gpu else "float32"
    return dataclasses.replace(
        config,
        epochs=config.epochs or EPOCHS,
        patience=config.patience or PATIENCE,
        batch_size=config.batch_size or BATCH_SIZE,
        lr=config.lr or LR,
        layout=config.layout or (None if stored is None else stored.layout),
        threads=config.threads or available_cpus(),
        dtype=dtype,
    )


def report_text(report: dict[str, Any]) -> str:
    """Accuracy before and after, by the number of examples before the query, as lines."""
    lines = [f"Right labels on {report['test_prompts']} prompts of test rows, by the examples before them:"]
    for name, found in report["tasks"].items():
        lines += [f"{name}, {found['classes']} classes", "  examples   before tuning             after"]
        for count, before, after in zip(report["examples"], found["before"], found["after"], strict=False):
            lines.append(f"  {count:>8}   {_interval(before)}   {_interval(after)}")
    return "\n".join(lines)


def _set_up(config: FinetuneConfig) -> None:
    assert config.threads
    torch.set_num_threads(config.threads)
    keep_freed_memory()


def _adaptation(config: FinetuneConfig, method: Any = None) -> Adaptation:
    return dataclasses.replace(config.adaptation, read_out="next-token", method=method or config.method)


def _task(
    name: str | None, config: FinetuneConfig, n_token: Literal["n", "pad"], digest: "hashlib._Hash"
) -> dict[Part, InContextTask]:
    """A task for each part; what decides it goes into the digest."""
    if name is not None and name.startswith("synthetic/"):
        if name not in SYNTHETIC:
            raise UsageError(f"there is no task {name}; synthetic ones are {', '.join(SYNTHETIC)}")
        digest.update(name.encode())
        return dict.fromkeys(PARTS, SYNTHETIC[name]())
    data = read_labelled(dataclasses.replace(config.data_config, data=name))
    assert data.labels is not None
    task = Task.of(data.labels)
    if task.kind not in ("binary", "multiclass"):
        raise InputError(f"{data.source}: the labels are {task.kind}; prompts take classes of sequences")
    split = carve(
        data, by=config.split_by, valid=config.valid_share, test=config.test_share, seed=config.seed, kind=task.kind
    )
    found: dict[Part, InContextTask] = {}
    for part in PARTS:
        rows = split.part(part)
        rows = rows.take(distinct(rows.sequences))  # a copy in the prompt would give a label away
        assert rows.labels is not None
        for row in zip(rows.sequences, rows.labels, strict=True):
            digest.update("\t".join((part, *row)).encode() + b"\n")
        tokens = [encode(sequence, n_token) for sequence in rows.sequences]
        of_part = RowsTask(name or data.source, tokens, task.targets(rows.labels), task.outputs)
        label, fewest = of_part.fewest
        if fewest <= config.shots:
            raise InputError(
                f"the {part} part of {data.source} has {fewest:,} rows of the class {task.labels[label]!r}; --shots "
                f"{config.shots} needs {config.shots + 1:,}: give more rows, other shares, or fewer shots"
            )
        found[part] = of_part
    return found


def _curves(plan: Plan, model: SequenceModel) -> dict[str, list[dict[str, float]]]:
    """Accuracy on prompts of test rows, of each task, behind 0, 1, 2 to 3, 4 to 7 ... examples."""
    source, config, curves = plan.sources["test"], plan.config, {}
    model = model.to(torch_device(config.device))
    for number, (task, layout) in enumerate(zip(source.tasks, source.layouts, strict=True)):
        alone = dataclasses.replace(source, tasks=(task,), layouts=(layout,))
        drawn = alone.draw(_test_prompts(config), np.random.default_rng((config.seed, TEST, number)))
        with torch.autocast(model.base.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            said = apply(model, drawn.tokens, batch_tokens=plan.batch_tokens, reverse_complement=False)
        right = np.stack([right_answers(*row, layout) for row in zip(said, drawn.targets, strict=True)])
        starts = _counts(right.shape[1])
        curves[task.name] = [
            _mean(right[:, first:last]) for first, last in zip(starts, (*starts[1:], right.shape[1]), strict=True)
        ]
    return curves


def _test_prompts(config: FinetuneConfig) -> int:
    """Of each task."""
    return max(2, config.prompts // 4)


def _counts(labels: int) -> list[int]:
    """0, 1, 2, 4 ... examples before a label, below so many labels."""
    return [0, *(1 << power for power in range((labels - 1).bit_length()))]


def _mean(right: NDArray[np.bool_]) -> dict[str, float]:
    """Of (prompts, labels), with the interval over prompts."""
    blocks = np.stack([right.sum(axis=1), np.full(len(right), right.shape[1])], axis=1).astype(np.float64)
    return dataclasses.asdict(Bootstrap.of(blocks).estimate(lambda sums: sums[:, 0] / sums[:, 1], bases=1))


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _describe(plan: Plan, trainer: InContextTrainer) -> str:
    config, source = plan.config, plan.sources["train"]
    learnt = sum(parameter.numel() for parameter in trainer.model.learnt().values())
    named = ", ".join(f"{task.name} ({task.classes} classes)" for task in source.tasks)
    mean = int(trainer.train.lengths.mean())
    return "\n".join(
        [
            f"tasks     {named}",
            f"prompts   {config.prompts} an epoch, of {config.shots} examples a class: {mean:,} tokens on average, up "
            f"to {source.longest:,} of {trainer.model.longest:,} that fit",
            f"layout    {config.layout}: {source.layouts[0]}",
            f"method    {config.method}: {learnt:,} parameters are learnt",
            f"settings  lr {config.lr:g}  batch_size {config.batch_size}  threads {config.threads}  "
            f"dtype {config.dtype}",
            f"time      {config.epochs} epochs at most; about {duration(trainer.cost().whole(config))} if none is left "
            "out",
        ]
    )


def _report(plan: Plan, trainer: InContextTrainer, before: Any, after: Any) -> dict[str, Any]:
    config, state = plan.config, trainer.state
    assert state.best is not None
    source = plan.sources["test"]
    tasks = {
        task.name: {"classes": task.classes, "before": before[task.name], "after": after[task.name]}
        for task in source.tasks
    }
    return {
        "objective": "in-context",
        "hyenadna": __version__,
        "command": command(config),
        "from": config.model,
        "layout": config.layout,
        "shots": config.shots,
        "permute_labels": config.permute_labels,
        "seed": config.seed,
        "epoch": state.best_epoch,
        "epochs": state.epoch,
        "valid_loss": state.best.loss,
        f"valid_{state.best.name}": state.best.metric,
        "test_prompts": _test_prompts(config),
        "examples": _counts(max(source.examples_of(task) for task in source.tasks)),
        "tasks": tasks,
    }


def _save(plan: Plan, run: Run, trainer: InContextTrainer, report: dict[str, Any]) -> None:
    """The tuned model as a model folder, or what was learnt as an adapter; and what it is in words."""
    config, model = plan.config, trainer.model
    card = f"""# {config.model}, tuned in context

    {command(config)}

Epoch {report["epoch"]} of {report["epochs"]}, the one with the best validation. It answers by the labelled examples of
a prompt (`hyena probe DATA -m {config.out}`); layout of the prompts: {config.layout}.

```
{report_text(report)}
```
"""
    if config.method == "full":
        model.base.save_pretrained(run.model, card=card, training=report, overwrite=True)
    else:
        path = Path(config.model).expanduser()
        base = str(path.resolve()) if path.exists() else config.model
        adapter.save(model, run.adapter, base=base, card=card, training=report, overwrite=True)
    write_text(run.path / "README.md", card)
