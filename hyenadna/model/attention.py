"""Softmax attention with rotary positions and grouped heads."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.kernels.working_set import Workspace
from hyenadna.model.packed_linear import DenseLinear, Linear


@dataclasses.dataclass(eq=False)
class AttentionState:
    """The keys, which are rotated, and the values of all tokens so far."""

    keys: Tensor
    """(B, kv_heads, n, K)."""
    values: Tensor
    """(B, kv_heads, n, K)."""
    position: int
    """Of the next token."""

    @property
    def rows(self) -> int:
        """B."""
        return self.keys.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def repeat(self, n: int) -> "AttentionState":
        """A copy with each row n times."""
        return AttentionState(
            self.keys.repeat_interleave(n, dim=0), self.values.repeat_interleave(n, dim=0), self.position
        )

    def select(self, rows: Tensor) -> "AttentionState":
        """A copy of some rows."""
        rows = rows.to(self.keys.device)
        return AttentionState(self.keys[rows], self.values[rows], self.position)


class AttentionMixer(nn.Module):
    """Mixes along the sequence by causal softmax attention."""

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
        self.in_proj = linear(d_model, d_model + 2 * kv_heads * self.head_width)
        self.out_proj = linear(d_model, d_model)

    def forward(self, x: Tensor, state: AttentionState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), behind the tokens whose state is given."""
        mixed, _ = self._attend(self.in_proj(x), state)
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
        """All but the output projection, without gradients: (D, B L)."""
        projected = torch.cat([self.in_proj(block) for block in blocks]).view(B, L, -1)
        return self._attend(projected, state)[0].reshape(B * L, self.d_model).T

    def extend(self, x: Tensor, state: AttentionState | None, *, ahead: int = 0) -> tuple[Tensor, AttentionState]:
        """(B, m, D) before the output projection, and the state behind it."""
        return self._attend(self.in_proj(x), state)

    def _attend(self, projected: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        B, m, _ = projected.shape
        widths = [part * self.head_width for part in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (part.view(B, m, -1, self.head_width).transpose(1, 2) for part in projected.split(widths, dim=-1))
        position = 0 if state is None else state.position
        q, k = self._rotated(q, position), self._rotated(k, position)
        if state is not None:
            k = torch.cat([state.keys.expand(B, -1, -1, -1), k], dim=2)
            v = torch.cat([state.values.expand(B, -1, -1, -1), v], dim=2)
        n = k.shape[2]
        sees = torch.ones(m, n, dtype=torch.bool, device=q.device).tril(n - m)
        group = self.heads // self.kv_heads
        keys, values = (part.repeat_interleave(group, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=sees)
        return y.transpose(1, 2).reshape(B, m, self.d_model), AttentionState(k, v, position + m)

    def _rotated(self, x: Tensor, position: int) -> Tensor:
        m, half = x.shape[2], self.head_width // 2
        frequencies = self.rotary_base ** -(torch.arange(half, dtype=torch.float64, device=x.device) / half)
        places = torch.arange(position, position + m, dtype=torch.float64, device=x.device)
        angles = places[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.split(half, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
