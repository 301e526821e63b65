"""What embeddings that stand before every sequence leave to the sequences, layer by layer.

The model is causal: the hidden states of a prefix do not depend on what follows it, and are the same before every item
of a batch. So they are computed once, as one row, and only what reaches later positions is carried into the batch. That
is, in every Hyena operator,

    tail       the last M - 1 columns of the prefix's projection, which the short filter still sees
    carried    c[d, t] = sum over s < n of h[d, n + t - s] u[d, s], the prefix's part of the long convolution

and behind it y = gate (skip u + h conv u + c), with the sequence's own u. Prefix and batch cost n + B L positions and
one transform of n + L points more a layer, where a prefix repeated before every item would cost B (n + L). It is exact,
and has gradients.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import SequenceTooLong, ShapeError


class LayerState(NamedTuple):
    """What a prefix leaves to one Hyena operator; zeros are no prefix at all."""

    tail: Tensor
    """(3, B, D, M - 1): the end of its projection, behind zeros if that is shorter; B is 1 where all items share it."""
    carried: Tensor
    """(B, D, L): its part of the long convolution at the L positions that follow."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What a prefix leaves to all layers, for any sequences of up to `longest` tokens; from `HyenaDNA.prefix`."""

    layers: tuple[LayerState, ...]

    @property
    def rows(self) -> int:
        """1 where all items of a batch share the prefix, otherwise one row an item."""
        return self.layers[0].carried.shape[0]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may follow."""
        return self.layers[0].carried.shape[-1]

    def check(self, B: int, L: int) -> None:
        """Nothing, if the prefix can stand before B sequences of L tokens.

        Raises
        ------
        SequenceTooLong                 it was made for shorter sequences
        ShapeError, a ValueError        it has rows for another number of sequences
        """
        if self.longest < L:
            raise SequenceTooLong(
                f"the sequences have {L:,} tokens, but their prefix was made for up to {self.longest:,}: make it for "
                "longer ones"
            )
        if self.rows not in (1, B):
            raise ShapeError(f"the prefix has {self.rows} rows for {B} sequences; it may have 1 or {B}")


def item_by_item(prefixes: Sequence[Prefix | None], which: Tensor, L: int) -> Prefix | None:
    """One prefix whose rows are those of several, each item its own.

    Parameters
    ----------
    prefixes : sequence of Prefix or None
        Of one row each, for as many tokens as its own items have; None is no prefix.
    which : int64 Tensor (B,)
        Number of each item's prefix.
    L : int
        Tokens of the longest sequence.

    Returns
    -------
    Prefix of B rows; None if none of the items has one
    """
    some = [prefix for prefix in prefixes if prefix is not None]
    if not some:
        return None
    layers = []
    for number, like in enumerate(some[0].layers):
        none = LayerState(torch.zeros_like(like.tail), torch.zeros_like(like.carried[..., :1]))
        states = [none if prefix is None else prefix.layers[number] for prefix in prefixes]
        tails = torch.cat([state.tail for state in states], dim=1)
        # behind the items of a shorter prefix there are pads only
        reached = [state.carried[..., :L] for state in states]
        carried = torch.cat([F.pad(part, (0, L - part.shape[-1])) for part in reached])
        layers.append(LayerState(tails[:, which], carried[which]))
    return Prefix(tuple(layers))
