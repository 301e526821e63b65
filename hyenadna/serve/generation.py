"""A generation: sequences that a worker thread writes base by base, some at a time, for as long as somebody wants them.

A step is one pass of the model, which gives each sequence its next base. It takes the time of a batch, however short,
so in the queue a step costs what a batch costs besides its tokens, and one token a sequence.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from hyenadna.data.tokenizer import N, encode
from hyenadna.errors import InputError, SequenceTooLong
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generate import Piece, stream
from hyenadna.serve.served_model import ServedModel
from hyenadna.serve.units import Kind, Unit


class Generation:
    """What a request wants to be written, and how far that is.

    Parameters
    ----------
    model : ServedModel
    prompt : str
        Bases to go on from, A, C, G and T in either case.
    length : int
        Bases of each sequence.
    count : int
        Sequences.
    decoding : Decoding
    seed : int

    Attributes
    ----------
    tokens : int            that the model keeps in memory while it writes, at most
    step_cost, cost : int   tokens that could be read in the time that a step, and all of it, take, about
    is_over : bool          whether there is nothing left to write

    Raises
    ------
    InputError              a prompt that is not made of A, C, G and T
    SequenceTooLong         prompt and length together are longer than the model's context
    """

    def __init__(
        self, model: ServedModel, prompt: str, *, length: int, count: int, decoding: Decoding, seed: int
    ) -> None:
        if (encode(prompt) == N).any():
            position = 1 + int((encode(prompt) == N).argmax())
            raise InputError(
                f"the prompt has {prompt[position - 1]!r} at position {position}; it takes A, C, G, T alone"
            )
        if len(prompt) + length > model.context:
            raise SequenceTooLong(
                f"a prompt of {len(prompt):,} bases and {length:,} more; the model reads {model.context:,} at once"
            )
        self.prompt, self.length, self.count, self.seed = prompt, length, count, seed
        self.tokens = count * (len(prompt) + length)
        self.step_cost = model.batch_overhead + count
        self.cost = len(prompt) + length * self.step_cost
        self.is_over = False
        self._model, self._decoding = model, decoding
        self._pieces: Generator[Piece] | None = None

    def advance(self, steps: int) -> list[Piece]:
        """Write on, for at most so many steps; what was written. For one thread at a time."""
        if self._pieces is None:
            self._pieces = stream(
                self._model.network,
                self.prompt,
                length=self.length,
                count=self.count,
                decoding=self._decoding,
                seed=self.seed,
            )
        found, taken = [], Counter[int]()
        for piece in self._pieces:
            found.append(piece)
            taken[piece.row] += 1
            # what the others get in this step costs the model nothing more, and comes next time
            if taken[piece.row] == steps:
                return found
        self.is_over = True
        return found

    def close(self) -> None:
        """Let go of what the model keeps for it. For the thread that advances it."""
        self.is_over = True
        # an iterator that was never asked has nothing
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Kind):
    """The next steps of one generation, which share a batch with nothing else; a unit's piece is their number."""

    waits: ClassVar[bool] = False

    generation: Generation

    def compute(self, model: ServedModel, pieces: Sequence[int]) -> list[Any]:
        """The pieces that were written."""
        with model.computing():
            return [self.generation.advance(steps) for steps in pieces]


def units(generation: Generation, batch_tokens: int) -> Iterator[Unit]:
    """Units for as long as they are asked for: the prompt with a first base, then as many steps as cost a batch."""
    kind, cost = Steps(length=1, generation=generation), generation.step_cost
    yield Unit(kind, 1, len(generation.prompt) + cost, 0, 0)
    steps = max(1, batch_tokens // cost)
    while True:
        yield Unit(kind, steps, steps * cost, 0, 1)


def by_row(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Pieces joined for each sequence: its number from 0, its bases, and their ln p."""
    rows: dict[int, list[Piece]] = {}
    for piece in pieces:
        rows.setdefault(piece.row, []).append(piece)
    return [
        {"row": row, "bases": "".join(one.base for one in found), "nats": [one.nats for one in found]}
        for row, found in sorted(rows.items())
    ]


def generation_items(
    generation: Generation, pieces: Iterable[Piece], *, is_whole: bool, per_base: bool
) -> list[dict[str, Any]]:
    """What the answer says of each sequence, of all that was written or of what there was time for; what JSON holds."""
    rows = {one["row"]: one for one in by_row(pieces)}
    found = []
    for row in range(generation.count):
        one = rows.get(row, {"bases": "", "nats": []})
        length, nats = len(one["bases"]), math.fsum(one["nats"])
        bits = -nats / length / math.log(2) if length else None
        stopped = "length" if length == generation.length else "stop" if is_whole else "deadline"
        item = {"row": row, "sequence": one["bases"], "length": length, "nats": nats, "bits_per_base": bits}
        found.append(item | {"stopped": stopped} | ({"per_base": one["nats"]} if per_base else {}))
    return found
