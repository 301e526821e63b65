"""What a fine-tuning run will do: defaults filled in, rows and splits, the model, and a rehearsal in seconds."""

import copy
import dataclasses
import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from hyenadna.data.label_check import LabelCheck, check
from hyenadna.data.label_split import carve, folds
from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.splits import PARTS
from hyenadna.data.tables import read_labelled
from hyenadna.errors import InputError, SequenceTooLong
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.examples import Examples, subset
from hyenadna.finetune.run_folder import RunFolder
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.finetune.train import Trainer
from hyenadna.machine import available_cpus, keep_freed_memory, peak_memory, torch_device
from hyenadna.model.checkpoint import read
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import weight_count
from hyenadna.progress import duration, quantity

_BATCH_SIZE = 32
_EPOCHS = {"full": 30, "lora": 30, "soft-prompt": 30, "head": 200}
_PATIENCE = {"full": 8, "lora": 8, "soft-prompt": 8, "head": 30}
_LR = {"full": 1e-3, "lora": 1e-2, "soft-prompt": 1e-2, "head": 1e-2}
_HEAD_LR = {"full": 3e-3, "lora": 1e-2, "soft-prompt": 1e-2, "head": 1e-2}
"""Defaults by method, tried with the starter model on validation rows. At 3e-3 `full` does better on the splice
junctions (MCC 0.95 for 0.93), but runs on GUE's mouse/0 diverge (AUROC 0.50 to 0.69 for 0.74)."""
_BATCH_TOKENS = {"cpu": 16_384, "cuda": 262_144}
"""Tokens that a device works on at once, at the width and depth of tiny-1k."""


