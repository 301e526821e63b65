"""Jobs: the options of a request with its sequences, cut into units, and an answer put together from their results.

What is wrong with one sequence stands in its own item, as `empty`, `not_dna`, `too_long` for the task, or `failed`
where the model gave no numbers.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import A, T, encode, reverse_complement_tokens
from hyenadna.errors import HyenaError, InputError, UsageError
from hyenadna.inference.long_windows import LongWindow, long_windows
from hyenadna.serve.served_model import ServedAdapter, ServedModel
from hyenadna.serve.units import (
    Embeddings,
    Kind,
    Likelihoods,
    Pool,
    Predictions,
    Result,
    Stretch,
    Substitutions,
    Unit,
)

Strand = Literal["both", "forward", "reverse"]
Pieces = Iterator[tuple[Kind, Any, int]]
"""Of what kind each piece is, what its kind computes of, and its cost in tokens."""


class ItemError(Exception):
    """Why one sequence has no result."""

    def __init__(self, code: Literal["empty", "not_dna", "too_long", "failed"], message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Options with sequences, for one model.

    Raises
    ------
    UsageError              options that this model does not have
    """

    model: ServedModel
    sequences: Sequence[tuple[str, str]]
    """Pairs of id and sequence, of any length and content."""

    task: ClassVar[str]
    """The last part of its address, and its name in metrics."""

    @property
    def tokens(self) -> int:
        """What it costs in tokens that the model reads, pads included; by lengths alone, before anything is encoded."""
        return sum(self.cost(len(sequence)) for _, sequence in self.sequences)

    def cut(self, batch_tokens: int) -> "Work":
        """Its units: of at most `batch_tokens` each, but for a single row that is longer."""
        return Work(self, batch_tokens)

    @abstractmethod
    def cost(self, length: int) -> int:
        """Tokens that a sequence of so many bases costs."""

    @abstractmethod
    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """The work on one sequence (L,), L > 0.

        Raises
        ------
        ItemError           it is too long
        """

    @abstractmethod
    def item(self, length: int, pieces: Sequence[Any], results: Sequence[Result]) -> dict[str, Any]:
        """What the answer says of a sequence of `length` bases, besides its id and length; what JSON holds."""


