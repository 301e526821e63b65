"""The Triton kernels: on a CUDA device if there is one, else in Triton's interpreter.

The interpreter must be chosen before triton is imported, so these tests run in a process of their own:
`TRITON_INTERPRET=1 pytest tests/triton`. Without that and without a GPU they are not collected.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from hyenadna.kernels import backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with backend.use("triton"):
        yield
