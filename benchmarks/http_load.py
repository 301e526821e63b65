"""A load of HTTP requests from one process: connections that stay open, and little work for each request.

Requests are bytes that were made before; of an answer no more is read than its status, its length and whether it says
when to come back.
"""

import asyncio
import itertools
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

_IDLE_SECONDS = 2.0
"""After which a connection is not used again: the server closes it after five."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *[1-9]", re.I)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.I)
LOST = 0
"""Status of a request whose connection was closed or refused before the answer was there."""


class Outcome(NamedTuple):
    """What became of a request; times in seconds from the beginning of the load."""

    number: int
    """Of the request, among those that were given."""
    due: float
    """When it was to be sent."""
    sent: float
    answered: float
    status: int
    says_when: bool
    """Whether the answer has a Retry-After."""

    @property
    def latency(self) -> float:
        """Seconds from when it was due, so that a client that is late counts against the server."""
        return self.answered - self.due


def post(path: str, body: bytes) -> bytes:
    """A request as it is sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> list[Outcome]:
    """Clients that each send the next request once the last one is answered, for so long."""

    async def load() -> list[Outcome]:
        found: list[Outcome] = []
        numbers = itertools.cycle(range(len(requests)))
        async with _connections(port) as connections:
            start = time.perf_counter()

            async def client() -> None:
                while (now := time.perf_counter() - start) < seconds:
                    found.append(await connections.outcome(next(numbers), requests, now, start))

            await asyncio.gather(*[client() for _ in range(clients)])
        return found

    return asyncio.run(load())


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Requests that come by chance, `rate` a second by the mean, whether or not others are answered (Poisson)."""
    draw, arrivals, at = random.Random(seed), [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        arrivals.append(at)

    async def load() -> list[Outcome]:
        async with _connections(port) as connections:
            start, tasks = time.perf_counter(), []
            for number, due in enumerate(arrivals):
                await asyncio.sleep(due - (time.perf_counter() - start))
                asked = connections.outcome(number % len(requests), requests, due, start)
                tasks.append(asyncio.create_task(asked))
            return await asyncio.gather(*tasks)

    return asyncio.run(load())


class _Connection(asyncio.Protocol):
    """Sends one request after the other, each once the last one is answered."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self.is_open, self.used = True, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, bool]:
        """Status of the answer, and whether it says when to come back."""
        if not self.is_open:
            raise ConnectionResetError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0 or self._answer is None or self._answer.done():
            return
        fields = self._received[:head]
        length = _LENGTH.search(fields)
        if length is None:
            self._transport.abort()  # not an answer of this server's
        elif len(self._received) >= head + 4 + int(length[1]):
            self.is_open = _CLOSE.search(fields) is None
            self._answer.set_result((int(fields[9:12]), _RETRY_AFTER.search(fields) is not None))
            self._received.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())

    def close(self) -> None:
        self._transport.close()


class _Connections:
    def __init__(self, port: int) -> None:
        self._port, self._idle = port, deque[_Connection]()

    async def outcome(self, number: int, requests: Sequence[bytes], due: float, start: float) -> Outcome:
        sent = time.perf_counter() - start
        try:
            connection = await self._taken()
            status, says_when = await connection.ask(requests[number])
        except OSError:
            status, says_when = LOST, False
        else:
            connection.used = time.perf_counter()
            self._idle.append(connection)
        return Outcome(number, due, sent, time.perf_counter() - start, status, says_when)

    async def _taken(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and time.perf_counter() - connection.used < _IDLE_SECONDS:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


@asynccontextmanager
async def _connections(port: int) -> AsyncIterator[_Connections]:
    connections = _Connections(port)
    try:
        yield connections
    finally:
        connections.close()
