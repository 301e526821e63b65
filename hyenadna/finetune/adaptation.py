"""How a pretrained model is adapted to a task: what of it is learnt, and how an answer is read from it."""

import dataclasses
from typing import Any, Literal

from hyenadna.errors import UsageError

Method = Literal["full", "head", "lora", "soft-prompt"]
Pooling = Literal["mean", "max", "last", "attention", "positions"]
ReadOut = Literal["head", "label-tokens", "next-token"]
Projection = Literal["in_proj", "out_proj", "fc1", "fc2"]
PROJECTIONS: tuple[Projection, ...] = ("in_proj", "out_proj", "fc1", "fc2")
"""The linear layers of a block: the two of its mixer, the two of its feed-forward layer, or of each of its experts."""
LONGEST_PROMPT = 32_768


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The method and its settings.

    Raises
    ------
    UsageError              a value outside of what the field allows, or a method that would have nothing to learn
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    method: Method = "full"
    """What is learnt: all weights; a head alone; low-rank updates of some weights (LoRA); or embeddings before the
    sequence (soft prompt). The last three leave the model's own weights as they are."""
    pool: Pooling = "mean"
    """How the hidden states of a sequence become one vector, over its own positions alone. positions gives each
    position weights of its own: for sequences cut alike around a site, such as splice sites or promoters."""
    positions: int | None = None
    """With pool positions: bases of the longest sequence (default: of the longest row)."""
    read_out: ReadOut = "head"
    """Whether a linear head answers, or the model's own logits of nucleotides that stand for the classes (A, N for two)
    after the sequence's last base. next-token, the model's own logits of all tokens at every position, is what
    objective in-context reads."""
    lora_rank: int = 8
    """Rank of the weight updates of LoRA."""
    lora_alpha: float = 16.0
    """Weight updates of LoRA are scaled by alpha / rank."""
    lora_projections: tuple[Projection, ...] = ("in_proj", "out_proj")
    """Which linear layers of each block LoRA updates: in_proj, out_proj of its mixer; fc1, fc2, of every expert where
    there are experts."""
    prompt_length: int = 32
    """Embeddings of the soft prompt, 0 to 32,768; they count against the model's context."""
    prompt_init: Literal["normal", "sequence"] = "normal"
    """What the soft prompt is at first: N(0, 0.02), or a training sequence as the model embeds it."""
    dropout: float = 0.1
    """Share of the features before the head, of the soft prompt's numbers and, in full, of the embedded letters that is
    left out in training."""

    def __post_init__(self) -> None:
        if not 1 <= self.lora_rank <= 1024:
            raise UsageError(f"lora_rank is {self.lora_rank}; allowed are 1 to 1,024")
        if not 0 < self.lora_alpha < float("inf"):
            raise UsageError(f"lora_alpha is {self.lora_alpha}; it must be more than 0")
        unknown = [name for name in self.lora_projections if name not in PROJECTIONS]
        if unknown or not self.lora_projections or len(set(self.lora_projections)) < len(self.lora_projections):
            raise UsageError(
                f"lora_projections is {', '.join(self.lora_projections) or 'empty'}; "
                f"allowed are any of {', '.join(PROJECTIONS)}, each once"
            )
        if not 0 <= self.prompt_length <= LONGEST_PROMPT:
            raise UsageError(f"prompt_length is {self.prompt_length:,}; allowed are 0 to {LONGEST_PROMPT:,}")
        if self.positions is not None and (self.positions < 1 or self.pool != "positions"):
            raise UsageError(f"positions is {self.positions}; it must be at least 1, and goes with pool positions")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; allowed are 0 up to but not including 1")
        if self.read_out != "head" and (self.method == "head" or self._empty_prompt):
            raise UsageError(
                f"with read_out {self.read_out} the method {self.method} has nothing to learn: "
                "take read_out head, or a method that reaches into the model"
            )

    @property
    def frozen(self) -> bool:
        """Whether the model's own weights stay as they are."""
        return self.method != "full"

    @property
    def _empty_prompt(self) -> bool:
        return self.method == "soft-prompt" and self.prompt_length == 0

    def to_json(self) -> dict[str, Any]:
        """For adapter.json."""
        fields = dataclasses.fields(Adaptation)  # not those of a configuration that has more
        values = {field.name: getattr(self, field.name) for field in fields}
        return values | {"lora_projections": list(self.lora_projections)}
