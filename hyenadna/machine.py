"""What this machine has, and how much of it this process may use."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from hyenadna.errors import UsageError


def available_cpus() -> int:
    """CPUs that this process may use: by affinity, SLURM's task, or the container's quota, whichever is least."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        limits.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        limits.append(int(quota[0]) // int(quota[1]))
    return max(1, min(limits))


def total_memory() -> int:
    """Bytes of main memory, within the container's limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(memory, int(limit)) if limit.isdigit() else memory


def peak_memory() -> int:
    """Most bytes of main memory that this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Tell the C library to keep large blocks that were freed, for the rest of this process.

    By default each goes back to the kernel and must be faulted in again at the next use, which makes a training step of
    2,048 tokens a quarter longer. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, (1 << 31) - 1)
        if not mallopt(mmap_threshold, 1 << 30):
            mallopt(mmap_threshold, 32 << 20)  # the most that older versions take


def cpu_name() -> str:
    """The processor's model."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Processor, memory, GPUs and versions, as benchmarks and `hyena doctor` record them."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cpus_available": available_cpus(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(total_memory() / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("hyenadna", "torch", "triton", "lightning", "numpy", "h5py")},
    }


def torch_device(name: str) -> Any:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; auto is the GPU where there is one.

    Raises
    ------
    UsageError              another name, or a GPU that is not there
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"--device {name}: allowed are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; hyena doctor says more")
    return torch.device(name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