def resolved(config: FinetuneConfig, stored: FinetuneConfig | None = None) -> FinetuneConfig:
    """The same run with everything that was left open set to what suits the method and the machine.

    What depends on the machine stays what it was in a stored run.
    """
    on_gpu = torch_device(config.device).type == "cuda"
    if config.dtype == "auto" and stored is not None:
        config = dataclasses.replace(config, dtype=stored.dtype)
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    method = config.method
    return dataclasses.replace(
        config,
        splits=None if config.folds else config.splits or 1,
        epochs=config.epochs or _EPOCHS[method],
        patience=config.patience or _PATIENCE[method],
        batch_size=config.batch_size or _BATCH_SIZE,
        lr=config.lr or _LR[method],
        head_lr=config.head_lr or _HEAD_LR[method],
        threads=config.threads or available_cpus(),
        dtype="bfloat16" if half else "float32",
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is known before the first step."""

    config: FinetuneConfig
    """Resolved."""
    base: HyenaDNA
    """The pretrained model, on the CPU."""
    base_sha256: str
    """Of its weights."""
    splits: tuple[LabelledSequences, ...]
    """The rows of each split, each in a part."""
    task: Task
    """Of the classes of all rows that training may see."""
    check: LabelCheck
    """Of the first split."""

    @classmethod
    def of(cls, config: FinetuneConfig) -> "Plan":
        """Read the rows and the model, and split the rows.

        Raises
        ------
        InputError              rows that cannot be read or learnt from
        SequenceTooLong         a sequence that the model cannot take
        """
        data = read_labelled(config.data_config)
        task = _task(config, data)
        splits = _split(config, data)
        checkpoint = read(config.model)
        if checkpoint.layout == "hyena":
            checkpoint.verify()
        if config.pool == "positions" and config.positions is None:
            config = dataclasses.replace(config, positions=int(data.lengths.max()))
        plan = cls(config, checkpoint.model, checkpoint.base_sha256, splits, task, check(splits[0], kind=task.kind))
        plan._check_lengths(data)
        return plan

    def rows(self, split: int) -> tuple[LabelledSequences, LabelledSequences, LabelledSequences]:
        """Training rows (all, or the subset that the configuration asks for), validation rows and test rows."""
        data = self.splits[split]
        train, valid, test = (data.part(name) for name in ("train", "valid", "test"))
        config = self.config
        wanted = config.max_train_rows or len(train)
        if config.train_share is not None:
            wanted = max(1, round(config.train_share * len(train)))
        if wanted < len(train):
            assert train.labels is not None
            # the same rows for every seed, as for the baselines; other splits draw others
            drawn = subset(train.labels, wanted, by_class=self._by_class, seed=config.seed + split)
            train = train.take(drawn)
        return train, valid, test

    def task_of(self, train: LabelledSequences) -> Task:
        """The task with what is known of the training rows: mean and deviation of a regression."""
        if self.task.kind != "regression":
            return self.task
        assert train.labels is not None
        return Task.of(train.labels, "regression", name=self.task.labels[0])

    def new_base(self, seed: int) -> HyenaDNA:
        """The model that a run starts from, before anything is added; one that training changes is a copy."""
        if self.config.init == "random":
            torch.manual_seed(seed)
            return HyenaDNA(self.base.config).eval()
        return self.base if self.config.adaptation.frozen else copy.deepcopy(self.base)

    def new_model(self, task: Task, seed: int) -> SequenceModel:
        """The model of a run before its first step, on its device."""
        model = SequenceModel(self.new_base(seed), task, self.config.adaptation, seed=seed)
        return model.to(torch_device(self.config.device))

    def trainer(self, split: int, seed: int) -> Trainer:
        """The training of a run."""
        train, valid, _ = self.rows(split)
        task, number = self.task_of(train), self.config.seed + seed
        return Trainer(
            self.new_model(task, number),
            Examples.of(train, task, self.base.config),
            Examples.of(valid, task, self.base.config),
            self.config,
            seed=number,
            batch_tokens=self.batch_tokens,
        )

    def origin(self, split: int) -> str:
        """SHA-256 of the rows of a split and of the model that its runs start from."""
        return hashlib.sha256((self.base_sha256 + self.rows_sha256(split)).encode()).hexdigest()

    def rows_sha256(self, split: int) -> str:
        """SHA-256 of ids, sequences and labels of a split's training, validation and test rows."""
        digest = hashlib.sha256()
        for part in self.rows(split):
            assert part.labels is not None
            for row in zip(part.ids, part.sequences, part.labels, strict=True):
                digest.update("\t".join(row).encode() + b"\n")
            digest.update(b"\f")
        return digest.hexdigest()

    def rule(self, split: int) -> str:
        """How a split came about, in words."""
        return self.splits[split].rule or "as the data give it"

    @property
    def batch_tokens(self) -> int:
        """As `tokens_at_once`, on the device of the run."""
        return tokens_at_once(self.base, torch_device(self.config.device).type)

    def describe(self, trainer: Trainer) -> str:
        """The run before it starts: rows, task, what to beware of, model and method, and the time that it takes."""
        config, model = self.config, trainer.model
        assert config.batch_size
        train = self.rows(0)[0]
        learnt = sum(parameter.numel() for parameter in model.learnt().values())
        whole = weight_count(model)
        runs = len(self.splits) * config.seeds
        most = f"{config.epochs} epochs at most, {math.ceil(len(train) / config.batch_size):,} steps each"
        all_rows = len(self.splits[0].part("train"))
        how = "so that classes keep their shares" if self._by_class else "at random"
        part = "" if len(train) == all_rows else f"train     {len(train):,} of {all_rows:,} rows, drawn {how}"
        return "\n".join(
            [
                f"task      {_describe_task(self.task, train)}",
                self.check.text(),
                *([part] if part else []),
                f"model     {config.model}{', random weights' if config.init == 'random' else ''}: longest sequence "
                f"{int(self.splits[0].lengths.max()):,} bases of {model.longest:,} that fit",
                f"method    {config.method}: {learnt:,} parameters are learnt, {whole - learnt:,} stay as they are",
                f"settings  lr {config.lr:g}  head_lr {config.head_lr:g}  batch_size {config.batch_size}  "
                f"threads {config.threads}  dtype {config.dtype}",
                f"runs      {runs} of {most}; about {duration(trainer.cost().whole(config) * runs)} if none ends early",
            ]
        )

    @property
    def _by_class(self) -> bool:
        """Whether subsets are drawn class by class."""
        return self.task.kind in ("binary", "multiclass")

    def _check_lengths(self, data: LabelledSequences) -> None:
        model, longest = self.new_model(self.task, self.config.seed), int(data.lengths.max())
        if longest <= model.longest:
            return
        if model.longest == self.config.positions:
            raise SequenceTooLong(
                f"{data.ids[int(data.lengths.argmax())]} has {longest:,} bases, more than --positions "
                f"{model.longest:,}: leave the flag out, or shorten the sequences"
            )
        prompt = self.config.prompt_length if self.config.method == "soft-prompt" else 0
        raise SequenceTooLong(
            f"{data.ids[int(data.lengths.argmax())]} has {longest:,} bases; {self.config.model}"
            f"{f' with a prompt of {prompt:,}' if prompt else ''} takes up to {model.longest:,}: shorten the sequences"
            f"{' or the prompt' if prompt else ''}, or take a model with a longer context by --model"
        )


def tokens_at_once(model: HyenaDNA, device: str) -> int:
    """Tokens that a kind of device works on at once, less for wider and deeper models."""
    size = model.config.d_model * model.config.n_layer
    return max(1, round(_BATCH_TOKENS[device] * min(1.0, 256 / size)))


def dry_run(config: FinetuneConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Check all inputs, train for a few seconds in memory, and say what the whole run will take.

    Returns
    -------
    dict                    text (for a person), nt_per_second, seconds, memory_bytes, check
    """
    folder = RunFolder(config.out)
    config = resolved(config, None if overwrite else folder.stored())
    assert config.threads
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    folder.check(config, overwrite=overwrite)
    plan = Plan.of(config)
    trainer = plan.trainer(0, 0)
    cost = trainer.cost()
    seconds = cost.whole(config) * len(plan.splits) * config.seeds
    rate = int(trainer.train.lengths.sum()) / cost.epoch
    device = trainer.device
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    text = (
        f"{plan.describe(trainer)}\n"
        f"rate      {quantity(rate)}nt/s in training, {duration(cost.epoch)} an epoch\n"
        f"memory    {quantity(memory)}B, baselines not counted\n"
        "nothing was written (--dry-run)"
    )
    return {
        "text": text,
        "nt_per_second": rate,
        "seconds": seconds,
        "memory_bytes": memory,
        "check": plan.check.to_json(),
    }


def _split(config: FinetuneConfig, data: LabelledSequences) -> tuple[LabelledSequences, ...]:
    if config.folds:
        splits = tuple(
            folds(
                data,
                config.folds,
                by=config.split_by,
                valid=config.valid_share,
                seed=config.seed,
                kind=config.task,
            )
        )
    else:
        splits = tuple(
            carve(
                data,
                by=config.split_by,
                valid=config.valid_share,
                test=config.test_share,
                seed=config.seed + number,
                kind=config.task,
            )
            for number in range(config.splits or 1)
        )
    for name in PARTS:
        if any(len(split.part(name)) == 0 for split in splits):
            raise InputError(
                f"{data.source}: {len(data):,} rows leave none for the {name} part; give more rows, or other shares"
            )
    return splits


def _task(config: FinetuneConfig, data: LabelledSequences) -> Task:
    """The classes of all rows but those that the data themselves hold out."""
    assert data.labels is not None
    parts = data.parts if data.parts and not config.folds else ("train",) * len(data)
    seen = [label for label, part in zip(data.labels, parts, strict=True) if part not in ("valid", "test")]
    task = Task.of(seen, config.task)
    task.targets(data.labels)
    return task


def _describe_task(task: Task, train: LabelledSequences) -> str:
    assert train.labels is not None
    if task.kind == "regression":
        values = np.array([float(label) for label in train.labels])
        return f"regression, training targets {values.mean():.4g} ± {values.std():.4g}"
    if task.kind in ("multilabel", "nucleotide"):
        return f"{task.kind}, {task.outputs} labels: {', '.join(task.labels[:10])}"
    counts = Counter(train.labels)
    named = ", ".join(f"{name} {counts[name] / len(train):.1%}" for name in task.labels[:10])
    return f"{task.kind}, {task.outputs} classes: {named}"
