"""What the benchmarks share: contenders in turns, timed fairly, their peaks of memory, and the report.

On a CPU a repetition counts only if all other processes together used less than half a CPU while it ran; a busy
neighbour slows a step tenfold. There is no way around this but to wait. A GPU is timed by its own events, and nothing
of one repetition is left in its cache for the next.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hyenadna import machine
from hyenadna.errors import HyenaError
from hyenadna.files import write_json
from hyenadna.progress import notice

BUSY = 0.5
"""CPUs that other processes may use."""


class NotQuiet(HyenaError):
    """Other processes used the machine for as long as the benchmark would wait."""


class ContendersDiffer(HyenaError):
    """The contenders do not compute the same, so their times say nothing."""


class QuietMachine:
    """Times work, and does it again whenever other processes disturbed it.

    Parameters
    ----------
    wait_minutes : float
        How long to wait for other processes, in all.

    Attributes
    ----------
    others : list of float      CPUs that other processes used during each repetition that counts
    discarded : int             repetitions that were disturbed
    """

    def __init__(self, wait_minutes: float) -> None:
        self.wait_minutes, self.patience = wait_minutes, 60 * wait_minutes
        self.others: list[float] = []
        self.discarded = 0

    def wait(self, window: float = 1.0) -> float:
        """CPUs that others use, once these are few enough.

        Raises
        ------
        NotQuiet                after `wait_minutes`, summed over all calls
        """
        while True:
            _, others = _with_others(lambda: time.sleep(window))
            if others <= BUSY:
                return others
            self._be_patient(window, others)

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds that `work` takes while the machine is quiet."""
        while True:
            seconds, others = _with_others(work)
            if others <= BUSY:
                self.others.append(others)
                return seconds
            self.discarded += 1
            self._be_patient(seconds, others)
            self.wait()

    def conditions(self) -> dict[str, Any]:
        """What a reader must know of how the times came about."""
        others = spread(self.others) if self.others else None
        return {"cpus_of_others_during": others, "repetitions_discarded": self.discarded}

    def _be_patient(self, seconds: float, others: float) -> None:
        self.patience -= seconds
        if self.patience < 0:
            raise NotQuiet(
                f"other processes use {others:.1f} CPUs, {BUSY} are allowed, and did so for the {self.wait_minutes:g} "
                "minutes of --wait: no times are reported; end them, or wait longer"
            )


class CudaDevice:
    """Times work on the current CUDA device by its events, each time with a cold second-level cache.

    Work must have run before, so that nothing is compiled or planned while it is timed. While the cache is overwritten
    the CPU already queues the work, so launches cost only what the device must wait for.
    """

    def __init__(self) -> None:
        self._overwritten = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # H200: 60 MB of cache

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds that the device spends from the beginning of `work` to its end."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._overwritten.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def conditions(self) -> dict[str, Any]:
        """What a reader must know of how the times came about."""
        return {"timed_by": "CUDA events, after overwriting the second-level cache"}


Timer = QuietMachine | CudaDevice


def take_turns(contenders: dict[str, Callable[[], Any]], repetitions: int, timer: Timer) -> dict[str, list[float]]:
    """Seconds of every repetition of each contender: first, second, first, second, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, work in contenders.items():
            seconds[name].append(timer.timed(work))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, largest and the distance between the quartiles."""
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return numbers | {"iqr": quartiles[2] - quartiles[0], "n": len(values)}


