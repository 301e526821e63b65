"""Log-likelihoods of sequences, base by base.

What is scored is what `evaluate` scores: next-base probabilities renormalised over A, C, G, T, of bases that are A, C,
G or T and not the first of a strand. A sequence that is longer than the model's context is read in windows with stride
half a context, each scored in its second half, but for the first one, which is scored from its start. Each strand is
read by itself, in its own direction; the mean of both is one of log-likelihoods, never of probabilities.

The work comes in three steps, so that a server can batch the windows of different requests: `scored_windows` cuts,
`window_nats` reads any windows together, right-padded, and `likelihood_of` puts one sequence together again.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.tokenizer import A, T, encode, reverse_complement_tokens
from hyenadna.errors import InputError, NotFiniteError
from hyenadna.inference.ragged import batches, padded
from hyenadna.model.language_model import HyenaDNA

Strand = Literal["forward", "reverse", "both"]


class ScoredWindow(NamedTuple):
    """A stretch of one strand that the model reads by itself; positions count from where that strand begins."""

    tokens: NDArray[np.uint8]
    """(L,): in reading direction."""
    strand: Literal["+", "-"]
    start: int
    """First base of the window."""
    first: int
    """First base that no earlier window of the strand holds, from which on this one is scored."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely a model finds one sequence."""

    per_base: NDArray[np.float64]
    """(L,): nats, on the forward strand; NaN where a base is not scored. Of both strands the mean, and at the ends,
    where one strand alone is scored, that one."""
    nats: float
    """Sum of ln p over the bases of a strand; of both strands the mean."""
    scored: float
    """Number of bases in that sum; of both strands the mean, which ends in .5 if they begin with a base and an N."""

    @property
    def bits_per_base(self) -> float:
        """Code length over the bases scored, of both strands together; NaN if there is none."""
        return bits_per_base(self.nats, self.scored)


def likelihoods(
    model: HyenaDNA,
    sequences: Sequence[str],
    *,
    strand: Strand = "forward",
    batch_tokens: int = 1 << 13,
    dtype: torch.dtype = torch.float32,
) -> list[Likelihood]:
    """The log-likelihood of each sequence, in their order.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    sequences : sequence of str
        At least one letter each, of any lengths; IUPAC codes in either case.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read; of both, the mean.
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one window; changes speed and memory, not the result.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.

    Raises
    ------
    InputError              a sequence is empty, or holds a letter that is no nucleotide
    NotFiniteError          the model gives something that is not a number
    """
    context, n_token = context_of(model), model.config.n_token
    windows = [scored_windows(encode(sequence, n_token), context, strand) for sequence in sequences]
    joined = [window for of_sequence in windows for window in of_sequence]
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(joined)
    for numbers in batches(np.array([len(window.tokens) for window in joined], dtype=np.int64), batch_tokens):
        for number, nats in zip(numbers, window_nats(model, [joined[n] for n in numbers], dtype=dtype), strict=True):
            found[number] = nats
    results, rest = [], iter(found)
    for sequence, of_sequence in zip(sequences, windows, strict=True):
        results.append(likelihood_of(len(sequence), of_sequence, [next(rest) for _ in of_sequence]))
    return results


def context_of(model: HyenaDNA) -> int:
    """Bases that a model reads at once: two fewer than its filters have taps, as in the published models."""
    return max(1, model.config.filter_length - 2)


def bits_per_base(nats: float, scored: float) -> float:
    """The code length of so many bases of which ln p sums to `nats`; NaN of none."""
    return -nats / scored / math.log(2) if scored else math.nan


def in_reading_direction(
    tokens: NDArray[np.uint8], strand: Strand
) -> Iterator[tuple[Literal["+", "-"], NDArray[np.uint8]]]:
    """The strands that are asked for, each with its tokens in its own direction.

    Raises
    ------
    InputError              there are no tokens
    """
    if not len(tokens):
        raise InputError("the sequence is empty; give at least one base")
    if strand != "reverse":
        yield "+", tokens
    if strand != "forward":
        yield "-", reverse_complement_tokens(tokens)


