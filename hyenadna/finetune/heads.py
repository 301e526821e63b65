"""Reading an answer from hidden states: pooling that knows the lengths, and the layers that answer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.data.tokenizer import VOCABULARY, A, C, G, N, T
from hyenadna.errors import InputError
from hyenadna.finetune.adaptation import Pooling
from hyenadna.finetune.task import Task

LABEL_TOKENS: dict[int, tuple[int, ...]] = {2: (A, N), 3: (A, G, N), 4: (A, C, G, N), 5: (A, C, G, T, N)}
"""The tokens that stand for so many classes, in the order of the labels; two and three as in HyenaDNA's own code."""
NEXT_TOKEN = Task("nucleotide", VOCABULARY)
"""What a language model does: of every position, which token follows; its classes are in the order of their ids."""


class Pool(nn.Module):
    """The hidden states of a sequence as one vector, over its own positions alone: pads are never seen.

    mean and max over the positions; last, the one that has seen the whole sequence; attention, the mean under weights
    softmax(q . x / sqrt(D)) with a learnt query q, 0 at first, which is the mean; positions, all of them one after
    another, 0 behind the sequence.
    """

    def __init__(self, pooling: Pooling, d_model: int, positions: int | None = None) -> None:
        super().__init__()
        self.pooling, self.positions = pooling, positions or 1
        self.features = d_model * self.positions
        self.query = nn.Parameter(torch.zeros(d_model)) if pooling == "attention" else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), right-padded, and lengths (B,) -> (B, features), in float32 or float64."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.pooling == "last":
            return last(hidden, lengths)
        inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, L)
        if self.pooling == "positions":
            known = hidden.masked_fill(~inside[..., None], 0)
            return F.pad(known, (0, 0, 0, self.positions - hidden.shape[1])).flatten(1)
        if self.pooling == "max":
            return hidden.masked_fill(~inside[..., None], -math.inf).amax(1)
        weights = inside.to(hidden.dtype) / lengths[:, None]
        if self.query is not None:
            scores = hidden @ self.query / math.sqrt(hidden.shape[2])
            weights = scores.masked_fill(~inside, -math.inf).softmax(1)
        return (weights[:, None] @ hidden)[:, 0]


def last(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, D) and lengths (B,) -> (B, D): the hidden state of each sequence's last token."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


class LinearHead(nn.Module):
    """Standardised features, dropout, one linear layer: (..., F) -> (..., K).

    The weights begin at N(0, 0.02) and the biases at 0, so that all classes are alike at first; many features are made
    smaller in proportion to the root of their number, so that a step moves the answer alike. Features are taken as they
    are until `standardise` is told of some.

    Parameters
    ----------
    features : int          F
    outputs : int           K
    d_model : int           width at which features keep their size; by default F
    dropout : float
    """

    center: Tensor
    deviation: Tensor

    def __init__(self, features: int, outputs: int, *, d_model: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = math.sqrt((d_model or features) / features)
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, outputs)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """From now on bring every feature to the mean 0 and the deviation 1 that it has in these, (n, F), n > 1.

        Pooled hidden states of different sequences differ by little; a head on frozen ones learns much faster then.
        """
        self.center.copy_(features.mean(0))
        deviation = features.std(0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1))  # one that never varied stays what it is

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., K)."""
        standard = (features.to(self.center.dtype) - self.center) / self.deviation * self.scale
        answer: Tensor = self.linear(self.dropout(standard))
        return answer


def label_tokens(kind: str, classes: int) -> tuple[int, ...]:
    """The tokens whose logits answer.

    Raises
    ------
    InputError              not a classification of sequences, or of more classes than there are nucleotides
    """
    if kind not in ("binary", "multiclass") or classes not in LABEL_TOKENS:
        raise InputError(
            f"label tokens can answer for 2 to {max(LABEL_TOKENS)} classes of sequences; this task is {kind} with "
            f"{classes} outputs: take read_out head"
        )
    return LABEL_TOKENS[classes]


def next_token(kind: str, labels: tuple[str, ...]) -> tuple[int, ...]:
    """All tokens of the vocabulary.

    Raises
    ------
    InputError              another task than `NEXT_TOKEN`
    """
    if (kind, labels) != (NEXT_TOKEN.kind, NEXT_TOKEN.labels):
        raise InputError(f"read_out next-token tells the next token and has no labels; this task is {kind}")
    return tuple(range(len(VOCABULARY)))