class Work:
    """A job's units, and what has been computed of them."""

    def __init__(self, job: Job, batch_tokens: int) -> None:
        self.job = job
        self.units: list[Unit] = []
        self._errors: dict[int, ItemError] = {}
        self._pieces: list[list[Any]] = [[] for _ in job.sequences]
        for row, (_, sequence) in enumerate(job.sequences):
            try:
                for kind, piece, cost in job.pieces(_encoded(sequence, job.model), batch_tokens):
                    self.units.append(Unit(kind, piece, cost, row, len(self._pieces[row])))
                    self._pieces[row].append(piece)
            except ItemError as error:
                self._errors[row] = error
        self._results: list[list[Result | None]] = [[None] * len(pieces) for pieces in self._pieces]

    def put(self, unit: Unit, result: Result | Exception) -> None:
        """Take the result of a unit, or why there is none, which becomes its item's error."""
        if isinstance(result, Exception):
            # what another exception says is not for clients: it may name files, or hold what was read
            message = str(result) if isinstance(result, HyenaError) else "the model failed on this sequence"
            self._errors[unit.row] = ItemError("failed", message)
        else:
            self._results[unit.row][unit.number] = result

    def answer(self) -> list[dict[str, Any]]:
        """The item of every sequence, in the order given, once each unit has its result."""
        return [self._item(row, *pair) for row, pair in enumerate(self.job.sequences)]

    def _item(self, row: int, name: str, sequence: str) -> dict[str, Any]:
        if (error := self._errors.get(row)) is not None:
            return {"id": name, "error": {"code": error.code, "message": error.message}}
        results = [result for result in self._results[row] if result is not None]
        return {"id": name, "length": len(sequence)} | self.job.item(len(sequence), self._pieces[row], results)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodJob(Job):
    """ln p of sequences, and of each base."""

    per_base: bool = False
    strand: Strand = "forward"

    task = "likelihood"

    def cost(self, length: int) -> int:
        """One row a window and strand."""
        return (2 if self.strand == "both" else 1) * _cost(self.model, length, self.model.context)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window each."""
        for piece in _stretches(tokens, self.model.context, self.strand):
            length = self.model.padded_length(len(piece.tokens))
            yield Likelihoods(length), piece, length

    def item(self, length: int, pieces: Sequence[Stretch], results: Sequence[Result]) -> dict[str, Any]:
        """Of both strands the mean."""
        strands = {piece.reverse: np.full(length, math.nan) for piece in pieces}
        for piece, values in zip(pieces, results, strict=True):
            window = piece.window
            strands[piece.reverse][window.first : window.end] = values[window.first - window.start :]
        rows = np.stack([row[::-1] if reverse else row for reverse, row in strands.items()])
        nats, scored = float(np.nansum(rows)) / len(rows), float((~np.isnan(rows)).sum()) / len(rows)
        found: dict[str, Any] = {
            "scored": scored,
            "nats": nats,
            "bits_per_base": -nats / scored / math.log(2) if scored else None,
        }
        if self.per_base:
            found["per_base"] = _nullable(rows.mean(0))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubstitutionsJob(Job):
    """The log-likelihood ratio of every single-base change of sequences."""

    strand: Strand = "forward"

    task = "substitutions"

    def cost(self, length: int) -> int:
        """A row a change, and one for the sequence itself."""
        return 4 * length * self.model.padded_length(min(length, self.model.context))

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """Some positions each."""
        if len(tokens) > self.model.context:
            raise ItemError("too_long", f"the sequence has {len(tokens):,} bases; at most {self.model.context:,}")
        length = self.model.padded_length(len(tokens))
        step = max(1, (batch_tokens // length - 1) // 4)
        for first in range(0, len(tokens), step):
            positions = range(first, min(first + step, len(tokens)))
            yield Substitutions(length), (tokens, positions), (1 + 4 * len(positions)) * length

    def item(self, length: int, pieces: Sequence[Any], results: Sequence[Result]) -> dict[str, Any]:
        """The positions one after the other."""
        ratios = np.concatenate(results).astype(np.float64)
        tokens = pieces[0][0]
        ratios[(tokens < A) | (tokens > T)] = math.nan
        return {"bases": "ACGT", "log_likelihood_ratio": [_nullable(row) for row in ratios]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedJob(Job):
    """A layer's hidden states, pooled over each sequence."""

    layer: int = -1
    pool: Pool = "mean"

    task = "embed"

    def __post_init__(self) -> None:
        self.model.network.block_of(self.layer)

    def cost(self, length: int) -> int:
        """One row a window."""
        return _cost(self.model, length, self.model.context)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window each."""
        layer = self.model.network.block_of(self.layer)
        for piece in _stretches(tokens, self.model.context, "forward"):
            length = self.model.padded_length(len(piece.tokens))
            yield Embeddings(layer, self.pool, length), piece, length

    def item(self, length: int, pieces: Sequence[Stretch], results: Sequence[Result]) -> dict[str, Any]:
        """The windows' own bases pooled together."""
        values = np.stack(results)
        match self.pool:
            case "mean":
                own = [piece.window.end - piece.window.first for piece in pieces]
                pooled = np.average(values, axis=0, weights=own)
            case "max":
                pooled = values.max(axis=0)
            case "last":
                pooled = values[-1]
        return {"embedding": pooled.astype(np.float32).tolist()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """Predictions by one adapter."""

    adapter: str | None = None
    """Default: the only one."""

    task = "predict"

    def __post_init__(self) -> None:
        names = ", ".join(self.model.adapters)
        if not names:
            raise UsageError(f"{self.model.name} is served without adapters, and a language model predicts no labels")
        if self.adapter is None and len(self.model.adapters) > 1:
            raise UsageError(f"there are several adapters; name one of {names} as adapter")
        if self.adapter is not None and self.adapter not in self.model.adapters:
            raise UsageError(f"there is no adapter {self.adapter!r}; there is {names}")

    @property
    def adapter_name(self) -> str:
        """The adapter that predicts."""
        return next(iter(self.model.adapters)) if self.adapter is None else self.adapter

    @property
    def _served(self) -> ServedAdapter:
        return self.model.adapters[self.adapter_name]

    def cost(self, length: int) -> int:
        """One row a window, and on both strands where the adapter reads both."""
        strands = 2 if self._served.reverse_complement else 1
        return strands * _cost(self.model, length, self._served.model.longest)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window and strand each."""
        adapter = self._served
        longest = adapter.model.longest
        if len(tokens) > longest and adapter.model.adaptation.pool == "positions":
            raise ItemError(
                "too_long",
                f"the sequence has {len(tokens):,} bases; this adapter has weights for {longest:,} positions: cut "
                "sequences as those that it was trained on",
            )
        number = self.model.adapter_number(self.adapter_name)
        for piece in _stretches(tokens, longest, "both" if adapter.reverse_complement else "forward"):
            length = self.model.padded_length(len(piece.tokens))
            yield Predictions(length), piece._replace(adapter=number), length

    def item(self, length: int, pieces: Sequence[Stretch], results: Sequence[Result]) -> dict[str, Any]:
        """The mean over windows and strands, of probabilities and not of logits."""
        raise NotImplementedError


def _encoded(sequence: str, model: ServedModel) -> NDArray[np.uint8]:
    if not sequence:
        raise ItemError("empty", "the sequence is empty; give at least one base")
    try:
        return encode(sequence, model.network.config.n_token)
    except InputError as error:
        raise ItemError("not_dna", str(error)) from error


def _cost(model: ServedModel, length: int, context: int) -> int:
    """Tokens of the windows of a sequence."""
    if length <= context:
        return model.padded_length(length)
    stride = max(1, context // 2)
    return (1 - (context - length) // stride) * model.padded_length(context)


def _stretches(tokens: NDArray[np.uint8], context: int, strand: Strand) -> Iterator[Stretch]:
    """The windows of the strands that are asked for; each base belongs to the first one that holds it."""
    windows: list[LongWindow] = long_windows([len(tokens)], context, max(1, context // 2))
    if strand != "reverse":
        yield from (Stretch(tokens[window.start : window.end], window) for window in windows)
    if strand != "forward":
        other = reverse_complement_tokens(tokens)
        yield from (Stretch(other[window.start : window.end], window, reverse=True) for window in windows)


def _nullable(values: NDArray[np.floating[Any]]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
