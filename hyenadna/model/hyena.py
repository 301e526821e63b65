"""The Hyena operator of order 2: gated long convolutions between two projections."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.errors import UsageError
from hyenadna.kernels.fft_conv import fft_conv, fft_conv_spectrum, transform_of
from hyenadna.kernels.short_conv import gated_short_conv
from hyenadna.kernels.working_set import Workspace, channels_at_once
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.packed_linear import DenseLinear, Linear
from hyenadna.model.spectra import KeptSpectra
from hyenadna.model.state import State


@dataclasses.dataclass(eq=False)
class HyenaState:
    """What the tokens so far leave to one Hyena operator."""

    tail: Tensor
    """(3, B, D, M - 1): the end of the projection, behind zeros if that is shorter, which the short filter still sees.
    """
    past: Tensor | None
    """(B, D, n): the long convolution's inputs u of all tokens so far; None in a state that cannot be extended."""
    carried: Tensor
    """(B, D, r): what they add to the long convolution at the next r positions,
    c[d, t] = sum over s < n of h[d, n + t - s] u[d, s]."""

    @property
    def rows(self) -> int:
        """B."""
        return self.tail.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.tail.nbytes + self.carried.nbytes + (0 if self.past is None else self.past.nbytes)

    def repeat(self, n: int) -> "HyenaState":
        """A copy with each row n times."""
        return self.select(torch.arange(self.rows).repeat_interleave(n))

    def select(self, rows: Tensor) -> "HyenaState":
        """A copy of some rows."""
        rows = rows.to(self.tail.device)
        past = None if self.past is None else self.past[rows]
        return HyenaState(self.tail[:, rows], past, self.carried[rows])


def item_by_item(prefixes: Sequence[State | None], which: Tensor, L: int) -> State | None:
    """One state whose rows are those of several, each item its own; of models that have Hyena layers only.

    Parameters
    ----------
    prefixes : sequence of State or None
        Of one row each, made for as many tokens as its own items have; None is no prefix.
    which : int64 Tensor (B,)
        Number of each item's prefix.
    L : int
        Tokens of the longest sequence.

    Returns
    -------
    State of B rows, for `HyenaDNA.forward` alone; None if none of the items has one
    """
    some = [prefix for prefix in prefixes if prefix is not None]
    if not some:
        return None
    layers = []
    for number, like in enumerate(cast(tuple[HyenaState, ...], some[0].layers)):
        none = HyenaState(torch.zeros_like(like.tail), None, torch.zeros_like(like.carried[..., :1]))
        states = [none if prefix is None else cast(HyenaState, prefix.layers[number]) for prefix in prefixes]
        tails = torch.cat([state.tail for state in states], dim=1)
        # behind the items of a shorter prefix there are pads only
        reached = [state.carried[..., :L] for state in states]
        carried = torch.cat([F.pad(part, (0, L - part.shape[-1])) for part in reached])
        layers.append(HyenaState(tails[:, which], None, carried[which]))
    # how many tokens stand before an item was looked at when its own prefix was made
    return State(tuple(layers), 0)


