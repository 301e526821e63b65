"""The check of ahead-of-time compilation: what it calls a fault, and, marked slow, a few toy kernels through it."""

import os
import subprocess
import sys
from pathlib import Path

import ahead_of_time
import pytest
from ahead_of_time import Compiled

from hyenadna.kernels.configuration import Configuration

MEANT = Configuration("toy", None, {}, {}, 4, 2, tensor_cores=True, spill_budget=100)
SOUND = Compiled(registers=128, stack=48, spills=96, shared=65_536, hgmma=0, hmma=4)
TOYS = """
import triton
import triton.language as tl

from hyenadna.kernels.configuration import Configuration


@triton.jit
def product(a, b, N: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(a + at)
    tl.store(b + at, tl.dot(x, x, input_precision=PRECISION))


@triton.jit
def misspelt(a, N: tl.constexpr):
    tl.store(a + tl.arange(0, N), nothing)


def configurations():
    types = {"a": "*fp32", "b": "*fp32", "N": "constexpr", "PRECISION": "constexpr"}
    for name, N, precision in (("sound", 32, "tf32"), ("scalar", 16, "ieee"), ("huge", 256, "tf32")):
        yield Configuration(name, product, types, {"N": N, "PRECISION": precision}, 4, 2, True, 1 << 16)
    yield Configuration("misspelt", misspelt, {"a": "*fp32", "N": "constexpr"}, {"N": 64}, 4, 2, False, 0)
"""


def run(folder: Path, *modules: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = Path(ahead_of_time.__file__)
    path = os.pathsep.join([str(script.parents[1]), str(folder)])
    return subprocess.run(
        [sys.executable, script, *modules],
        env=os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_keeps_its_budget_has_no_faults():
    assert ahead_of_time.faults(MEANT, SOUND) == []
    assert ahead_of_time.faults(MEANT._replace(tensor_cores=False), SOUND._replace(hmma=0)) == []
    assert ahead_of_time.faults(MEANT, SOUND._replace(shared=232_448, hgmma=1, hmma=0)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"shared": 232_449}, "asks for 232,449 bytes of shared memory; sm_90 gives 232,448"),
        ({"spills": 101}, "spills 101 bytes; its budget is 100"),
        ({"stack": 4096}, "keeps 4,096 bytes in local memory; its budget is 100"),
        ({"hmma": 0}, "was meant for the tensor cores and has no HGMMA or HMMA instruction"),
    ],
)
def test_each_fault_is_told(change, fault):
    assert ahead_of_time.faults(MEANT, SOUND._replace(**change)) == [fault]


def test_interpreted_kernels_are_refused(tmp_path):
    ended = run(tmp_path, TRITON_INTERPRET="1")
    assert ended.returncode == 1 and "which cannot be compiled; unset it" in ended.stderr


@pytest.mark.slow
def test_toy_kernels(tmp_path):
    (tmp_path / "toys_triton.py").write_text(TOYS)
    ended = run(tmp_path, "toys_triton")
    assert ended.returncode == 1, ended.stderr
    found = [line for line in ended.stdout.splitlines() if line.startswith("FAULT")]
    assert found == [
        "FAULT scalar was meant for the tensor cores and has no HGMMA or HMMA instruction",
        "FAULT huge asks for 524,288 bytes of shared memory; sm_90 gives 232,448",
        "FAULT misspelt does not compile: CompilationError: NameError('nothing is not defined')",
    ]
    assert "4 configurations in" in ended.stdout
