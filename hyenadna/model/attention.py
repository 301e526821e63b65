"""Softmax attention with rotary positions and grouped heads.

    y[t] = sum over s <= t of a[t, s] v[s],    a[t] = softmax over s <= t of q[t] . k[s] / sqrt(K)

Queries and keys are rotated by their positions (Su et al. 2021, eq. 34): channels i and i + K / 2 of a head are the
real and the imaginary part of a number that is multiplied by exp(j t base^(-2 i / K)), so that q[t] . k[s] knows t - s.
Angles are computed in float64, where a million tokens are no loss. A head of keys and values serves heads / kv_heads
heads of queries (Ainslie et al. 2023). One projection gives q, k and v, head after head.

Sequences are right-padded: no position sees a later one, so no mask for pads is needed.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.kernels.working_set import Workspace
from hyenadna.model.attention_state import AttentionState, begun
from hyenadna.model.packed_linear import DenseLinear, Linear

_MASKED_AT_ONCE = 1 << 22
"""Elements of a mask: the largest that is ever made, whatever the length."""


class AttentionMixer(nn.Module):
    """Mixes along the sequence by causal softmax attention; the equations stand at the top of this file.

    Parameters
    ----------
    d_model : int
        D; heads must divide it into an even number of channels each.
    heads, kv_heads : int
        Heads of queries, and of keys and values, a divisor of the former.
    rotary_base : float
        The slowest pair of channels turns once in about 2 pi rotary_base tokens.
    linear : callable
        Makes a projection from in_features and out_features.
    """

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        kv_heads: int,
        rotary_base: float,
        linear: Callable[[int, int], Linear] = DenseLinear,
    ) -> None:
        super().__init__()
        self.d_model, self.heads, self.kv_heads, self.rotary_base = d_model, heads, kv_heads, rotary_base
        self.head_width = d_model // heads
        self.in_proj = linear(d_model, (heads + 2 * kv_heads) * self.head_width)
        self.out_proj = linear(d_model, d_model)

    def forward(self, x: Tensor, state: AttentionState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself, those before it, and the tokens whose state is given."""
        B, L, D = x.shape
        if torch.is_grad_enabled():
            mixed = self._behind(*self._heads(x, 0 if state is None else state.position), state)
        else:
            mixed = self.mix([x.reshape(B * L, D)], B, L, state=state).T.view(B, L, D)
        y: Tensor = self.out_proj(mixed)
        return y

    def mix(
        self,
        blocks: Iterable[Tensor],
        B: int,
        L: int,
        workspace: Workspace | None = None,
        state: AttentionState | None = None,
    ) -> Tensor:
        """All but the output projection, without gradients and in little memory.

        Parameters
        ----------
        blocks : iterable of Tensor (n, D)
            The B L positions of x in order, some at a time.
        workspace : Workspace, optional
            Holds queries, keys and values until it is used again.
        state : AttentionState, optional
            What the tokens before left, of one row or of B.

        Returns
        -------
        Tensor (D, B L)                 the transpose of a contiguous (B L, D)
        """
        heads, first, workspace = None, 0, workspace or Workspace()
        for block in blocks:
            projected = self.in_proj(block).unflatten(-1, (-1, self.head_width))
            if heads is None:
                heads = workspace.empty(B * L, *projected.shape[1:], like=projected)
                cos, sin = (x[:, None] for x in self._turns(0 if state is None else state.position, L, projected))
            part = heads[first : first + len(block)]
            places = torch.arange(first, first + len(block), device=block.device) % L
            part[:, : -self.kv_heads] = _rotated(projected[:, : -self.kv_heads], cos[places], sin[places])
            part[:, -self.kv_heads :] = projected[:, -self.kv_heads :]
            first += len(block)
        assert heads is not None  # there is at least one position
        return self._behind(*self._split(heads.view(B, L, *heads.shape[1:])), state).reshape(B * L, -1).T

    def extend(self, x: Tensor, state: AttentionState | None, *, ahead: int = 0) -> tuple[Tensor, AttentionState]:
        """What tokens that go on where a state ends give, and the state behind them.

        Parameters
        ----------
        x : Tensor (B, m, D)
        state : AttentionState, optional
            Of B rows; without gradients the state that follows writes in its memory. None is the beginning.
        ahead : int
            Tokens that will follow; nothing need be prepared for them.

        Returns
        -------
        Tensor (B, m, D) before the output projection, AttentionState
        """
        q, k, v = self._heads(x, 0 if state is None else state.position)
        after = begun(q, k, v) if state is None else state.append(q, k, v)
        if x.shape[1] == 1:
            return attention_of_one(q, [part.dense() for part in after.parts()]), after
        return self._behind(q, k, v, state), after

    def _behind(self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState | None) -> Tensor:
        """The attention of tokens to themselves and to those whose state is given, (B, L, D)."""
        if state is not None:
            keys, values = state.dense(len(q))
            k, v = torch.cat((keys.to(k.dtype), k), dim=2), torch.cat((values.to(v.dtype), v), dim=2)
        return causal_attention(q, k, v)

    def _heads(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, heads, L, K) and keys, and values (B, kv_heads, L, K), of tokens from a position on."""
        projected = self.in_proj(x).unflatten(-1, (-1, self.head_width))
        q, k, v = self._split(projected)
        cos, sin = self._turns(position, x.shape[1], projected)
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views (B, h, L, K) of (B, L, heads + 2 kv_heads, K)."""
        q, k, v = projected.transpose(1, 2).split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return q, k, v

    def _turns(self, position: int, L: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles of L positions, (L, K / 2) each; float64 for that, otherwise float32."""
        half = self.head_width // 2
        waves = self.rotary_base ** -(torch.arange(half, dtype=torch.float64, device=like.device) / half)
        angles = torch.arange(position, position + L, dtype=torch.float64, device=like.device)[:, None] * waves
        dtype = torch.promote_types(like.dtype, torch.float32)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    real, imaginary = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of the last m of n tokens, each to itself and to all before it.

    By torch's fused kernels, which keep no scores; where they need a mask of m n elements, some queries at a time.

    Parameters
    ----------
    q : Tensor (B, heads, m, K)
    k, v : Tensor (B, kv_heads, n, K)       n is m or more

    Returns
    -------
    Tensor (B, m, heads K)

    Examples
    --------
    >>> q, k = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    >>> causal_attention(q, k, torch.tensor([[[[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]]]]))[0, :, 0]
    tensor([1., 2., 3.])
    """
    (m, n), group = (q.shape[2], k.shape[2]), q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    past = n - m
    if past <= m:
        # queries of zeros stand where the past is: cheaper than a mask, and what they give is dropped
        y = F.scaled_dot_product_attention(F.pad(q, (0, 0, past, 0)) if past else q, k, v, is_causal=True)
        return y.transpose(1, 2)[:, past:].flatten(2)
    done, attended = 0, []
    for part in q.split(max(1, _MASKED_AT_ONCE // n), dim=2):
        seen = past + done + part.shape[2]
        newest = torch.arange(past + done, seen, device=q.device)[:, None]
        mask = torch.arange(seen, device=q.device) <= newest
        y = F.scaled_dot_product_attention(part, k[:, :, :seen], v[:, :, :seen], attn_mask=mask)
        attended.append(y.transpose(1, 2).flatten(2))
        done += part.shape[2]
    return torch.cat(attended, dim=1)


def attention_of_one(q: Tensor, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The attention of the newest token of each row to all tokens.

    One product a part and head of keys, for all queries that share it: neither the heads nor the rows are repeated, and
    the parts are not joined.

    Parameters
    ----------
    q : Tensor (B, heads, 1, K)
    parts : iterable of (keys, values)
        (B, kv_heads, n, K) each, or (1, kv_heads, n, K) where all rows share them; the token's own among them.

    Returns
    -------
    Tensor (B, 1, heads K)              in q's dtype; scores and sums in float32 or float64
    """
    (B, heads, _, K), dtype = q.shape, torch.promote_types(q.dtype, torch.float32)
    # autocast would take the scores back to half precision
    with torch.autocast(q.device.type, enabled=False):
        cached = [(keys.to(dtype), values.to(dtype)) for keys, values in parts]
        grouped = q.to(dtype).reshape(B, cached[0][0].shape[1], -1, K) * K**-0.5
        scores = [_product(grouped, keys.transpose(2, 3)) for keys, _ in cached]
        weights = torch.cat(scores, dim=-1).softmax(dim=-1).split([part.shape[-1] for part in scores], dim=-1)
        attended = [_product(weight, values) for weight, (_, values) in zip(weights, cached, strict=True)]
        y = torch.stack(attended).sum(dim=0)
    return y.reshape(B, 1, heads * K).to(q.dtype)


def _product(x: Tensor, shared: Tensor) -> Tensor:
    """(B, kv_heads, g, a) times (B or 1, kv_heads, a, b), without a copy of the one row for each item."""
    if len(shared) == len(x):
        return x @ shared
    B, kv_heads, g, a = x.shape
    y = x.transpose(0, 1).reshape(kv_heads, B * g, a) @ shared[0]
    return y.view(kv_heads, B, g, -1).transpose(0, 1)
