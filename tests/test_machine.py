import os
import resource

import pytest
import torch

from hyenadna import machine
from hyenadna.errors import UsageError


@pytest.fixture
def system(monkeypatch):
    """Pretends a machine: 8 CPUs by affinity, and files of the control group as given."""
    files = {}
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return files


@pytest.mark.parametrize(
    ("quota", "slurm", "cpus"),
    [
        ("", None, 8),
        ("max 100000", None, 8),
        ("300000 100000", None, 3),
        ("50000 100000", None, 1),
        ("1600000 100000", None, 8),
        ("", "4", 4),
        ("300000 100000", "4", 3),
        ("", "16", 8),
        ("", "none", 8),
    ],
)
def test_cpus_that_this_process_may_use(system, monkeypatch, quota, slurm, cpus):
    system["/sys/fs/cgroup/cpu.max"] = quota + "\n"
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert machine.available_cpus() == cpus


def test_memory_within_the_limit(system):
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.total_memory() == everything
    system["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.total_memory() == everything
    system["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert machine.total_memory() == 1_000_000


def test_peak_memory_counts_bytes():
    block = torch.ones(64 << 20, dtype=torch.uint8)
    peak = machine.peak_memory()
    assert block.numel() < peak <= machine.total_memory()
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def test_cpu_name(system):
    system["/proc/cpuinfo"] = "processor : 0\nmodel name\t: Some CPU @ 2 GHz: fast\n"
    assert machine.cpu_name() == "Some CPU @ 2 GHz: fast"
    system.clear()
    assert machine.cpu_name()


def test_torch_device():
    assert machine.torch_device("cpu") == torch.device("cpu")
    gpu = torch.cuda.is_available()
    assert machine.torch_device("auto").type == ("cuda" if gpu else "cpu")
    for name in ("gpu", "cpu:0", "cuda:x", "", "cuda:-1"):
        with pytest.raises(UsageError, match=r"allowed are auto, cpu, cuda and cuda:N"):
            machine.torch_device(name)
    with pytest.raises(UsageError, match=rf"--device cuda:99: torch sees {torch.cuda.device_count()} GPUs"):
        machine.torch_device("cuda:99")


def test_description_is_of_this_machine():
    described = machine.describe()
    assert described["packages"]["torch"] == torch.__version__ and described["packages"]["hyenadna"]
    assert described["cpus_available"] == machine.available_cpus() and described["memory_gb"] > 0
    assert len(described["gpus"]) == torch.cuda.device_count()
