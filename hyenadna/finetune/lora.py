"""Low-rank updates of frozen weights.

    W' = W + (alpha / r) B A,   A (r, inputs), B (outputs, r)

Hu et al. 2021, section 4.1: A is normal at first and B zero, so that a new update changes nothing. Departs from their
code: (1) A is N(0, 1 / inputs); (2) no dropout of the input, because the update is made to the weight, which the fused
layers of this package read. A step costs r / rows of the layer's own product, for the positions of the batch as rows.

Weights that are packed into a few bits stay so: there the update is a second product beside theirs,

    y = W x + b + (alpha / r) B (A x),

which is the same up to rounding and costs r (inputs + outputs) / (inputs outputs) of the layer's own product. Both are
stored alike, so that an update serves a model and its quantised child.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyenadna.errors import UsageError
from hyenadna.finetune.adaptation import Projection
from hyenadna.model.hyena import HyenaOperator
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import DenseLinear, PackedLinear


class LowRank(nn.Module):
    """The update of one weight; called with the frozen weight it gives the updated one."""

    def __init__(self, layer: DenseLinear | PackedLinear, rank: int, alpha: float, *, like: Tensor) -> None:
        super().__init__()
        inputs, outputs = layer.in_features, layer.out_features
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.randn(rank, inputs).to(like) / inputs**0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank).to(like))
        self.held: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """(outputs, inputs), in the weight's dtype."""
        held = self.held
        return torch.addmm(weight, self.B, self.A, alpha=self.scale) if held is None else held


class BesidePacked(nn.Module):
    """A packed layer, shared with the base, and the update of its weight beside it."""

    def __init__(self, original: PackedLinear, update: LowRank) -> None:
        super().__init__()
        self.original, self.update = original, update

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., R)."""
        rows, update = x.reshape(-1, x.shape[-1]), self.update
        y = torch.addmm(self.original(rows), rows @ update.A.T, update.B.T, alpha=update.scale)
        return y.view(*x.shape[:-1], -1)

    def columns(self, rows: Tensor) -> Tensor:
        """(n, K) -> (R, n)."""
        update = self.update
        return torch.addmm(self.original.columns(rows), update.B, update.A @ rows.T, alpha=update.scale)


def attach(base: HyenaDNA, *, rank: int, alpha: float, projections: Sequence[Projection]) -> HyenaDNA:
    """A model with new updates of some linear layers in every block, drawn with torch's global generator.

    It shares all weights, and all that it does not change, with the base, which stays as it was: several may be made
    of one base and used side by side. They move between devices and dtypes together with it.
    """
    changed = {name: layer for name, layer in base.projections.items() if name.rpartition(".")[2] in projections}
    new = {name: LowRank(layer, rank, alpha, like=base.embedding.weight) for name, layer in changed.items()}
    copied = {id(layer) for layer in changed.values()}
    shared: list[object] = [*base.parameters(), *(m.spectra for m in base.modules() if isinstance(m, HyenaOperator))]
    shared += [module for module in base.modules() if copied.isdisjoint(id(part) for part in module.modules())]
    known: dict[int, object] = {id(thing): thing for thing in shared}
    for name, layer in changed.items():
        if isinstance(layer, PackedLinear):
            known[id(layer)] = BesidePacked(layer, new[name])
    model = copy.deepcopy(base, known)
    for name, layer in changed.items():
        if isinstance(layer, DenseLinear):
            parametrize.register_parametrization(model.get_submodule(name), "weight", new[name])
    return model


def updates(model: HyenaDNA) -> dict[str, LowRank]:
    """The updates of a model that `attach` made, by the names of their layers in the base."""
    return {
        name.removesuffix(".parametrizations.weight.0").removesuffix(".update"): module
        for name, module in model.named_modules()
        if isinstance(module, LowRank)
    }


def base_state(model: HyenaDNA) -> dict[str, Tensor]:
    """The weights of the base that a model was made of, by the base's own names."""
    return {
        name.replace(".parametrizations.weight.original", ".weight").replace(".original.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".parametrizations.weight.0." not in name and ".update." not in name
    }


def merged(model: HyenaDNA) -> HyenaDNA:
    """A plain model, with weights of its own, into which the updates are written.

    Raises
    ------
    UsageError              the weights are packed into a few bits, which cannot hold an update
    """
    if model.quantization is not None:
        raise UsageError(
            f"the model is quantised to {model.quantization.bits} bits, into which no update can be written: keep the "
            "adapter beside it, or merge it into the parent and quantise that"
        )
    written: dict[int, nn.Module] = {}
    for name in updates(model):
        linear = cast(nn.Linear, model.get_submodule(name))
        with torch.no_grad():
            plain = nn.utils.skip_init(DenseLinear, *linear.weight.T.shape)
            plain.weight, plain.bias = (nn.Parameter(x.clone(), x.requires_grad) for x in (linear.weight, linear.bias))
        written[id(linear)] = plain.train(linear.training)
    # not by parametrize.remove_parametrizations, which takes them from the class, and so from every copy of the module
    return copy.deepcopy(model, written)


@contextmanager
def held(model: HyenaDNA) -> Iterator[None]:
    """Within, without gradients, every updated weight is computed once, and not again for every block of rows.

    Of packed layers there is no such weight.
    """
    # torch's own parametrize.cached() takes a copy of a module for the module itself
    low_rank = {} if model.quantization is not None else updates(model)
    try:
        for name, update in low_rank.items():
            update.held = cast(nn.Linear, model.get_submodule(name)).weight.detach()
        yield
    finally:
        for update in low_rank.values():
            update.held = None
