"""A budget for the caches of a hybrid's softmax layers (PyramidKV, Cai et al. 2024).

The last layers of a language model attend to few tokens, the first to many. So of a total of m cap tokens in m layers
the first layer is given most, and of the tokens in front of a window of alpha that every layer keeps

    k_l = k_0 - l (k_0 - k_top) / (m - 1),    k_top = m (cap - alpha) / (beta m),    k_0 = 2 (cap - alpha) - k_top.

Which ones is chosen by each head of keys and values: the queries of the window say what they attend to,

    s[i] = mean over the window's queries j, and the heads that share the keys, of softmax over i <= j (q[j] . k[i]),

averaged over `pool` neighbours, and the k_l largest are kept, with the window, in order and rotated as they were.

Departs from it: (1) budgets are rounded so that their sum is the total, where the code of the authors rounds each down
its own way; (2) what a layer cannot use, because the sequence is not so long, goes to the others, where theirs falls
back to equal budgets; (3) one layer is allowed; (4) at the ends the pool is the mean of the neighbours that there are;
(5) the cache is kept within its budget as it grows, by compressing it again. What was kept in few bits is then rounded
again, and neighbours are those of the cache, between which tokens may have been evicted before.

Whether a DNA model has that funnel is another question: benchmarks/pyramid_kv.py measures it.
"""

import dataclasses
from fractions import Fraction
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.inference.quantized_cache import QuantizedSegment
from hyenadna.model.attention_state import QUERIES_KEPT, AttentionState, DenseSegment, Segment
from hyenadna.model.state import State

Schedule = Literal["arithmetic", "uniform"]
BETA = 20.0
"""How many times the mean budget is that of the last layer; Cai et al. find 14 to 20 alike."""


