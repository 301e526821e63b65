"""What a pretraining run is told to do; each field's text is its help."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from hyenadna.errors import UsageError
from hyenadna.model.config import Size

_COUNTS = (
    "warmup_from", "warmup_steps", "batch_tokens", "micro_batch_tokens", "steps", "tokens", "valid_every",
    "valid_tokens", "checkpoint_every", "keep_last", "devices", "nodes", "threads", "experts", "active_experts",
)  # fmt: skip
_ALLOWED: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (_COUNTS, lambda value: value >= 1, "at least 1"),
    (("max_length",), lambda value: value >= 2, "at least 2 bases"),
    (("lr", "filter_lr", "clip"), lambda value: value > 0, "a finite number above 0"),
    (("sparsity_factor",), lambda value: 1 < value <= 10, "above 1 and at most 10"),
    (("sparsity_start",), lambda value: 1e-8 <= value <= 10, "from 1e-8 to 10"),
    (("weight_decay",), lambda value: value >= 0, "a finite number, at least 0"),
    (
        ("warmup_share", "lr_warmup_share", "lr_final_share", "dropout", "max_n_share"),
        lambda value: 0 <= value < 1,
        "at least 0 and below 1",
    ),
    (("seed",), lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1"),
)
"""What each number may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run. Fields that are None are set to what suits the machine, and printed.

    Raises
    ------
    UsageError              a value outside of what the field allows, or two fields that contradict each other
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    VERB: ClassVar = "pretrain"
    """Of the command that makes the run."""
    DOES_NOT_CHANGE_THE_MODEL: ClassVar = frozenset(
        ("out", "devices", "nodes", "device", "threads", "checkpoint_every", "keep_last", "logger",
         "checkpoint_activations")
    )  # fmt: skip
    """Fields that may differ when a run is resumed."""
    ALTERNATIVES: ClassVar = (("steps", "tokens"), ("warmup_share", "warmup_steps"))
    """Fields of which one may be set; a flag takes the place of the other in a file."""

    fasta: tuple[str, ...] = ()
    """FASTA files (plain, BGZF or gzip), each FILE or FILE:WEIGHT; windows are drawn in proportion to the weights
    (default: the files' sizes in bases). Without any, the bundled E. coli genome."""
    out: Path = Path("hyena-run")
    """Run folder: the model, its curves, metrics and checkpoints. The same command continues a run that stopped."""
    size: Size = "tiny-1k"
    """Depth, width and mixers, by the name of a published model or of a hybrid: tiny-1k-hs ends with softmax attention,
    which copies what was seen once; tiny-1k-remoe has experts; small-32k-hhhs has one softmax layer in four, and
    small-32k-llls Lightning Attention-2 before it, whose state does not grow; medium-160k-hls mixes all three."""
    layers: str | None = None
    """Mixer of each block instead of those of the size, one letter a block: H Hyena, L Lightning Attention-2, S softmax
    attention; such as HHLS."""
    feed_forward: Literal["mlp", "remoe"] | None = None
    """Feed-forward part of each block instead of that of the size: mlp, or remoe for experts behind a ReLU router."""
    experts: int | None = None
    """Experts of a remoe block (default: those of the size, 8)."""
    active_experts: int | None = None
    """Experts that are on at the target sparsity (default: those of the size, 1)."""
    sparsity_control: Literal["damped", "sign"] = "damped"
    """How the penalty that switches experts off follows their sparsity: by its distance from the target, which is
    1 - active experts / experts, and by its rise; or, as published, by the sign of the distance, which overshoots."""
    sparsity_factor: float = 1.2
    """By which the coefficient of that penalty changes in a step: as a whole, or to the power of the distance."""
    sparsity_start: float = 1e-8
    """Coefficient of that penalty at first: small, so that experts learn before they are switched off."""
    max_length: int | None = None
    """Longest context in bases, where the length warm-up ends (default: that of the size)."""
    warmup_from: int = 64
    """Context in bases at which the length warm-up starts; it doubles from stage to stage."""
    warmup_share: float | None = None
    """Share of the run's steps spent before the longest context, in equal stages (default: 0.3)."""
    warmup_steps: int | None = None
    """Steps of each stage before the longest context, instead of a share."""
    batch_tokens: int | None = None
    """Tokens of an optimizer step, over all devices (default: 2,048 on a CPU, 262,144 on a GPU, or a window)."""
    micro_batch_tokens: int | None = None
    """Tokens that a device works on at once; smaller needs less memory (default: what fits)."""
    steps: int | None = None
    """Optimizer steps of the run."""
    tokens: float | None = None
    """Tokens of the run, instead of steps (default: 6 million on a CPU, 2.5 billion on a GPU)."""
    lr: float | None = None
    """Highest learning rate (default: 6e-4 on a GPU; on a CPU 5e-3 at width 128, less in proportion if wider)."""
    filter_lr: float | None = None
    """Highest learning rate of the networks that generate the long filters (default: --lr, but at most 1e-3)."""
    lr_warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    lr_final_share: float = 0.05
    """Share of the highest learning rate at which the cosine ends."""
    weight_decay: float = 0.1
    """Weight decay of all parameters but those of the filter networks."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two averages."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    dropout: float = 0.0
    """Dropout of the embedded tokens; the published models had 0.1."""
    filter_shift: float = 0.05
    """Floor of the long filters' exponential window; 0 is the other convention in use."""
    reverse_complement: bool = True
    """Show each window in either strand, by a coin."""
    soft_mask: Literal["upper", "ignore"] = "upper"
    """Lower-case bases: like upper-case ones, or kept out of the loss."""
    max_n_share: float = 0.05
    """Windows with a larger share of bases that are not A, C, G or T are skipped."""
    contigs: str | None = None
    """Contigs to use: a regular expression, or 'all' (default: no alternates, decoys, unplaced and the like)."""
    valid_contigs: tuple[str, ...] = ()
    """Contigs held out for validation, instead of hashed blocks; every FASTA file needs them."""
    test_contigs: tuple[str, ...] = ()
    """Contigs held out for testing, instead of hashed blocks; every FASTA file needs them."""
    split_bed: Path | None = None
    """BED file whose fourth column says train, valid or test, instead of hashed blocks."""
    valid_every: int | None = None
    """Steps between validations at the longest context (default: a tenth of the run)."""
    valid_tokens: int = 131_072
    """Tokens of a validation, always the same ones."""
    checkpoint_every: int | None = None
    """Steps between checkpoints (default: a twentieth of the run)."""
    keep_last: int = 2
    """Checkpoints to keep."""
    seed: int = 0
    """Decides the initial weights, the windows and the dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: int = 1
    """Processes on each node, one GPU each (or a share of the CPU's cores)."""
    nodes: int = 1
    """Nodes of a cluster; start the command on each by torchrun or srun."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; auto is bfloat16 on a GPU, float32 on a CPU. Weights and convolutions stay in float32."""
    threads: int | None = None
    """CPU threads of each process (default: the CPUs that this process may use, shared by its devices)."""
    checkpoint_activations: bool | None = None
    """Recompute each block in the backward pass, which needs less memory (default: when the memory asks for it)."""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """Where metrics go besides metrics.csv."""

    def __post_init__(self) -> None:
        for one, other in self.ALTERNATIVES:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                flags = " and ".join(f"--{name.replace('_', '-')}" for name in (one, other))
                raise UsageError(f"both {flags} are given; leave one out")
        if bool(self.valid_contigs) != bool(self.test_contigs):
            raise UsageError("--valid-contigs and --test-contigs go together; name contigs for both")
        if self.split_bed is not None and (self.valid_contigs or self.test_contigs):
            raise UsageError("both --split-bed and held-out contigs are given; leave one out")
        for names, fits, allowed in _ALLOWED:
            for name in names:
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and fits(value)):
                    raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"--betas are {self.betas}; allowed are 0 up to but not including 1")
