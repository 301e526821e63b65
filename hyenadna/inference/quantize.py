"""Half-quadratic quantisation (HQQ): few bits for the matrices of a model, without any data.

A group of weights is stored as integers q with one scale and one zero point,

    q = clip(round(W s + z), 0, 2^bits - 1),        W_r = (q - z) / s.

s spans the group from its least to its largest value; z is searched to make sum |W - W_r|^p small with p < 1, which
forgives outliers. Badri and Shaji 2023 split the problem by an auxiliary error E and alternate

    E <- sign(e) max(0, |e| - |e|^(p - 1) / beta)   with e = W - W_r,
    z <- mean over the group of q - (W - E) s,
    beta <- kappa beta,

until the mean absolute error of the whole matrix falls no more. Departs from their code: (1) what is returned is the
best zero point that was evaluated, of which the first is round-to-nearest, and not the one after it, so that the error
is never above that of rounding; (2) the last group of a row may be shorter; (3) the zero point of a group without
spread is not rounded at 4 bits, so that constant groups are exact.
"""

import dataclasses
from typing import Literal, cast

import torch
from torch import Tensor, nn

from hyenadna.errors import NotFiniteError, UsageError
from hyenadna.kernels.packed_weight import Bits
from hyenadna.machine import peak_memory
from hyenadna.model.config import Quantization
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import DenseLinear, PackedLinear
from hyenadna.model.weights import packed_model
from hyenadna.progress import Job

