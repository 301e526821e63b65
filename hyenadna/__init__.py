"""hyenadna: DNA language models at single-nucleotide resolution.

Shapes in docstrings use one notation: B batch, L tokens, D width, H heads, K key width, V value width, N Hyena order,
M short-filter taps, C chunk, E experts, A alphabet size. Lengths are in bases or tokens, which are the same here;
intervals are 0-based and half-open; log-probabilities are in nats unless a name says bits.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyenadna.model.config import HyenaConfig as HyenaConfig
    from hyenadna.model.language_model import HyenaDNA as HyenaDNA

__version__ = "0.1.0"
__all__ = ["HyenaConfig", "HyenaDNA", "__version__"]

_HOME = {"HyenaConfig": "hyenadna.model.config", "HyenaDNA": "hyenadna.model.language_model"}


def __getattr__(name: str) -> Any:
    # on first use only: importing torch takes seconds, which `hyena --help` must not pay
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hyenadna' has no attribute {name!r}")
