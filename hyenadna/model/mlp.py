"""The dense feed-forward layer of a block."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyenadna.kernels.mlp import gelu, mlp
from hyenadna.kernels.working_set import bytes_to_keep
from hyenadna.model.packed_linear import DenseLinear, Linear


class Mlp(nn.Module):
    """fc2(GELU(fc1 x)) with the tanh form of GELU; (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_inner: int, linear: Callable[[int, int], Linear] = DenseLinear) -> None:
        super().__init__()
        self.fc1 = linear(d_model, d_inner)
        self.fc2 = linear(d_inner, d_model)
        self.d_inner = d_inner

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself."""
        if not torch.is_grad_enabled():
            return cast(Tensor, self.fc2(gelu(self.fc1(x))))
        if isinstance(self.fc1, DenseLinear) and isinstance(self.fc2, DenseLinear):
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        # as the fused layer does: GELU's input is kept for the backward pass if that takes little memory
        if x[..., 0].numel() * self.d_inner * x.itemsize > bytes_to_keep(x.device):
            return cast(Tensor, checkpoint(self._by_parts, x, use_reentrant=False))
        return self._by_parts(x)

    def _by_parts(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x), approximate="tanh")))
