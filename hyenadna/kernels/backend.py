"""Which implementation of an operator runs: our Triton kernels, or torch.

`auto`, the default, takes the kernels for tensors on a CUDA device and torch everywhere else; float64 is always
torch's, because the kernels compute in float32. `HYENA_KERNELS=auto|triton|torch` or `use(...)` chooses; `triton` where
it cannot run is an error. The modules that import triton are named *_triton.py, and only this choice leads to them.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from hyenadna.errors import HyenaError, KernelError, UsageError
from hyenadna.progress import notice

Backend = Literal["auto", "triton", "torch"]
Precision = Literal["exact", "fast"]
"""`exact`: as exact as torch in float32. `fast`: float16 operands with scaling, relative error up to 1e-3."""

_within: list[Backend] = []
"""What `use` asks for, the innermost last; of the whole process, because autograd recomputes in a thread of its own."""


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Choose the implementation of everything called within, in any thread, over what the environment says."""
    _within.append(backend)
    try:
        yield
    finally:
        _within.pop()


def asked_for() -> Backend:
    """What `use` or HYENA_KERNELS asks for.

    Raises
    ------
    UsageError          HYENA_KERNELS holds another word
    """
    backend = _within[-1] if _within else os.environ.get("HYENA_KERNELS") or "auto"
    if backend not in get_args(Backend):
        raise UsageError(f"HYENA_KERNELS is {backend!r}; it may be auto, triton or torch")
    return cast(Backend, backend)


def chosen(x: Tensor) -> Literal["triton", "torch"]:
    """What runs on tensors like x.

    Raises
    ------
    UsageError          triton was asked for and cannot run on x
    """
    backend = asked_for()
    if backend == "torch" or (backend == "auto" and (x.device.type != "cuda" or x.dtype == torch.float64)):
        return "torch"
    obstacle = _obstacle(x.device, x.dtype)
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise UsageError(f"HYENA_KERNELS=triton cannot run here: {obstacle}; HYENA_KERNELS=torch can")
    _say_once(obstacle)
    return "torch"


def reason(x: Tensor) -> str:
    """Why `chosen` takes what it takes for tensors like x."""
    asked = asked_for()
    if asked != "auto":
        return f"HYENA_KERNELS is {asked}"
    return _obstacle(x.device, x.dtype) or f"the tensors are on {device_name(x.device)}"


def precision_of(dtype: torch.dtype) -> Precision:
    """The model's dtype policy: float32 is computed exactly, half precision fast."""
    return "fast" if dtype in (torch.bfloat16, torch.float16) else "exact"


@contextmanager
def reported(operator: str, x: Tensor) -> Iterator[None]:
    """Say of a failure inside a Triton kernel what it was and how to do without it.

    Raises
    ------
    KernelError         anything that goes wrong within, but want of memory
    """
    try:
        yield
    except (HyenaError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KernelError(
            f"the Triton kernel of {operator} failed on {device_name(x.device)}: {what}; "
            "run with HYENA_KERNELS=torch, which needs none, and report this"
        ) from error


def device_name(device: torch.device) -> str:
    """What the device is called, with its compute capability if it has one."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if dtype == torch.float64:
        return "the kernels compute in float32, and float64 was given"
    if device.type != "cuda":
        return None if device.type == "cpu" and interpreting() else f"the tensors are on {device.type}, not on a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{device_name(device)} is older than sm_80"
    return None


@cache
def _say_once(obstacle: str) -> None:
    notice(f"kernels: torch, because {obstacle}")