def scored_windows(tokens: NDArray[np.uint8], context: int, strand: Strand = "forward") -> list[ScoredWindow]:
    """The windows in which a sequence is read, of the strands that are asked for, in order.

    They are those of `WindowPlan` with the bases scored, too, which that leaves out: the first of each strand.

    Parameters
    ----------
    tokens : uint8 array (L,)
        Of the forward strand.
    context : int
        Most bases of a window; `context_of`, or less.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read.

    Raises
    ------
    InputError              there are no tokens

    Examples
    --------
    >>> windows = scored_windows(encode("ACGTACGTA"), context=4)
    >>> [(window.start, window.first, len(window.tokens)) for window in windows]
    [(0, 0, 4), (2, 4, 4), (4, 6, 4), (6, 8, 3)]
    """
    # a window of one base has no base to score, but is read all the same
    stride = max(1, context // 2)
    unscored = context - stride
    return [
        ScoredWindow(own[start : start + context], sign, start, start + unscored if start else 0)
        for sign, own in in_reading_direction(tokens, strand)
        for start in range(0, max(1, len(own) - unscored), stride)
    ]


def window_nats(
    model: HyenaDNA, windows: Sequence[ScoredWindow], *, to: int = 0, dtype: torch.dtype = torch.float32
) -> list[NDArray[np.float64]]:
    """What each window scores, read together as one batch.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    windows : sequence of ScoredWindow
        At least one, of any sequences; alike lengths waste least.
    to : int
        Tokens to which they are padded at least.
    dtype : torch.dtype
        What the model computes in.

    Returns
    -------
    list of float64 arrays
        Of each window, ln p of its bases from `first` on; NaN for one that is not scored.

    Raises
    ------
    NotFiniteError          the model gives something that is not a number
    """
    tokens, _ = padded([window.tokens for window in windows], to)
    found = []
    for window, row in zip(windows, next_base_nats(model, tokens, dtype=dtype), strict=True):
        scored = is_base(window.tokens)
        scored[0] = False
        nats = np.full(len(window.tokens), math.nan)
        nats[scored] = row[: len(nats) - 1][scored[1:]]
        if not np.isfinite(nats[scored]).all():
            raise not_finite(len(nats))
        found.append(nats[window.first - window.start :])
    return found


def likelihood_of(length: int, windows: Sequence[ScoredWindow], nats: Sequence[NDArray[np.float64]]) -> Likelihood:
    """The likelihood of a sequence from what its windows score.

    Parameters
    ----------
    length : int
        Of the sequence.
    windows : sequence of ScoredWindow
        All of them, as `scored_windows` gives them.
    nats : sequence of float64 arrays
        Of each, as `window_nats` gives it.
    """
    by_strand = {window.strand: np.full(length, math.nan) for window in windows}
    for window, values in zip(windows, nats, strict=True):
        by_strand[window.strand][window.first : window.first + len(values)] = values
    rows = np.stack([values[::-1] if strand == "-" else values for strand, values in by_strand.items()])
    scored = ~np.isnan(rows)
    total, readings = np.where(scored, rows, 0.0).sum(axis=0), scored.sum(axis=0)
    per_base = np.divide(total, readings, out=np.full(length, math.nan), where=readings > 0)
    return Likelihood(per_base, float(total.sum()) / len(rows), float(readings.sum()) / len(rows))


def next_base_nats(
    model: HyenaDNA, tokens: Tensor, *, behind: NDArray[np.uint8] | None = None, dtype: torch.dtype
) -> NDArray[np.float64]:
    """Of a batch, ln p of every token but the first among A, C, G, T; what stands where none of these is means nothing.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    tokens : Tensor (B, L)
        Right-padded.
    behind : uint8 array (n,), optional
        Tokens that stand before every row, and are computed once.
    dtype : torch.dtype
        What the model computes in.

    Returns
    -------
    float64 array (B, L - 1)
    """
    device, half = model.device, dtype in (torch.bfloat16, torch.float16)
    tokens = tokens.to(device).long()
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=half):
        prefix = None
        if behind is not None and len(behind):
            embeddings = model.embedding(torch.from_numpy(behind).to(device).long())
            prefix = model.prefix(embeddings, tokens.shape[1])
        logits = model(tokens, prefix=prefix).logits[:, :-1, A : A + 4]
        code = (tokens[:, 1:] - A).clamp(0, 3)
        nats = logits.log_softmax(dim=-1).gather(-1, code[..., None])[..., 0]
    values: NDArray[np.float64] = nats.double().cpu().numpy()
    return values


def is_base(tokens: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where tokens are A, C, G or T."""
    bases: NDArray[np.bool_] = (tokens >= A) & (tokens <= T)
    return bases


def not_finite(length: int) -> NotFiniteError:
    """The failure of a model whose probabilities are not numbers, somewhere in so many bases."""
    return NotFiniteError(
        f"the model gives probabilities that are not numbers in a sequence of {length:,} bases; are the weights whole, "
        "and is float32 used?"
    )
