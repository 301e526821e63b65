"""Soft prompts: learnt embeddings before every sequence, every weight of the model frozen.

Lester et al. 2021; Nguyen et al. 2023. n embeddings (n, D) stand before the sequence, as if n tokens did.
What they do to the sequence is exact and cheap: the prompt's own hidden states are computed once for a batch, and only
the state that they leave is carried into it (hyenadna/model/state.py), so that a training step costs n + B L positions
and not B (n + L), and prediction, where the state is kept, B L. Departs from the paper's code: one dropout mask for a
batch, because the prompt is one row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.state import State

_DEVIATION = 0.02


class SoftPrompt(nn.Module):
    """n learnt embeddings, drawn from N(0, 0.02) with torch's global generator.

    Parameters
    ----------
    n, d_model : int
    dropout : float
        Share of the prompt's numbers that is left out in training.
    """

    def __init__(self, n: int, d_model: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(_DEVIATION * torch.randn(n, d_model))
        self.dropout = dropout
        self._made_of: Tensor | None = None
        self._kept: dict[tuple[int, torch.dtype | None], State | None] = {}

    @torch.no_grad()
    def initialise_from(self, embedded: Tensor) -> None:
        """Begin with an embedded sequence (L, D), again from its first base if it is shorter than the prompt."""
        n = len(self.embeddings)
        self.embeddings.copy_(embedded.repeat(-(-n // len(embedded)), 1)[:n])

    def before(self, base: HyenaDNA, L: int) -> State | None:
        """What the prompt leaves to sequences of L tokens in this model; None if n is 0.

        With gradients it is made for L and reaches back to the prompt. Without, it is made for the next power of two,
        and kept as long as the prompt stays the same; of the model, whose weights are frozen, only dtype and device may
        change.

        Raises
        ------
        SequenceTooLong             n + L is more than the model takes
        """
        if torch.is_grad_enabled():
            self._made_of, self._kept = None, {}
            return base.prefix(F.dropout(self.embeddings, self.dropout, self.training), L)
        if self._made_of is None or not _same(self._made_of, self.embeddings):
            self._made_of, self._kept = self.embeddings.clone(), {}
        device, room = self.embeddings.device.type, base.config.filter_length - len(self.embeddings)
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = max(L, min(1 << (L - 1).bit_length(), room)), autocast
        kept = self._kept  # of this prompt, whatever other threads do
        if key not in kept:
            kept[key] = base.prefix(self.embeddings, key[0])
        return kept[key]


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) == (b.dtype, b.device) and a.equal(b)
