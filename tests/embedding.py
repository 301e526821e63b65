"""What the tests of embeddings share: ragged sequences, and embeddings computed another way."""

import functools
import random

import numpy as np
import torch

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.tokenizer import encode
from hyenadna.inference.embed import EmbedConfig
from hyenadna.inference.long_windows import long_windows


def ragged_sequences(number=12, longest=60, seed=3):
    """Ids and sequences of many lengths, some with N and lower case; the first has one base."""
    draw = random.Random(seed)
    lengths = [1, 2, longest] + [draw.randint(1, longest) for _ in range(number - 3)]
    return [(f"s{row}", "".join(draw.choices("ACGTNacgtn", k=length))) for row, length in enumerate(lengths)]


@functools.cache
def states_of(model, sequence, layer, context, stride):
    """Hidden states (L, D) in float64, one window after the other, each alone."""
    tokens = encode(sequence, model.config.n_token)
    rows = []
    for window in long_windows([len(tokens)], context, stride):
        x = model.embedding(torch.from_numpy(tokens[window.start : window.end])[None].long())
        with torch.no_grad():
            for block in model.backbone.layers[: layer % (model.config.n_layer + 1)]:
                x = block(x)
            if layer in (-1, model.config.n_layer):
                x = model.backbone.ln_f(x)
        rows.append(x[0, window.first - window.start :].detach().numpy())
    return np.concatenate(rows)


def oracle(model, sequence, *, layer=-1, pool="mean", bins=None, both=False, stride=None):
    """The embedding of one sequence by itself, in float64 and by numpy."""
    context = model.config.filter_length - 2
    states = states_of(model, sequence, layer, context, stride or context // 2)
    if both:
        other = states_of(model, reverse_complement(sequence), layer, context, stride or context // 2)
        if pool == "none" or bins:
            return (_pooled(states, pool, bins) + _pooled(other[::-1], pool, bins)) / 2
        return (_pooled(states, pool, bins) + _pooled(other, pool, bins)) / 2
    return _pooled(states, pool, bins)


def _pooled(states, pool, bins):
    if bins:
        return np.stack([states[start : start + bins].mean(0) for start in range(0, len(states), bins)])
    match pool:
        case "mean":
            return states.mean(0)
        case "max":
            return states.max(0)
        case "last":
            return states[-1]
    return states


def config_of(options):
    return EmbedConfig(**{{"both": "reverse_complement"}.get(name, name): value for name, value in options.items()})


def tokens_of(pairs, n_token="n"):
    return [encode(sequence, n_token) for _, sequence in pairs]


def differences(found, wanted):
    assert [value.shape for value in found] == [value.shape for value in wanted]
    return max(np.abs(value - other).max() / np.abs(other).max() for value, other in zip(found, wanted, strict=True))
