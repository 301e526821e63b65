"""A model that was tuned in context, by whatever method, as one that reads prompts."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hyenadna.errors import CheckpointError
from hyenadna.finetune import adapter, lora
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.heads import NEXT_TOKEN
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.model.hub import find_model
from hyenadna.model.language_model import HyenaDNA, Output
from hyenadna.model.state import State


def next_token_model(base: HyenaDNA, adaptation: Adaptation, *, seed: int = 0) -> SequenceModel:
    """A model whose own logits answer at every position, with what the adaptation adds to it."""
    return SequenceModel(base, NEXT_TOKEN, adaptation, seed=seed)


class Prompted(HyenaDNA):
    """A model with learnt embeddings before everything that it reads, and so with so much less context.

    Parameters
    ----------
    base : HyenaDNA         whose weights it shares
    embeddings : Tensor (n, D), n >= 1
    """

    def __init__(self, base: HyenaDNA, embeddings: Tensor) -> None:
        nn.Module.__init__(self)  # no weights of its own are drawn
        self.config = dataclasses.replace(base.config, filter_length=base.config.filter_length - len(embeddings))
        self.quantization, self.parent_sha256 = base.quantization, base.parent_sha256
        self.base, self.backbone = base, base.backbone
        if not base.config.tie_head:
            self.lm_head = base.lm_head
        self.register_buffer("embeddings", embeddings.detach())
        self.eval()

    def forward(self, tokens: Tensor, *, prefix: State | None = None) -> Output:
        """As `HyenaDNA.forward`; a prefix that is given holds the embeddings already."""
        return cast(Output, self.base(tokens, prefix=prefix or self._begun(tokens.shape[-1])))

    def extend(self, tokens: Tensor, state: State | None = None, *, ahead: int = 0) -> tuple[Tensor, State]:
        """As `HyenaDNA.extend`; the beginning is behind the embeddings."""
        return self.base.extend(tokens, state or self._begun(tokens.shape[-1] + ahead), ahead=ahead)

    def _begun(self, L: int) -> State | None:
        return self.base.prefix(cast(Tensor, self.embeddings), L)


class Tuned(NamedTuple):
    """A model that reads prompts."""

    model: HyenaDNA
    """In eval mode."""
    training: dict[str, Any]
    """How it was tuned, with the layout of its prompts; empty for a model that was not tuned in context."""


def load(source: str | Path, *, device: str | torch.device = "cpu") -> Tuned:
    """The model of a folder, a hub id, or a run of `hyena finetune --objective in-context`, by whatever method.

    Raises
    ------
    CheckpointError         no model; or an adapter that answers by a head or a label of a task
    HubError, ProbeError, UsageError    as `adapter.load` and `HyenaDNA.from_pretrained`
    """
    try:
        folder = adapter.find(source)
    except CheckpointError:
        model = HyenaDNA.from_pretrained(source, device=device).eval()
        return Tuned(model, tuning(_json(find_model(source) / "config.json")))
    adapted = adapter.load(folder, device=device)
    if adapted.adaptation.read_out != "next-token":
        raise CheckpointError(
            f"{source} was fine-tuned to predict {', '.join(adapted.task.labels[:5])}, and reads no prompts: give its "
            "base, or a run of hyena finetune --objective in-context"
        )
    base = adapted.base if adapted.base.quantization is not None else lora.merged(adapted.base)
    prompt = adapted.prompt
    if prompt is not None:
        base = Prompted(adapted.base, prompt.embeddings)
    return Tuned(base.eval(), _json(folder / "adapter.json")["training"])


def tuning(description: dict[str, Any]) -> dict[str, Any]:
    """How a model was tuned in context, by its config.json; empty for one that was not."""
    training = description.get("training") or {}
    return training if training.get("objective") == "in-context" else {}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
