"""Jobs: the options of a request with its sequences, cut into units, and an answer put together from their results.

What is wrong with one sequence stands in its own item, as `empty`, `not_dna`, `too_long` for the task, or `failed`
where the model gave no numbers.
"""

import bisect
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import encode, reverse_complement_tokens
from hyenadna.errors import HyenaError, InputError, SequenceTooLong, UsageError
from hyenadna.finetune.task import Task
from hyenadna.inference.likelihood import ScoredWindow, Strand, likelihood_of, scored_windows
from hyenadna.inference.long_windows import LongWindow, long_windows
from hyenadna.inference.variants import SubstitutionUnit, ratios_of, substitution_units
from hyenadna.serve.served_model import SHORTEST, ServedAdapter, ServedModel
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

Item = dict[str, Any]
"""What the answer says of one sequence; what JSON holds."""
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
    def item(self, tokens: NDArray[np.uint8], pieces: Sequence[Any], results: Sequence[Result]) -> Item:
        """What the answer says of a sequence (L,), besides its id and length; what JSON holds."""


class Work:
    """A job's units, and what has been computed of them."""

    def __init__(self, job: Job, batch_tokens: int) -> None:
        self.job = job
        self.units: list[Unit] = []
        self._of_rows: list[_Row | ItemError] = []
        for row, (_, sequence) in enumerate(job.sequences):
            try:
                tokens = _encoded(sequence, job.model)
                pieces = list(job.pieces(tokens, batch_tokens))
            except ItemError as error:
                self._of_rows.append(error)
                continue
            self.units += [Unit(*piece, row, number) for number, piece in enumerate(pieces)]
            self._of_rows.append(_Row(tokens, [piece for _, piece, _ in pieces], {}))

    def put(self, unit: Unit, result: Result | Exception) -> None:
        """Take the result of a unit, or why there is none, which becomes its item's error."""
        if isinstance(result, Exception):
            # what another exception says is not for clients: it may name files, or hold what was read
            message = str(result) if isinstance(result, HyenaError) else "the model failed on this sequence"
            self._of_rows[unit.row] = ItemError("failed", message)
        elif isinstance(row := self._of_rows[unit.row], _Row):
            row.results[unit.number] = result

    def answer(self) -> list[Item]:
        """The item of every sequence, in the order given, once each unit has its result."""
        return [self._item(name, row) for (name, _), row in zip(self.job.sequences, self._of_rows, strict=True)]

    def _item(self, name: str, row: "_Row | ItemError") -> Item:
        if isinstance(row, ItemError):
            return {"id": name, "error": {"code": row.code, "message": row.message}}
        results = [row.results[number] for number in range(len(row.pieces))]
        return {"id": name, "length": len(row.tokens)} | self.job.item(row.tokens, row.pieces, results)


