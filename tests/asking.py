"""An application to ask in this process or over a socket of it, and a batcher that does as it is told."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from adapting import NUMBER, THREE, adapted, small

from hyenadna.serve.application import application
from hyenadna.serve.batcher import _results
from hyenadna.serve.config import ServeConfig
from hyenadna.serve.entries import Writing
from hyenadna.serve.generation import GenerateJob
from hyenadna.serve.served_model import ServedAdapter, ServedModel
from hyenadna.serve.service import Service

JSON = {"content-type": "application/json"}
TOKEN = b"a-token-of-some-length"
DNA = "ACGTNACGTTGCA"


class Immediate:
    """Computes each unit by itself, at once, without a worker; `submit` may be replaced."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.is_running = model, True
        self.deadlines: list[float] = []
        self.drained = False

    @property
    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(
            queued_tokens=11, running=2, batches=3, tokens=400, failures=0, seconds=0.5, generations=2, generated=99
        )

    async def submit(self, job: Any, *, deadline: float) -> list[dict[str, Any]]:
        self.deadlines.append(deadline)
        work = job.cut(1 << 13)
        with job.model.computing():
            for unit in work.units:
                work.put(unit, next(iter(unit.kind.compute(job.model, [unit.piece]))))
        return work.answer()

    @contextmanager
    def writing(self, job: GenerateJob, *, deadline: float) -> Iterator[Writing]:
        self.deadlines.append(deadline)
        entry = Writing(job, 0.0, asyncio.get_running_loop().time() + deadline, 1 << 12)
        unit = entry.next_unit()
        while unit is not None:
            _, unit = entry.take(unit, *_results(self.model, [unit]))
        yield entry

    async def drain(self) -> None:
        self.drained = True


class Application:
    """The application of a small model with an immediate batcher; `ask` sends one request."""

    def __init__(self, model: ServedModel, token: bytes | None = None, **config: Any) -> None:
        self.batcher = Immediate(model)
        self.service = Service(model, self.batcher, ServeConfig(**config))
        self.asgi = application(self.service, token)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.asgi)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
                return await client.request(method, path, **request)

        return asyncio.run(send())

    def post(self, task: str, body: Any) -> httpx.Response:
        """A POST of JSON, or of bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", f"/v1/{task}", content=content, headers=JSON)

    def likelihood(self, *sequences: str, **options: Any) -> httpx.Response:
        return self.post("likelihood", {"sequences": [{"sequence": one} for one in sequences]} | options)


def served(adapters: int = 2) -> ServedModel:
    """A small model, with an adapter for three classes, and a second one for a number."""
    network = small()
    heads = [("classes", THREE), ("level", NUMBER)][:adapters]
    models = {name: ServedAdapter(adapted("head", task, base=network)) for name, task in heads}
    return ServedModel(network, name="small", adapters=models)


def refused(response: httpx.Response, status: int, code: str, match: str) -> httpx.Response:
    """The response, which is this refusal and says so."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"code", "message"} and error["code"] == code
    assert re.search(match, error["message"]), error["message"]
    return response


@contextmanager
def listening(app: Application) -> Iterator[int]:
    """A port at which the application answers, from another thread."""
    server = uvicorn.Server(uvicorn.Config(app.asgi, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def raw(
    app: Application, path: str, chunks: list[bytes], *, then: Callable[[], Any], headers: dict[str, str] = JSON
) -> list[dict[str, Any]]:
    """What the application sends to a client that sends these chunks and then does `then`, an awaitable's maker."""
    sent: list[dict[str, Any]] = []
    encoded = [(name.encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": encoded, "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"}}  # fmt: skip
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": True}
        return await then()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app.asgi(scope, receive, send))
    return sent


async def silence() -> dict[str, Any]:
    """A client that sends nothing more."""
    await asyncio.Event().wait()
    raise AssertionError


async def leaving() -> dict[str, Any]:
    """A client that has gone."""
    return {"type": "http.disconnect"}
