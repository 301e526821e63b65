"""Bits per base of a language model next to Markov models, on the very same bases.

Next-base probabilities are renormalised over A, C, G, T; letters other than these are not scored, nor is the first base
of a sequence. Each strand is coded by itself, in its own reading direction, and bits per base are the code length of
both over the bases of both; the probabilities of a base given its two sides are never mixed. Windows are those of
`WindowPlan`; a Markov model reads the same window and, before it, what it needs of the same interval, so that it never
has less context than its order.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import PAD, A, encode
from hyenadna.errors import NotFiniteError, SequenceTooLong
from hyenadna.inference.block_sums import BlockSums
from hyenadna.inference.evaluation import Evaluation, evaluation_of
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE, MarkovModels
from hyenadna.inference.windows import Window, WindowPlan
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import Job, progress


def evaluate(
    model: HyenaDNA,
    pack: Pack,
    intervals: Sequence[Interval],
    baselines: MarkovModels,
    *,
    length: int,
    regions: Mapping[str, Sequence[Interval]] | None = None,
    max_bases: int | None = None,
    batch_tokens: int = 1 << 15,
    dtype: torch.dtype = torch.float32,
) -> Evaluation:
    """Bits per base of a model and of Markov baselines on the same bases.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use; put back into the mode, training or not, that it was in.
    pack : Pack
        The genome.
    intervals : Interval, ...
        What to evaluate on.
    baselines : MarkovModels
        Trained elsewhere.
    length : int
        Bases of a window, L; the bases scored have L / 2 to L - 1 bases before them.
    regions : dict, optional
        Named intervals, for bits per base inside and outside of them.
    max_bases : int, optional
        About how many bases to score on each strand, in evenly spread windows; default all.
    batch_tokens : int
        Tokens of a batch, at least one window; changes speed and memory, not the result.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.

    Returns
    -------
    Evaluation

    Raises
    ------
    UsageError              `length` under 2
    SequenceTooLong         `length` is more than the model takes
    IntervalError           no interval is longer than half a window
    InputError              no letter to score is A, C, G or T
    NotFiniteError          the model gave NaN or infinity
    """
    if length > model.config.filter_length:
        raise SequenceTooLong(
            f"windows of {length:,} bases were asked for; this model takes up to {model.config.filter_length:,}"
        )
    plan = WindowPlan(intervals, length, max_bases)
    sums = BlockSums(plan, baselines.order, regions or {})
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), progress("evaluating", len(plan) * length) as job:
            for windows in _batches(plan, pack, batch_tokens, job):
                batch = _read(windows, pack, baselines)
                sums.add(windows, batch.letters, *_code_lengths(model, batch, dtype), batch.baseline_bits)
                job.advance(len(windows) * length)
    finally:
        model.train(training)
    result = evaluation_of(sums.rows(), sums.columns, length)
    # a genome in one case has nothing to tell about soft-masking
    both_cases = all(part.bases for part in (result.annotations[-1].inside, result.annotations[-1].outside))
    return result if both_cases else dataclasses.replace(result, annotations=result.annotations[:-1])


def _batches(plan: WindowPlan, pack: Pack, batch_tokens: int, job: Job) -> Iterator[list[Window]]:
    windows: list[Window] = []
    for window in plan:
        scored = window.letters(pack)[plan.context :]
        if (CODE_OF_BYTE[scored] == NO_BASE).all():
            job.advance(plan.length)  # the inside of an assembly gap
            continue
        if windows and (len(windows) + 1) * plan.length > batch_tokens:
            yield windows
            windows = []
        windows.append(window)
    if windows:
        yield windows


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Some windows, one after the other."""

    windows: list[Window]
    letters: NDArray[np.uint8]
    """(bases,): ASCII in reading direction."""
    baseline_bits: NDArray[np.float64]
    """(orders + 1, bases): by each plain order and by the interpolated model; NaN where there is no base."""


def _read(windows: list[Window], pack: Pack, baselines: MarkovModels) -> _Batch:
    # all windows in one string, with an N between them that no context crosses: one pass over the counts
    pieces, own = [], []
    for window in windows:
        letters = window.letters(pack, look_back=baselines.order)
        pieces += [letters, np.frombuffer(b"N", dtype=np.uint8)]
        own.append(np.repeat([False, True, False], [len(letters) - window.length, window.length, 1]))
    joined, mine = np.concatenate(pieces), np.concatenate(own)
    return _Batch(windows, joined[mine], baselines.bits(joined)[:, mine])


def _code_lengths(
    model: HyenaDNA, batch: _Batch, dtype: torch.dtype
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits of each base by the model, and the probability that it gave to other tokens; 0 for the first of a window."""
    lengths = torch.tensor([window.length for window in batch.windows])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.full(inside.shape, PAD)
    code = torch.zeros(inside.shape, dtype=torch.long)
    tokens[inside] = torch.from_numpy(encode(batch.letters, model.config.n_token)).long()
    code[inside] = torch.from_numpy(CODE_OF_BYTE[batch.letters] & 3).long()

    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(tokens.to(device)).logits[:, :-1].float()
    bits, elsewhere = torch.zeros(inside.shape), torch.zeros(inside.shape)
    bits[:, 1:], elsewhere[:, 1:] = (part.cpu() for part in base_bits(logits, code[:, 1:].to(device)))
    broken = inside & ~torch.isfinite(bits)
    if broken.any():
        window = batch.windows[int(broken.any(dim=1).nonzero()[0])]
        raise NotFiniteError(
            f"the model gives probabilities that are not numbers in {window.interval.contig}:"
            f"{window.interval.start + 1}-{window.interval.end}, strand {window.strand}, base {window.start + 1} on; "
            "are the weights whole, and is float32 used?"
        )
    return bits[inside].double().numpy(), elsewhere[inside].double().numpy()


def base_bits(logits: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (B, L, 16) and bases 0 ... 3 (B, L): -log2 of the probability among bases, and the mass elsewhere."""
    bases = logits[..., A : A + 4]
    others = torch.cat((logits[..., :A], logits[..., A + 4 :]), dim=-1).logsumexp(dim=-1)
    nats = -bases.log_softmax(dim=-1).gather(-1, code[..., None])[..., 0]
    return nats / math.log(2), (others - logits.logsumexp(dim=-1)).exp()
