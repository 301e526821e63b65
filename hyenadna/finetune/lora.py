"""Low-rank updates of frozen weights.

    W' = W + (alpha / r) B A,   A (r, inputs), B (outputs, r)

Hu et al. 2021, section 4.1: A is normal at first and B zero, so that a new update changes nothing. Departs from their
code: (1) A is N(0, 1 / inputs); (2) no dropout of the input, because the update is made to the weight, which the fused
layers of this package read. A step costs r / rows of the layer's own product, for the positions of the batch as rows.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyenadna.finetune.adaptation import Projection
from hyenadna.model.hyena import HyenaOperator
from hyenadna.model.language_model import HyenaDNA


class LowRank(nn.Module):
    """The update of one weight; called with the frozen weight it gives the updated one."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.randn(rank, inputs).to(weight) / inputs**0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank).to(weight))
        self.held: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """(outputs, inputs), in the weight's dtype."""
        held = self.held
        return torch.addmm(weight, self.B, self.A, alpha=self.scale) if held is None else held


def attach(base: HyenaDNA, *, rank: int, alpha: float, projections: Sequence[Projection]) -> HyenaDNA:
    """A model with new updates of some linear layers in every block, drawn with torch's global generator.

    It shares all weights, and all that it does not change, with the base, which stays as it was: several may be made
    of one base and used side by side. They move between devices and dtypes together with it.
    """
    changed = [
        linear
        for name, linear in base.named_modules()
        if isinstance(linear, nn.Linear) and name.rpartition(".")[2] in projections
    ]
    copied = {id(linear) for linear in changed}
    shared: list[object] = [*base.parameters(), *(m.spectra for m in base.modules() if isinstance(m, HyenaOperator))]
    shared += [module for module in base.modules() if copied.isdisjoint(id(part) for part in module.modules())]
    model = copy.deepcopy(base, {id(thing): thing for thing in shared})
    for name, module in base.named_modules():
        if id(module) in copied:
            update = LowRank(cast(nn.Linear, module).weight, rank, alpha)
            parametrize.register_parametrization(model.get_submodule(name), "weight", update)
    return model


def updates(model: HyenaDNA) -> dict[str, LowRank]:
    """The updates of a model that `attach` made, by the names of their layers in the base."""
    return {
        name.removesuffix(".parametrizations.weight.0"): module
        for name, module in model.named_modules()
        if isinstance(module, LowRank)
    }


def base_state(model: HyenaDNA) -> dict[str, Tensor]:
    """The weights of the base that a model was made of, by the base's own names."""
    return {
        name.replace(".parametrizations.weight.original", ".weight"): tensor
        for name, tensor in model.state_dict().items()
        if ".parametrizations.weight.0." not in name
    }


def merged(model: HyenaDNA) -> HyenaDNA:
    """A plain model, with weights of its own, into which the updates are written."""
    written: dict[int, nn.Module] = {}
    for name in updates(model):
        linear = cast(nn.Linear, model.get_submodule(name))
        with torch.no_grad():
            plain = nn.utils.skip_init(nn.Linear, *linear.weight.T.shape)
            plain.weight, plain.bias = (nn.Parameter(x.clone(), x.requires_grad) for x in (linear.weight, linear.bias))
        written[id(linear)] = plain.train(linear.training)
    # not by parametrize.remove_parametrizations, which takes them from the class, and so from every copy of the module
    return copy.deepcopy(model, written)


@contextmanager
def held(model: HyenaDNA) -> Iterator[None]:
    """Within, without gradients, every updated weight is computed once, and not again for every block of rows."""
    # torch's own parametrize.cached() takes a copy of a module for the module itself
    low_rank = updates(model)
    try:
        for name, update in low_rank.items():
            update.held = cast(nn.Linear, model.get_submodule(name)).weight.detach()
        yield
    finally:
        for update in low_rank.values():
            update.held = None
