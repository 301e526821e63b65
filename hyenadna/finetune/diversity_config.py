"""What `hyena finetune` learns: labels, how differently the model itself would go on, or to learn from examples."""

import dataclasses
from typing import ClassVar, Literal

from hyenadna.errors import UsageError
from hyenadna.finetune.in_context_config import InContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The objective, and what only the diversity head needs.

    Raises
    ------
    UsageError              a value outside of what the field allows, or a field of the other objective
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    ONLY_DIVERSITY: ClassVar = ("contexts", "context_length", "continuations", "continuation_length")
    """Fields that only this objective has."""
    BOTH: ClassVar = (
        "objective", "data", "model", "out", "valid_share", "test_share", "seed", "epochs", "patience", "batch_size",
        "head_lr", "weight_decay", "device", "threads",
    )  # fmt: skip
    """Fields of other classes that serve it too."""

    objective: Literal["labels", "diversity", "in-context"] = "labels"
    """labels of sequences; diversity, how much the model's own continuations of a context differ, from 0 to 1: a
    small head on its hidden states, which needs no labels, only a genome (FASTA or pack) as DATA (default: the bundled
    E. coli genome), and by which hyena generate can choose the temperature; or in-context, to answer by the labelled
    examples of a prompt, which hyena probe asks for: tuned on prompts of other tasks than those."""
    contexts: int = 2000
    """With objective diversity: contexts to learn from and to be tested on, in all."""
    context_length: int = 512
    """With objective diversity: bases of the longest contexts; others have a half, a quarter ... down to 32."""
    continuations: int = 8
    """With objective diversity: continuations sampled of each context."""
    continuation_length: int = 64
    """With objective diversity: bases of a continuation."""

    def __post_init__(self) -> None:
        least = {"contexts": 50, "context_length": 2, "continuations": 2, "continuation_length": 8}
        for name in self.ONLY_DIVERSITY:
            if getattr(self, name) < least[name]:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is {getattr(self, name)}; it must be at least {least[name]}")
        served = {
            "diversity": (*self.ONLY_DIVERSITY, *self.BOTH),
            "in-context": (*InContext.ONLY_IN_CONTEXT, *InContext.WITH_IN_CONTEXT),
        }
        for field in dataclasses.fields(self):
            own = field.name in (*self.ONLY_DIVERSITY, *InContext.ONLY_IN_CONTEXT)
            foreign = own if self.objective == "labels" else field.name not in served[self.objective]
            if foreign and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"--{field.name.replace('_', '-')} says nothing to --objective {self.objective}; leave it out"
                )
