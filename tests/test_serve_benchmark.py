"""The load benchmark: its client against a server that does as it is told, and what it makes of what it sees."""

import asyncio
import importlib
import json
import subprocess
import sys
import threading

import pytest
from oracles import BENCHMARKS


@pytest.fixture
def http_load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("http_load")


@pytest.fixture
def bench(http_load):
    return importlib.import_module("serve")


@pytest.fixture
def port():
    """Of a server that answers a body with its own first three characters as status, and closes when it is told."""
    ready, ended, found = threading.Event(), None, []

    async def converse(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                body = (await reader.readexactly(size)).decode()
                status, _, then = body.partition(" ")
                if then == "hang up":
                    break
                more = "Retry-After: 2\r\n" if status == "429" else ""
                close = "Connection: close\r\n" if then == "close" else ""
                answer = f"HTTP/1.1 {status} x\r\n{more}{close}content-length: 5\r\n\r\n".encode()
                writer.write(answer[:9])
                await asyncio.sleep(0.001)
                writer.write(answer[9:] + b"12345")
                if close:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def serve():
        nonlocal ended
        ended = asyncio.Event()
        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        found.extend([server.sockets[0].getsockname()[1], asyncio.get_running_loop()])
        ready.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    found[1].call_soon_threadsafe(ended.set)
    thread.join(10)


def test_what_became_of_each_request(http_load, port):
    bodies = [b"200", b"429", b"200 close", b"503", b"200 hang up"]
    asked = [http_load.post("/x", body) for body in bodies]
    outcomes = http_load.closed_loop(port, asked, 3, 0.1)
    assert len(outcomes) >= 10
    by_number = {outcome.number: (outcome.status, outcome.says_when) for outcome in outcomes}
    lost = (http_load.LOST, False)
    assert by_number == {0: (200, False), 1: (429, True), 2: (200, False), 3: (503, False), 4: lost}
    assert all(0.001 <= outcome.latency < 5 for outcome in outcomes if outcome.status)


def test_nobody_listens(http_load, port):
    (outcome, *_) = http_load.open_loop(1, [http_load.post("/x", b"200")], 100, 0.05, 0)
    assert outcome.status == http_load.LOST


def test_arrivals_do_not_wait_for_answers(http_load, port):
    """A Poisson process of the rate, the same for the same seed; latency counts from when they were due."""
    asked = [http_load.post("/x", b"200")]
    first, again = (http_load.open_loop(port, asked, 400, 0.5, 7) for _ in range(2))
    assert [outcome.due for outcome in first] == [outcome.due for outcome in again]
    assert abs(len(first) - 200) < 4 * 200**0.5
    assert {outcome.status for outcome in first} == {200}
    assert all(outcome.sent >= outcome.due and outcome.latency >= 0.001 for outcome in first)


def test_requests_are_within_their_lengths(bench):
    asked, bases = bench.requests((100, 20_000), 400, bench.TASKS)
    assert 100 <= min(bases) < 110 and 19_000 < max(bases) <= 20_000
    # half of a log-uniform draw is below the geometric mean
    assert abs(sum(length < 1414 for length in bases) - 200) < 40
    assert asked[0].startswith(b"POST /v1/likelihood ") and asked[1].startswith(b"POST /v1/embed ")
    assert bench.requests((100, 20_000), 400, bench.TASKS)[0] == asked


def test_an_error_is_no_result(http_load, bench):
    def outcome(status, number=0, due=0.0, answered=1.0):
        return http_load.Outcome(number, due, due, answered, status, False)

    assert bench.check_statuses([outcome(200), outcome(429)], {200, 429}) == {"200": 1, "429": 1}
    with pytest.raises(bench.ServerFailed, match=r"came to \{504: 1\}, only \[200, 429\]"):
        bench.check_statuses([outcome(504)], {200, 429})
    with pytest.raises(bench.ServerFailed):
        bench.rate_of([outcome(429)], 1.0)
    assert bench.rate_of([outcome(200, answered=at) for at in (0.1, 0.5, 1.5, 7.0)], 6.0) == 0.2
    facts = bench.latencies([outcome(200, number=n, due=1.0, answered=2.0 + n) for n in range(3)], [100, 5000, 1000])
    assert facts["all"]["p50_ms"] == 2000 and facts["all"]["n"] == 3 and facts["all"]["max_ms"] == 3000
    assert facts["up to 1000 bp"]["n"] == 2 and facts["up to 1000 bp"]["p50_ms"] == 2000


def test_the_times_of_children_are_ours(bench):
    """A process that this one started is no neighbour, while it works and after it has ended."""
    from side_by_side import _cpu_seconds_of_children

    before = _cpu_seconds_of_children()
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.read(1)
        assert 0.25 < _cpu_seconds_of_children() - before < 5
        child.communicate(b"\n")


@pytest.mark.slow
def test_the_whole_benchmark(bench, monkeypatch, tmp_path, capsys):
    side_by_side = importlib.import_module("side_by_side")
    monkeypatch.setattr(side_by_side, "_cpu_seconds_of_others", lambda: 0.0)
    out = tmp_path / "serve.json"
    assert bench.main(["--seconds", "25", "--threads", "1", "-o", str(out)]) == 0
    cases = json.loads(out.read_text())["cases"]
    assert len(cases) == 6 and out.with_suffix(".png").stat().st_size > 1000
    assert cases[0]["bar_met"] == (cases[0]["ratio to one, --wait-ms 0"]["median"] >= 2.5)
    assert cases[5]["queue_tokens"]["most"] <= cases[5]["queue_tokens"]["allowed"]
