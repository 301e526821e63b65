"""Lightning Attention-2: causal linear attention with a fixed decay for each head, in time linear in the sequence.

    o[t] = q[t] S[t],    S[t] = lambda S[t - 1] + k[t]^T v[t],    lambda = exp(-slope)

Qin et al. 2024 (arXiv 2401.04658), section 3; rows q, k (K numbers) and v (V numbers), state S (K, V), and S[0] = 0 or
given. There is no softmax, no 1 / sqrt(K) and no denominator. Written out it is o = ((Q K^T) . M) V with M[t, s] =
lambda^(t - s) for s <= t, and 0 above the diagonal.

Blocks of C positions, r = 1 ... b in one of b <= C, with S what stands before the block (their algorithm 1):

    O = ((Q K^T) . M) V + lambda^r (Q S),    S <- lambda^b S + (lambda^(b - r) K)^T V

So the state is the true one, and prefill and one-token steps share it. (Their equations 9 and 10 together, with Q
weighted by lambda^(r - 1), are wrong by one step.) No exponent is ever negative: with lambda^-r, slopes of any size
would overflow. A slope of 0 forgets nothing; lambda^b of a large one underflows to 0, which is its value.

Backward, in the paper's two passes. Time forwards: dq[t] = do[t] S[t]^T, which is this same operator of (do, v, k) from
S[0]^T. Time backwards, with R the gradient for S at the block's end, and r = b ... 1:

    dk[r] = sum over s >= r of lambda^(s - r) (v[r] do[s]^T) q[s] + lambda^(b - r) v[r] R^T
    dv[r] = sum over s >= r of lambda^(s - r) (k[r] q[s]^T) do[s] + lambda^(b - r) k[r] R
    R <- lambda^b R + (lambda^r Q)^T dO

which is it of (v, do, q) and of (k, q, do) in reverse, where Q and K have changed their weights and M is transposed.
So one primitive with a direction is its own derivative, of any order; slopes have none. Only the operands are saved.

Cost for each head and position: 2 C (K + V) + 4 K V FLOPs forward, three times that backward; it reads 2 K + V numbers
and writes V. Operands bfloat16, float16, float32 or float64; sums and states in float32, or float64 for float64.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyenadna.errors import ShapeError
from hyenadna.kernels import backend

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
BLOCK = 64
"""C of the torch form; on a CPU the fastest for 16 to 64 numbers a head."""
_SCORES_AT_ONCE = 1 << 17
"""Of Q K^T on a CPU, so that what is made of them stays in the second cache."""


def lightning_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `lightning_attention_extend` by the whole matrix M; in q's dtype, quadratic in L."""
    t = torch.arange(1, q.shape[2] + 1, dtype=q.dtype, device=q.device)
    slopes = slopes.to(q.dtype)[:, None]
    M = torch.exp(-slopes[..., None] * (t[:, None] - t).abs()).tril()
    o = ((q @ k.mT) * M) @ v
    last = (k * torch.exp(-slopes * (len(t) - t))[..., None]).mT @ v
    if state is not None:
        o = o + torch.exp(-slopes * t)[..., None] * (q @ state)
        last = last + torch.exp(-slopes * len(t))[..., None] * state
    return o, last


def lightning_attention_recurrent(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `lightning_attention_extend`, token by token: first the state takes it in, then it reads."""
    B, H, L, K = q.shape
    dtype = _computed(q)
    decay = torch.exp(-slopes.to(dtype))[:, None, None]
    S = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype) if state is None else state.to(dtype)
    tokens = []
    for t in range(L):
        q_t, k_t, v_t = (x[:, :, t, None].to(dtype) for x in (q, k, v))  # (B, H, 1, ...)
        S = torch.addcmul(k_t.mT * v_t, S, decay)
        tokens.append(q_t @ S)
    return torch.cat(tokens, dim=2).to(q.dtype), S


def _computed(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _decays(slopes: Tensor, b: int, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M (H, b, b), the weights of Q and of K (H, b, 1), and that of the state (H, 1, 1), in a block of b positions."""
    i = torch.arange(b, dtype=slopes.dtype, device=slopes.device)
    slopes = slopes[:, None, None]
    M = torch.exp(-slopes * (i[:, None] - i).abs()).tril()
    rising, falling = torch.exp(-slopes * (i[:, None] + 1)), torch.exp(-slopes * (b - 1 - i[:, None]))
    whole = rising[:, -1:]
    return (M.mT, falling, rising, whole) if reverse else (M, rising, falling, whole)


def _blocks(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool, o: Tensor) -> Tensor:
    """Into o (B, H, L, V), block after block, or from the last to the first; the state behind the last of them."""
    (B, H, L, K), V, dtype = q.shape, v.shape[-1], state.dtype
    decays = _decays(slopes, min(BLOCK, L), reverse)
    starts = range(0, L, BLOCK)
    state = state.clone(memory_format=torch.contiguous_format).flatten(0, 1)
    for start in reversed(starts) if reverse else starts:
        rows = slice(start, min(start + BLOCK, L))
        b = rows.stop - start
        M, of_q, of_k, whole = decays if b == decays[0].shape[1] else _decays(slopes, b, reverse)
        queries, keys, values = (x[:, :, rows].to(dtype) for x in (q, k, v))
        scores = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).mT)
        scores.view(B, H, b, b).mul_(M)
        values = values.flatten(0, 1)
        within = torch.bmm(scores, values)
        o[:, :, rows] = torch.baddbmm(within, (queries * of_q).flatten(0, 1), state).view(B, H, b, V)
        state.view(B, H, K, V).mul_(whole)
        state.baddbmm_((keys * of_k).flatten(0, 1).mT, values)
    return state.view(B, H, K, V)


