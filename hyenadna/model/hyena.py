"""The Hyena operator of order 2: gated long convolutions between two projections."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from hyenadna.kernels.fft_conv import Transform, fft_conv, fft_conv_spectrum, filter_spectrum, transform_of
from hyenadna.kernels.short_conv import gated_short_conv, short_conv
from hyenadna.kernels.working_set import channels_at_once
from hyenadna.model.filter import HyenaFilter

_SPECTRA_BYTES = 128 << 20
"""What each operator may keep of its filters' spectra between calls."""


class HyenaOperator(nn.Module):
    """Mixes along the sequence: x0 * (h conv (x1 * v) + bias x1 * v), where x0, x1, v are short convolutions of x.

    Poli et al. 2023, eq. 4 with N = 2. Between the projections the layout is (D, B, L), so that both are plain matrix
    products and no transposed copy is made.
    """

    def __init__(self, d_model: int, long_filter: HyenaFilter, *, short_filter_taps: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.short_filter = nn.Conv1d(3 * d_model, 3 * d_model, short_filter_taps, groups=3 * d_model)
        self.filter_fn = long_filter
        self._spectra: dict[Transform, Tensor] = {}
        self._spectra_weights: Tensor | None = None  # what the kept spectra were made of

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself and those before it."""
        B, L, D = x.shape
        rows = x.reshape(B * L, D)
        mixed = self._mix_with_gradients(rows, B, L) if torch.is_grad_enabled() else self.mix([rows], B, L)
        y: Tensor = self.out_proj(mixed.T)
        return y.view(B, L, D)

    def _mix_with_gradients(self, rows: Tensor, B: int, L: int) -> Tensor:
        projected = self._project(rows).view(3, self.d_model, B, L).transpose(1, 2)
        weight = self.short_filter.weight.view(3, self.d_model, -1)
        bias = cast(Tensor, self.short_filter.bias).view(3, self.d_model)
        u, gate = gated_short_conv(projected, weight, bias)
        y = fft_conv(u, self.filter_fn(L), self.filter_fn.bias.to(self.filter_fn.dtype), None, gate)
        return y.transpose(0, 1).reshape(self.d_model, B * L)

    def mix(self, blocks: Iterable[Tensor], B: int, L: int) -> Tensor:
        """All but the output projection, without gradients and in little memory.

        Parameters
        ----------
        blocks : iterable of Tensor (n, D)
            The B L positions of x in order, some at a time.

        Returns
        -------
        Tensor (D, B L)
        """
        projected: Tensor = self._projected(blocks, B * L).view(3, self.d_model, B, L)
        transform = transform_of(L, projected)
        group = channels_at_once(projected.device, B * transform.size)
        spectra = self._spectra_of(transform)
        skip = self.filter_fn.bias.to(self.filter_fn.dtype)
        weight = self.short_filter.weight.view(3, self.d_model, -1)
        bias = cast(Tensor, self.short_filter.bias).view(3, self.d_model)
        for first in range(0, self.d_model, group):
            channels = slice(first, first + group)
            source = projected[:, channels].transpose(1, 2)  # (3, B, D', L)
            x0, x1, v = (short_conv(source[i], weight[i, channels], bias[i, channels]) for i in range(3))
            # what x0 was made from is not needed any more
            fft_conv_spectrum(v, spectra(channels), skip[channels], x1, x0, transform, out=source[0])
        return projected[0].view(self.d_model, B * L)

    def _projected(self, blocks: Iterable[Tensor], rows: int) -> Tensor:
        """The input projection, transposed: (3 D, B L)."""
        projected: Tensor | None = None
        first = 0
        for block in blocks:
            columns = self._project(block)
            if projected is None:
                projected = columns.new_empty(3 * self.d_model, rows)
            projected[:, first : first + len(block)] = columns
            first += len(block)
        assert projected is not None  # there is at least one position
        return projected

    def _project(self, rows: Tensor) -> Tensor:
        # as a product from the left: (3 D, n) as it is used, and not (n, 3 D), which would have to be transposed
        return torch.addmm(self.in_proj.bias[:, None], self.in_proj.weight, rows.T)

    def _spectra_of(self, transform: Transform) -> Callable[[slice], Tensor]:
        """The spectra of any channels' filters: kept ones, or made from the filters' hidden layer."""
        kept = self._kept_spectra(transform)
        if kept is not None:
            return kept.__getitem__
        hidden = self.filter_fn.hidden(min(transform.taps, self.filter_fn.length))
        return lambda channels: filter_spectrum(self.filter_fn.taps(hidden, channels), transform)

    def _kept_spectra(self, transform: Transform) -> Tensor | None:
        """The filters' spectra, computed once for the weights as they are; None if they are too large."""
        bytes_needed = 2 * self.d_model * transform.taps * self.filter_fn.dtype.itemsize
        if bytes_needed > _SPECTRA_BYTES:
            return None
        # compared by value: torch counts no change that is made through .data
        weights = torch.cat([parameter.detach().flatten() for parameter in self.filter_fn.parameters()])
        kept = self._spectra_weights
        if kept is None or (kept.dtype, kept.device) != (weights.dtype, weights.device) or not kept.equal(weights):
            self._spectra, self._spectra_weights = {}, weights
        if transform not in self._spectra:
            while self._spectra and bytes_needed + sum(s.nbytes for s in self._spectra.values()) > _SPECTRA_BYTES:
                del self._spectra[next(iter(self._spectra))]
            h = self.filter_fn(min(transform.taps, self.filter_fn.length))
            self._spectra[transform] = filter_spectrum(h, transform)
        return self._spectra[transform]