def compared(seconds: dict[str, list[float]], nucleotides: int, peaks: dict[str, int], bar: float) -> dict[str, Any]:
    """One case of the report: each contender's times, rate and peak, and how many times faster ours is."""
    each = {
        name: {
            "seconds": spread(values),
            "nt_per_s": nucleotides / statistics.median(values),
            "peak_memory_gb": round(peaks[name] / 1e9, 3),
        }
        for name, values in seconds.items()
    }
    ratio = statistics.median(seconds["textbook"]) / statistics.median(seconds["ours"])
    turns = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["textbook"], strict=True)]
    return each | {"ratio": ratio, "ratio_of_turns": spread(turns), "bar": bar, "bar_met": ratio >= bar}


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """What `work` returns in a process of its own, and the most bytes of memory that process held."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_with_peak, torch.get_num_threads(), work, arguments).result()


def check_same(name: str, ours: torch.Tensor, textbook: torch.Tensor, tolerance: float) -> float:
    """The largest difference as a share of the largest value.

    Raises
    ------
    ContendersDiffer        it is larger than `tolerance`
    """
    difference = float((ours - textbook).abs().max() / textbook.abs().max())
    if not difference <= tolerance:
        raise ContendersDiffer(f"{name}: ours and the textbook differ by {difference:.2g} of the largest, not timed")
    return difference


def arguments(
    argv: Sequence[str] | None, description: str, devices: Sequence[str] = ("cpu",), lengths: Sequence[int] = ()
) -> argparse.Namespace:
    """The flags of every benchmark; sets torch's threads.

    Parameters
    ----------
    argv : sequence of str, optional
        Instead of the command line.
    description : str
        For --help.
    devices : sequence of str
        What the benchmark can measure; the best that is there is the default.
    lengths : sequence of int
        Those among which --lengths may choose; all of them by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write (default: stdout)")
    parser.add_argument("--threads", type=int, default=machine.available_cpus(), help="torch threads (default: all)")
    parser.add_argument(
        "--wait", type=float, default=10.0, help="minutes to wait in all while other processes use the machine"
    )
    best = "cuda" if "cuda" in devices and torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=devices, default=best, help="what to measure (default: %(default)s)")
    if lengths:
        parser.add_argument("--lengths", type=int, nargs="+", choices=lengths, default=lengths, metavar="L",
                            help="in bases (default: all of %(choices)s)")  # fmt: skip
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    return flags


def run(flags: argparse.Namespace, benchmark: Callable[[Any], Iterable[dict[str, Any]]]) -> int:
    """Run a benchmark on a GPU or a quiet machine and report its cases; the exit code.

    The file is written after every case, so that what was measured outlasts a run that is cut short. A case that was
    refused, because what it would have timed is wrong, is reported as such and makes the exit code 1.
    """
    timer: Timer = CudaDevice() if flags.device == "cuda" else QuietMachine(flags.wait)
    load: dict[str, Any] = {"average_before": os.getloadavg()[0]}
    cases: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    try:
        if isinstance(timer, QuietMachine):
            load["cpus_of_others_before"] = timer.wait()
        for case in benchmark(timer):
            cases.append(case)
            report = {
                "benchmark": Path(sys.argv[0]).stem,
                "commit": commit(),
                "machine": machine.describe(),
                "threads": torch.get_num_threads(),
                "load": load | {"average_after": os.getloadavg()[0]} | timer.conditions(),
                "cases": cases,
            }
            if flags.out is not None:
                write_json(flags.out, report)
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    if flags.out is None:
        print(json.dumps(report, indent=2))
    return 1 if any("refused" in case for case in cases) else 0


def table(cases: Sequence[dict[str, Any]]) -> None:
    """Print the cases to stderr for a reader."""
    notice(f"{'':26}{'ours':>20}{'textbook':>20}{'ratio':>8}{'turns':>14}{'bar':>6}{'  GB ours, textbook':>20}")
    for case in cases:
        ours, textbook, turns = case["ours"], case["textbook"], case["ratio_of_turns"]
        rates = "".join(f"{side['nt_per_s']:>15,.0f} nt/s" for side in (ours, textbook))
        notice(
            f"{case['size'] + ' at ' + format(case['length'], ','):26}{rates}{case['ratio']:>8.2f}"
            f"{turns['min']:>8.2f}-{turns['max']:.2f}{case['bar']:>7g}"
            f"{ours['peak_memory_gb']:>12.2f}, {textbook['peak_memory_gb']:.2f}"
        )


def _with_others(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that `work` took, and how many CPUs other processes used meanwhile."""
    others, start = _cpu_seconds_of_others(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, max(0.0, _cpu_seconds_of_others() - others) / seconds


def _cpu_seconds_of_others() -> float:
    # user, nice, system, irq and softirq of all processes, in clock ticks; less this process and its children
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    busy = (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4]) - _cpu_seconds_of_children()


def _cpu_seconds_of_children() -> float:
    """Of the processes that this one has started, and those have, while they live: servers, and their clients."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # after the name, which may hold anything: state, parent, ..., and as 12th to 15th the times
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))
    found, ours = 0, {os.getpid()}
    while ours:
        ours = {process for process, parent in parents.items() if parent in ours}
        found += sum(ticks[process] for process in ours)
    return found / os.sysconf("SC_CLK_TCK")


def _with_peak(threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, int]:
    torch.set_num_threads(threads)
    result = work(*arguments)
    # not ru_maxrss, which a child inherits from the process that started it
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, int(status["VmHWM"].split()[0]) * 1024


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or os.environ.get("COMMIT", "not in a git checkout")
