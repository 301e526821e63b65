"""What quantisation costs: a dense model and quantised ones of it read the very same held-out sequence.

Bits per base are those of `evaluate`: probabilities renormalised over A, C, G, T, both strands, windows scored in their
second half. Differences are paired, base by base, and their interval is from a bootstrap over 10-kb blocks of the
genome. Besides that: the angle between the embeddings of a window (means of the last hidden states), the error of what
each block gives, that of each matrix, and the order of substitutions: how much less or more likely a sequence becomes
by random single-base changes, ranked by either model.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import PAD, encode
from hyenadna.errors import InputError, NotFiniteError, UsageError
from hyenadna.inference.block_sums import BLOCK
from hyenadna.inference.bootstrap import Bootstrap, Estimate
from hyenadna.inference.evaluate import base_bits
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.inference.random_changes import random_substitutions
from hyenadna.inference.variants import unit_ratios
from hyenadna.inference.windows import Window, WindowPlan
from hyenadna.machine import peak_memory
from hyenadna.model.config import Quantization
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import DenseLinear, PackedLinear, bits_per_weight
from hyenadna.model.weights import stored
from hyenadna.progress import Job, progress


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The sequence that is read."""

    pack: Pack
    intervals: Sequence[Interval]
    length: int
    """Bases of a window."""
    tokens: int
    """About how many tokens each model reads for bits per base, and again for substitutions; evenly spread."""

    def windows(self) -> WindowPlan:
        """The windows for bits per base.

        Raises
        ------
        IntervalError           no interval holds a window
        """
        # a window of L tokens scores L / 2 bases of one strand
        return WindowPlan(self.intervals, self.length, max(1, self.tokens // 4))


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix, before and after."""

    name: str
    shape: tuple[int, int]
    bytes_dense: int
    """In float32."""
    bytes_packed: int
    """Of codes, scales and zero points."""
    relative_error: float
    """Root of the sum of squared differences over that of squared weights."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one setting saves and costs, beside the dense model on the same bases."""

    setting: Quantization
    bytes: int
    """Of all tensors of the model, quantised or not."""
    bits_per_weight: float
    """Of the quantised matrices, from the bytes that they take."""
    matrices: tuple[Matrix, ...]
    bits_per_base: Estimate
    loss: Estimate
    """Bits per base more than the dense model; below zero, the quantised one is better."""
    cosine: float
    """Of a window's embedding by the dense and by the quantised model; the mean over windows."""
    worst_cosine: float
    substitutions: float
    """Spearman's correlation of the log-likelihood ratios; NaN if no window was without N."""
    blocks: tuple[float, ...]
    """Relative error of what each block gives, as of a matrix."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """The dense model, and what each setting of it costs."""

    bytes: int
    """Of all tensors of the dense model."""
    bits_per_base: Estimate
    bases: int
    """Scored, each strand's counted."""
    windows: int
    genome_blocks: int
    """Blocks of 10 kb that the bootstrap draws from."""
    changes: int
    """Substitutions that were ranked."""
    of: tuple[Cost, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return dataclasses.asdict(self)


def measure(
    dense: HyenaDNA, quantised: Sequence[HyenaDNA], held_out: HeldOut, *, seed: int = 0, batch_tokens: int = 1 << 13
) -> Costs:
    """What each of the quantised models costs.

    Parameters
    ----------
    dense : HyenaDNA
        The parent.
    quantised : HyenaDNA, ...
        Its children, on the same device.
    held_out : HeldOut
        What they read.
    seed : int
        Of the random substitutions.
    batch_tokens : int
        Tokens of a batch of windows, at least one; changes speed and memory, not the result.

    Raises
    ------
    IntervalError           no interval holds a window
    InputError              there is no A, C, G or T to score
    NotFiniteError          a model gives something that is not a number
    """
    models = [dense, *quantised]
    plan = held_out.windows()
    units = list(random_substitutions(held_out.pack, held_out.intervals, held_out.length, held_out.tokens, seed))
    total = len(models) * (len(plan) * held_out.length + sum(unit.tokens for unit in units))
    windows, ratios = _Windows(len(models), dense.config.n_layer), []
    with torch.inference_mode(), ExitStack() as stack, progress("measuring", total) as job:
        for model in models:
            stack.enter_context(_evaluating(model))
        for batch in _batches(plan, held_out.pack, dense.config.n_token, batch_tokens):
            windows.add(_read(models, batch, plan.context, job))
        for unit in units:
            ratios.append(np.stack([unit_ratios(model, unit) for model in models]))
            job.advance(len(models) * unit.tokens, f"{peak_memory() / 1e9:.2f} GB")
    ranked = np.concatenate(ratios, axis=1) if ratios else np.zeros((len(models), 0))
    return windows.costs(dense, quantised, ranked)


class _Batch(NamedTuple):
    """Windows side by side."""

    windows: list[Window]
    tokens: Tensor
    """(B, L), right-padded."""
    code: Tensor
    """(B, L): 0 to 3, or `NO_BASE`, also where there is nothing."""


class _Readings(NamedTuple):
    """What all models, the dense one first, said of a batch."""

    windows: list[Window]
    sums: NDArray[np.float64]
    """(B, 1 + models): bases scored in each window, and bits of each model on them."""
    cosines: NDArray[np.float64]
    """(models - 1, B)."""
    squares: NDArray[np.float64]
    """(models, blocks): sums of squared hidden states of the dense model, and of the others' differences from it."""


def _batches(plan: WindowPlan, pack: Pack, n_token: Literal["n", "pad"], batch_tokens: int) -> Iterator[_Batch]:
    at_once, windows = max(1, batch_tokens // plan.length), list(plan)
    for first in range(0, len(windows), at_once):
        batch = windows[first : first + at_once]
        shape = (len(batch), max(window.length for window in batch))
        tokens, code = torch.full(shape, PAD), torch.full(shape, NO_BASE)
        for row, window in enumerate(batch):
            letters = window.letters(pack)
            tokens[row, : window.length] = torch.from_numpy(encode(letters, n_token)).long()
            code[row, : window.length] = torch.from_numpy(CODE_OF_BYTE[letters]).long()
        yield _Batch(batch, tokens, code)


def _read(models: Sequence[HyenaDNA], batch: _Batch, context: int, job: Job) -> _Readings:
    device, config = models[0].device, models[0].config
    lengths = torch.tensor([window.length for window in batch.windows], device=device)
    inside = torch.arange(batch.tokens.shape[1], device=device) < lengths[:, None]
    code = batch.code.to(device)
    scored = code != NO_BASE
    scored[:, :context] = False
    tokens = batch.tokens.to(device)
    sums = [scored.sum(dim=1).double()]
    embeddings: list[Tensor] = []
    squares = np.zeros((len(models), config.n_layer))
    hidden_of_dense: list[Tensor] = []

    for number, model in enumerate(models):

        def seen(block: int, hidden: Tensor, number: int = number) -> None:
            if number == 0:
                hidden_of_dense.append(hidden)
            difference = hidden if number == 0 else hidden - hidden_of_dense[block]
            squares[number, block] = float(difference[inside].square().sum(dtype=torch.float64))

        with _watched(model, seen):
            output = model(tokens)
        bits, _ = base_bits(output.logits[:, :-1], (code[:, 1:] & 3).long())
        sums.append((bits.double() * scored[:, 1:]).sum(dim=1))
        embeddings.append((output.hidden.float() * inside[..., None]).sum(dim=1) / lengths[:, None])
        job.advance(tokens.numel(), f"{peak_memory() / 1e9:.2f} GB")
    cosines = [torch.cosine_similarity(embeddings[0], other) for other in embeddings[1:]]
    return _Readings(
        batch.windows,
        torch.stack(sums, dim=1).cpu().numpy(),
        np.array([values.double().cpu().numpy() for values in cosines]).reshape(len(models) - 1, -1),
        squares,
    )


class _Windows:
    """All readings, and what follows from them."""

    def __init__(self, models: int, blocks: int) -> None:
        self.rows: dict[tuple[str, int], NDArray[np.float64]] = {}
        self.cosines: list[NDArray[np.float64]] = []
        self.squares = np.zeros((models, blocks))
        self.count = 0

    def add(self, readings: _Readings) -> None:
        """Count in a batch.

        Raises
        ------
        NotFiniteError          a model gave something that is not a number
        """
        if not (np.isfinite(readings.sums).all() and np.isfinite(readings.squares).all()):
            model = "dense" if not np.isfinite(readings.squares[0]).all() else "quantised"
            raise NotFiniteError(f"the {model} model gives probabilities that are not numbers; are the weights whole?")
        for window, row in zip(readings.windows, readings.sums, strict=True):
            places = window.places()
            block = (window.interval.contig, int(places[3 * len(places) // 4]) // BLOCK)
            self.rows[block] = self.rows.get(block, 0.0) + row
        self.cosines.append(readings.cosines)
        self.squares += readings.squares
        self.count += len(readings.windows)

    def costs(self, dense: HyenaDNA, quantised: Sequence[HyenaDNA], ratios: NDArray[np.float64]) -> Costs:
        """What it comes to; ratios (models, changes), of the dense model first.

        Raises
        ------
        InputError              no base was scored
        """
        rows = np.array([self.rows[block] for block in sorted(self.rows)])
        if not rows[:, 0].sum():
            raise InputError("nothing to score: no A, C, G or T lies in the second half of any window")
        bootstrap = Bootstrap.of(rows)
        cosines = np.concatenate(self.cosines, axis=1)
        errors = np.sqrt(self.squares[1:] / np.maximum(self.squares[0], np.finfo(np.float64).tiny))
        return Costs(
            bytes=_bytes(dense),
            bits_per_base=_per_base(bootstrap, 1),
            bases=int(rows[:, 0].sum()),
            windows=self.count,
            genome_blocks=int(np.count_nonzero(rows[:, 0])),
            changes=ratios.shape[1],
            of=tuple(
                _cost(dense, model, _per_base(bootstrap, 2 + i), _per_base(bootstrap, 2 + i, minus=1), cosines[i],
                      _spearman(ratios[0], ratios[1 + i]), errors[i])
                for i, model in enumerate(quantised)
            ),
        )  # fmt: skip


def _cost(
    dense: HyenaDNA,
    model: HyenaDNA,
    bits_per_base: Estimate,
    loss: Estimate,
    cosines: NDArray[np.float64],
    substitutions: float,
    blocks: NDArray[np.float64],
) -> Cost:
    if model.quantization is None:
        raise UsageError("the cost of a model that is not quantised was asked for; give it children of the dense one")
    return Cost(
        setting=model.quantization,
        bytes=_bytes(model),
        bits_per_weight=bits_per_weight(model),
        matrices=tuple(_matrices(dense, model)),
        bits_per_base=bits_per_base,
        loss=loss,
        cosine=float(cosines.mean()),
        worst_cosine=float(cosines.min()),
        substitutions=substitutions,
        blocks=tuple(blocks.tolist()),
    )


def _matrices(dense: HyenaDNA, model: HyenaDNA) -> Iterator[Matrix]:
    for name, layer in model.projections.items():
        parent = dense.projections[name]
        assert isinstance(layer, PackedLinear) and isinstance(parent, DenseLinear)
        weight = parent.weight.detach().double()
        error = (layer.dequantized() - weight).square().sum() / weight.square().sum().clamp(min=1e-300)
        packed = sum(buffer.nbytes for buffer in layer.buffers())
        shape = (layer.out_features, layer.in_features)
        yield Matrix(name, shape, 4 * weight.numel(), packed, float(error.sqrt()))


def _bytes(model: HyenaDNA) -> int:
    """Of all tensors, as a file holds them: in float32, or packed."""
    return sum(tensor.nbytes for tensor in stored(model, model.state_dict()).values())


def _per_base(bootstrap: Bootstrap, bits: int, minus: int | None = None) -> Estimate:
    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        less = 0.0 if minus is None else sums[:, minus]
        return np.asarray((sums[:, bits] - less) / sums[:, 0], dtype=np.float64)

    return bootstrap.estimate(ratio)


@contextmanager
def _watched(model: HyenaDNA, seen: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `seen` with the number of each block and what it gives, (B, L, D), while the model runs."""

    def hook(block: int) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, given, hidden: seen(block, hidden)

    handles = [layer.register_forward_hook(hook(block)) for block, layer in enumerate(model.backbone.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: HyenaDNA) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr  # half a second that only this needs

    return float(spearmanr(one, other).statistic) if len(one) > 1 else float("nan")
