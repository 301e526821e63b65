"""ReMoE (Wang et al. 2025): experts that a ReLU router switches on and off."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyenadna.model.mlp import Mlp
from hyenadna.model.packed_linear import DenseLinear, Linear


class Experts(nn.Module):
    """y = sum over e of ReLU(x W)_e expert_e(x), each expert an Mlp of width d_inner / active_experts."""

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        experts: int,
        active_experts: int,
        linear: Callable[[int, int], Linear] = DenseLinear,
    ) -> None:
        super().__init__()
        self.active_experts = active_experts
        self.router = nn.Linear(d_model, experts, bias=False)
        self.experts = nn.ModuleList(Mlp(d_model, d_inner // active_experts, linear) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), each position by itself."""
        gates = torch.relu(self.router(x))
        return torch.stack([gates[..., e, None] * expert(x) for e, expert in enumerate(self.experts)]).sum(0)
