"""What the tokens so far leave to those that follow, layer by layer.

The model is causal: the hidden states of what stands before do not depend on what follows. So a sequence can be read in
pieces, or one token at a time, if every mixer carries what later positions need of earlier ones: a Hyena operator the
end of its projection and the inputs of its long convolution, a Lightning layer one matrix a head, a softmax layer keys
and values. What is carried is exact: pieces give what the whole gives.

What stands before every item of a batch is computed once, as one row, and carried into the batch: n + B L positions
where it would be B (n + L) if it were repeated before every item.
"""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from hyenadna.errors import SequenceTooLong, ShapeError, UsageError


class LayerState(Protocol):
    """What one mixer carries; a mixer is given its own kind back.

    `forward` and `mix` of a mixer take a state of one row before any number of items, and leave it as it is. `extend`
    takes one of as many rows as items, and without gradients may write into it.
    """

    @property
    def rows(self) -> int:
        """1, or as many as a batch has items."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""

    def repeat(self, n: int) -> "LayerState":
        """A branch: n times each row, row i as rows i n to i n + n - 1; writing into it leaves this one as it is."""

    def select(self, rows: Tensor) -> "LayerState":
        """A copy of the rows int64 (R,), in any order, any of them again."""


@dataclasses.dataclass(eq=False)
class State:
    """What the tokens so far leave to all layers; from `HyenaDNA.extend`, or `HyenaDNA.prefix`."""

    layers: tuple[LayerState, ...]
    length: int
    """Tokens so far."""
    spent: bool = False
    """Whether it was extended: its memory then belongs to the state that came of it."""

    @property
    def rows(self) -> int:
        """1 where all items of a batch share it, otherwise one row an item."""
        return self.layers[0].rows

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; what branches share is counted in each."""
        return sum(layer.nbytes for layer in self.layers)

    def repeat(self, n: int) -> "State":
        """A branch: n times each row, row i as rows i n to i n + n - 1; this one may still be extended.

        Raises
        ------
        UsageError              it is spent, or n is under 1
        """
        self._check_unspent()
        if n < 1:
            raise UsageError(f"a state was to be repeated {n} times; allowed is 1 and more")
        return State(tuple(layer.repeat(n) for layer in self.layers), self.length)

    def select(self, rows: Tensor) -> "State":
        """A copy of the rows int64 (R,), in any order, any of them again.

        Raises
        ------
        UsageError              it is spent, or there is no such row
        """
        self._check_unspent()
        # numbers of other dtypes torch would read as a mask
        if (
            rows.dtype != torch.int64
            or rows.dim() != 1
            or not len(rows)
            or not 0 <= int(rows.min()) <= int(rows.max()) < self.rows
        ):
            raise UsageError(
                f"rows {rows.tolist()} ({rows.dtype}) were selected of a state of {self.rows}; give some of 0 to "
                f"{self.rows - 1} as torch.int64"
            )
        return State(tuple(layer.select(rows) for layer in self.layers), self.length)

    def check(self, B: int, L: int, longest: int) -> None:
        """Nothing, if B sequences of L tokens can follow in a model that takes up to `longest`.

        Raises
        ------
        UsageError                      it is spent
        SequenceTooLong                 it leaves no room for so many tokens
        ShapeError, a ValueError        it has rows for another number of sequences
        """
        self._check_unspent()
        if self.length + L > longest:
            raise SequenceTooLong(
                f"{L:,} tokens behind {self.length:,} are {self.length + L:,}; this model takes up to {longest:,}: "
                "shorten one of them, or take a model with a longer context"
            )
        if self.rows not in (1, B):
            raise ShapeError(f"the state has {self.rows} rows for {B} sequences; it may have 1 or {B}")

    def _check_unspent(self) -> None:
        if self.spent:
            raise UsageError(
                "this state was extended before and is spent: extend the state that came of it, or take a branch "
                "with state.repeat(1) before extending"
            )
