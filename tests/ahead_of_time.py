"""Compiles every configuration of the Triton kernels for sm_90 on a machine without a GPU, and checks what came out.

    python tests/ahead_of_time.py [MODULE ...]          by default every *_triton.py in hyenadna/kernels

A GPU would find these faults only at launch: a configuration that does not compile, that asks for more shared memory
than a multiprocessor has, that spills more registers than its budget, keeps arrays in local memory, or computes without
the tensor cores what was meant for them. Works with the triton that python finds; pytest does not collect this.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import hyenadna.kernels
from hyenadna.kernels.configuration import Configuration

SHARED_LIMIT = 232_448
"""Bytes of shared memory that one program may have on sm_90: 228 KB less the 1 KB that the system keeps."""
MOST_CONFIGURATIONS = 70
PROCESSES = 2


class Compiled(NamedTuple):
    """What the machine code of one configuration needs; bytes, and per thread but for the shared memory."""

    registers: int
    stack: int
    spills: int
    shared: int
    hgmma: int
    hmma: int


class Row(NamedTuple):
    """One line of the table; without `compiled` the compilation itself failed."""

    name: str
    seconds: float
    compiled: Compiled | None
    faults: list[str]


def modules_with_kernels() -> list[str]:
    """Those that launch kernels; names the others, which hold functions for them."""
    folder = Path(hyenadna.kernels.__file__).parent
    found = [f"hyenadna.kernels.{path.stem}" for path in sorted(folder.glob("*_triton.py"))]
    launching = [module for module in found if hasattr(importlib.import_module(module), "configurations")]
    for module in sorted(set(found) - set(launching)):
        print(f"{module} has no configurations: what it holds is compiled as part of others")
    return launching


def compiled(configuration: Configuration) -> Compiled:
    """Compile for sm_90, and read what ptxas and the disassembler say."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _, kernel, types, constants, num_warps, num_stages, _, _ = configuration
    signature = {argument: types[argument] for argument in kernel.arg_names}
    # as at launch, where the memory that torch allocates is aligned; without it no load is wider than one element
    aligned = [index for index, argument in enumerate(kernel.arg_names) if signature[argument].startswith("*")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    with contextlib.redirect_stdout(io.StringIO()) as log:  # ptxas's, by TRITON_DUMP_PTXAS_LOG
        built = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps, "num_stages": num_stages}
        )
    sass = disassembled(built.asm["cubin"], triton.knobs.nvidia.nvdisasm.path)
    stack, stores, loads = (
        sum(int(count) for count in re.findall(rf"(\d+) bytes {what}", log.getvalue()))
        for what in ("stack frame", "spill stores", "spill loads")
    )
    return Compiled(
        registers=max(int(count) for count in re.findall(r"Used (\d+) registers", log.getvalue())),
        stack=stack,
        spills=stores + loads,
        shared=built.metadata.shared,
        hgmma=len(re.findall(r"\bHGMMA\b", sass)),
        hmma=len(re.findall(r"\bHMMA\b", sass)),
    )


def disassembled(cubin: bytes, nvdisasm: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout


def faults(configuration: Configuration, result: Compiled) -> list[str]:
    """What is wrong with a configuration that compiled."""
    found = []
    if result.shared > SHARED_LIMIT:
        found.append(f"asks for {result.shared:,} bytes of shared memory; sm_90 gives {SHARED_LIMIT:,}")
    if result.spills > configuration.spill_budget:
        found.append(f"spills {result.spills:,} bytes; its budget is {configuration.spill_budget:,}")
    elif result.stack > configuration.spill_budget:
        found.append(f"keeps {result.stack:,} bytes in local memory; its budget is {configuration.spill_budget:,}")
    if configuration.tensor_cores and not result.hgmma + result.hmma:
        found.append("was meant for the tensor cores and has no HGMMA or HMMA instruction")
    return found


def row(module: str, index: int) -> Row:
    """The configuration `index` of `module`, compiled and checked; runs in a process of its own."""
    configuration = list(importlib.import_module(module).configurations())[index]
    start = time.perf_counter()
    try:
        result = compiled(configuration)
    except Exception as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        fault = f"does not compile: {type(error).__name__}: {reason.strip()}"
        return Row(configuration.name, time.perf_counter() - start, None, [fault])
    return Row(configuration.name, time.perf_counter() - start, result, faults(configuration, result))


def rows(modules: Sequence[str]) -> Iterator[Row]:
    """All rows, in the order of the modules' configurations."""
    work = [
        (module, index)
        for module in modules
        for index in range(len(list(importlib.import_module(module).configurations())))
    ]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (module, index), result in [(item, pool.submit(row, *item)) for item in work]:
            try:
                yield result.result()
            except BrokenProcessPool:  # LLVM ends the process where it finds its own state to be wrong
                fault = "or one of those that follow it ended the compiler's process; none of them was compiled"
                yield Row(f"{module}, configuration {index},", 0.0, None, [fault])
                return


def table_line(row: Row) -> str:
    numbers = "".join(f"{number:>10,}" for number in row.compiled or ())
    return f"{row.name:<48}{numbers or '-':>60}{row.seconds:>8.1f}"


def main(modules: Sequence[str]) -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 replaces the kernels by interpreted ones, which cannot be compiled; unset it")
    import triton

    print(f"triton {triton.__version__} from {Path(triton.__file__).parent}, for sm_90")
    modules = modules or modules_with_kernels()
    with tempfile.TemporaryDirectory() as cache:
        # before the processes start; a kernel out of the cache would come without the words of ptxas
        os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DUMP_PTXAS_LOG="1")
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton's own default up to 3.9, which warns that it is
        start, done = time.perf_counter(), []
        heads = ("registers", "stack", "spills", "shared", "HGMMA", "HMMA")
        print(f"{'configuration':<48}{''.join(f'{head:>10}' for head in heads)}{'s':>8}")
        for result in rows(modules):
            print(table_line(result), flush=True)
            done.append(result)
    wrong = [f"{result.name} {fault}" for result in done for fault in result.faults]
    if not 0 < len(done) <= MOST_CONFIGURATIONS:
        wrong.append(f"there are {len(done)} configurations; 1 to {MOST_CONFIGURATIONS} are allowed")
    print(f"{len(done)} configurations in {time.perf_counter() - start:.0f} s, {len(wrong)} faults")
    for line in wrong:
        print(f"FAULT {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
