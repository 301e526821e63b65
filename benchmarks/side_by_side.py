"""What the CPU benchmarks share: two contenders in turns on a quiet machine, their peaks of memory, and the report.

A repetition counts only if all other processes together used less than half a CPU while it ran; a busy neighbour slows
a step tenfold. There is no way around this but to wait.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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

    def _be_patient(self, seconds: float, others: float) -> None:
        self.patience -= seconds
        if self.patience < 0:
            raise NotQuiet(
                f"other processes use {others:.1f} CPUs, {BUSY} are allowed, and did so for the {self.wait_minutes:g} "
                "minutes of --wait: no times are reported; end them, or wait longer"
            )


def take_turns(
    contenders: dict[str, Callable[[], Any]], repetitions: int, quiet: QuietMachine
) -> dict[str, list[float]]:
    """Seconds of every repetition of each contender: first, second, first, second, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, work in contenders.items():
            seconds[name].append(quiet.timed(work))
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


def arguments(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The flags of every CPU benchmark; sets torch's threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write (default: stdout)")
    parser.add_argument("--threads", type=int, default=machine.available_cpus(), help="torch threads (default: all)")
    parser.add_argument(
        "--wait", type=float, default=10.0, help="minutes to wait in all while other processes use the machine"
    )
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    return flags


def run(flags: argparse.Namespace, benchmark: Callable[[QuietMachine], list[dict[str, Any]]]) -> int:
    """Run a benchmark on a quiet machine and report its cases; the exit code."""
    quiet = QuietMachine(flags.wait)
    try:
        load_before, others_before = os.getloadavg()[0], quiet.wait()
        cases = benchmark(quiet)
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    report = {
        "benchmark": Path(sys.argv[0]).stem,
        "commit": _commit(),
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "load": {
            "average_before": load_before,
            "average_after": os.getloadavg()[0],
            "cpus_of_others_before": others_before,
            "cpus_of_others_during": spread(quiet.others),
            "repetitions_discarded": quiet.discarded,
        },
        "cases": cases,
    }
    if flags.out is None:
        print(json.dumps(report, indent=2))
    else:
        write_json(flags.out, report)
    return 0


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
    # user, nice, system, irq and softirq of all processes, in clock ticks; less this process and its ended children
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    busy = (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def _with_peak(threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, int]:
    torch.set_num_threads(threads)
    result = work(*arguments)
    # not ru_maxrss, which a child inherits from the process that started it
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, int(status["VmHWM"].split()[0]) * 1024


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "not in a git checkout"
