"""The causal long convolution of an input that comes a few positions at a time, as in generation.

    y[b, d, t] = gate[b, d, t] (skip[d] u[b, d, t] + sum over s <= t of h[d, t - s] u[b, d, s])

Exact, in O(L log^2 L) for L positions one by one, without knowing L. Three kinds of terms, by how far s lies behind t:

    past      Inputs before an epoch. What they give to the next `reach` positions is `carried`, made by one transform.
              When it is used up the epoch's own inputs join the past, and the next epoch is as long as all before it.
    tiles     Inputs of the epoch, of an earlier block of 32 positions. Positions count from the epoch's beginning.
              Before i, a multiple of 32, and with U the largest power of two that divides i, the inputs [i - U, i) are
              added through the taps 1 ... 2 U - 1 to the outputs [i, i + U), by transforms of 2 U points. So an input
              and an output of different blocks meet in one tile: that of the largest aligned halves that part them.
    block     Inputs of the same block: each is added to all later outputs of the block as it comes, by 32 taps at most.

The relaxed tiling of Flash Inference (Oncescu et al. 2024, arXiv 2410.12982) with what FutureFill (Agarwal et al. 2024,
arXiv 2410.03766) does for a prompt. Departs from the first: (1) epochs, so that no length has to be known and an input
that all items of a batch share is convolved once for all of them; (2) blocks of 32 instead of tiles of 1 to 16, which
cost as many calls and more arithmetic, of no weight here.

A position costs 16 D multiply-adds in its block and of the order of D log^2 L by transforms. In memory, where the end
is not known, are at most two numbers for each position and channel so far: the inputs, what they carry to the rest of
the epoch, and the buffer, in which the epoch's inputs lie and behind them its outputs as far as they are known. float32
or float64; half-precision inputs are convolved in float32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.kernels.fft_conv import Transform, fft_conv, fft_conv_spectrum, good_size, transform_of
from hyenadna.kernels.working_set import channels_at_once

BLOCK = 32
"""Positions whose inputs are added to each other's outputs one by one."""
_SHORTEST_EPOCH = 64


class Filters(NamedTuple):
    """D long filters, as far as they are asked for."""

    taps: Callable[[int], Tensor]
    """The first n taps, (D, n); float32 or float64."""
    spectra: Callable[[Transform], Callable[[slice], Tensor]]
    """`filter_spectrum` of the first transform.taps taps, of any channels; without gradients."""
    skip: Tensor
    """(D,): gain of the direct path, in the taps' dtype."""
    longest: int
    """Taps that there are, and so positions."""


