"""Tiny models of every kind of block, and tokens for them."""

import torch
from checkpoints import small_model
from torch import Tensor

from hyenadna import HyenaDNA

PATTERNS = ("H", "L", "S", "HL", "HS", "HLS", "HS+remoe")
CONTEXT = 48


def hybrid(pattern: str, **fields) -> HyenaDNA:
    """The model of a pattern, every parameter its own random numbers, in eval mode."""
    layers, _, feed_forward = pattern.partition("+")
    given = {"layers": layers, "feed_forward": feed_forward or "mlp", "kv_heads": 2, "experts": 3, "active_experts": 2}
    return small_model(**given | {"filter_length": CONTEXT, "filter_order": 8} | fields)


def letters(B: int, L: int, seed: int = 0) -> Tensor:
    return torch.randint(7, 12, (B, L), generator=torch.Generator().manual_seed(100 * L + seed))
