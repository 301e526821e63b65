"""What brings the experts of a model to their target sparsity in training: a penalty, and the control of its weight.

The loss of a step is that of the language model plus lambda times

    (1 / (n T)) sum over layers l, tokens t, experts e of f_le R_e(x_lt),   f_le = (E / (k T)) sum over t of 1{R_e > 0}

(Wang et al. 2025, arXiv 2412.14711, section 3.4): an L1 norm of the gates, in which busy experts cost more. f is a
number, which is not differentiated, and of each micro-batch by itself. The sum is divided by the n layers that have
experts, as in the paper; its code adds the layers up, so that lambda there is lambda here / n. Sparsity S is the share
of gates that are zero, over all layers, tokens, micro-batches and ranks of a step; its target is 1 - k / E. After every
step

    lambda <- lambda alpha^sign(target - S)                          control "sign", as published; equality divides
    lambda <- lambda alpha^(target - S) exp(5 (S_before - S))       control "damped"

Gates answer to lambda late, and then within a few steps. The sign takes no notice: it passes what is needed by orders
of magnitude, up and then down, and gates that were switched off on the way stay off, for a gate of zero has no
gradient. Damped, the steps become smaller towards the target, and lambda gives way at once when sparsity rises: in
logarithms this is a controller with a proportional and an integral part, ln lambda = 5 (target - S) + ln alpha times
the sum of (target - S), up to a constant.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hyenadna.model.experts import expert_layers
from hyenadna.model.language_model import HyenaDNA

Control = Literal["damped", "sign"]
BOUNDS: dict[Control, tuple[float, float]] = {"damped": (1e-8, 10.0), "sign": (1e-300, 1e300)}
"""Of lambda. As published there are none, but from 0 or infinity no factor leads back."""


_DAMPING = 5.0
"""How far lambda gives way, in nats, were sparsity to rise from 0 to 1."""


class SparsityState(NamedTuple):
    """What a checkpoint holds of the control."""

    coefficient: float
    """lambda of the next step."""
    sparsity: float | None
    """Of the last step, if there was one."""


def balanced_l1(gates: Tensor, active_experts: int) -> Tensor:
    """The penalty, without lambda; the equation stands at the top of this file.

    Parameters
    ----------
    gates : Tensor (n, T, E)
    active_experts : int            k

    Returns
    -------
    Tensor ()
    """
    load = (gates.detach() > 0).to(gates.dtype).mean(dim=1) * (gates.shape[-1] / active_experts)
    return (load * gates.mean(dim=1)).sum(dim=-1).mean()


def gate_counts(gates: Tensor) -> Tensor:
    """Of gates (n, T, E): how many are zero, how many there are, of how many tokens all are, and n T; float64 (4,)."""
    off = gates.detach() == 0
    numbers = (off.sum(), off.numel(), off.all(dim=-1).sum(), off[..., 0].numel())
    return torch.stack([torch.as_tensor(number, dtype=torch.float64, device=gates.device) for number in numbers])


class SparsityControl:
    """The coefficient of the penalty, lambda, from step to step.

    Parameters
    ----------
    target : float              1 - k / E
    active_experts : int        k
    control : Control           how lambda follows from the sparsity
    factor : float              alpha
    coefficient : float         lambda of the first step

    Attributes
    ----------
    state : SparsityState       all that changes from step to step
    """

    def __init__(
        self, *, target: float, active_experts: int, control: Control, factor: float, coefficient: float
    ) -> None:
        self.target, self.active_experts, self.control, self.factor = target, active_experts, control, factor
        self.state = SparsityState(coefficient, None)

    @classmethod
    def of(cls, model: HyenaDNA, *, control: Control, factor: float, start: float) -> "SparsityControl | None":
        """That of a model at the beginning of its training; None if it has no experts."""
        if not expert_layers(model):
            return None
        k, E = model.config.active_experts, model.config.experts
        return cls(target=1 - k / E, active_experts=k, control=control, factor=factor, coefficient=start)

    def penalty(self, gates: Tensor) -> Tensor:
        """What the gates (n, T, E) of a micro-batch add to its mean loss."""
        return self.state.coefficient * balanced_l1(gates, self.active_experts)

    def update(self, sparsity: float) -> None:
        """After a step of that sparsity."""
        error, (coefficient, before) = self.target - sparsity, self.state
        match self.control:
            case "sign":
                coefficient *= self.factor if error > 0 else 1 / self.factor
            case "damped":
                rise = 0.0 if before is None else sparsity - before
                coefficient *= self.factor**error * math.exp(-_DAMPING * rise)
        lowest, highest = BOUNDS[self.control]
        self.state = SparsityState(min(highest, max(lowest, coefficient)), sparsity)