class OnlineConv:
    """A convolution up to some position, and all that it needs to go on; going on changes it.

    Parameters
    ----------
    past : sequence of Tensor (rows, D, n)
        The inputs so far, in order, of any floating dtype. What has one row belongs to all rows.
    carried : Tensor (rows, D, r), optional
        What these give to the next r positions, in the filters' dtype; without it, it is made when it is needed.

    Attributes
    ----------
    past, carried
        As given, and so until the next epoch begins; never written, and so shared by branches.
    buffer : Tensor (n, B, D) or None
        The epoch's inputs, and behind them its outputs as far as they are known: the one tensor that is written.
    used : int
        The epoch's inputs.
    reach : int
        Positions of the epoch, at most.
    """

    def __init__(self, past: Sequence[Tensor] = (), carried: Tensor | None = None) -> None:
        self.past, self.carried = tuple(past), carried
        self.reach = 0 if carried is None else carried.shape[-1]
        self.used = 0
        self.near: Tensor | None = None  # (BLOCK, 1, D): the first taps, the skip among them
        self.buffer: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions so far."""
        return sum(part.shape[-1] for part in self.past) + self.used

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, those that branches share among them."""
        return sum(int(x.nbytes) for x in (*self.past, self.carried, self.near, self.buffer) if x is not None)

    def branch(self, rows: Tensor | None = None) -> "OnlineConv":
        """A copy that goes on by itself, of these rows in this order: int64 (n,), repeats allowed; None is all."""

        def taken(x: Tensor) -> Tensor:
            return x if rows is None or len(x) == 1 else x.index_select(0, rows)

        other = OnlineConv([taken(part) for part in self.past], None if self.carried is None else taken(self.carried))
        other.reach, other.used, other.near = self.reach, self.used, self.near
        if self.buffer is not None:
            other.buffer = self.buffer.clone() if rows is None else self.buffer.index_select(1, rows)
        return other

    def left(self, L: int, filters: Filters) -> Tensor | None:
        """What all inputs so far give to the next L positions, (rows, D, L), ungated; None if there are no inputs.

        Differentiable when grad is enabled.
        """
        if self.used == 0 and self.carried is not None and self.reach >= L:
            return self.carried[..., :L]
        behind, total = self.length, None
        for part in self.inputs(filters.skip.dtype):
            given = _left_with_gradients if torch.is_grad_enabled() else _left
            y = given(part, behind, L, filters)
            total = y if total is None else total + y
            behind -= part.shape[-1]
        return total

    def extend(self, u: Tensor, gate: Tensor, filters: Filters, *, ahead: int = 0) -> Tensor:
        """Go on by some positions, without gradients.

        Parameters
        ----------
        u, gate : Tensor (B, D, m)
            B as before, or anything while what was given has one row.
        filters : Filters
            The same at every call.
        ahead : int
            Positions that are known to follow; the next epoch is made no shorter.

        Returns
        -------
        Tensor (B, D, m)            in u's dtype
        """
        y, first = torch.empty_like(u), 0
        while first < u.shape[-1]:
            n = self._piece(u.shape[-1] - first, ahead, filters)
            here = slice(first, first + n)
            if n >= BLOCK:
                y[..., here] = self._blocks(u[..., here], gate[..., here], filters)
            else:
                for t in range(first, first + n):
                    y[..., t] = self.step(u[..., t], gate[..., t], filters)
            first += n
        return y

    def step(self, u: Tensor, gate: Tensor, filters: Filters, *, ahead: int = 0) -> Tensor:
        """`extend` by one position: u and gate (B, D) -> (B, D), in the filters' dtype or a wider one of gate's."""
        if self.used == self.reach:
            self._begin_epoch(1, ahead, filters)
        i = self.used
        if i % BLOCK == 0:
            self._open(len(u), BLOCK, filters)
        assert self.buffer is not None and self.near is not None  # of the open block
        later = self.buffer[i : i - i % BLOCK + BLOCK]
        later.addcmul_(u, self.near[: len(later)])
        here = later[0]
        y = here * gate
        here.copy_(u)
        self.used = i + 1
        return y

    def _piece(self, known: int, ahead: int, filters: Filters) -> int:
        """How many of the known positions go together: whole blocks, a power of two of them as tiles are, or fewer."""
        if self.used == self.reach:
            self._begin_epoch(known, ahead, filters)
        i, n = self.used, min(known, self.reach - self.used)
        if i % BLOCK or n < BLOCK:
            return min(n, BLOCK - i % BLOCK)
        largest = 1 << (n.bit_length() - 1)
        return min(largest, i & -i) if i else largest

    def _blocks(self, u: Tensor, gate: Tensor, filters: Filters) -> Tensor:
        """One position and those after it at once, (B, D, n), where n divides the position: no tile parts them."""
        i, (B, _, n) = self.used, u.shape
        self._open(B, n, filters)
        assert self.buffer is not None
        here, dtype = self.buffer[i : i + n], self.buffer.dtype
        u, gate = u.to(dtype), gate.to(dtype)
        transform = transform_of(n, u)
        y = fft_conv_spectrum(u, filters.spectra(transform)(slice(None)), filters.skip, None, gate, transform)
        y.addcmul_(gate, here.permute(1, 2, 0))
        here.copy_(u.permute(2, 0, 1))
        self.used = i + n
        return y

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """All inputs so far, in order; neighbours of as many rows are joined, in the past's dtype if there is one."""
        parts = list(self.past)
        if self.used:
            assert self.buffer is not None
            recent = self.buffer[: self.used].permute(1, 2, 0)
            parts.append(recent.to(parts[0].dtype if parts else dtype).contiguous())
        joined: list[list[Tensor]] = []
        for part in parts:
            if joined and len(joined[-1][0]) == len(part):
                joined[-1].append(part)
            else:
                joined.append([part])
        return [group[0] if len(group) == 1 else torch.cat(group, dim=-1) for group in joined]

    def _begin_epoch(self, known: int, ahead: int, filters: Filters) -> None:
        """Make what the past carries to the positions that are known to come, and to as many as there were."""
        length = self.length
        # never much shorter than the past, which would then be transformed too often: who knows of a token may not know
        # of the next
        reach = max(known, min(max(known + ahead, length, _SHORTEST_EPOCH), filters.longest - length))
        self.past = tuple(self.inputs(filters.skip.dtype))
        self.used, self.buffer, self.carried = 0, None, None
        self.carried = self.left(reach, filters)
        self.reach = reach

    def _open(self, B: int, n: int, filters: Filters) -> None:
        """Add to the next n outputs all that comes of inputs before them."""
        i, skip = self.used, filters.skip
        if self.near is None:
            self.near = (
                filters.taps(min(BLOCK, filters.longest)).T[:, None].clone(memory_format=torch.contiguous_format)
            )
            self.near[0] += skip
        n, U = min(n, self.reach - i), i & -i
        end = min(i + max(n, U), self.reach)
        if self.buffer is None or len(self.buffer) < end:
            buffer = skip.new_zeros(min(1 << (end - 1).bit_length(), self.reach), B, len(skip))
            if self.buffer is not None:
                buffer[: len(self.buffer)] = self.buffer
            self.buffer = buffer
        if U:
            _add_tile(self.buffer[i - U : i], self.buffer[i : min(i + U, self.reach)], filters)
        if self.carried is not None:
            self.buffer[i : i + n] += self.carried[..., i : i + n].permute(2, 0, 1)


