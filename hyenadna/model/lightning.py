"""Lightning Attention-2 (Qin et al. 2024): linear attention with a fixed decay a head."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.kernels.working_set import Workspace
from hyenadna.model.packed_linear import DenseLinear, Linear


def slopes(
    family: Literal["context", "alibi", "linear"], heads: int, *, layer: int, n_layer: int, context: int
) -> Tensor:
    """The decay of each head, float64 (H,): exp(-s) a token."""
    h = torch.arange(heads, dtype=torch.float64, device="cpu")  # real numbers even where a model is made without memory
    match family:
        case "context":
            return 1 / (2 * (max(context, 4) / 2) ** (h / max(1, heads - 1)))
        case "alibi":
            return 2 ** (-8 * (h + 1) / heads) * (1 - layer / max(1, n_layer - 1) + 1e-5)
        case "linear":
            return 8 / heads * (1 - layer / n_layer) * h


@dataclasses.dataclass(eq=False)
class LightningState:
    """Sum over the tokens so far of decayed k v: (B, H, K, K), float32 or float64."""

    kv: Tensor

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
    """Mixes along the sequence by linear attention with decay, normed and gated."""

    def __init__(
        self, d_model: int, *, heads: int, decay: Tensor, linear: Callable[[int, int], Linear] = DenseLinear
    ) -> None:
        super().__init__()
        self.d_model, self.heads = d_model, heads
        # numbers and no buffer: neither a cast nor a checkpoint may change them
        self.decay = tuple(decay.tolist())
        self.in_proj = linear(d_model, 4 * d_model)
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.out_proj = linear(d_model, d_model)

    def forward(self, x: Tensor, state: LightningState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), behind the tokens whose state is given."""
        y: Tensor = self.out_proj(self._attend(self.in_proj(x), state)[0])
        return y

    def mix(
        self,
        blocks: Iterable[Tensor],
        B: int,
        L: int,
        workspace: Workspace | None = None,
        state: LightningState | None = None,
    ) -> Tensor:
        """All but the output projection, without gradients: (D, B L)."""
        projected = torch.cat([self.in_proj(block) for block in blocks]).view(B, L, -1)
        return self._attend(projected, state)[0].reshape(B * L, self.d_model).T

    def extend(self, x: Tensor, state: LightningState | None, *, ahead: int = 0) -> tuple[Tensor, LightningState]:
        """(B, m, D) before the output projection, and the state behind it."""
        return self._attend(self.in_proj(x), state)

    def _attend(self, projected: Tensor, state: LightningState | None) -> tuple[Tensor, LightningState]:
        B, m, _ = projected.shape
        dtype = torch.promote_types(projected.dtype, torch.float32)
        *qkv, gate = projected.chunk(4, dim=-1)
        q, k, v = (F.silu(part.to(dtype)).view(B, m, self.heads, -1).transpose(1, 2) for part in qkv)
        s = torch.tensor(self.decay, dtype=dtype, device=q.device)[:, None]
        t = torch.arange(m, device=q.device)
        back = (t[:, None] - t).tril()
        within = torch.exp(-s[..., None] * back).tril()
        o = (q @ k.mT * within) @ v
        kv = (k * torch.exp(-s * (m - 1 - t))[..., None]).mT @ v
        if state is not None:
            o = o + torch.exp(-s * (t + 1))[..., None] * (q @ state.kv)
            kv = kv + torch.exp(-s * m)[..., None] * state.kv
        o = o.transpose(1, 2).reshape(B, m, self.d_model).to(projected.dtype)
        return self.norm(o) * torch.sigmoid(gate), LightningState(kv)