class _Row(NamedTuple):
    """One sequence without an error."""

    tokens: NDArray[np.uint8]
    pieces: list[Any]
    results: dict[int, Result]
    """By the number of the piece."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodJob(Job):
    """ln p of sequences, and of each base."""

    per_base: bool = False
    strand: Strand = "forward"

    def cost(self, length: int) -> int:
        """One row a window and strand."""
        return (2 if self.strand == "both" else 1) * _cost(self.model, length, self.model.context)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window each."""
        for window in scored_windows(tokens, self.model.context, self.strand):
            length = self.model.padded_length(len(window.tokens))
            yield Likelihoods(length=length), window, length

    def item(self, tokens: NDArray[np.uint8], pieces: Sequence[ScoredWindow], results: Sequence[Result]) -> Item:
        """Of both strands the mean."""
        found = likelihood_of(len(tokens), pieces, results)
        item: Item = {"scored": found.scored, "nats": found.nats, "bits_per_base": nullable([found.bits_per_base])[0]}
        return item | {"per_base": nullable(found.per_base.tolist())} if self.per_base else item


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubstitutionsJob(Job):
    """The log-likelihood ratio of every single-base change of sequences."""

    strand: Strand = "forward"

    def cost(self, length: int) -> int:
        """What a strand costs, once or twice."""
        if not 0 < length <= self.model.context:
            return SHORTEST  # its item will say what is wrong with it
        return (2 if self.strand == "both" else 1) * _cost_of_changes(length)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """Some changes each."""
        try:
            units = list(substitution_units(tokens, self.model.context, self.strand, batch_tokens=batch_tokens))
        except SequenceTooLong as error:
            raise ItemError("too_long", str(error)) from error
        for unit in units:
            yield Substitutions(length=self.model.padded_length(len(tokens))), unit, unit.tokens

    def item(self, tokens: NDArray[np.uint8], pieces: Sequence[SubstitutionUnit], results: Sequence[Result]) -> Item:
        """A row a base."""
        ratios = ratios_of(tokens, pieces, results)
        return {"bases": "ACGT", "log_likelihood_ratio": [nullable(row) for row in ratios.tolist()]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedJob(Job):
    """A layer's hidden states, pooled over each sequence."""

    layer: int = -1
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        self.model.network.block_of(self.layer)

    def cost(self, length: int) -> int:
        """One row a window."""
        return _cost(self.model, length, self.model.context)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window each."""
        layer = self.model.network.block_of(self.layer)
        for window in _windows(len(tokens), self.model.context):
            length = self.model.padded_length(window.end - window.start)
            yield (
                Embeddings(layer=layer, pool=self.pool, length=length),
                Stretch(tokens[window.start : window.end], window),
                length,
            )

    def item(self, tokens: NDArray[np.uint8], pieces: Sequence[Stretch], results: Sequence[Result]) -> Item:
        """The windows' own bases pooled together."""
        match self.pool:
            case "mean":
                pooled = np.average(results, axis=0, weights=[window.end - window.first for _, window, *_ in pieces])
            case "max":
                pooled = np.max(results, axis=0)
            case "last":
                pooled = results[-1]
        return {"embedding": pooled.astype(np.float32).tolist()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """Predictions by one adapter."""

    adapter: str | None = None
    """Default: the only one."""

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

    def _too_long(self, length: int) -> bool:
        adapted = self._served.model
        return adapted.adaptation.pool == "positions" and length > adapted.longest

    def cost(self, length: int) -> int:
        """One row a window, and on both strands where the adapter reads both."""
        if self._too_long(length):
            return SHORTEST  # its item will say so
        strands = 2 if self._served.reverse_complement else 1
        return strands * _cost(self.model, length, self._served.model.longest)

    def pieces(self, tokens: NDArray[np.uint8], batch_tokens: int) -> Pieces:
        """A window and strand each."""
        adapter = self._served
        longest = adapter.model.longest
        if self._too_long(len(tokens)):
            raise ItemError(
                "too_long",
                f"the sequence has {len(tokens):,} bases; this adapter has weights for {longest:,} positions: cut "
                "sequences as those that it was trained on",
            )
        number = self.model.adapter_number(self.adapter_name)
        for window in _windows(len(tokens), longest):
            own = tokens[window.start : window.end]
            kind = Predictions(length=self.model.padded_length(len(own)))
            yield kind, Stretch(own, window, number), kind.length
            if adapter.reverse_complement:
                yield kind, Stretch(reverse_complement_tokens(own), window, number, reverse=True), kind.length

    def item(self, tokens: NDArray[np.uint8], pieces: Sequence[Stretch], results: Sequence[Result]) -> Item:
        """The mean over windows and strands, of probabilities and not of logits."""
        task = self._served.model.task
        if task.kind == "nucleotide":
            found, count = np.zeros((len(tokens), task.outputs)), np.zeros((len(tokens), 1))
            for piece, values in zip(pieces, results, strict=True):
                found[piece.window.start : piece.window.end] += values[::-1] if piece.reverse else values
                count[piece.window.start : piece.window.end] += 1
            return _prediction(task, found / count)
        return _prediction(task, np.mean(results, axis=0))


def longest_substituted(model: ServedModel, tokens: int) -> int:
    """Bases of the longest sequence all of whose substitutions cost at most so many tokens, on one strand."""
    return bisect.bisect_right(range(1, model.context + 1), tokens, key=_cost_of_changes)


def _cost_of_changes(length: int) -> int:
    """About two tokens for every pair of bases: three changes and their reference, from the change on."""
    return 2 * length * max(SHORTEST, length)


def _prediction(task: Task, values: NDArray[np.float64]) -> Item:
    """Of probabilities (K,), for nucleotides (L, K), or a regression's number (1,): what they say, and themselves."""
    labels = task.labels
    if task.kind == "regression":
        return {"prediction": float(values[0])}
    probabilities = dict(zip(labels, values.T.tolist(), strict=True))
    match task.kind:
        case "nucleotide":
            prediction: str | list[str] = "".join(labels[best] for best in values.argmax(axis=1))
        case "multilabel":
            prediction = [label for label in labels if probabilities[label] > 0.5]
        case _:
            prediction = labels[int(values.argmax())]
    return {"prediction": prediction, "probabilities": probabilities}


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


def _windows(length: int, context: int) -> list[LongWindow]:
    return long_windows([length], context, max(1, context // 2))


def nullable(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [None if math.isnan(value) else value for value in values]