def _add_tile(inputs: Tensor, outputs: Tensor, filters: Filters) -> None:
    """Add what inputs (U, B, D) give to the outputs (up to U, B, D) right behind them."""
    U, B, D = inputs.shape
    # what the cyclic product wraps around falls before the outputs
    spectra = filters.spectra(Transform("torch", 2 * U, 2 * U))
    group = channels_at_once(inputs.device, 2 * U * B)
    for first in range(0, D, group):
        channels = slice(first, first + group)
        spectrum = torch.fft.rfft(inputs[..., channels].permute(1, 2, 0), n=2 * U)
        y = torch.fft.irfft(spectrum.mul_(spectra(channels)), n=2 * U)
        outputs[..., channels] += y[..., U : U + len(outputs)].permute(2, 0, 1)


def _left(part: Tensor, behind: int, L: int, filters: Filters) -> Tensor:
    """What inputs (rows, D, n), the first of them `behind` positions ago, give to the next L positions."""
    rows, D, _ = part.shape
    size = good_size(behind + L)
    spectra = filters.spectra(Transform("torch", size, size))
    out = filters.skip.new_empty(rows, D, L)
    group = channels_at_once(part.device, rows * size)
    for first in range(0, D, group):
        channels = slice(first, first + group)
        spectrum = torch.fft.rfft(part[:, channels].to(out.dtype), n=size)
        y = torch.fft.irfft(spectrum.mul_(spectra(channels)), n=size)
        out[:, channels] = y[..., behind : behind + L]
    return out


def _left_with_gradients(part: Tensor, behind: int, L: int, filters: Filters) -> Tensor:
    padded = F.pad(part.to(filters.skip.dtype), (0, behind + L - part.shape[-1]))
    y = fft_conv(padded, filters.taps(behind + L), torch.zeros_like(filters.skip))
    return y[..., behind:].contiguous()
