"""Units of work: what the model reads at once, and what it computes of a batch of them.

Units of equal kind may be computed together, whatever jobs they come from. A unit's result does not depend on its
neighbours, which stand in other rows, nor on the pads, which stand behind it.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.errors import NotFiniteError
from hyenadna.inference.embed import Pooled
from hyenadna.inference.likelihood import ScoredWindow, window_nats
from hyenadna.inference.long_windows import LongWindow
from hyenadna.inference.ragged import padded
from hyenadna.inference.variants import SubstitutionUnit, unit_ratios
from hyenadna.serve.served_model import ServedModel

Pool = Literal["mean", "max", "last"]
Result = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """What is computed of units, and how long their rows are; units of equal kind share batches."""

    waits: ClassVar[bool] = True
    """Whether a unit is the cheaper for others in its batch, so that an idle server waits for them."""

    length: int
    """Tokens to which a row is padded."""

    @abstractmethod
    def compute(self, model: ServedModel, pieces: Sequence[Any]) -> list[Any]:
        """The result of each piece, in their order; one that is not made of numbers is a NotFiniteError."""

    def is_longer(self, other: "Kind") -> bool:
        """Whether units of the other may be computed with its own, padded to more than they need."""
        same = type(other) is type(self) and dataclasses.replace(other, length=self.length) == self
        return same and self.length > other.length


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """A piece of one item's work."""

    kind: Kind
    piece: Any
    """What its kind computes of."""
    cost: int
    """Tokens that it takes in a batch, pads included."""
    row: int
    """Number of its item, from 0."""
    number: int
    """Of the item's units, from 0."""


class Stretch(NamedTuple):
    """A window of a sequence that the model reads at once."""

    tokens: NDArray[np.uint8]
    """(bases,): in reading direction."""
    window: LongWindow
    """Where it lies."""
    adapter: int = 0
    """For predictions: the adapter's number."""
    reverse: bool = False
    """Whether it is the window's other strand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihoods(Kind):
    """What windows score: nats of their own bases, NaN where one is not scored."""

    def compute(self, model: ServedModel, pieces: Sequence[ScoredWindow]) -> list[Result]:
        """As `hyenadna.inference.likelihood` does."""
        return window_nats(model.network, pieces, to=self.length, dtype=model.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Substitutions(Kind):
    """Log-likelihood ratios of some changes of a sequence, (n,); a unit is a batch in itself, and small ones queue."""

    def compute(self, model: ServedModel, pieces: Sequence[SubstitutionUnit]) -> list[Result]:
        """As `hyenadna.inference.variants` does, one after the other."""
        return [unit_ratios(model.network, piece, dtype=model.dtype) for piece in pieces]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings(Kind):
    """A layer's hidden states, pooled over the bases that no earlier window holds, (D,)."""

    layer: int
    pool: Pool

    def compute(self, model: ServedModel, pieces: Sequence[Stretch]) -> list[Result]:
        """As `hyenadna.inference.embed` does for a batch of windows."""
        tokens, _ = padded([piece.tokens for piece in pieces], self.length)
        own = []
        for row, piece in enumerate(pieces):
            first = piece.window.first
            own.append(LongWindow(row, piece.window.start - first, piece.window.end - first, 0))
        with model.computing():
            states = model.network.hidden_states(tokens.to(model.network.device), self.layer)
            pooled = Pooled(self.pool, [window.end for window in own], states.shape[-1])
            pooled.add(own, states if states.dtype == torch.float64 else states.float())
        return _finite(pooled.values(), "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions(Kind):
    """Probabilities, or the number of a regression, by each piece's own adapter: (K,), for nucleotides (bases, K)."""

    def compute(self, model: ServedModel, pieces: Sequence[Stretch]) -> list[Result]:
        """As `hyenadna.finetune.predict` does for a batch of windows."""
        tokens, lengths = padded([piece.tokens for piece in pieces], self.length)
        which = torch.tensor([piece.adapter for piece in pieces])
        with model.computing():
            outputs = model.predict(tokens, lengths, which)
        return _finite(outputs, "prediction")


def _finite(results: Sequence[NDArray[np.floating[Any]]], what: str) -> list[Result]:
    if not all(np.isfinite(values).all() for values in results):
        raise NotFiniteError(f"the model's {what} is not made of numbers; are the weights whole, and is float32 used?")
    return [values.astype(np.float64, copy=False) for values in results]
