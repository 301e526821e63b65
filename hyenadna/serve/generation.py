"""Generations: sequences that a worker thread writes base by base, some at a time, as long as somebody wants them.

A step is one pass of the model, which gives each sequence its next base. It takes the time of a batch, however short,
so in the queue a step costs what a batch costs besides its tokens, and one token a row.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from hyenadna.errors import SequenceTooLong
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generate import checked_prompt, stream
from hyenadna.inference.generation import Generation, Piece
from hyenadna.serve.jobs import nullable
from hyenadna.serve.served_model import ServedModel
from hyenadna.serve.units import Kind, Unit


class GenerateJob:
    """What a request wants to be written, and how far that is.

    Parameters
    ----------
    model : ServedModel
    prompt : str
        What all sequences follow: A, C, G and T; may be empty.
    length : int
        Bases of each sequence.
    count : int
        Sequences.
    decoding : Decoding
    seed : int

    Attributes
    ----------
    blocks : int            of bases that are tried out side by side for each sequence
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
        prompt = checked_prompt(prompt)
        if len(prompt) + length > model.context:
            raise SequenceTooLong(
                f"a prompt of {len(prompt):,} bases and {length:,} more; this model takes {model.context:,} at once"
            )
        self.prompt, self.length, self.count, self.seed = prompt, length, count, seed
        self.blocks = 4 ** (decoding.typical_kmer - 1)
        rows = count * self.blocks
        self.tokens = rows * (len(prompt) + length)
        self.step_cost = model.batch_overhead + rows
        self.cost = len(prompt) + length * self.step_cost
        self.is_over = False
        self._model, self._decoding = model, decoding
        self._generation: Generation | None = None
        self._unscored = set() if self.prompt else set(range(count))
        self._left = length * count

    def advance(self, steps: int) -> list[Piece]:
        """Write on, for at most so many steps; what was written. For one thread at a time.

        A base that nothing stands before is drawn from all four alike; it is not scored, and its nats are NaN.
        """
        if self._generation is None:
            self._generation = stream(
                self._model.network,
                self.prompt,
                length=self.length,
                count=self.count,
                decoding=self._decoding,
                seed=self.seed,
            )
        found = []
        for piece in itertools.islice(self._generation, steps * self.count):
            found.append(piece._replace(nats=math.nan) if piece.row in self._unscored else piece)
            self._unscored.discard(piece.row)
        self._left -= len(found)
        self.is_over = self._left == 0
        return found

    def close(self) -> None:
        """Let go of what the model keeps for it. For the thread that advances it."""
        self.is_over = True
        if self._generation is not None:
            self._generation.close()
            self._generation = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Kind):
    """The next steps of one generation, which share a batch with nothing else; a unit's piece is their number."""

    waits: ClassVar[bool] = False

    job: GenerateJob

    def compute(self, model: ServedModel, pieces: Sequence[int]) -> list[Any]:
        """What was written."""
        with model.computing():
            return [self.job.advance(steps) for steps in pieces]


def units(job: GenerateJob, batch_tokens: int) -> Iterator[Unit]:
    """Units for as long as they are asked for: the prompt with a first base, then as many steps as cost a batch."""
    kind = Steps(length=1, job=job)
    yield Unit(kind, 1, len(job.prompt) + job.step_cost, 0, 0)
    steps = max(1, batch_tokens // job.step_cost)
    while True:
        yield Unit(kind, steps, steps * job.step_cost, 0, 1)


def by_row(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Pieces joined for each sequence: its number from 0, its bases, and their ln p, where they are scored."""
    rows: dict[int, list[Piece]] = {}
    for piece in pieces:
        rows.setdefault(piece.row, []).append(piece)
    return [
        {"row": row, "bases": "".join(one.base for one in found), "nats": nullable(one.nats for one in found)}
        for row, found in sorted(rows.items())
    ]


def items(job: GenerateJob, pieces: Iterable[Piece], *, per_base: bool) -> list[dict[str, Any]]:
    """What the answer says of each sequence, of all that was written or of what there was time for; what JSON holds."""
    rows = {one["row"]: one for one in by_row(pieces)}
    found = []
    for row in range(job.count):
        one = rows.get(row, {"bases": "", "nats": []})
        length, scored = len(one["bases"]), [value for value in one["nats"] if value is not None]
        nats, stopped = math.fsum(scored), "length" if length == job.length else "deadline"
        item = {"row": row, "sequence": one["bases"], "length": length, "scored": len(scored), "nats": nats}
        item |= {"bits_per_base": -nats / len(scored) / math.log(2) if scored else None, "stopped": stopped}
        found.append(item | ({"per_base": one["nats"]} if per_base else {}))
    return found
