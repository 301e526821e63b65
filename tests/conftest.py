"""One torch thread a worker, poisoned memory, and the folders that tests read."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch

# torch.empty is then filled with NaN, so that a result that nothing wrote cannot pass
torch.use_deterministic_algorithms(True, warn_only=True)
torch.set_num_threads(1)

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packs made by tests stay out of the user's cache; the workers share one."""
    if "HYENA_CACHE" not in os.environ:
        os.environ["HYENA_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "hyena-cache")


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ with real data does not lie beside the checkout")
    return SHARED
