"""Sequences while they are written: the loop that `hyenadna.inference.generate` starts and describes."""

import math
from collections.abc import Callable, Generator, Iterator
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.alphabet import BASES
from hyenadna.data.tokenizer import A, encode
from hyenadna.inference.constraints import Plan
from hyenadna.inference.decoding import (
    Decoding,
    Nats,
    WrittenKmers,
    base_nats,
    block_nats,
    decode,
    draw,
    normalised,
    typical,
)
from hyenadna.inference.likelihood import not_finite
from hyenadna.inference.pyramid_kv import CacheBudget, compress, keep_within
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.state import State

Scorer = Callable[[Tensor], Tensor]
"""A diversity head: the hidden states (B, D) of the last bases -> scores (B,) from 0 to 1."""

_UNIFORM = -math.log(4)
_DRAWN_AT_ONCE = 256
_PLACE_VALUES = np.array([64, 16, 4, 1])


class Piece(NamedTuple):
    """A base that was written."""

    row: int
    """Of which sequence, from 0."""
    base: str
    """A, C, G or T."""
    nats: float
    """Its log-probability under the model itself, over A, C, G, T at temperature 1; 0 for a first base that nothing
    stands before."""


class Generated(NamedTuple):
    """A sequence that was written."""

    sequence: str
    """Without the prompt; a stop motif at its end belongs to it."""
    nats: float
    """Its log-likelihood behind the prompt under the model itself, over A, C, G, T at temperature 1."""
    scored: int
    """How many bases that is of: all, but for the first where there was no prompt."""
    seed: int
    """As given; with the number of the row it decides the draws."""
    stopped: Literal["length", "stop"]
    """What ended it: its length, or a stop motif."""

    @property
    def bits_per_base(self) -> float:
        """-log2 p, the mean over the scored bases; NaN where none is."""
        return -self.nats / self.scored / math.log(2) if self.scored else math.nan


