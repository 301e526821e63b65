"""The server under load, from another process on the same machine.

    python benchmarks/serve.py -o benchmarks/results/serve.json

`hyena serve starter` on a free port of this machine, with a thread for the model on every CPU but one, which is left to
the client and to the server's own loop. The client holds its connections open and parses next to nothing.

1. Short sequences, 100 to 300 bp, one in a request: 32 and 64 requests at once against one after the other. Batching
   makes a lonely request wait for others, so that the baseline that counts is a second server with --wait-ms 0. The
   contenders take turns, and a turn counts only if other processes left the machine alone.
2. Mixed lengths, 100 to 20,000 bp, log-uniform, likelihood and embed by turns. The capacity is what 64 clients get that
   never pause; then requests come by chance (Poisson, fixed seed) at half and at nine tenths of it, whether or not
   others are answered. Latency is from when a request was due to the last byte of its answer.
3. Half as much again as the capacity, for a server with a queue of two seconds: nothing but answers and 429s with
   Retry-After, a queue within its bound, and a server that answers afterwards and holds no more memory.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from http_load import Outcome, closed_loop, open_loop, post
from side_by_side import QuietMachine, run, spread

from hyenadna import machine, plots
from hyenadna.errors import HyenaError
from hyenadna.progress import notice

TASKS = ("likelihood", "embed")
AT_ONCE = (32, 64)
OF_MIXED_AT_ONCE = 16
BAR = 2.5
"""How many times the throughput of one request after the other short ones must have."""
SHORT, MIXED = (100, 300), (100, 20_000)
OF_MIXED = f"{MIXED[0]} to {MIXED[1]:,} bp, log-uniform"
SHORT_OF_MIXED = 1000
"""Bases up to which a request of the mixed load is called short."""
REPETITIONS = 3
SHARES = (0.5, 0.9)
OVERLOAD = 1.5
_QUEUE_SECONDS = 2
_START_SECONDS = 120


class ServerFailed(HyenaError):
    """The server did not start, or answered what it must not."""


class Server:
    """A process that serves; `asked` is a client in another process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, client: ProcessPoolExecutor) -> None:
        self.process, self.port, self._client = process, port, client

    def asked(self, load: Callable[..., list[Outcome]], *arguments: Any) -> list[Outcome]:
        """What became of the requests of a load."""
        return self._client.submit(load, self.port, *arguments).result()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            return float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.M)[1])

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@contextmanager
def serving(client: ProcessPoolExecutor, threads: int, *flags: str) -> Iterator[Server]:
    """A server of the starter model, warm; it is told to end after this, and must."""
    command = [sys.executable, "-m", "hyenadna.cli.main", "serve", "starter", "--port", "0", "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as told:
            process = subprocess.Popen([*command, *flags], stderr=told)
        try:
            end = time.monotonic() + _START_SECONDS
            while not (found := re.search(r"^serving .*:(\d+)$", log.read_text(), re.M)):
                if process.poll() is not None or time.monotonic() > end:
                    raise ServerFailed(f"the server did not start: {log.read_text()[-500:]}")
                time.sleep(0.05)
            server = Server(process, int(found[1]), client)
            server.asked(closed_loop, requests(SHORT, 64, TASKS)[0], 8, 0.5)
            yield server
            process.terminate()
            if process.wait(60) != 143:
                raise ServerFailed(f"the server ended with {process.returncode}: {log.read_text()[-500:]}")
        finally:
            process.kill()
            process.wait()


def requests(lengths: tuple[int, int], count: int, tasks: Sequence[str]) -> tuple[list[bytes], list[int]]:
    """Requests for one sequence each, log-uniform in length, tasks by turns; and their lengths in bases."""
    draw, found, bases = random.Random(0), [], []
    for number in range(count):
        bases.append(round(lengths[0] * (lengths[1] / lengths[0]) ** draw.random()))
        body = {"sequences": [{"sequence": "".join(draw.choices("ACGT", k=bases[-1]))}]}
        found.append(post(f"/v1/{tasks[number % len(tasks)]}", json.dumps(body).encode()))
    return found, bases


def rate_of(outcomes: Sequence[Outcome], seconds: float) -> float:
    """Requests a second that were answered while the load was whole; its first sixth is the start.

    Raises
    ------
    ServerFailed            one of them was refused
    """
    check_statuses(outcomes, {200})
    start = seconds / 6
    return sum(start < outcome.answered <= seconds for outcome in outcomes) / (seconds - start)


def undisturbed(
    quiet: QuietMachine, server: Server, load: Callable[..., list[Outcome]], *arguments: Any
) -> list[Outcome]:
    """What became of a load during which other processes left the machine alone."""
    tries: list[list[Outcome]] = []
    quiet.timed(lambda: tries.append(server.asked(load, *arguments)))
    return tries[-1]


def check_statuses(outcomes: Sequence[Outcome], allowed: set[int]) -> dict[str, int]:
    found = Counter(outcome.status for outcome in outcomes)
    if found.keys() - allowed:
        raise ServerFailed(f"requests came to {dict(found)}, only {sorted(allowed)} may be; 0 is a lost connection")
    return {str(status): count for status, count in sorted(found.items())}


def short_sequences(task: str, server: Server, plain: Server, seconds: float, quiet: QuietMachine) -> dict[str, Any]:
    """Many at once against one after the other, on the server and on one that does not wait."""
    asked, bases = requests(SHORT, 512, [task])
    contenders = {"one": (server, 1), "one, --wait-ms 0": (plain, 1)}
    contenders |= {f"{clients} at once": (server, clients) for clients in AT_ONCE}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    batches: dict[str, float] = {}
    for _ in range(REPETITIONS):
        for name, (of, clients) in contenders.items():
            before = of.metric("hyena_batches_total")
            outcomes = undisturbed(quiet, of, closed_loop, asked, clients, seconds)
            rates[name].append(rate_of(outcomes, seconds))
            batches[name] = len(outcomes) / (of.metric("hyena_batches_total") - before)
    facts: dict[str, Any] = {"load": f"{SHORT[0]} to {SHORT[1]} bp, {task}", "mean_bases": statistics.mean(bases)}
    for name, values in rates.items():
        facts[name] = {"requests_per_s": spread(values), "requests_per_batch": round(batches[name], 2)}
    most = max((name for name in rates if "at once" in name), key=lambda name: statistics.median(rates[name]))
    for baseline in ("one", "one, --wait-ms 0"):
        turns = [many / one for many, one in zip(rates[most], rates[baseline], strict=True)]
        facts[f"ratio to {baseline}"] = spread(turns)
    return facts | {"bar": BAR, "bar_met": facts["ratio to one, --wait-ms 0"]["median"] >= BAR}


def latencies(outcomes: Sequence[Outcome], bases: Sequence[int]) -> dict[str, Any]:
    """Milliseconds, of all and of short ones, and how late the client was."""

    def of(chosen: Sequence[Outcome]) -> dict[str, float]:
        found = [1000 * outcome.latency for outcome in chosen]
        cuts = statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
        return {"p50_ms": cuts[49], "p90_ms": cuts[89], "p99_ms": cuts[98], "max_ms": max(found), "n": len(found)}

    short = [outcome for outcome in outcomes if bases[outcome.number] <= SHORT_OF_MIXED]
    late = max(1000 * (outcome.sent - outcome.due) for outcome in outcomes)
    return {"all": of(outcomes), f"up to {SHORT_OF_MIXED} bp": of(short), "client_late_ms_at_most": late}


def capacity_of(server: Server, seconds: float, quiet: QuietMachine) -> dict[str, Any]:
    """What clients get that never pause, in requests and in tokens."""
    asked, _ = requests(MIXED, 512, TASKS)
    before = [server.metric(f"hyena_{name}_total") for name in ("tokens", "model_seconds")]
    outcomes = undisturbed(quiet, server, closed_loop, asked, OF_MIXED_AT_ONCE, seconds)
    tokens, busy = (
        server.metric(f"hyena_{name}_total") - then
        for name, then in zip(("tokens", "model_seconds"), before, strict=True)
    )
    check_statuses(outcomes, {200})
    return {
        "load": f"{OF_MIXED}, {OF_MIXED_AT_ONCE} clients without a pause",
        # with few requests in the time, those in work at its end would count: take them, and the time that they took
        "requests_per_s": len(outcomes) / max(outcome.answered for outcome in outcomes),
        "tokens_per_model_s": tokens / busy,
        "n": len(outcomes),
    }


def below_capacity(
    server: Server, rate: float, seed: int, seconds: float, quiet: QuietMachine
) -> tuple[dict[str, Any], list[float]]:
    """Latency at a rate that the server can do: what is reported, and all of them in seconds."""
    asked, bases = requests(MIXED, 512, TASKS)
    outcomes = undisturbed(quiet, server, open_loop, asked, rate, seconds, seed)
    facts = {"requests_per_s": rate, "statuses": check_statuses(outcomes, {200})} | latencies(outcomes, bases)
    return facts, sorted(outcome.latency for outcome in outcomes)


def overload(server: Server, capacity: float, queue_tokens: int, seconds: float) -> dict[str, Any]:
    """More than the server can do, twice, so that memory can be compared."""
    asked, bases = requests(MIXED, 512, TASKS)
    deepest, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            deepest.append(server.metric("hyena_queue_tokens"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        server.asked(open_loop, asked, OVERLOAD * capacity, seconds / 2, 2)
        before = server.resident_mb()
        outcomes = server.asked(open_loop, asked, OVERLOAD * capacity, seconds, 3)
    finally:
        over.set()
        watching.join()
    statuses = check_statuses(outcomes, {200, 429})
    if not all(outcome.says_when for outcome in outcomes if outcome.status == 429):
        raise ServerFailed("a 429 without Retry-After")
    if max(deepest) > queue_tokens:
        raise ServerFailed(f"{max(deepest):,.0f} tokens waited, {queue_tokens:,} may")
    after = rate_of(server.asked(closed_loop, asked, 1, 1.0), 1.0)
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    return {
        "load": f"{OF_MIXED}, Poisson at {OVERLOAD:.0%} of capacity",
        "requests_per_s": OVERLOAD * capacity,
        "statuses": statuses,
        "answered_per_s": len(answered) / max(outcome.answered for outcome in answered),
        "queue_tokens": {"most": max(deepest), "allowed": queue_tokens},
        "resident_mb": {"before": round(before), "after": round(server.resident_mb())},
        "requests_per_s_afterwards": after,
    } | latencies(answered, bases)


def draw(latency: dict[str, list[float]], path: Path) -> None:
    """The share of requests that took longer, against the time."""
    drawn, ax = plots.figure()
    for (name, seconds), colour in zip(latency.items(), plots.SERIES, strict=False):
        longer = [1 - rank / len(seconds) for rank in range(len(seconds))]
        ax.step(seconds, longer, where="post", color=colour, label=f"{name}, {len(seconds)} requests")
    ax.set(xscale="log", yscale="log", xlabel="seconds from due to answered", ylabel="share of requests above")
    ax.legend(frameon=False)
    plots.write_png(drawn, path)


def measured(flags: argparse.Namespace, quiet: QuietMachine) -> Iterator[dict[str, Any]]:
    part = flags.seconds / 200  # what the numbers below add up to
    latency: dict[str, list[float]] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client:
        with serving(client, flags.threads) as server:
            with serving(client, flags.threads, "--wait-ms", "0") as plain:
                for task in TASKS:
                    yield short_sequences(task, server, plain, 2.5 * part, quiet)
            most = capacity_of(server, 20 * part, quiet)
            yield most
            for seed, share in enumerate(SHARES):
                name, rate = f"{share:.0%} of capacity", share * most["requests_per_s"]
                facts, latency[name] = below_capacity(server, rate, seed, 40 * part, quiet)
                yield {"load": f"{OF_MIXED}, Poisson at {name}"} | facts
        longest = 4 * MIXED[1]  # tokens of its windows, which overlap by half
        queue = max(round(_QUEUE_SECONDS * most["tokens_per_model_s"]), longest)
        limits = ("--queue-tokens", str(queue), "--max-request-tokens", str(longest))
        with serving(client, flags.threads, *limits) as server:
            yield overload(server, most["requests_per_s"], queue, 27 * part)
    if flags.out is not None:
        draw(latency, flags.out.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The server under load, from another process.")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write, and a plot beside it (default: stdout)")
    parser.add_argument("--threads", type=int, default=max(1, machine.available_cpus() - 1),
                        help="threads of the model (default: all CPUs but one, %(default)s)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=200.0, help="to measure in all (default: %(default)g)")
    parser.add_argument("--wait", type=float, default=10.0, help="minutes to wait in all while others use the machine")
    parser.set_defaults(device="cpu")
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)

    def benchmark(quiet: QuietMachine) -> Iterator[dict[str, Any]]:
        for facts in measured(flags, quiet):
            notice(json.dumps(facts))
            yield facts

    return run(flags, benchmark)


if __name__ == "__main__":
    sys.exit(main())
