"""Compiles what fft_conv.py and gpu_model.py launch into Triton's cache, many kernels at once.

    python benchmarks/warm_up.py --device cuda

A kernel takes seconds to compile, on one core; the benchmarks, one process each, would compile one after another. Here
every case of theirs runs once, ours alone, in as many processes as there are CPUs, and without being timed.
"""

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import fft_conv
import gpu_model
import torch

from hyenadna import machine
from hyenadna.progress import notice

Case = fft_conv.Case | gpu_model.Case
FEW = 16
"""Channels that get the kernels of 256: triton compiles anew for numbers that 16 does not divide."""


def cases_of(device: torch.device) -> list[Case]:
    """Those with most kernels first, but inference before training, which then finds half of its kernels."""
    # how a batch is divided among programs depends on the number of channels
    few = [case if case.batch > 1 else case._replace(channels=FEW) for case in fft_conv.cases_of(device)]
    return [*gpu_model.CASES, *few]


def warm(case: Case, device: torch.device) -> float:
    """Seconds that the case took; runs in a process of the pool."""
    start = time.perf_counter()
    if isinstance(case, gpu_model.Case):
        gpu_model.Contender("ours", case, device, gpu_model.DTYPE)()
    else:
        fft_conv.ours(fft_conv.Inputs.of(case, device), case.kind)()
    if device.type == "cuda":
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # the processes share one GPU
    return time.perf_counter() - start


def title(case: Case) -> str:
    what = f"{case.size} {case.work}" if isinstance(case, gpu_model.Case) else f"{case.precision} {case.kind}"
    return f"{what} at {case.length:,}"


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = ()) -> int:
    parser = argparse.ArgumentParser(description="Compile what the GPU benchmarks launch, in parallel.")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=machine.available_cpus(), help="default: one for each CPU")
    flags = parser.parse_args(argv)
    device, failed = torch.device(flags.device), 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(flags.processes, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [(case, pool.submit(warm, case, device)) for case in cases or cases_of(device)]
        for case, future in running:
            try:
                notice(f"{future.result():6.1f} s  {title(case)}")
            except Exception as error:  # of a process that died, too; the benchmark of this case will say more
                failed += 1
                notice(f"  FAILED  {title(case)}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
