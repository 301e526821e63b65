"""ReMoE: a feed-forward layer of experts, of which a ReLU router switches on few for each token.

    y = sum over e of R_e(x) expert_e(x),   R(x) = ReLU(x W)

Wang et al. 2025 (arXiv 2412.14711), eq. 6 and 7. Without a softmax and without a choice of the k largest, how many
experts a token gets is learnt; an L1 penalty in training (`hyenadna.pretrain.sparsity`) brings their mean to k. Each
expert is an Mlp of 1 / k of the width, so that at that mean as many weights work on a token as in one Mlp of the whole
width. An expert sees the tokens that switch it on and no others, which is the sum above without its zeros. A token that
switches on none gets zero, and leaves the block as the mixer made it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.model.mlp import Mlp
from hyenadna.model.packed_linear import DenseLinear, Linear


class Router(nn.Linear):
    """The gates of the experts, ReLU(x W): (T, D) -> (T, E), in float32 (or float64) whatever the model computes in.

    Near zero a rounded product would switch experts on and off; so casts to half precision leave the weight alone.
    """

    def __init__(self, d_model: int, experts: int) -> None:
        super().__init__(d_model, experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself."""
        with torch.autocast(x.device.type, enabled=False):
            return F.relu(F.linear(x.to(self.weight.dtype), self.weight))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if result.dtype not in (torch.float16, torch.bfloat16):
                return result
            return fn(tensor.view(torch.uint8)).view(tensor.dtype)  # as bytes, which a cast leaves alone

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call, no-any-return]


class Experts(nn.Module):
    """The feed-forward layer of a block, (..., D) -> (..., D), in the place of an Mlp of width d_inner.

    Parameters
    ----------
    d_model : int
    d_inner : int
        Width of all experts that are on at the target sparsity, together.
    experts, active_experts : int
        E, and k of them that are on at the target sparsity; k divides d_inner.
    linear : callable
        Makes the experts' linear layers, from in_features and out_features.
    """

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
        self.router = Router(d_model, experts)
        self.experts = nn.ModuleList(Mlp(d_model, d_inner // active_experts, linear) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself; in float32, or float64 for a float64 model."""
        rows = x.reshape(-1, x.shape[-1])
        gates = self.router(rows)
        on = gates.T != 0  # and so NaN is on, and seen
        numbers, tokens = on.nonzero(as_tuple=True)
        sizes: list[int] = on.sum(dim=1).tolist()
        y = torch.zeros_like(rows, dtype=gates.dtype)
        for expert, chosen, weight in zip(
            self.experts, tokens.split(sizes), gates.T[numbers, tokens, None].split(sizes), strict=True
        ):
            # with gradients an expert takes part also without tokens: to several ranks every weight owes a gradient
            if len(chosen) or torch.is_grad_enabled():
                # one expert after the other, not all in one sum, whose order a GPU would not keep
                y.index_add_(0, chosen, weight * expert(rows.index_select(0, chosen)))
        return y.view(x.shape)


class Gates:
    """What the routers of a model said; see `gates_of`."""

    def __init__(self, layers: int) -> None:
        self._parts: list[list[Tensor]] = [[] for _ in range(layers)]

    def __bool__(self) -> bool:
        """Whether the model has experts at all."""
        return bool(self._parts)

    def all(self) -> Tensor:
        """The gates of each layer and token: (layers, T, E), float32 or float64, with gradients if there were any."""
        return torch.stack([torch.cat(parts) for parts in self._parts])

    def _listener(self, layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, gates: self._parts[layer].append(gates)


def expert_layers(model: nn.Module) -> list[Experts]:
    """The feed-forward layers of a model that are experts, in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, Experts)]


@contextmanager
def gates_of(model: nn.Module) -> Iterator[Gates]:
    """What the routers say in the forward passes made within, for a loss or a report.

    The routers are listened to from outside, and nothing stays in the model: what a block returns is what it returned,
    a recomputation in the backward pass, which comes after, is not heard, and every micro-batch has its own gates.

    Examples
    --------
    >>> layer = Experts(8, 16, experts=4, active_experts=1)
    >>> with gates_of(layer) as gates:
    ...     y = layer(torch.randn(2, 5, 8))
    >>> gates.all().shape
    torch.Size([1, 10, 4])
    """
    layers = expert_layers(model)
    gates = Gates(len(layers))
    handles = [layer.router.register_forward_hook(gates._listener(i)) for i, layer in enumerate(layers)]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()