ITERATIONS = 20
_NORM, _BETA, _KAPPA = 0.7, 10.0, 1.01
_LEAST_SPREAD = 1e-4
"""A group that spans no more counts as constant: its scale is 1."""
_LARGEST_INVERSE_SCALE = 2e4
"""So that half precision holds the scale, which it does down to 6e-8, with ten bits and more."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """A matrix in few bits."""

    codes: Tensor
    """uint8 (R, K): q."""
    scale: Tensor
    """float32 (R, G), or (G, K) for groups down the columns: 1 / s."""
    zero: Tensor
    """float32, of the same shape: z; no integer in general."""
    group: int
    """Weights of a group; the last one of a row or column may be shorter."""
    axis: int
    """1: groups lie along the rows; 0: down the columns."""
    error: float
    """Mean of |W - W_r| over the matrix, before scale and zero are rounded to be stored."""
    error_of_rounding: float
    """The same of round-to-nearest, with the zero point from which the search began; never less than `error`."""

    def dequantized(self) -> Tensor:
        """W_r = (q - z) / s: float32 (R, K)."""
        counts = torch.full((self.scale.shape[self.axis],), self.group, device=self.codes.device)
        counts[-1] = self.codes.shape[self.axis] - self.group * (len(counts) - 1)
        scale, zero = (part.repeat_interleave(counts, dim=self.axis) for part in (self.scale, self.zero))
        return (self.codes - zero) * scale


def solve(
    weight: Tensor,
    *,
    bits: int,
    group: int = 64,
    axis: int = 1,
    norm: float = _NORM,
    beta: float = _BETA,
    kappa: float = _KAPPA,
    iterations: int = ITERATIONS,
    name: str = "the matrix",
) -> Solution:
    """Codes, scale and zero point of a matrix; the equations stand at the top of this file.

    Parameters
    ----------
    weight : Tensor (R, K)
        On any device, in any floating-point dtype; computed in float32.
    bits : int
        Of a code, 1 to 8.
    group : int
        Weights that share a scale and a zero point.
    axis : {1, 0}
        Whether groups lie along the rows or down the columns.
    norm, beta, kappa, iterations
        p, the first beta, its growth, and how many zero points are evaluated; 1 is round-to-nearest.
    name : str
        What messages call the matrix.

    Raises
    ------
    UsageError              bits, group, axis or iterations that do not exist or fit
    NotFiniteError          a weight is NaN or infinite, or a group spans more than float32 holds

    Examples
    --------
    >>> solution = solve(torch.tensor([[0.0, 1.0, 2.0, 3.0, 5.0, 5.0]]), bits=2, group=4)
    >>> solution.codes.tolist(), solution.scale.tolist()
    ([[0, 1, 2, 3, 0, 0]], [[1.0, 1.0]])
    """
    if weight.dim() != 2 or axis not in (0, 1) or not 1 <= bits <= 8 or iterations < 1:
        raise UsageError(
            f"{name}, of shape {tuple(weight.shape)}, was to be quantised to {bits} bits along axis {axis} in "
            f"{iterations} iterations; it takes a matrix, 1 to 8 bits, axis 0 or 1, and an iteration or more"
        )
    along = weight.shape[axis]
    if not 1 <= group <= along:
        raise UsageError(f"{name} has {along} weights along a group's direction; groups of {group} do not fit into it")
    matrix = weight.detach().float() if axis == 1 else weight.detach().float().T
    search = _Search(matrix, bits, group, norm)
    if not search.is_finite:
        raise NotFiniteError(f"{name} holds weights that are not finite, or too large for float32; is the model whole?")
    best = first = search.error_at(search.zero)
    for _ in range(iterations - 1):
        zero = search.improved(beta)
        beta *= kappa
        error = search.error_at(zero)
        if not error < best:
            break
        best, search.zero = error, zero
    codes = search.codes()
    parts = (codes, 1 / search.inverse_scale[..., 0], search.zero[..., 0])
    codes, scale, zero = (part if axis == 1 else part.T.contiguous() for part in parts)
    return Solution(codes, scale, zero, group, axis, best, first)


class _Search:
    """A matrix (R, K) in groups (R, G, g), and the error of zero points (R, G, 1).

    Attributes
    ----------
    zero : Tensor (R, G, 1)     the best zero point so far
    is_finite : bool            whether all weights are, and what their groups span
    """

    def __init__(self, matrix: Tensor, bits: int, group: int, norm: float) -> None:
        self.R, self.K = matrix.shape
        self.largest, self.norm = 2**bits - 1, norm
        G = -(-self.K // group)
        self.lacking = G * group - self.K
        if self.lacking:  # filled up with values of the last group, which change neither its least nor its largest
            matrix = torch.cat([matrix, matrix[:, -1:].expand(-1, self.lacking)], dim=1)
        self.weight = matrix.reshape(self.R, G, group)
        self.counts = torch.full((G, 1), group, device=matrix.device)
        self.counts[-1] -= self.lacking
        low, high = self.weight.aminmax(dim=-1, keepdim=True)
        spread = high - low  # NaN or infinite if a weight is
        self.is_finite = bool(torch.isfinite(spread).all())
        flat = spread <= _LEAST_SPREAD
        self.inverse_scale = torch.where(flat, 1.0, self.largest / spread).clamp_(max=_LARGEST_INVERSE_SCALE)
        self.scaled = self.weight * self.inverse_scale
        zero = -low * self.inverse_scale
        self.zero = torch.where(flat, zero, zero.round()) if bits == 4 else zero

    def error_at(self, zero: Tensor) -> float:
        """Mean absolute error of the matrix; keeps codes and errors for `improved`."""
        self._codes = self._rounded(zero)
        self._error = self.weight - (self._codes - zero) / self.inverse_scale
        return float(self._sum(self._error.abs()).double().sum()) / (self.R * self.K)

    def improved(self, beta: float) -> Tensor:
        """The zero point that follows from the one whose error was taken last; (R, G, 1)."""
        size = self._error.abs()
        # below this size the shrunk error is 0, as it is everywhere in most matrices: then no power need be taken
        if size.max() <= beta ** (-1 / (2 - self.norm)):
            return self._sum(self._codes - self.scaled) / self.counts
        # e max(0, 1 - |e|^(p - 2) / beta), which is E, in the memory of |e|
        shrunk = size.pow_(self.norm - 2).mul_(-1 / beta).add_(1).clamp_(min=0).mul_(self._error)
        return self._sum(shrunk.mul_(self.inverse_scale).add_(self._codes).sub_(self.scaled)) / self.counts

    def codes(self) -> Tensor:
        """The codes at the best zero point: uint8 (R, K)."""
        return self._rounded(self.zero).view(self.R, -1)[:, : self.K].to(torch.uint8).contiguous()

    def _rounded(self, zero: Tensor) -> Tensor:
        return (self.scaled + zero).round_().clamp_(0, self.largest)

    def _sum(self, values: Tensor) -> Tensor:
        """Over each group; values (R, G, g), which are overwritten where the last group lacks weights."""
        if self.lacking:
            values[:, -1, -self.lacking :] = 0
        return values.sum(dim=-1, keepdim=True)


def quantize(
    model: HyenaDNA, *, bits: Bits, group: int = 64, meta_bits: Literal[8, 16] = 8, job: Job | None = None
) -> HyenaDNA:
    """The quantised child of a dense model: the matrices of its blocks in few bits, all else as it was.

    Quantised are the projections of the mixers and of the feed-forward layers (`QUANTIZED`); never embeddings, norms,
    biases, routers, filter networks and short filters, which are small and through which everything goes. After scales
    and zero points have been rounded to what is stored, each code is chosen again, as the nearest one on that grid.

    Parameters
    ----------
    model : HyenaDNA
        In float32 or float64, on any device; stays as it is.
    bits, group, meta_bits
        As in `Quantization`.
    job : Job, optional
        Told of the weights that are done.

    Raises
    ------
    UsageError              the model is quantised already, or in half precision; or a setting that is not allowed, or
                            a group larger than a row of a matrix
    NotFiniteError          a matrix holds weights that are not finite, or that float16 scales cannot reach
    """
    setting = Quantization(bits, group, meta_bits)
    check_setting(model, setting)
    layers = {}
    for name, dense in model.projections.items():
        layers[name] = packed(name, cast(DenseLinear, dense), setting)
        if job is not None:
            job.advance(cast(DenseLinear, dense).weight.numel(), f"{peak_memory() / 1e9:.2f} GB")
    return packed_model(model, layers, setting)


def check_setting(model: HyenaDNA, setting: Quantization) -> None:
    """Nothing, if the model can be quantised so.

    Raises
    ------
    UsageError              it is quantised already, or its smallest matrix has rows shorter than a group
    """
    if model.quantization is not None:
        raise UsageError(f"the model is quantised already, to {model.quantization.bits} bits; take its parent")
    name, smallest = min(model.projections.items(), key=lambda item: item[1].in_features)
    if setting.group > smallest.in_features:
        raise UsageError(
            f"groups of {setting.group} weights do not fit into {name}, whose rows have {smallest.in_features}; "
            f"take groups of at most {smallest.in_features}"
        )


def packed(name: str, dense: nn.Linear, setting: Quantization) -> PackedLinear:
    """The packed layer of a dense one, as `quantize` makes it of every matrix; `name` is what messages call it.

    Raises
    ------
    UsageError, NotFiniteError      as in `quantize`
    """
    found = solve(dense.weight, bits=setting.bits, group=setting.group, name=name)
    try:
        layer = _layer(found.codes, found, dense, setting)
    except NotFiniteError as error:
        raise NotFiniteError(f"{name}: {error}") from error
    scale, zero = (part.float().repeat_interleave(found.group, dim=1) for part in layer.scale_and_zero())
    columns = dense.in_features
    nearest = (dense.weight.detach().float() / scale[:, :columns] + zero[:, :columns]).round_()
    return _layer(nearest.clamp_(0, 2**setting.bits - 1).to(torch.uint8), found, dense, setting)


def _layer(codes: Tensor, found: Solution, dense: nn.Linear, setting: Quantization) -> PackedLinear:
    return PackedLinear.of(
        codes, found.scale, found.zero, bits=setting.bits, group=setting.group, meta_bits=setting.meta_bits,
        bias=dense.bias,
    )  # fmt: skip
