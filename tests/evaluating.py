"""Random DNA and a model whose answers are far from uniform, for tests of evaluation."""

import numpy as np
import torch

from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA

ORDER = 3
"""Of the Markov models."""


def random_dna(n: int, seed: int, alphabet: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), n))


def sharp_model() -> HyenaDNA:
    torch.manual_seed(0)
    model = HyenaDNA(HyenaConfig(d_model=8, d_inner=16, layers="HH", filter_length=66, filter_order=8))
    with torch.no_grad():
        model.embedding.weight.mul_(40)  # far from uniform
    return model.double()