class Generation:
    """Sequences while they are written: an iterator over their bases, as `stream` makes it.

    Attributes
    ----------
    sequences : list of Generated       what is written so far; whole when the iterator has ended
    """

    def __init__(
        self,
        model: HyenaDNA,
        prompt: str,
        length: int,
        rows: range,
        decoding: Decoding,
        seed: int,
        ahead: Plan | None,
        diversity: Scorer | None,
        cache: CacheBudget | None,
    ) -> None:
        self.model, self.prompt, self.length, self.seed = model, prompt, length, seed
        self._decoding, self._plan, self._diversity, self._cache = decoding, ahead, diversity, cache
        self._draws = _Draws(seed, rows, prompt)
        self._kmers: WrittenKmers | None = None
        if decoding.repetition_penalty:
            codes = encode(prompt).astype(np.int64) - A
            self._kmers = WrittenKmers(decoding.repetition_kmer, codes, len(rows))
        # of the rows that are still written
        self._rows = np.arange(len(rows))
        self._places = _Places(np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64))
        # of all rows
        self._bases: list[list[str]] = [[] for _ in rows]
        self._nats = np.zeros(len(rows))
        self._stopped = np.zeros(len(rows), dtype=np.bool_)
        self._pieces = self._write()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End it here; what the model keeps for it is let go."""
        self._pieces.close()

    @property
    def sequences(self) -> list[Generated]:
        """What is written so far."""
        unscored = 0 if self.prompt else 1
        return [
            Generated("".join(bases), nats, max(0, len(bases) - unscored), self.seed, "stop" if stopped else "length")
            for bases, nats, stopped in zip(self._bases, self._nats.tolist(), self._stopped, strict=True)
        ]

    def _write(self) -> Generator[Piece]:
        now, written = self._begin(), 0
        while written < self.length and len(self._rows):
            # before the first base of all stands nothing, and it is drawn alone
            k = 1 if now.state is None else min(self._decoding.typical_kmer, self.length - written)
            levels, deepest = self._blocks(now, k, self.length - written)
            blocks = self._drawn(levels, now.state is None)
            kept, stopped = self._take(blocks, written)
            self._stopped[self._rows[stopped]] = True
            nats = np.zeros(blocks.shape) if now.state is None else _along([raw for raw, _ in levels], blocks)
            yield from self._pieces_of(blocks, nats, kept)
            written += k
            going_on = np.flatnonzero(~stopped)
            self._rows = self._rows[going_on]
            if written < self.length and len(going_on):
                now = self._after(deepest, blocks, going_on)

    def _begin(self) -> "_Distributions":
        """What the prompt leaves to each row."""
        rows = len(self._rows)
        if not self.prompt:
            return _Distributions(np.full((rows, 4), _UNIFORM), None, None)
        prompt = torch.from_numpy(encode(self.prompt).astype(np.int64))[None]
        of_one = self._read(prompt, None, ahead=self.length - 1)
        assert of_one.state is not None
        scores = None if of_one.scores is None else of_one.scores.repeat(rows)
        return _Distributions(of_one.nats.repeat(rows, axis=0), of_one.state.repeat(rows), scores)

    def _blocks(self, now: "_Distributions", k: int, left: int) -> tuple[list[tuple[Nats, Nats]], "_Distributions"]:
        """Of each base of the next k behind all 4^j blocks before it, the model's distribution and the decoded one.

        Returns
        -------
        list of k pairs of float64 arrays (B 4^j, 4), and what is known behind the first k - 1 bases of all blocks
        """
        places, endings, levels = self._places, None if self._kmers is None else self._kmers.ending, []
        for depth in range(k):
            if depth:
                assert now.state is not None
                every = np.tile(np.arange(4), len(now.nats))
                now = self._read(torch.from_numpy(every + A)[:, None], now.state.repeat(4))
                places = places.repeat(4).after(self._plan, every)
                if self._kmers is not None and endings is not None:
                    endings = self._kmers.after(endings.repeat(4), every)
            penalty = None
            if self._kmers is not None and endings is not None:
                penalty = self._decoding.repetition_penalty * self._kmers.times(endings, depth)
            levels.append((now.nats, self._decoded(now, places, penalty, left - depth)))
        return levels, now

    def _decoded(self, now: "_Distributions", places: "_Places", penalty: Nats | None, left: int) -> Nats:
        nats = now.nats
        if self._plan is not None and self._plan.restricts:
            nats = self._plan.weighted(nats, places.states, places.gc, left)
            # where blocks begin with what cannot be drawn, anything will do
            nats = normalised(np.where(np.isneginf(nats).all(axis=1, keepdims=True), 0.0, nats))
        return nats if now.state is None else decode(nats, self._decoding, penalty=penalty, scores=now.scores)

    def _drawn(self, levels: list[tuple[Nats, Nats]], first: bool) -> NDArray[np.int64]:
        """The next block of each row, (B, k)."""
        joint = block_nats([decoded for _, decoded in levels])
        if self._decoding.typical_kmer > 1 and not first:
            joint = typical(joint, self._decoding.typical_p)
        blocks: NDArray[np.int64] = draw(joint, self._draws.next())[:, None] // _PLACE_VALUES[-len(levels) :] % 4
        return blocks

    def _take(self, blocks: NDArray[np.int64], written: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Go on behind the blocks; how many bases of each are kept, and which rows end with a stop motif in it."""
        kept = np.full(len(blocks), blocks.shape[1])
        stopped = np.zeros(len(blocks), dtype=np.bool_)
        for number, bases in enumerate(blocks.T, 1):
            before, self._places = self._places, self._places.after(self._plan, bases)
            if self._plan is not None:
                ends = ~stopped & self._plan.ends(before.states, bases, self._places.gc, written + number)
                kept[ends] = number
                stopped |= ends
            if self._kmers is not None:
                self._kmers.add(bases)
        return kept, stopped

    def _pieces_of(self, blocks: NDArray[np.int64], nats: Nats, kept: NDArray[np.int64]) -> Iterator[Piece]:
        pieces = []
        for row, block, values, number in zip(
            self._rows.tolist(), blocks.tolist(), nats.tolist(), kept.tolist(), strict=True
        ):
            pieces += [Piece(row, BASES[base], value) for base, value in zip(block[:number], values, strict=False)]
        for piece in pieces:
            self._bases[piece.row].append(piece.base)
            self._nats[piece.row] += piece.nats
        yield from pieces

    def _after(self, deepest: "_Distributions", blocks: NDArray[np.int64], rows: NDArray[np.int64]) -> "_Distributions":
        """What is known behind the blocks of the rows that go on."""
        state, k = deepest.state, blocks.shape[1]
        if k > 1 or len(rows) < len(blocks):
            first = blocks[:, :-1] @ _PLACE_VALUES[len(_PLACE_VALUES) - k + 1 :] + 4 ** (k - 1) * np.arange(len(blocks))
            state = None if state is None else state.select(torch.from_numpy(first[rows]))
        if len(rows) < len(blocks):
            self._places = _Places(self._places.states[rows], self._places.gc[rows])
            self._draws.select(rows)
            if self._kmers is not None:
                self._kmers.select(rows)
        ahead = self.length - 2 if state is None else 0
        return self._read(torch.from_numpy(blocks[rows, -1:] + A), state, ahead=ahead)

    def _read(self, tokens: Tensor, state: State | None, *, ahead: int = 0) -> "_Distributions":
        """What the model says behind tokens (B, m) that follow a state."""
        model, budgeted = self.model, compress if state is None else keep_within
        with torch.inference_mode():
            tokens = tokens.to(model.device)
            if self._diversity is None:
                logits, state = model.extend(tokens, state, ahead=max(0, ahead))
                scores = None
            else:
                hidden, state = model.backbone.extend(tokens, state, ahead=max(0, ahead))
                logits, last = model.logits(hidden[:, -1:]), hidden[:, -1]
                scores = self._diversity(last).double().cpu().numpy()
            nats = base_nats(logits[:, -1].double().cpu().numpy())
            if self._cache is not None:
                state = budgeted(state, self._cache)
        if not np.isfinite(nats).all():
            raise not_finite(state.length)
        return _Distributions(nats, state, scores)


