"""The Hyena operator of order 2: gated long convolutions between two projections."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.kernels.fft_conv import fft_conv, fft_conv_spectrum, transform_of
from hyenadna.kernels.short_conv import gated_short_conv
from hyenadna.kernels.working_set import Workspace, channels_at_once
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.packed_linear import DenseLinear, Linear
from hyenadna.model.prefix import LayerState
from hyenadna.model.spectra import KeptSpectra


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

    def forward(self, x: Tensor, state: LayerState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself, those before it, and the prefix whose state is given."""
        B, L, D = x.shape
        rows = x.reshape(B * L, D)
        if self.training and torch.is_grad_enabled():
            self.spectra.forget(self.filter_fn)  # the weights will change, and training needs the memory
        with_gradients = torch.is_grad_enabled()
        mixed = self._mix_with_gradients(rows, B, L, state) if with_gradients else self.mix([rows], B, L, state=state)
        y: Tensor = self.out_proj(mixed.T)
        return y.view(B, L, D)

    def prefix(self, x: Tensor, L: int) -> tuple[Tensor, LayerState]:
        """What one row leaves for sequences of up to L tokens that follow it, and all but its output projection.

        The long convolution of the row, followed by L zeros: its first n positions are the row's own, gated, and the
        other L what the sequences find there.

        Parameters
        ----------
        x : Tensor (1, n, D)

        Returns
        -------
        Tensor (D, n), LayerState of one row
        """
        n, M = x.shape[1], self.short_filter.kernel_size[0]
        projected = self.in_proj.columns(x[0]).view(3, self.d_model, 1, n).transpose(1, 2)
        u, gate = gated_short_conv(projected, *self._short_filters())
        y = fft_conv(F.pad(u, (0, L)), self.filter_fn(n + L), self.filter_fn.bias.to(self.filter_fn.dtype))
        tail = F.pad(projected[..., max(0, n - M + 1) :], (max(0, M - 1 - n), 0))
        # a copy, so that the row's own positions need not be kept
        return (y[..., :n] * gate)[0], LayerState(tail, y[..., n:].contiguous())

    def _mix_with_gradients(self, rows: Tensor, B: int, L: int, state: LayerState | None) -> Tensor:
        projected = self.in_proj.columns(rows).view(3, self.d_model, B, L).transpose(1, 2)
        u, gate = self._gated(projected, slice(None), state)
        y = fft_conv(u, self.filter_fn(L), self.filter_fn.bias.to(self.filter_fn.dtype), None, gate)
        if state is not None:
            y = torch.addcmul(y, gate, state.carried[..., :L].to(y.dtype))
        return y.transpose(0, 1).reshape(self.d_model, B * L)

    def _gated(self, projected: Tensor, channels: slice, state: LayerState | None) -> tuple[Tensor, Tensor]:
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
        state: LayerState | None = None,
    ) -> Tensor:
        """All but the output projection, without gradients and in little memory.

        Parameters
        ----------
        blocks : iterable of Tensor (n, D)
            The B L positions of x in order, some at a time.
        workspace : Workspace, optional
            Holds the result until it is used again.
        state : LayerState, optional
            What a prefix left for this operator.

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
            if state is not None:
                source[0].addcmul_(gate, state.carried[:, channels, :L].to(gate.dtype))
        return projected[0].view(self.d_model, B * L)

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
