"""Lightning Attention-2 as the mixer of a block, and the families of its decays.

The block is the published one: q, k and v are SiLU(W x), attention is linear with a fixed decay for each head, what the
heads read is normed over all of them together and gated by sigmoid(W x), then projected. (Qin et al. 2024, section 3;
TransNormerLLM, arXiv 2307.14995; the norm has a weight and the gate is full, as in MiniMax-01, arXiv 2501.08313.)
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.kernels.lightning_attention import lightning_attention, lightning_attention_extend
from hyenadna.kernels.working_set import Workspace
from hyenadna.model.packed_linear import DenseLinear, Linear

SlopeFamily = Literal["context", "alibi", "linear"]
_SHORTEST = 2.0
"""Tokens that the most forgetful head of the family 'context' sees."""


def slopes(family: SlopeFamily, heads: int, *, layer: int, n_layer: int, context: int) -> Tensor:
    """The slope s of each head, float64 (H,) on the CPU: it weighs what lies t tokens back by exp(-s t).

    A head forgets over 1 / s tokens: so far back the weight is 1 / e.

    - 'context': 1 / s = 2 (context / 2)^(h / (H - 1)) in every layer: from 2 tokens to the whole context, each head so
      many times longer than the one before. DNA has structure at every scale between, and no layer knows better than
      another which it needs. The shortest is that of the published family at 8 heads; the longest still weighs the
      first token of the context by 1 / e at its last. A single head spans the context.
    - 'alibi', published (OpenNLPLab, MiniMax-01): s = 2^(-8 (h + 1) / H) (1 - layer / (n_layer - 1) + 1e-5), where H is
      a power of two; for another H those of the power below, then every other one of the power above, as in ALiBi. At 8
      heads the first layer forgets within 256 tokens, while the last hardly forgets.
    - 'linear' (flash-linear-attention): s = 8 h / H (1 - layer / n_layer): the first head never forgets, the last keeps
      a token or so.

    Parameters
    ----------
    layer : int
        From 0 to n_layer - 1; all mixers count, whatever their kind.
    context : int
        In tokens.
    """
    h = torch.arange(heads, dtype=torch.float64, device="cpu")  # real numbers even where a model is made without memory
    match family:
        case "context":
            longest = max(_SHORTEST, context)
            share = h / (heads - 1) if heads > 1 else torch.ones_like(h)
            return 1 / (_SHORTEST * (longest / _SHORTEST) ** share)
        case "alibi":
            depth = layer / (n_layer - 1) if n_layer > 1 else 0.0
            return _alibi(heads) * (1 - depth + 1e-5)
        case "linear":
            return 8 / heads * (1 - layer / n_layer) * h


def _alibi(heads: int) -> Tensor:
    """Press et al. 2022 (arXiv 2108.12409): a geometric sequence, filled up from the next finer one."""
    power = 1 << int(math.log2(heads))
    whole, finer = (
        2.0 ** (-8 / n * torch.arange(1, n + 1, dtype=torch.float64, device="cpu")) for n in (power, 2 * power)
    )
    return torch.cat([whole, finer[::2][: heads - power]])


@dataclasses.dataclass(eq=False)
class LightningState:
    """What the tokens so far leave to a Lightning layer: one matrix a head, however many they are."""

    kv: Tensor
    """(B, H, K, K), float32 or float64: the sum of k^T v over the tokens, each decayed since."""

    @property
    def rows(self) -> int:
        """B."""
        return self.kv.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.kv.nbytes

    def repeat(self, n: int) -> "LightningState":
        """A copy with each row n times."""
        return LightningState(self.kv.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> "LightningState":
        """A copy of some rows."""
        return LightningState(self.kv[rows.to(self.kv.device)])


class LightningMixer(nn.Module):
    """Mixes along the sequence: out(norm(attention(SiLU q, SiLU k, SiLU v)) sigmoid(gate)), all four projected from x.

    Parameters
    ----------
    d_model : int
    heads : int
        A divisor of d_model.
    decay : Tensor (H,)
        The heads' slopes, from `slopes`. They are no weights: nothing learns, casts or stores them.
    linear : callable
        Makes the projections, from in_features and out_features.
    """

    def __init__(
        self, d_model: int, *, heads: int, decay: Tensor, linear: Callable[[int, int], Linear] = DenseLinear
    ) -> None:
        super().__init__()
        self.d_model, self.heads = d_model, heads
        self.in_proj = linear(d_model, 4 * d_model)
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.out_proj = linear(d_model, d_model)
        # no buffer, which a cast would round and a model that is made without memory would lose
        self._slopes = self._slopes_here = decay.detach().double()

    def forward(self, x: Tensor, state: LightningState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a position sees itself, those before it, and the tokens whose state is given."""
        B, L, D = x.shape
        if torch.is_grad_enabled():
            q, k, v, gate = self._parts(self.in_proj(x))
            o = lightning_attention(q, k, v, self._slopes_for(q), None if state is None else state.kv)
            y: Tensor = self.out_proj(self._gated(o, gate))
        else:
            y = self.out_proj(self.mix([x.reshape(B * L, D)], B, L, state=state).T).view(B, L, D)
        return y

    def mix(
        self,
        blocks: Iterable[Tensor],
        B: int,
        L: int,
        workspace: Workspace | None = None,
        state: LightningState | None = None,
    ) -> Tensor:
        """All but the output projection, without gradients: only a block at a time is ever projected.

        Parameters
        ----------
        blocks : iterable of Tensor (n, D)
            The B L positions of x in order, some at a time.
        workspace : Workspace, optional
            Holds the result until it is used again.
        state : LightningState, optional
            Of one row before all items, or of B; left as it is.

        Returns
        -------
        Tensor (D, B L)
        """
        workspace, mixed, first = workspace or Workspace(), None, 0
        before = None if state is None else state.kv.expand(B, -1, -1, -1)
        kv: Tensor | None = None
        for block in blocks:
            projected = self.in_proj(block)
            if mixed is None:
                mixed = workspace.empty(self.d_model, B * L, like=projected)
            for item, items, rows in _pieces(first, len(block), L):
                if (first + rows.start) % L == 0:  # otherwise it goes on where the block before ended
                    kv = None if before is None else before[item : item + items]
                piece = projected[rows].view(items, -1, 4 * self.d_model)
                y, kv = self._attend(piece, kv)
                mixed[:, first + rows.start : first + rows.stop] = y.view(-1, self.d_model).T
            first += len(block)
        assert mixed is not None  # there is at least one position
        return mixed

    def extend(self, x: Tensor, state: LightningState | None, *, ahead: int = 0) -> tuple[Tensor, LightningState]:
        """(B, m, D) -> (B, m, D) before the output projection, and the state behind these tokens.

        The given state is not changed; nothing can be prepared for tokens ahead.
        """
        y, kv = self._attend(self.in_proj(x), None if state is None else state.kv)
        return y, LightningState(kv)

    def _attend(self, projected: Tensor, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, m, 4 D) -> (B, m, D), and the matrices (B, H, K, K) behind."""
        q, k, v, gate = self._parts(projected)
        o, kv = lightning_attention_extend(q, k, v, self._slopes_for(q), kv)
        return self._gated(o, gate), kv

    def _parts(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From (B, m, 4 D): q, k, v (B, H, m, K), and what is under the gate's sigmoid (B, m, D)."""
        qkv, gate = projected.split((3 * self.d_model, self.d_model), dim=-1)
        if qkv.dtype == torch.float16:
            qkv = qkv.float()  # the sums over a long sequence that attention gives leave the range of float16
        q, k, v = F.silu(qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v, gate

    def _gated(self, o: Tensor, gate: Tensor) -> Tensor:
        """From o (B, H, m, K): normed over all heads, gated, (B, m, D) in gate's dtype."""
        weight = self.norm.weight
        dtype = torch.promote_types(o.dtype, weight.dtype)
        joined = o.transpose(1, 2).flatten(2).to(dtype)
        normed = F.rms_norm(joined, (self.d_model,), weight.to(dtype), self.norm.eps)
        return (normed * torch.sigmoid(gate)).to(gate.dtype)

    def _slopes_for(self, q: Tensor) -> Tensor:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        if (self._slopes_here.device, self._slopes_here.dtype) != (q.device, dtype):
            with torch.inference_mode(False):  # what is kept from generation must serve training too
                self._slopes_here = self._slopes.to(q.device, dtype)
        return self._slopes_here


def _pieces(first: int, n: int, L: int) -> Iterator[tuple[int, int, slice]]:
    """Rows first to first + n of items of L, in pieces of one item or of whole items.

    Yields
    ------
    the first item, how many, and which of the n rows
    """
    done = 0
    while done < n:
        item, t = divmod(first + done, L)
        items = max(1, (n - done) // L) if t == 0 else 1
        size = min(items * L - t, n - done)
        yield item, items, slice(done, done + size)
        done += size
