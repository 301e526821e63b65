"""The Hyena operator of order 2: gated long convolutions between two projections."""

import torch
from torch import Tensor, nn

from hyenadna.kernels.fft_conv import fft_conv, fft_conv_spectrum, good_size
from hyenadna.kernels.short_conv import short_conv
from hyenadna.model.filter import HyenaFilter

_GROUP_ELEMENTS = 1 << 22
"""Inference walks the channels in groups whose working arrays hold about this many numbers: larger ones are mapped
and unmapped by the allocator at every call, which costs more than the arithmetic."""
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
        self._spectra: dict[int, Tensor] = {}
        self._spectra_stamp: tuple[tuple[int, int], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself and those before it."""
        B, L, D = x.shape
        rows = x.reshape(B * L, D).T  # (D, B L)
        y = self._mix_with_gradients(rows, B, L) if torch.is_grad_enabled() else self._mix(rows, B, L)
        return self.out_proj(y.reshape(D, B * L).T).view(B, L, D)

    def _mix_with_gradients(self, rows: Tensor, B: int, L: int) -> Tensor:
        x0, x1, v = self._projections(rows, B, L, slice(None))
        y = fft_conv(v, self.filter_fn(L), self.filter_fn.bias.to(self.filter_fn.dtype), x1, x0)
        return y.transpose(0, 1)  # (D, B, L)

    def _mix(self, rows: Tensor, B: int, L: int) -> Tensor:
        n = good_size(2 * L - 1)
        group = max(1, min(self.d_model, _GROUP_ELEMENTS // (B * n)))
        hidden = None
        spectra = self._kept_spectra(n)
        if spectra is None:
            hidden = self.filter_fn.hidden(min(n // 2, self.filter_fn.length))
        skip = self.filter_fn.bias.to(self.filter_fn.dtype)
        y: Tensor | None = None
        for first in range(0, self.d_model, group):
            channels = slice(first, min(first + group, self.d_model))
            x0, x1, v = self._projections(rows, B, L, channels)
            if hidden is not None:
                spectrum = torch.fft.rfft(self.filter_fn.taps(hidden, channels), n=n)
            else:
                assert spectra is not None
                spectrum = spectra[channels]
            part = fft_conv_spectrum(v, spectrum, skip[channels], x1, x0).transpose(0, 1)
            if group == self.d_model:
                return part
            y = part.new_empty(self.d_model, B, L) if y is None else y
            y[channels] = part
        assert y is not None
        return y

    def _projections(self, rows: Tensor, B: int, L: int, channels: slice) -> tuple[Tensor, ...]:
        # the three parts of each channel lie d_model rows apart
        def part(parameter: Tensor) -> Tensor:
            whole = parameter.view(3, self.d_model, *parameter.shape[1:])
            return whole[:, channels].flatten(0, 1)

        projected = torch.addmm(part(self.in_proj.bias)[:, None], part(self.in_proj.weight), rows)  # (3 D', B L)
        short = short_conv(
            projected.view(-1, B, L).transpose(0, 1),
            part(self.short_filter.weight).squeeze(1),
            part(self.short_filter.bias),  # type: ignore[arg-type]
        )
        return short.chunk(3, dim=1)  # each (B, D', L)

    def _kept_spectra(self, n: int) -> Tensor | None:
        """The filters' spectra of size n, computed once for the weights as they are; None if they are too large."""
        parameters = list(self.filter_fn.parameters())
        bytes_needed = self.d_model * (n // 2 + 1) * 2 * self.filter_fn.dtype.itemsize
        if bytes_needed > _SPECTRA_BYTES or any(parameter.is_inference() for parameter in parameters):
            return None
        stamp = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        if stamp != self._spectra_stamp:
            self._spectra, self._spectra_stamp = {}, stamp
        if n not in self._spectra:
            while self._spectra and bytes_needed + sum(s.nbytes for s in self._spectra.values()) > _SPECTRA_BYTES:
                del self._spectra[next(iter(self._spectra))]
            self._spectra[n] = torch.fft.rfft(self.filter_fn(min(n // 2, self.filter_fn.length)), n=n)
        return self._spectra[n]
