"""How differently a model goes on from a context: continuations that it samples, and how alike they are."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.tokenizer import A
from hyenadna.model.language_model import HyenaDNA


class Sampled(NamedTuple):
    """What a model does behind some contexts."""

    hidden: Tensor
    """(B, D): the last hidden state of each context, on the model's device."""
    entropy: NDArray[np.float64]
    """(B,): of the next base among A, C, G, T, in nats."""
    continuations: NDArray[np.uint8]
    """(B, M, n): bases 0 to 3."""


@torch.inference_mode()
def sample(model: HyenaDNA, contexts: NDArray[np.uint8], uniform: NDArray[np.float64]) -> Sampled:
    """Continuations drawn from the model's own distribution over A, C, G, T, at temperature 1.

    Parameters
    ----------
    model : HyenaDNA
        In eval mode.
    contexts : uint8 array (B, L)
        Tokens.
    uniform : float64 array (B, M, n)
        Numbers from 0 to 1, one a base; they alone decide what is drawn, whatever the batch is.

    Raises
    ------
    SequenceTooLong         context and continuation are more than the model takes
    """
    B, M, n = uniform.shape
    hidden, state = model.backbone.extend(torch.from_numpy(contexts).to(model.device), ahead=n)
    last = hidden[:, -1]
    nats = _next_base(model, last)
    entropy = -(nats.exp() * nats).sum(dim=-1)
    state, nats = state.repeat(M), nats.repeat_interleave(M, dim=0)
    draws = torch.from_numpy(uniform.reshape(B * M, n)).to(model.device)
    written = torch.empty((B * M, n), dtype=torch.uint8, device=model.device)
    for position in range(n):
        # of four bases the last edge is left out: rounding must not draw a fifth
        written[:, position] = (draws[:, position, None] >= nats.exp().cumsum(dim=-1)[:, :3]).sum(dim=-1)
        if position + 1 < n:
            hidden, state = model.backbone.extend(written[:, position, None] + A, state, ahead=n - position - 2)
            nats = _next_base(model, hidden[:, -1])
    return Sampled(last.clone(), entropy.cpu().numpy(), written.reshape(B, M, n).cpu().numpy())


def diversity(continuations: NDArray[np.uint8], k: int) -> NDArray[np.float64]:
    """1 - the mean similarity of all pairs of continuations of a context: (B, M, n) -> (B,), 0 to 1.

    The similarity is the cosine of their counts of k-mers. With one base written M times over it is 0; with nothing in
    common, 1.

    Examples
    --------
    >>> diversity(np.array([[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]], dtype=np.uint8), k=2).tolist()
    [0.0, 1.0]
    """
    B, M, n = continuations.shape
    words = np.zeros((B, M, n - k + 1), np.int64)
    for place in range(k):
        words = words << 2 | continuations[:, :, place : n - k + 1 + place]
    counts = np.zeros((B * M, 4**k), np.float32)
    np.add.at(counts, (np.arange(B * M)[:, None], words.reshape(B * M, -1)), 1)
    unit = (counts / np.linalg.norm(counts, axis=1, keepdims=True)).reshape(B, M, -1)
    # the sum over all ordered pairs, of a continuation with itself too, is the square of the sum
    pairs = np.square(unit.sum(axis=1, dtype=np.float64)).sum(axis=1) - M
    found: NDArray[np.float64] = np.clip(1 - pairs / (M * (M - 1)), 0.0, 1.0)
    return found


def _next_base(model: HyenaDNA, hidden: Tensor) -> Tensor:
    """Log-probabilities of A, C, G, T behind hidden states (B, D), in float64."""
    weight = model.output_weight[A : A + 4]
    return F.linear(hidden.to(weight.dtype), weight).double().log_softmax(dim=-1)