def _forward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The operator by torch's own products: o and the last state."""
    (B, H, L, _), V = q.shape, v.shape[-1]
    o = q.new_empty(B, L, H, V).transpose(1, 2)
    items = max(1, _SCORES_AT_ONCE // (H * min(L, BLOCK) ** 2)) if q.device.type == "cpu" else B
    parts = [x.split(items) for x in (q, k, v, state, o)]
    with torch.autocast(q.device.type, enabled=False):
        states = [_blocks(q, k, v, slopes, state, reverse, o) for q, k, v, state, o in zip(*parts, strict=True)]
    return o, torch.cat(states) if len(states) > 1 else states[0]


Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def _implementation(q: Tensor) -> Forward:
    if backend.chosen(q) == "triton":
        from hyenadna.kernels import lightning_attention_triton  # imports triton

        return lightning_attention_triton.forward
    return _forward


class _LightningAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool, compute: Forward
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, slopes, state)
        ctx.reverse, ctx.compute = reverse, compute
        return compute(q, k, v, slopes, state, reverse)

    @staticmethod
    def backward(ctx: Any, grad_o: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, slopes, state = ctx.saved_tensors
        of_q, of_k, of_v, _, of_state, *_ = ctx.needs_input_grad
        grad_q = grad_k = grad_v = grad_first = None
        if of_q:
            grad_q, _ = _apply(grad_o, v, k, slopes, state.mT, ctx.reverse, ctx.compute)
        if of_k:
            grad_k, _ = _apply(v, grad_o, q, slopes, grad_state.mT, not ctx.reverse, ctx.compute)
        if of_v or of_state:
            grad_v, grad_first = _apply(k, q, grad_o, slopes, grad_state, not ctx.reverse, ctx.compute)
        return grad_q, grad_k, grad_v, None, grad_first, None, None


def _apply(*operands: Any) -> tuple[Tensor, Tensor]:
    o, state = _LightningAttention.apply(*operands)  # type: ignore[no-untyped-call]
    return o, state


def lightning_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None = None) -> Tensor:
    """What every position reads; the equations stand at the top of this file, the rest at `lightning_attention_extend`.

    Examples
    --------
    >>> ones = torch.ones(1, 1, 3, 1)
    >>> lightning_attention(ones, ones, ones, torch.tensor([0.0])).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    return lightning_attention_extend(q, k, v, slopes, state)[0]


def lightning_attention_extend(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What every position reads, and the state behind the last one, from which the sequence can go on.

    In pieces of any lengths it is the whole, but for rounding. All positions count: a padded sequence has its padding
    on the right, where it changes the state alone.

    Parameters
    ----------
    q, k : Tensor (B, H, L, K)
        Views of any strides; bfloat16, float16, float32 or float64.
    v : Tensor (B, H, L, V)
    slopes : Tensor (H,)
        0 or more and finite, for each token; lambda = exp(-slope). They get no gradient.
    state : Tensor (B, H, K, V) or (1, H, K, V), optional
        Behind what stands before the sequences, or before all alike; by default nothing does. It is not changed.

    Returns
    -------
    o : Tensor (B, H, L, V)         in q's dtype, in memory (B, L, H, V)
    state : Tensor (B, H, K, V)     float32, or float64 if q is

    Raises
    ------
    ShapeError, a ValueError        shapes, dtypes or devices that do not fit, or no position
    KernelError                     the Triton kernel does not run on this GPU

    Examples
    --------
    >>> ones = torch.ones(1, 1, 3, 1)
    >>> o, state = lightning_attention_extend(ones, ones, ones, torch.tensor([0.0]))
    >>> lightning_attention_extend(ones, ones, ones, torch.tensor([0.0]), state)[0].flatten().tolist()
    [4.0, 5.0, 6.0]
    """
    _check(q, k, v, slopes, state)
    B, H, L, K = q.shape
    dtype = _computed(q)
    if L == 1:
        with torch.autocast(q.device.type, enabled=False):
            return lightning_attention_recurrent(q, k, v, slopes, state)
    if state is None:
        state = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype)
    slopes, state = slopes.detach().to(dtype), state.to(dtype).expand(B, -1, -1, -1)
    return _apply(q, k, v, slopes, state, False, _implementation(q))


def _check(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None) -> None:
    operands = {"q": q, "k": k, "v": v, "slopes": slopes} | ({} if state is None else {"state": state})
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in operands.items())
    if (
        q.dim() != 4
        or v.dim() != 4
        or q.shape != k.shape
        or v.shape[:3] != q.shape[:3]
        or slopes.shape != q.shape[1:2]
        or 0 in (*q.shape, *v.shape)
    ):
        raise ShapeError(
            f"lightning_attention was given {shapes}; it takes q and k (B, H, L, K), v (B, H, L, V) and slopes (H,), "
            "none of them empty"
        )
    if state is not None and (state.shape[1:] != (q.shape[1], q.shape[3], v.shape[3]) or len(state) not in (1, len(q))):
        raise ShapeError(
            f"lightning_attention was given {shapes}; the state must be ({len(q)} or 1, {q.shape[1]}, {q.shape[3]}, "
            f"{v.shape[3]})"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ShapeError(
            f"lightning_attention was given q {q.dtype}, k {k.dtype}, v {v.dtype}; it takes one floating dtype for all"
        )
    if len({x.device for x in operands.values()}) > 1:
        devices = ", ".join(f"{name} on {x.device}" for name, x in operands.items())
        raise ShapeError(f"lightning_attention was given {devices}; they must agree")
