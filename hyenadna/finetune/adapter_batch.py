"""Several adapters of one base in one batch, item by item."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenadna.errors import UsageError
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.model.hyena import item_by_item


class AdapterBatch:
    """Several adapters of one base in one batch, item by item.

    Items with soft prompts and heads go through the base together, each with its own prompt's state and read-out. Items
    with LoRA go through in one group an adapter, whose weights are its own; so do items with soft prompts before a base
    that has other layers than Hyena's, because states of prompts of different lengths do not fit one batch there.
    Prediction only: without gradients.

    Parameters
    ----------
    models : sequence of SequenceModel
        Of one base in memory: `load(folder, base=base)`. They are put in eval mode.

    Raises
    ------
    UsageError              no models, or of different bases
    """

    def __init__(self, models: Sequence[SequenceModel]) -> None:
        if not models or any(model.base.embedding.weight is not models[0].base.embedding.weight for model in models):
            raise UsageError(
                f"a batch was asked for of {len(models)} adapters that do not share a base; load each with base= the "
                "same model"
            )
        self.models = [model.eval() for model in models]
        joins = set(models[0].base.config.layers) == {"H"}
        alone = [
            number
            for number, model in enumerate(models)
            if model.adaptation.method == "lora" or (model.prompt is not None and not joins)
        ]
        together = [number for number in range(len(models)) if number not in alone]
        self._groups = [group for group in (together, *([number] for number in alone)) if group]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, lengths: Tensor, which: Tensor) -> list[Tensor]:
        """The answers of right-padded sequences, each by its own adapter.

        Parameters
        ----------
        tokens : Tensor (B, L)
        lengths : int64 Tensor (B,)
        which : int64 Tensor (B,)       number of each item's adapter

        Returns
        -------
        list of B Tensors (K,), with each adapter's own K; (length, K) for a class of every nucleotide

        Raises
        ------
        SequenceTooLong                 an item is longer than its adapter takes
        InputError                      lengths that do not fit the tokens
        UsageError                      an adapter that there is not
        """
        if len(which) != len(tokens) or not set(which.tolist()) <= set(range(len(self.models))):
            raise UsageError(
                f"adapters {sorted(set(which.tolist()))} were asked for by {len(which)} of {len(tokens)} sequences; "
                f"each must name one of 0 to {len(self.models) - 1}"
            )
        answers: dict[int, Tensor] = {}
        for group in self._groups:
            rows = torch.isin(which, torch.tensor(group, device=which.device)).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            longest = int(lengths[rows].max())
            hidden = self._hidden(group, tokens[rows, :longest], lengths[rows], which[rows])
            for number in group:
                mine = (which[rows] == number).nonzero()[:, 0]
                answers |= self._read(number, hidden[mine.to(hidden.device)], lengths[rows[mine]], rows[mine])
        return [answers[row] for row in range(len(tokens))]

    def _hidden(self, group: list[int], tokens: Tensor, lengths: Tensor, which: Tensor) -> Tensor:
        """The hidden states (B, L, D) of the items of a group."""
        if len(group) == 1:
            return self.models[group[0]].hidden(tokens, lengths)
        present, position = which.unique(return_inverse=True)
        prefixes = []
        for number in present.tolist():
            model, own = self.models[number], which == number
            longest = int(lengths[own].max())  # its prompt may leave less room than others' items need
            model.check(tokens[own, :longest], lengths[own])
            prefixes.append(model.prompt.before(model.base, longest) if model.prompt is not None else None)
        base = self.models[group[0]].base
        hidden: Tensor = base(tokens, prefix=item_by_item(prefixes, position.to(base.device), tokens.shape[1])).hidden
        return hidden

    def _read(self, number: int, hidden: Tensor, lengths: Tensor, rows: Tensor) -> dict[int, Tensor]:
        model = self.models[number]
        if len(rows) == 0:
            return {}
        outputs = model.read(model.pooled(hidden, lengths))
        if model.task.kind == "nucleotide":
            return {row: output[:length] for row, output, length in zip(rows.tolist(), outputs, lengths, strict=True)}
        return dict(zip(rows.tolist(), outputs, strict=True))
