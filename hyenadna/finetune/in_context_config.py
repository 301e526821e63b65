"""What `hyena finetune --objective in-context` is told, apart from what it shares with the other objectives."""

import dataclasses
from typing import ClassVar, Literal

from hyenadna.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContext:
    """Prompts of labelled examples, and the tasks that they come from.

    Raises
    ------
    UsageError              a value outside of what the field allows
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    ONLY_IN_CONTEXT: ClassVar = ("more_data", "shots", "prompts", "layout", "permute_labels")
    """Fields that only this objective has."""
    WITH_IN_CONTEXT: ClassVar = (
        "objective", "data", "seq_col", "label_col", "id_col", "split_col", "group_col", "fasta", "data_dir", "model",
        "out", "method", "lora_rank", "lora_alpha", "lora_projections", "prompt_length", "prompt_init", "dropout",
        "split_by", "valid_share", "test_share", "seed", "epochs", "patience", "batch_size", "lr", "weight_decay",
        "device", "dtype", "threads",
    )  # fmt: skip
    """Fields of other classes that serve it too."""

    more_data: tuple[str, ...] = ()
    """With objective in-context: further tasks beside DATA, each as DATA is given. DATA and these may also be
    synthetic/motif, synthetic/bits or synthetic/word, of which every prompt has a labelling of its own."""
    shots: int = 16
    """With objective in-context: examples of each class in a prompt, on average; their number is this times the
    classes."""
    prompts: int = 256
    """With objective in-context: prompts of an epoch, each of one task and drawn anew. A quarter as many of validation
    rows choose the epoch, and of each task's test rows measure what it brought."""
    layout: Literal["published", "suited"] | None = None
    """With objective in-context: what stands between sequences and labels, and the label words. published: [SEP], and
    the labels A, N or A, G, N; easier to learn, for three classes at most. suited: nucleotides alone, as hyena probe
    asks of a frozen model. Default: the one that the model was tuned on before; else published where all weights are
    learnt, suited otherwise."""
    permute_labels: bool = True
    """With objective in-context: which word means which class is drawn for every prompt, so that nothing but its
    examples tells; with --no-permute-labels it is the same in all, as published, and can be learnt by heart."""

    def __post_init__(self) -> None:
        for name, least in (("shots", 1), ("prompts", 8)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
