"""How much is worked on at once, and in which memory, where the parts of an array do not depend on each other.

On a CPU the parts are small, so that they stay in the caches and in memory that the allocator already has: a block of
more than 32 MB is mapped, faulted in and unmapped at every call, which costs more than the arithmetic. On a GPU they
are large, because each part costs a launch.
"""

import math

import torch
from torch import Tensor


def rows_at_once(device: torch.device) -> int:
    """Positions that go through the matrix products of one layer together."""
    return 1024 if device.type == "cpu" else 1 << 16


def channels_at_once(device: torch.device, row_elements: int) -> int:
    """Channels that are transformed together, of `row_elements` numbers each.

    On a CPU 8, because planning a transform costs as much as a few of them; more if they are short, and fewer if 8 of
    them are larger than what the allocator keeps.
    """
    if device.type != "cpu":
        return max(16, (1 << 26) // row_elements)
    return max(1, min(max(8, (1 << 21) // row_elements), (1 << 23) // row_elements))


def spectra_bytes(device: torch.device) -> int:
    """What the operators of one model may together keep of their filters' spectra between calls."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return 3 << 29


def bytes_to_keep(device: torch.device) -> int:
    """What one operator may keep for its backward pass beside its inputs; anything larger it computes again."""
    return 64 << 20 if device.type == "cpu" else 1 << 30


class Workspace:
    """Memory that the layers of one call use one after the other, instead of new memory for each."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        # glibc keeps freed memory for the next block only up to twice the largest mapped block that was freed before,
        # of 32 MB at most (mallopt(3), M_MMAP_THRESHOLD): without this one, the transforms fault theirs in every time
        torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8, device="cpu")

    def empty(self, *shape: int, like: Tensor) -> Tensor:
        """A tensor of any content, in the dtype and on the device of `like`; it ends the use of the one before."""
        elements, memory = math.prod(shape), self._memory
        if memory is None or memory.numel() < elements or (memory.dtype, memory.device) != (like.dtype, like.device):
            self._memory = None  # before the larger one is made
            self._memory = memory = like.new_empty(elements)
        return memory[:elements].view(shape)