class _Distributions(NamedTuple):
    """What is known behind the bases so far, of B sequences."""

    nats: Nats
    """(B, 4): the model's, of the next base."""
    state: State | None
    """None where there are no bases so far."""
    scores: Nats | None
    """(B,): of the diversity head."""


class _Places(NamedTuple):
    """Where sequences are in the plan of their constraints, each (B,)."""

    states: NDArray[np.int64]
    gc: NDArray[np.int64]

    def repeat(self, n: int) -> "_Places":
        return _Places(self.states.repeat(n), self.gc.repeat(n))

    def after(self, plan: Plan | None, bases: NDArray[np.int64]) -> "_Places":
        return self if plan is None else _Places(*plan.after(self.states, self.gc, bases))


class _Draws:
    """Uniform numbers, of each row by its own generator."""

    def __init__(self, seed: int, rows: range, prompt: str) -> None:
        # the same numbers behind every prompt would write nearly the same sequence behind each
        self._generators = [np.random.default_rng((seed, row, crc32(prompt.encode()))) for row in rows]
        self._numbers, self._next = np.empty((len(rows), 0)), 0

    def next(self) -> NDArray[np.float64]:
        """One of each, (rows,)."""
        if self._next == self._numbers.shape[1]:
            self._numbers = np.stack([generator.random(_DRAWN_AT_ONCE) for generator in self._generators])
            self._next = 0
        self._next += 1
        return self._numbers[:, self._next - 1]

    def select(self, rows: NDArray[np.int64]) -> None:
        """Keep some of the rows."""
        self._generators, self._numbers = [self._generators[row] for row in rows], self._numbers[rows]


def _along(levels: list[Nats], blocks: NDArray[np.int64]) -> Nats:
    """The log-probability of each base of a block behind those before it, (B, k)."""
    node, found = np.arange(len(blocks)), []
    for level, bases in zip(levels, blocks.T, strict=True):
        found.append(level[node, bases])
        node = 4 * node + bases
    return np.stack(found, axis=1)