class HyenaOperator(nn.Module):
    """Mixes along the sequence: x0 * (h conv (x1 * v) + bias x1 * v), where x0, x1, v are short convolutions of x.

    Poli et al. 2023, eq. 4 with N = 2. Between the projections the layout is (D, B, L), so that both are plain matrix
    products and no transposed copy is made.
    """

    def __init__(
        self,
        d_model: int,
        long_filter: HyenaFilter,
        *,
        short_filter_taps: int,
        spectra: KeptSpectra | None = None,
        linear: Callable[[int, int], Linear] = DenseLinear,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.in_proj = linear(d_model, 3 * d_model)
        self.out_proj = linear(d_model, d_model)
        self.short_filter = nn.Conv1d(3 * d_model, 3 * d_model, short_filter_taps, groups=3 * d_model)
        self.filter_fn = long_filter
        self.spectra = spectra or KeptSpectra()

    def forward(self, x: Tensor, state: HyenaState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself, those before it, and the tokens whose state is given."""
        B, L, D = x.shape
        rows = x.reshape(B * L, D)
        if self.training and torch.is_grad_enabled():
            self.spectra.forget(self.filter_fn)  # the weights will change, and training needs the memory
        with_gradients = torch.is_grad_enabled()
        mixed = self._mix_with_gradients(rows, B, L, state) if with_gradients else self.mix([rows], B, L, state=state)
        y: Tensor = self.out_proj(mixed.T)
        return y.view(B, L, D)

    def extend(self, x: Tensor, state: HyenaState | None, *, ahead: int = 0) -> tuple[Tensor, HyenaState]:
        """What tokens that go on where a state ends give, and the state behind them.

        Parameters
        ----------
        x : Tensor (B, m, D)
        state : HyenaState, optional
            Of B rows. None is the beginning.
        ahead : int
            Tokens that will follow, as far as that is known.

        Returns
        -------
        Tensor (B, m, D) before the output projection, HyenaState
        """
        B, m, _ = x.shape
        M = self.short_filter.kernel_size[0]
        projected = self.in_proj.columns(x.reshape(B * m, -1)).view(3, self.d_model, B, m).transpose(1, 2)
        u, gate = self._gated(projected, slice(None), state)
        past, seen = u, projected
        if state is not None:
            if state.past is None:
                raise UsageError("a state that was joined item by item cannot be extended")
            past, seen = torch.cat([state.past, u], dim=-1), torch.cat([state.tail, projected], dim=-1)
        n = past.shape[-1]
        ahead = min(ahead, self.filter_fn.length - n)
        y = fft_conv(F.pad(past, (0, ahead)), self.filter_fn(n + ahead), self.filter_fn.bias.to(self.filter_fn.dtype))
        tail = F.pad(seen[..., max(0, seen.shape[-1] - M + 1) :], (max(0, M - 1 - seen.shape[-1]), 0))
        mixed = (y[..., n - m : n] * gate).transpose(1, 2)
        # a copy, so that the positions before need not be kept
        return mixed, HyenaState(tail, past, y[..., n:].contiguous())

    def _mix_with_gradients(self, rows: Tensor, B: int, L: int, state: HyenaState | None) -> Tensor:
        projected = self.in_proj.columns(rows).view(3, self.d_model, B, L).transpose(1, 2)
        u, gate = self._gated(projected, slice(None), state)
        y = fft_conv(u, self.filter_fn(L), self.filter_fn.bias.to(self.filter_fn.dtype), None, gate)
        if state is not None:
            y = torch.addcmul(y, gate, self._carried(state, L).to(y.dtype))
        return y.transpose(0, 1).reshape(self.d_model, B * L)

    def _gated(self, projected: Tensor, channels: slice, state: HyenaState | None) -> tuple[Tensor, Tensor]:
        """The long convolution's input and its gate, of some channels; the tail stands before the projection."""
        weight, bias = (parameter[:, channels] for parameter in self._short_filters())
        if state is None:
            return gated_short_conv(projected, weight, bias)
        tail = state.tail[:, :, channels].expand(-1, projected.shape[1], -1, -1).to(projected.dtype)
        u, gate = gated_short_conv(torch.cat([tail, projected], dim=-1), weight, bias)
        return u[..., tail.shape[-1] :], gate[..., tail.shape[-1] :]

    def mix(
        self,
        blocks: Iterable[Tensor],
        B: int,
        L: int,
        workspace: Workspace | None = None,
        state: HyenaState | None = None,
    ) -> Tensor:
        """All but the output projection, without gradients and in little memory.

        Parameters
        ----------
        blocks : iterable of Tensor (n, D)
            The B L positions of x in order, some at a time.
        workspace : Workspace, optional
            Holds the result until it is used again.
        state : HyenaState, optional
            What the tokens before left for this operator.

        Returns
        -------
        Tensor (D, B L)
        """
        projected = self._projected(blocks, B * L, workspace or Workspace()).view(3, self.d_model, B, L)
        transform = transform_of(L, projected)
        group = channels_at_once(projected.device, B * transform.size)
        spectra = self.spectra.of(self.filter_fn, transform)
        skip = self.filter_fn.bias.to(self.filter_fn.dtype)
        weight, bias = self._short_filters()
        carried = None if state is None else self._carried(state, L)
        room = projected.new_empty(2, min(group, self.d_model), B, L)
        for first in range(0, self.d_model, group):
            channels = slice(first, first + group)
            source = projected[:, channels].transpose(1, 2)  # (3, B, D', L)
            u, gate = room[:, : source.shape[2]].transpose(1, 2)
            gated_short_conv(source, weight[:, channels], bias[:, channels], out=(u, gate))
            if state is not None and (seen := state.tail.shape[-1]):
                # the tail reaches the first positions alone
                u[..., :seen], gate[..., :seen] = self._gated(source[..., :seen], channels, state)
            # what the gate was made from is not needed any more
            fft_conv_spectrum(u, spectra(channels), skip[channels], None, gate, transform, out=source[0])
            if carried is not None:
                source[0].addcmul_(gate, carried[:, channels].to(gate.dtype))
        return projected[0].view(self.d_model, B * L)

    def _carried(self, state: HyenaState, L: int) -> Tensor:
        """What the tokens so far add to the long convolution at the next L positions, (rows, D, L)."""
        if state.carried.shape[-1] >= L or state.past is None:
            return state.carried[..., :L]
        n, h = state.past.shape[-1], self.filter_fn.dtype
        skip = torch.zeros(self.d_model, dtype=h, device=state.past.device)
        return fft_conv(F.pad(state.past, (0, L)), self.filter_fn(n + L), skip)[..., n:]

    def _short_filters(self) -> tuple[Tensor, Tensor]:
        """The taps (3, D, M) and biases (3, D) of x0, x1 and v."""
        bias = cast(Tensor, self.short_filter.bias)
        return self.short_filter.weight.view(3, self.d_model, -1), bias.view(3, self.d_model)

    def _projected(self, blocks: Iterable[Tensor], rows: int, workspace: Workspace) -> Tensor:
        """The input projection, transposed: (3 D, B L)."""
        projected: Tensor | None = None
        first = 0
        for block in blocks:
            columns = self.in_proj.columns(block)
            if projected is None:
                projected = workspace.empty(3 * self.d_model, rows, like=columns)
            projected[:, first : first + len(block)] = columns
            first += len(block)
        assert projected is not None  # there is at least one position
        return projected