@dataclasses.dataclass(frozen=True)
class CacheBudget:
    """How much of the tokens so far a model's softmax layers keep.

    Raises
    ------
    UsageError              a value that the field does not allow
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    tokens: int
    """Tokens that a softmax layer keeps, in the mean over the layers, with the window."""
    window: int = 32
    """Last tokens that every layer keeps in full precision, and whose queries choose among those before, 1 to 128."""
    schedule: Schedule = "arithmetic"
    """Budgets that fall from the first softmax layer to the last, or the same for all."""
    pool: int = 7
    """Neighbours over which attention is averaged before the choice, so that motifs are kept whole; odd."""
    bits: Literal[8, 4, 2] | None = None
    """Of each number in front of the window; none is as computed."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= QUERIES_KEPT:
            raise UsageError(f"the window of a cache budget is {self.window}; allowed are 1 to {QUERIES_KEPT} tokens")
        if self.tokens < self.window:
            raise UsageError(
                f"a cache budget of {self.tokens} tokens does not hold its window of {self.window}; give at least as "
                "many tokens, or a smaller window"
            )
        if self.pool < 1 or self.pool % 2 == 0:
            raise UsageError(f"the pool of a cache budget is {self.pool}; it must be odd and at least 1")
        if self.schedule not in get_args(Schedule):
            raise UsageError(
                f"the schedule of a cache budget is {self.schedule!r}; allowed are {', '.join(get_args(Schedule))}"
            )
        if self.bits not in (None, 8, 4, 2):
            raise UsageError(f"the bits of a cache budget are {self.bits}; allowed are 8, 4 and 2, or none")

    @property
    def most(self) -> int:
        """Tokens to which a cache may grow, in the mean over the layers, before `keep_within` compresses it again."""
        return self.tokens + max(self.window, self.tokens // 4)


def budgets(
    tokens: int, layers: int, length: int, *, window: int, schedule: Schedule = "arithmetic", beta: float = BETA
) -> tuple[int, ...]:
    """Tokens that each softmax layer keeps, from the first to the last; none is given more than the one before it.

    Parameters
    ----------
    tokens : int
        cap, the mean over the layers.
    layers : int
        m, softmax layers only.
    length : int
        Tokens so far, the most that a layer can keep.
    window : int
        alpha, up to `tokens`; every layer keeps that many, if there are.
    schedule : {'arithmetic', 'uniform'}
    beta : float
        1 or more; 1 is uniform.

    Returns
    -------
    tuple of int            their sum is layers times the lesser of tokens and length

    Raises
    ------
    UsageError              no layer or token, a window that is under 1 or over tokens, or a beta under 1

    Examples
    --------
    >>> budgets(64, 4, 512, window=8)
    (117, 82, 46, 11)
    >>> budgets(64, 4, 100, window=8)
    (100, 87, 52, 17)
    """
    if layers < 1 or length < 1 or not 1 <= window <= tokens or beta < 1:
        raise UsageError(
            f"budgets were asked for {layers} layers of {tokens} tokens out of {length}, with a window of {window} and "
            f"beta {beta:g}; allowed are 1 layer, 1 token and a beta of 1, or more, and a window of 1 to the tokens"
        )
    free = tokens - window
    last = Fraction(free) / Fraction(beta) if schedule == "arithmetic" and layers > 1 else Fraction(free)
    step = 2 * (free - last) / max(1, layers - 1)
    exact = [window + 2 * free - last - step * layer for layer in range(layers)]
    return _rounded(_shared_out(exact, length))


def _shared_out(exact: list[Fraction], length: int) -> list[Fraction]:
    """No layer over the length; what is over goes to those that are under it, in equal shares."""
    while over := sum(max(Fraction(0), budget - length) for budget in exact):
        under = sum(budget < length for budget in exact)
        if not under:
            return [Fraction(length)] * len(exact)
        exact = [budget + over / under if budget < length else Fraction(length) for budget in exact]
    return exact


def _rounded(exact: list[Fraction]) -> tuple[int, ...]:
    """Integers of the same sum: rounded down, and the largest remainders up; falling budgets stay so."""
    down = [int(budget) for budget in exact]
    lacking = int(sum(exact)) - sum(down)
    by_remainder = sorted(range(len(exact)), key=lambda layer: down[layer] - exact[layer])  # a stable sort
    return tuple(budget + (layer in by_remainder[:lacking]) for layer, budget in enumerate(down))


def compress(state: State, budget: CacheBudget) -> State:
    """The state with the caches of its softmax layers cut down to a budget; all else as it was.

    With a budget of as many tokens as there are, or more, and no bits given, nothing changes: what follows is the same
    to the last bit. Best done before the state is repeated, so that the branches share what is kept.

    Parameters
    ----------
    state : State
        Is spent by it, as by `extend`.
    budget : CacheBudget

    Raises
    ------
    UsageError              no layer has such a cache, or the state is spent
    """
    state.check(state.rows, 0, state.length)  # that it is not spent
    layers, m = list(state.layers), len(_caches(state))
    kept = iter(budgets(budget.tokens, m, state.length, window=budget.window, schedule=budget.schedule))
    for number, layer in enumerate(layers):
        if isinstance(layer, AttentionState):
            layers[number] = _compressed(layer, next(kept), budget)
    state.spent = True
    return State(tuple(layers), state.length)


def keep_within(state: State, budget: CacheBudget) -> State:
    """The state itself, or compressed again if its caches have grown to `budget.most` tokens; after each token written.

    Raises
    ------
    UsageError              no layer has such a cache, or the state is spent
    """
    caches = _caches(state)
    if sum(cache.tokens for cache in caches) < budget.most * len(caches):
        return state
    return compress(state, budget)


def cache_bytes(state: State) -> int:
    """Bytes of the keys and values of all softmax layers, with the room that is not used yet; without kept queries."""
    return sum(cache.nbytes - cache.queries.nbytes for cache in _caches(state))


def window_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """What the last tokens attend to.

    Parameters
    ----------
    queries : Tensor (B, heads, w, K)
        Of the last w of the n tokens.
    keys : Tensor (B, kv_heads, n, K)

    Returns
    -------
    Tensor (B, heads, w, n)         float32 or float64; a row sums to 1 and is 0 behind its own token
    """
    (n, K), dtype = keys.shape[2:], torch.promote_types(queries.dtype, torch.float32)
    grouped = queries.to(dtype).unflatten(1, (keys.shape[1], -1))
    scores = grouped @ keys.to(dtype).transpose(2, 3)[:, :, None] * K**-0.5
    tokens = torch.arange(n, device=scores.device)
    hidden = tokens > tokens[n - queries.shape[2] :, None]
    weights: Tensor = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return weights.flatten(1, 2)


def _caches(state: State) -> list[AttentionState]:
    caches = [layer for layer in state.layers if isinstance(layer, AttentionState)]
    if not caches:
        raise UsageError(
            f"a cache budget was given for a model without softmax layers, among {len(state.layers)}; it takes one "
            "with the letter S in its layers: leave the budget out, other layers have no cache that grows by keys"
        )
    return caches


def _compressed(cache: AttentionState, keep: int, budget: CacheBudget) -> AttentionState:
    n, window = cache.tokens, min(budget.window, cache.tokens)
    if keep >= n and (budget.bits is None or n == window):
        return cache
    keys, values = cache.dense(cache.rows)
    if keep < n:
        score = window_attention(cache.last_queries(window), keys)[..., : n - window]
        chosen = _chosen(score.unflatten(1, (keys.shape[1], -1)).mean(dim=(2, 3)), keep, window, budget.pool)
        keys, values = (x.gather(2, chosen[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (keys, values))
    segments: tuple[Segment, ...] = (DenseSegment(keys, values),)
    if budget.bits is not None and keep > window:
        (old_keys, new_keys), (old_values, new_values) = (
            x.split((x.shape[2] - window, window), dim=2) for x in (keys, values)
        )
        old = QuantizedSegment.of(old_keys, old_values, budget.bits)
        # copies, as a view would keep those in front of the window in memory
        segments = old, DenseSegment(*(x.clone(memory_format=torch.contiguous_format) for x in (new_keys, new_values)))
    return AttentionState(segments, None, 0, cache.queries, cache.position)


def _chosen(score: Tensor, keep: int, window: int, pool: int) -> Tensor:
    """Numbers of the tokens that each head keeps, in order, from the score of those in front of the window.

    (B, kv_heads, n - window) -> int64 (B, kv_heads, keep).
    """
    pooled = F.avg_pool1d(score, pool, stride=1, padding=pool // 2, count_include_pad=False)
    best = pooled.topk(keep - window, dim=-1).indices.sort(dim=-1).values
    before = score.shape[-1]
    last = torch.arange(before, before + window, device=best.device).expand(*best.shape[:2], -1)
    return torch.cat((best, last), dim=-1)
