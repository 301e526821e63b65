"""How much is worked on at once, where the parts of an array do not depend on each other.

On a CPU the parts are small, so that they stay in the caches and in memory that the allocator already has: a block of
more than 32 MB is mapped, faulted in and unmapped at every call, which costs more than the arithmetic. On a GPU they
are large, because each part costs a launch.
"""

import torch


def rows_at_once(device: torch.device) -> int:
    """Positions that go through the matrix products of one layer together."""
    return 1024 if device.type == "cpu" else 1 << 16


def channels_at_once(device: torch.device, row_elements: int) -> int:
    """Channels that are transformed together, of `row_elements` numbers each: 16, or more if they are short."""
    return max(16, ((1 << 20) if device.type == "cpu" else (1 << 26)) // row_elements)


def bytes_to_keep(device: torch.device) -> int:
    """What one operator may keep for its backward pass beside its inputs; anything larger it computes again."""
    return 64 << 20 if device.type == "cpu" else 1 << 30
