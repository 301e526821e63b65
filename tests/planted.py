"""Models whose answers are planted: they have the reading interface of HyenaDNA and no weights."""

from types import SimpleNamespace

import numpy as np
import torch

from hyenadna.data.tokenizer import PAD
from hyenadna.errors import SequenceTooLong
from hyenadna.model.config import HyenaConfig


class Planted:
    """Says `says(history)`, logits (16,) for the token behind a history of tokens."""

    device = torch.device("cpu")

    def __init__(self, says, context=10_000):
        self.says, self.config = says, HyenaConfig(d_model=8, d_inner=8, layers="H", filter_length=context + 2)
        self.read = 0

    def eval(self):
        return self

    def state_dict(self):
        return {"planted": torch.zeros(1)}

    def extend(self, tokens, state=None, *, ahead=0):
        before = [] if state is None else state.tokens
        self.read += tokens.numel()
        return None, SimpleNamespace(tokens=before + tokens[0].tolist())

    def __call__(self, tokens, *, prefix=None):
        before = [] if prefix is None else prefix.tokens
        if len(before) + tokens.shape[1] > self.config.filter_length:
            raise SequenceTooLong(f"{len(before) + tokens.shape[1]} tokens")
        self.read += int((tokens != PAD).sum())
        logits = torch.zeros(*tokens.shape, 16, dtype=torch.float64)
        for row, of_row in enumerate(tokens.tolist()):
            end = max(at for at, token in enumerate(of_row, 1) if token != PAD)
            for at in range(max(0, end - 4), end):  # no label word is longer
                logits[row, at] = torch.as_tensor(self.says(before + of_row[: at + 1]))
        return SimpleNamespace(logits=logits)


def oracle(answer_of, layout, strength=50.0, **given):
    """Knows the class of each sequence, given as a dictionary from bytes of tokens."""
    gap, words = len(layout.separator_tokens), layout.label_tokens
    lengths = sorted({len(tokens) for tokens in answer_of}, reverse=True)

    def says(history):
        logits = np.zeros(16)
        for behind in range(layout.width):
            end = len(history) - gap - behind
            for length in lengths:
                known = answer_of.get(bytes(history[max(0, end - length) : max(0, end)]))
                if known is not None and bytes(history[end + gap :]) == bytes(words[known][:behind].tolist()):
                    logits[words[known][behind]] = strength
                    return logits
        return logits

    return Planted(says, **given)


def constant(logits, **given):
    """Says the same whatever it read."""
    said = np.asarray(logits, dtype=float)
    return Planted(lambda history: said, **given)
