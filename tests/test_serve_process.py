"""The real server as a process: what only sockets and signals show."""

import http.client
import json
import math
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from server_process import serving

from hyenadna import HyenaDNA
from hyenadna.data.tokenizer import A, T, encode

DNA = "ACGTTGCATGTCGCATGATGCATGAGAGCTACGTAACGGTNACGATCGATTTAGC"


CLIENT = httpx.Client(timeout=60, headers={"connection": "close"})
"""One for all, as each takes a tenth of a second to make; a connection for each request."""


@pytest.fixture(scope="module")
def server():
    with serving("--max-body", "100000", "--deadline", "20") as running:
        yield running


def likelihood(url: str, sequence: str, **options) -> httpx.Response:
    body = {"sequences": [{"sequence": sequence}]} | options
    return CLIENT.post(f"{url}/v1/likelihood", json=body)


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    return connection


def head(length: int | None, path: str = "/v1/likelihood") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode()


def answered(connection: socket.socket) -> tuple[int, dict]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def test_it_says_what_it_is(server):
    assert CLIENT.get(f"{server.url}/health").json() == {"status": "ok"}
    assert CLIENT.get(f"{server.url}/ready").json() == {"status": "ready"}
    (model,) = CLIENT.get(f"{server.url}/v1/models").json()["models"]
    assert model["name"] == "starter" and model["context"] == 1024
    assert "server" not in CLIENT.get(f"{server.url}/health").headers


def test_its_numbers_are_the_library_s(server):
    """Against next-base probabilities over A, C, G and T, taken from the logits here."""
    answer = likelihood(server.url, DNA, per_base=True).json()["items"][0]
    model = HyenaDNA.from_pretrained("starter")
    tokens = torch.from_numpy(encode(DNA, model.config.n_token)).long()
    with torch.no_grad():
        logits = model(tokens[None]).logits[0].double()
    log_p = logits[:-1, A : T + 1].log_softmax(-1)
    expected = [None] + [
        float(log_p[place, token - A]) if A <= token <= T else None
        for place, token in enumerate(tokens[1:].tolist())
    ]  # fmt: skip
    assert [value is None for value in answer["per_base"]] == [value is None for value in expected]
    for ours, theirs in zip(answer["per_base"], expected, strict=True):
        assert ours is None or math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-5)
    assert math.isclose(answer["nats"], sum(filter(None, expected)), rel_tol=1e-5)
    assert answer["scored"] == len(DNA) - 2


def test_alone_or_among_others(server):
    alone = likelihood(server.url, DNA).json()["items"][0]["nats"]
    with ThreadPoolExecutor(8) as pool:
        among = list(pool.map(lambda cut: likelihood(server.url, DNA[: 40 + cut % 15 + 1]).json(), range(30)))
    assert math.isclose(among[14]["items"][0]["nats"], alone, rel_tol=1e-5)


def test_a_body_in_chunks_over_the_limit(server):
    with connected(server.port) as connection:
        connection.sendall(head(None))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        connection.sendall(chunk * 4 + b"0\r\n\r\n")
        status, body = answered(connection)
    assert status == 413 and "100,000 bytes" in body["error"]["message"]


def test_a_declared_body_over_the_limit(server):
    """It is refused before it is sent where the client waits to be asked for it."""
    with connected(server.port) as connection:
        connection.sendall(head(10**12).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        status, _ = answered(connection)
    assert status == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /v1/likelihood HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/likelihood HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 400_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        head(None) + b"zz\r\n",
    ],
)
def test_not_http(server, sent):
    with connected(server.port) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert CLIENT.get(f"{server.url}/health").status_code == 200


def test_half_a_request_and_gone(server):
    for sent in (b"POST /v1/li", head(1000), head(1000) + b'{"sequences":', head(None) + b"5\r\nab"):
        with connected(server.port) as connection:
            connection.sendall(sent)
    assert likelihood(server.url, DNA).status_code == 200


def test_slow_clients_hold_nobody_up(server):
    """Connections that have sent a part of a request, while others are answered."""
    slow = [connected(server.port) for _ in range(50)]
    for number, connection in enumerate(slow):
        connection.sendall(b"POST /v1/likelihood HTTP/1.1\r\n" if number % 2 else head(1000) + b"{")
    start = time.monotonic()
    assert likelihood(server.url, DNA).status_code == 200
    assert time.monotonic() - start < 5
    for connection in slow:
        connection.close()


def test_who_leaves_frees_the_model(server):
    """Work that would take long, asked for and left: the queue is soon empty."""
    body = json.dumps({"sequences": [{"sequence": "ACGT" * 250}]}).encode()
    with connected(server.port) as connection:
        connection.sendall(head(len(body), "/v1/substitutions") + body)
        until(lambda: gauge(server.url, "hyena_queue_tokens") > 100_000)
    until(lambda: gauge(server.url, "hyena_queue_tokens") == 0)
    until(lambda: "POST /v1/substitutions 499" in server.told())


