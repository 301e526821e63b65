"""Units of work: what the model reads at once, and what it computes of a batch of them.

Units of equal kind may be computed together, whatever jobs they come from. A unit's result does not depend on its
neighbours, which stand in other rows, nor on the pads, which stand behind it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.tokenizer import A, T
from hyenadna.errors import NotFiniteError
from hyenadna.inference.embed import Pooled
from hyenadna.inference.long_windows import LongWindow
from hyenadna.inference.ragged import padded
from hyenadna.serve.served_model import ServedModel

Pool = Literal["mean", "max", "last"]
Result = NDArray[np.floating[Any]]


class Kind(Protocol):
    """What is computed of units, and the length to which they are padded; units of equal kind share batches."""

    @property
    def length(self) -> int:
        """Tokens of a row, pads included."""
        ...

    def compute(self, model: ServedModel, pieces: Sequence[Any]) -> list[Result]:
        """The result of each piece, in their order; one that is not made of numbers is a NotFiniteError."""
        ...


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
    """A stretch of one strand of a sequence that the model reads at once."""

    tokens: NDArray[np.uint8]
    """(bases,): in reading direction."""
    window: LongWindow
    """Where it lies, counted from where its strand begins to be read."""
    reverse: bool = False
    adapter: int = 0
    """For predictions: the adapter's number."""


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Nats of each base given those before it in the window, (bases,); NaN where it is not scored."""

    length: int

    def compute(self, model: ServedModel, pieces: Sequence[Stretch]) -> list[Result]:
        """Log-probabilities renormalised over A, C, G and T."""
        tokens, _ = padded([piece.tokens for piece in pieces], self.length)
        tokens = tokens.to(model.network.device)
        with model.computing():
            nats = _nats(model.network(tokens).logits, tokens.long()).cpu().numpy()
        return [nats[row, : len(piece.tokens)] for row, piece in enumerate(pieces)]


@dataclasses.dataclass(frozen=True)
class Substitutions:
    """Log-likelihood ratios of the four bases at some positions of a sequence, (positions, 4)."""

    length: int

    def compute(self, model: ServedModel, pieces: Sequence[tuple[NDArray[np.uint8], range]]) -> list[Result]:
        """Each alternative in a copy of the sequence."""
        found = []
        for tokens, positions in pieces:
            rows = np.repeat(tokens[None], 1 + 4 * len(positions), axis=0)
            for number, position in enumerate(positions):
                rows[1 + 4 * number : 5 + 4 * number, position] = range(A, T + 1)
            with model.computing():
                batch = torch.from_numpy(rows)
                nats = _nats(model.network(batch.to(model.network.device)).logits, batch.long()).nansum(1)
            found.append((nats[1:] - nats[0]).view(-1, 4).numpy())
        return found


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A layer's hidden states, pooled over the bases that no earlier window holds, (D,)."""

    layer: int
    pool: Pool
    length: int

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


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Probabilities, or the number of a regression, by each piece's own adapter: (K,), for nucleotides (bases, K)."""

    length: int

    def compute(self, model: ServedModel, pieces: Sequence[Stretch]) -> list[Result]:
        """As `hyenadna.finetune.predict` does for a batch of windows."""
        tokens, lengths = padded([piece.tokens for piece in pieces], self.length)
        which = torch.tensor([piece.adapter for piece in pieces])
        with model.computing():
            outputs = model.predict(tokens, lengths, which)
        return _finite(outputs, "prediction")


def _finite(results: Sequence[Result], what: str) -> list[Result]:
    if not all(np.isfinite(values).all() for values in results):
        raise NotFiniteError(f"the model's {what} is not made of numbers; are the weights whole, and is float32 used?")
    return list(results)


def _nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of logits (B, L, 16) and tokens (B, L): ln p of each base given those before it, NaN where it is not scored."""
    bases = logits[:, :-1, A : T + 1].log_softmax(dim=-1)
    base = (tokens[:, 1:] - A).clamp(0, 3)
    scored = (tokens[:, 1:] >= A) & (tokens[:, 1:] <= T)
    nats = logits.new_full(tokens.shape, torch.nan)
    nats[:, 1:] = bases.gather(-1, base[..., None])[..., 0].masked_fill(~scored, torch.nan)
    return nats
