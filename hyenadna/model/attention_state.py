"""The cache of softmax attention: rotated keys, and values, of the tokens so far.

What a state holds grows by a token's own bytes at each step, and branches share what lies before they part. A part may
be held otherwise than as it was computed, in few bits for one: a `Segment` is whatever gives keys and values.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

QUERIES_KEPT = 128
"""Last queries that a state keeps, from which a cache can be compressed; they take what as many keys and values do."""
_LEAST_ROOM = 32


class Segment(Protocol):
    """Keys and values of some tokens, which are never written again: branches of a state may share them."""

    @property
    def rows(self) -> int:
        """1, or one row an item."""

    @property
    def tokens(self) -> int:
        """n, of each head."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""

    def dense(self) -> tuple[Tensor, Tensor]:
        """Rotated keys and values, (rows, kv_heads, n, K) each."""

    def select(self, rows: Tensor) -> "Segment":
        """A copy of some rows."""


class DenseSegment(NamedTuple):
    """Keys and values as they were computed, (rows, kv_heads, n, K) each."""

    keys: Tensor
    values: Tensor

    @property
    def rows(self) -> int:
        """1, or one row an item."""
        return self.keys.shape[0]

    @property
    def tokens(self) -> int:
        """n, of each head."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def dense(self) -> tuple[Tensor, Tensor]:
        """Rotated keys and values."""
        return self.keys, self.values

    def select(self, rows: Tensor) -> "DenseSegment":
        """A copy of some rows."""
        return DenseSegment(self.keys[rows], self.values[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionState:
    """The rotated keys and the values of the tokens so far, or of those that a compression has kept.

    The tokens of one call that began the state, and those that branches share, are segments; what was appended since
    lies in `recent`, which doubles when it is full, so that a token costs its own bytes and no copy of the others.
    Without gradients `recent` and `queries` are written in place by the state that follows.
    """

    segments: tuple[Segment, ...]
    """In order; of one row where all items share it."""
    recent: Tensor | None
    """(2, B, kv_heads, room, K): keys and values behind the segments."""
    appended: int
    """Tokens in `recent`."""
    queries: Tensor
    """(B, heads, QUERIES_KEPT, K): the last rotated queries, that of position t at t modulo QUERIES_KEPT."""
    position: int
    """Of the next token, which is the number of tokens so far, evicted ones too."""

    @property
    def rows(self) -> int:
        """B."""
        return self.queries.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values each head holds; fewer than `position` after a compression."""
        return sum(segment.tokens for segment in self.segments) + self.appended

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, with the room that is not used yet."""
        recent = 0 if self.recent is None else self.recent.nbytes
        return sum(segment.nbytes for segment in self.segments) + recent + self.queries.nbytes

    def parts(self) -> list[Segment]:
        """All keys and values, in order; what was appended as a view."""
        if self.recent is None:
            return list(self.segments)
        keys, values = self.recent[..., : self.appended, :]
        return [*self.segments, DenseSegment(keys, values)]

    def dense(self, rows: int) -> tuple[Tensor, Tensor]:
        """All keys and values of so many rows, (rows, kv_heads, n, K) each; views if there is one part."""
        keys, values = zip(*(part.dense() for part in self.parts()), strict=True)
        return _joined(keys, rows), _joined(values, rows)

    def last_queries(self, n: int) -> Tensor:
        """The last n rotated queries in the order of their positions, (B, heads, n, K); n up to QUERIES_KEPT."""
        places = torch.arange(self.position - n, self.position, device=self.queries.device)
        return self.queries[:, :, places % QUERIES_KEPT]

    def repeat(self, n: int) -> "AttentionState":
        """A branch with each row n times; from one row, all of them share keys and values."""
        if self.rows > 1:
            return self.select(torch.arange(self.rows).repeat_interleave(n))
        queries = self.queries.repeat(n, 1, 1, 1)
        # the original appends behind what the branch sees
        return AttentionState(_few(self.parts()), None, 0, queries, self.position)

    def select(self, rows: Tensor) -> "AttentionState":
        """A copy of some rows; a segment of one row is shared."""
        rows = rows.to(self.queries.device)
        segments = tuple(segment if segment.rows == 1 else segment.select(rows) for segment in self.segments)
        recent = None if self.recent is None else self.recent[:, rows]
        return AttentionState(segments, recent, self.appended, self.queries[rows], self.position)

    def append(self, queries: Tensor, keys: Tensor, values: Tensor) -> "AttentionState":
        """The state behind further tokens; (B, heads, m, K), and (B, kv_heads, m, K) twice."""
        recent, end = self.recent, self.appended + keys.shape[2]
        if torch.is_grad_enabled():
            new = torch.stack((keys, values))
            recent = new if recent is None else torch.cat((recent[..., : self.appended, :], new), dim=3)
        else:
            if recent is None or recent.shape[3] < end:
                recent = self._with_room(max(_LEAST_ROOM, 2 * end), keys)
            for memory, new in zip(recent, (keys, values), strict=True):
                memory[:, :, self.appended : end] = new
        kept = self.queries.clone() if torch.is_grad_enabled() else self.queries
        kept = _keep(kept, queries, self.position)
        return AttentionState(self.segments, recent, end, kept, self.position + keys.shape[2])

    def _with_room(self, room: int, like: Tensor) -> Tensor:
        B, kv_heads, _, K = like.shape
        recent = like.new_empty(2, B, kv_heads, room, K)
        if self.recent is not None:
            recent[..., : self.appended, :] = self.recent[..., : self.appended, :]
        return recent


def _few(parts: list[Segment]) -> tuple[Segment, ...]:
    """The parts of one row, the last of them joined until each is at least twice as long as the next.

    A state that branches again and again, at each token for one, would otherwise have a part for each time, and every
    token would cost a product with each of them.
    """
    few: list[Segment] = []
    for part in parts:
        joined = [part]
        while few and all(isinstance(x, DenseSegment) for x in (few[-1], part)):
            if few[-1].tokens >= 2 * sum(x.tokens for x in joined):
                break
            joined.insert(0, few.pop())
        if len(joined) > 1:
            keys, values = zip(*(x.dense() for x in joined), strict=True)
            part = DenseSegment(torch.cat(keys, dim=2), torch.cat(values, dim=2))
        few.append(part)
    return tuple(few)


def _joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    expanded = [part.expand(rows, -1, -1, -1) for part in parts]
    return expanded[0] if len(expanded) == 1 else torch.cat(expanded, dim=2)


def _keep(kept: Tensor, queries: Tensor, position: int) -> Tensor:
    """The kept queries, overwritten by those that begin at a position."""
    m = queries.shape[2]
    places = torch.arange(position + max(0, m - QUERIES_KEPT), position + m, device=kept.device)
    kept[:, :, places % QUERIES_KEPT] = queries[:, :, -QUERIES_KEPT:].detach().to(kept.dtype)
    return kept


def begun(queries: Tensor, keys: Tensor, values: Tensor) -> AttentionState:
    """The state behind the first tokens."""
    B, heads, m, K = queries.shape
    kept = _keep(queries.new_zeros(B, heads, QUERIES_KEPT, K), queries, 0)
    # copies, so that the projection need not be kept
    return AttentionState((DenseSegment(keys.contiguous(), values.contiguous()),), None, 0, kept, m)
