"""What a fine-tuning run is told to do; each field's text is its help."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from hyenadna.data.data_config import DataConfig, Kind
from hyenadna.errors import UsageError
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.diversity_config import Objective
from hyenadna.finetune.in_context_config import InContext

_ALLOWED: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("seeds", "splits", "epochs", "batch_size", "patience", "max_train_rows", "threads"),
        lambda value: value >= 1,
        "at least 1",
    ),
    (("folds",), lambda value: value >= 2, "at least 2"),
    (("lr", "head_lr"), lambda value: value > 0, "a finite number above 0"),
    (("weight_decay",), lambda value: value >= 0, "a finite number, at least 0"),
    (("valid_share", "test_share"), lambda value: 0 < value < 1, "above 0 and below 1"),
    (("train_share",), lambda value: 0 < value <= 1, "above 0, at most 1"),
    (("seed",), lambda value: 0 <= value < 2**31, "from 0 to 2^31 - 1"),
)
"""What each number may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DataConfig, Adaptation, Objective, InContext):
    """A fine-tuning run. Fields that are None are set to what suits the method and the machine, and printed.

    Raises
    ------
    UsageError              a value outside of what the field allows, or two fields that contradict each other
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    VERB: ClassVar = "finetune"
    """Of the command that makes the run."""
    DOES_NOT_CHANGE_THE_MODEL: ClassVar = frozenset(("out", "device", "threads", "baselines"))
    """Fields that may differ when a run is resumed."""
    ALTERNATIVES: ClassVar = (("splits", "folds"), ("max_train_rows", "train_share"))
    """Fields of which one may be set; a flag takes the place of the other in a file."""

    model: str = "starter"
    """The pretrained model: a folder, a hub id, or the one that comes with the package."""
    out: Path = Path("hyena-finetune")
    """Run folder: the adapter, metrics, report and predictions. The same command continues a run that stopped."""
    task: Kind | None = None
    """What the labels are (default: numbers of many values regression, labels with ';' multilabel, else classes);
    nucleotide, a letter for each base, must be said."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Weights of the model; random is the control that says what pretraining was worth."""
    split_by: Literal["auto", "group", "cluster", "row"] = "auto"
    """What a split keeps together, where the data do not give one: the groups of --group-col, clusters of alike
    sequences, or nothing; auto takes groups if there are any, else clusters."""
    valid_share: float = 0.1
    """Share of the rows that chooses the best epoch."""
    test_share: float = 0.2
    """Share of the rows that measures the result, once."""
    splits: int | None = None
    """Different random splits to repeat everything on, for small data (default: 1)."""
    folds: int | None = None
    """Parts of a cross-validation, each the test part once, instead of random splits (default: none)."""
    seeds: int = 1
    """Runs on each split, which differ in the initial weights and the order of the rows."""
    seed: int = 0
    """The first of the seeds; also decides the splits."""
    max_train_rows: int | None = None
    """Train on about this many rows, drawn once for each split: so that classes keep their shares, at least one row of
    each, or at random where there are no classes (default: all)."""
    train_share: float | None = None
    """Train on this share of the rows, drawn likewise (default: 1)."""
    epochs: int | None = None
    """Most passes over the training rows (default: by the method)."""
    patience: int | None = None
    """Epochs without a better validation after which the run ends (default: by the method)."""
    batch_size: int | None = None
    """Rows of an optimizer step (default: 32; of prompts, 8)."""
    lr: float | None = None
    """Highest learning rate of what the method learns, but for the head (default: by the method)."""
    head_lr: float | None = None
    """Highest learning rate of the head (default: by the method)."""
    weight_decay: float = 0.01
    """Weight decay of all that is learnt but filter networks and prompts."""
    reverse_complement: bool = False
    """Show each sequence in either strand, by a coin, and predict the mean of both: for sequences without direction."""
    baselines: bool = True
    """Measure simple models on the same rows, to compare with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; auto is bfloat16 on a GPU, float32 on a CPU. Weights and convolutions stay in float32."""
    threads: int | None = None
    """CPU threads (default: the CPUs that this process may use)."""

    def __post_init__(self) -> None:
        for parent in (DataConfig, Adaptation, Objective, InContext):
            check = getattr(parent, "__post_init__", None)
            if check is not None:
                check(self)
        for one, other in self.ALTERNATIVES:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                flags = " and ".join(f"--{name.replace('_', '-')}" for name in (one, other))
                raise UsageError(f"both {flags} are given; leave one out")
        for names, fits, allowed in _ALLOWED:
            for name in names:
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and fits(value)):
                    raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")
        if self.objective == "in-context" and self.method == "head":
            raise UsageError(
                "--method head has nothing to learn with --objective in-context, where the model's own logits answer: "
                "take full, lora or soft-prompt"
            )
        if self.read_out == "next-token":
            raise UsageError(
                "--read-out next-token has no labels: take --objective in-context, which reads so by itself"
            )
        if self.valid_share + self.test_share >= 1:
            raise UsageError(
                f"--valid-share {self.valid_share:g} and --test-share {self.test_share:g} leave no rows to train on"
            )

    @property
    def adaptation(self) -> Adaptation:
        """What the method adds to the model."""
        return Adaptation(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Adaptation)})

    @property
    def data_config(self) -> DataConfig:
        """Where the rows come from."""
        return DataConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DataConfig)})
