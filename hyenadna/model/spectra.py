"""The spectra of the long filters, kept between the calls of a model that does not learn."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hyenadna.kernels.fft_conv import Transform, filter_spectrum
from hyenadna.kernels.working_set import channels_at_once, spectra_bytes
from hyenadna.model.filter import HyenaFilter

Spectra = Callable[[slice], Tensor]
"""From channels to the spectra of their filters, as `fft_conv_spectrum` takes them."""


class Kept(NamedTuple):
    """The spectra of one operator's filters under one transform."""

    weights: Tensor
    """What they were made of."""
    spectra: Tensor


class KeptSpectra:
    """What the operators of one model keep of their filters' spectra, within `spectra_bytes`.

    New spectra displace those of other transforms, the longest unused first, and never those of the same: where the
    layers of a model do not all fit, some are kept and the others made anew at every call. Once weights have changed,
    what was made of them goes at every length. A copy begins with none.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[HyenaFilter, Transform], Kept] = {}

    def __reduce__(self) -> tuple[type["KeptSpectra"], tuple[()]]:
        return KeptSpectra, ()

    def of(self, long_filter: HyenaFilter, transform: Transform) -> Spectra:
        """The spectra of the filters as their weights are now."""
        # compared by value: torch counts no change that is made through .data
        weights = torch.cat([parameter.detach().flatten() for parameter in long_filter.parameters()])
        kept = self.kept.pop((long_filter, transform), None)
        if kept is None or not _same(kept.weights, weights):
            del kept  # before others are made
            self.forget(long_filter, unless_of=weights)
            compute = _computed(long_filter, transform)
            if not self._make_room(long_filter, transform):
                return compute
            kept = Kept(weights, _of_all_channels(compute, long_filter, transform))
        self.kept[long_filter, transform] = kept
        return kept.spectra.__getitem__

    def forget(self, long_filter: HyenaFilter, *, unless_of: Tensor | None = None) -> None:
        """Drop what is kept of the filters, but for what was made of the weights `unless_of`."""
        for key, kept in list(self.kept.items()):
            if key[0] is long_filter and (unless_of is None or not _same(kept.weights, unless_of)):
                self.kept.pop(key, None)

    def _make_room(self, long_filter: HyenaFilter, transform: Transform) -> bool:
        """Whether there is room for the spectra, if need be after others were dropped."""
        room = spectra_bytes(long_filter.bias.device) - _nbytes(long_filter, transform)
        sizes = {key: kept.spectra.nbytes for key, kept in list(self.kept.items())}
        if sum(size for (_, other), size in sizes.items() if other == transform) > room:
            return False
        in_use = sum(sizes.values())
        for key, size in sizes.items():
            if in_use > room and key[1] != transform:
                self.kept.pop(key, None)
                in_use -= size
        return True


def _computed(long_filter: HyenaFilter, transform: Transform) -> Spectra:
    taps = min(transform.taps, long_filter.length)
    if transform.backend == "triton":
        h = long_filter(taps)  # by its kernel, which needs no hidden layer in memory
        return lambda channels: filter_spectrum(h[channels], transform)
    hidden = long_filter.hidden(taps)
    return lambda channels: filter_spectrum(long_filter.taps(hidden, channels), transform)


def _of_all_channels(compute: Spectra, long_filter: HyenaFilter, transform: Transform) -> Tensor:
    step = channels_at_once(long_filter.bias.device, transform.size)
    first = compute(slice(0, step))
    spectra = first.new_empty(len(long_filter.bias), *first.shape[1:])
    spectra[:step] = first
    for start in range(step, len(long_filter.bias), step):
        spectra[start : start + step] = compute(slice(start, start + step))
    return spectra


def _nbytes(long_filter: HyenaFilter, transform: Transform) -> int:
    # torch's transform of real numbers gives both ends; ours has as many numbers as taps
    numbers = transform.size // 2 + 1 if transform.backend == "torch" else transform.taps
    return 2 * len(long_filter.bias) * numbers * long_filter.dtype.itemsize


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) == (b.dtype, b.device) and a.equal(b)