def test_who_leaves_a_stream_ends_it(server):
    """A client that reads the first bases and goes: not all of it is written."""
    before = gauge(server.url, "hyena_generated_tokens_total")
    with generating(server.port, length=1000) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        while not (line := response.readline()).startswith(b"data: "):
            assert line in (b"\n", b": still there\n", b"event: bases\n")
        assert json.loads(line[6:])["pieces"][0]["bases"].strip("ACGT") == ""
        response.close()
    until(lambda: gauge(server.url, "hyena_generations") == 0)
    until(lambda: "POST /v1/generate 499" in server.told())
    # the unit in work was written to its end
    assert likelihood(server.url, DNA).status_code == 200
    written = gauge(server.url, "hyena_generated_tokens_total") - before
    assert 1 <= written < 1000
    assert likelihood(server.url, DNA).status_code == 200
    assert gauge(server.url, "hyena_generated_tokens_total") - before == written


def generating(port: int, length: int) -> socket.socket:
    """A connection on which sequences are streamed."""
    body = json.dumps({"prompt": "ACGT", "length": length, "stream": True}).encode()
    connection = connected(port)
    connection.sendall(head(len(body), "/v1/generate") + body)
    return connection


def gauge(url: str, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", CLIENT.get(f"{url}/metrics").text, re.M)[1])


def until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_signal_while_it_works():
    """The first one lets what was taken on finish and refuses the rest; all clients get whole answers."""
    with serving() as server:
        results, stopping = [], threading.Event()

        def client(number: int) -> None:
            while True:
                try:
                    response = likelihood(server.url, DNA * (1 + number))
                except httpx.ConnectError:
                    return  # it listens no more
                except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                    # reset or closed before the request was read, in the moment in which it stops to listen
                    assert stopping.is_set()
                    return
                results.append((response.status_code, response.json()))
                if response.status_code == 503:
                    return

        long = json.dumps({"sequences": [{"sequence": "ACGT" * 40}]}).encode()
        with connected(server.port) as kept, generating(server.port, 60) as stream, ThreadPoolExecutor(4) as pool:
            kept.sendall(head(len(long), "/v1/substitutions") + long)
            until(lambda: gauge(server.url, "hyena_queue_tokens") > 10_000)
            clients = [pool.submit(client, number) for number in range(4)]
            until(lambda: len(results) > 4)
            stopping.set()
            server.process.send_signal(signal.SIGTERM)
            status, body = answered(kept)
            assert status == 200 and len(body["items"][0]["log_likelihood_ratio"]) == 160
            response = http.client.HTTPResponse(stream)
            response.begin()
            *_, (name, data) = re.findall(r"event: (\w+)\ndata: (.*)", response.read().decode())
            assert name == "done" and json.loads(data)["items"][0]["length"] == 60
            assert server.process.wait(30) == 143
            for one in clients:
                one.result()
        assert {status for status, _ in results} <= {200, 503}
        assert all(("items" in body) == (status == 200) for status, body in results)
        told = server.told()
        assert told.endswith("hyena: stopped by SIGTERM; all is answered\n") and DNA not in told
        assert "Traceback" not in told and "defect" not in told


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    with serving() as server:
        body = json.dumps({"sequences": [{"sequence": "ACGT" * 250}]}).encode()
        with connected(server.port) as connection:
            connection.sendall(head(len(body), "/v1/substitutions") + body)
            until(lambda: gauge(server.url, "hyena_queue_tokens") > 100_000)
            server.process.send_signal(signal.SIGINT)
            until(lambda: "a second signal ends at once" in server.told())
            assert CLIENT.get(f"{server.url}/ready").status_code == 503
            assert server.end(signal.SIGINT, 5) == 130


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat():
    """10,000 requests of all kinds and lengths, a few of them wrong, from four clients."""
    bodies = [
        ("likelihood", {"sequences": [{"sequence": DNA * times}], "per_base": times % 2 == 0}) for times in range(1, 7)
    ]
    bodies += [
        ("embed", {"sequences": [{"sequence": DNA}] * 3}),
        ("substitutions", {"sequences": [{"sequence": DNA[:9]}]}),
    ]
    bodies += [("likelihood", {"sequences": [{"sequence": "?"}]}), ("embed", {"sequences": [{}]}), ("none", {})]
    with serving() as server:

        def ask(number: int) -> int:
            task, body = bodies[number % len(bodies)]
            return client.post(f"{server.url}/v1/{task}", json=body).status_code

        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(4) as pool:
            statuses = set(pool.map(ask, range(2000)))
            before = server.resident_bytes()
            statuses |= set(pool.map(ask, range(8000)))
        assert statuses == {200, 404, 422}
        assert server.resident_bytes() < before + 20e6
        assert server.end() == 143
