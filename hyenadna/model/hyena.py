"""The Hyena operator of order 2: gated long convolutions between two projections."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.errors import UsageError
from hyenadna.kernels.fft_conv import fft_conv, fft_conv_spectrum, transform_of
from hyenadna.kernels.online_conv import Filters, OnlineConv
from hyenadna.kernels.short_conv import gated_short_conv
from hyenadna.kernels.working_set import Workspace, channels_at_once, rows_at_once
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.packed_linear import DenseLinear, Linear
from hyenadna.model.spectra import KeptSpectra
from hyenadna.model.state import State


@dataclasses.dataclass(eq=False)
class HyenaState:
    """What the tokens so far leave to one Hyena operator; `OnlineConv` says what that takes of memory.

    The spectra of the filters are the model's, which keeps them for all its states.
    """

    tail: Tensor
    """(3, B, D, M - 1): the end of the projection, behind zeros if that is shorter, which the short filter still sees.
    """
    conv: OnlineConv
    """The long convolution of the inputs u of all tokens so far."""
    goes_on: bool = True
    """Whether all inputs are known, or only what they carry."""
    short: tuple[Tensor, Tensor] | None = None
    """The short filters' taps (M, 1, 3, D) and biases (3, D), as one-token steps take them."""

    @property
    def rows(self) -> int:
        """B."""
        return int(self.tail.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        short = () if self.short is None else self.short
        return self.conv.nbytes + sum(int(x.nbytes) for x in (self.tail, *short))

    def repeat(self, n: int) -> "HyenaState":
        """A branch with each row n times; what is never written is shared with this one where its rows are the same."""
        if n == 1:
            return HyenaState(self.tail, self.conv.branch(), self.goes_on, self.short)
        return self.select(torch.arange(self.rows).repeat_interleave(n))

    def select(self, rows: Tensor) -> "HyenaState":
        """A branch of some rows."""
        rows = rows.to(self.tail.device)
        return HyenaState(self.tail[:, rows], self.conv.branch(rows), self.goes_on, self.short)


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
        nothing = torch.zeros_like(cast(Tensor, like.conv.carried)[..., :1])
        none = HyenaState(torch.zeros_like(like.tail), OnlineConv((), nothing))
        states = [none if prefix is None else cast(HyenaState, prefix.layers[number]) for prefix in prefixes]
        tails = torch.cat([state.tail for state in states], dim=1)
        # behind the items of a shorter prefix there are pads only
        reached = [cast(Tensor, state.conv.carried)[..., :L] for state in states]
        carried = torch.cat([F.pad(part, (0, L - part.shape[-1])) for part in reached])
        layers.append(HyenaState(tails[:, which], OnlineConv((), carried[which]), goes_on=False))
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
        if state is not None and not state.goes_on:
            raise UsageError("a state that was joined item by item cannot be extended")
        if torch.is_grad_enabled():
            return self._extend_with_gradients(x, state, ahead)
        if state is None:
            return self._begin(x, ahead)
        if x.shape[1] == 1:
            return self._step(x, state, ahead)
        projected = self._columns(x)
        u, gate = self._gated(projected, slice(None), state)
        state.tail = self._tail(projected, state)
        return state.conv.extend(u, gate, self._filters(), ahead=ahead).transpose(1, 2), state

    def _extend_with_gradients(self, x: Tensor, state: HyenaState | None, ahead: int) -> tuple[Tensor, HyenaState]:
        """As `extend`; writes nowhere, and makes what is carried anew at every call."""
        m, projected = x.shape[1], self._columns(x)
        u, gate = self._gated(projected, slice(None), state)
        past = [u] if state is None else [*state.conv.inputs(u.dtype), u]
        n = sum(part.shape[-1] for part in past)
        ahead, filters = min(ahead, self.filter_fn.length - n), self._filters()
        y = fft_conv(F.pad(u.to(filters.skip.dtype), (0, ahead)), self.filter_fn(m + ahead), filters.skip)
        if state is not None:
            y = y + self._carried(state, m + ahead)
        mixed = (y[..., :m] * gate).to(gate.dtype).transpose(1, 2)
        # a copy, so that the positions before need not be kept
        return mixed, HyenaState(self._tail(projected, state), OnlineConv(past, y[..., m:].contiguous()))

    def _begin(self, x: Tensor, ahead: int) -> tuple[Tensor, HyenaState]:
        """As `extend` at the beginning, without gradients: one transform gives the positions and what they carry."""
        B, m, D = x.shape
        filters, ahead = self._filters(), min(ahead, self.filter_fn.length - m)
        projected = self._projected(x.reshape(B * m, D).split(rows_at_once(x.device)), B * m, Workspace())
        projected = projected.view(3, D, B, m)
        tail, (weight, bias) = self._tail(projected.transpose(1, 2), None), self._short_filters()
        transform = transform_of(m + ahead, filters.skip)
        spectra, group = filters.spectra(transform), channels_at_once(x.device, B * transform.size)
        past, carried = projected.new_empty(B, D, m), filters.skip.new_empty(B, D, ahead)
        room = projected.new_zeros(2, min(group, D), B, m + ahead)
        room[1, ..., m:] = 1  # what is carried is not gated
        for first in range(0, D, group):
            channels = slice(first, first + group)
            source = projected[:, channels].transpose(1, 2)  # (3, B, D', m)
            u, gate = room[:, : source.shape[2]].transpose(1, 2)
            gated_short_conv(source, weight[:, channels], bias[:, channels], out=(u[..., :m], gate[..., :m]))
            past[:, channels] = u[..., :m]
            u, gate = u.to(carried.dtype), gate.to(carried.dtype)
            y = fft_conv_spectrum(u, spectra(channels), filters.skip[channels], None, gate, transform)
            # what the gate was made from is not needed any more
            source[0], carried[:, channels] = y[..., :m], y[..., m:]
        mixed = projected[0].view(D, B * m).T.view(B, m, D)
        return mixed, HyenaState(tail, OnlineConv([past], carried if ahead else None))

    def _step(self, x: Tensor, state: HyenaState, ahead: int) -> tuple[Tensor, HyenaState]:
        """As `extend` of one token, without gradients, in few calls."""
        B, _, D = x.shape
        projected = self.in_proj(x.reshape(B, D)).view(1, B, 3, D)
        seen = torch.cat((state.tail.permute(3, 1, 0, 2), projected))  # (M, B, 3, D)
        if state.short is None:
            weight, bias = self._short_filters()
            dtype = self.filter_fn.dtype
            # contiguous along D: a product with the parameter as it lies takes ten times as long
            taps = weight.permute(2, 0, 1)[:, None].to(dtype, copy=True, memory_format=torch.contiguous_format)
            state.short = taps, bias.to(dtype)
        taps, bias = state.short
        gate, x1, v = (seen * taps).sum(0).add_(bias).unbind(1)
        state.tail = seen[1:].permute(2, 1, 3, 0)
        # rounded where the whole forward pass rounds
        u, gate = (x1 * v).to(seen.dtype), gate.to(seen.dtype)
        return state.conv.step(u, gate, self._filters(), ahead=ahead).to(seen.dtype)[:, None], state

    def _columns(self, x: Tensor) -> Tensor:
        """The projection of x (B, m, D): (3, B, D, m)."""
        B, m, D = x.shape
        return self.in_proj.columns(x.reshape(B * m, D)).view(3, D, B, m).transpose(1, 2)

    def _tail(self, projected: Tensor, state: HyenaState | None) -> Tensor:
        """The last M - 1 columns so far, in memory (M - 1, B, 3, D)."""
        seen = self.short_filter.kernel_size[0] - 1
        newest = projected[..., max(0, projected.shape[-1] - seen) :]
        if state is None:
            newest = F.pad(newest, (seen - newest.shape[-1], 0))
        else:
            newest = torch.cat([state.tail[..., newest.shape[-1] :], newest], dim=-1)
        return newest.permute(3, 1, 0, 2).clone(memory_format=torch.contiguous_format).permute(2, 1, 3, 0)

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
        return cast(Tensor, state.conv.left(L, self._filters()))  # there is a token

    def _filters(self) -> Filters:
        skip = self.filter_fn.bias.to(self.filter_fn.dtype)
        return Filters(self.filter_fn, partial(self.spectra.of, self.filter_fn), skip, self.filter_fn.length)

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
