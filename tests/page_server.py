"""A stand-in for the server: the page's files under the server's policy, and canned answers."""

import base64
import contextlib
import json
import math
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hyenadna
from hyenadna.serve.security import HEADERS

PAGE = Path(hyenadna.__file__).parent / "serve" / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MODELS = {
    "models": [
        {
            "name": "starter", "parameters": 437_000, "layers": 2, "width": 128, "context": 1024, "bits": 32,
            "bits_per_weight": 32.0,
            "dtype": "float32", "device": "cpu",
            "adapters": {
                "splice": {"task": "classification", "labels": ["donor", "acceptor", "neither"], "method": "lora",
                           "context": 1024, "windows": True, "reverse_complement": False},
                "expression": {"task": "regression", "labels": [], "method": "head", "context": 1024,
                               "windows": True, "reverse_complement": False},
            },
        }
    ],
    "limits": {"body_bytes": 1 << 22, "sequences": 64, "sequence_bases": 100_000,
               "substitutions_bases": 1024, "request_tokens": 4_000_000, "generate_tokens": 65_536,
               "queue_tokens": 16_000_000, "deadline_s": 120},
}  # fmt: skip


class PageServer(ThreadingHTTPServer):
    """Serves until closed.

    Attributes
    ----------
    requests : list of (path, headers, body)
        POSTs that came.
    token : str
        Asked for by the API, if there is one.
    locks_page : bool
        Whether the page's files ask for it, too, as a browser's password.
    refusal : (status, headers, body), optional
        The answer to every POST.
    failure : str, optional
        What follows the first event of a stream.
    hold : threading.Event
        A POST is answered when it is set; of an event stream the first event comes before.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.hold = threading.Event()
        self.reset()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def reset(self) -> None:
        self.requests.clear()
        self.token, self.locks_page = "", False
        self.refusal: tuple[int, dict[str, str], bytes] | None = None
        self.failure: str | None = None
        self.hold.set()


def item(task: str, number: int, given: dict[str, str]) -> dict[str, Any]:
    sequence = given["sequence"]
    found: dict[str, Any] = {"id": given.get("id", str(number)), "length": len(sequence)}
    draw = random.Random(sequence)
    if sequence.startswith("NNN"):
        return found | {"error": {"code": "failed", "message": "the model gives no numbers for it"}}
    match task:
        case "likelihood":
            wave = [math.sin(p / max(30, len(sequence) / 9)) for p in range(len(sequence))]
            nats = [max(-7.0, -1.3 + 0.5 * w + draw.gauss(0, 0.4)) for w in wave]
            nats = [min(-0.01, value) for value in nats]
            per_base = [
                None if not p or letter.upper() not in "ACGT" else value
                for p, (letter, value) in enumerate(zip(sequence, nats, strict=True))
            ]
            scored = [value for value in per_base if value is not None]
            total = sum(scored)
            bits = -total / len(scored) / math.log(2) if scored else None
            return found | {"scored": len(scored), "nats": total, "bits_per_base": bits, "per_base": per_base}
        case "substitutions":
            strength = [0.2 + 2.5 * math.exp(-(((p - len(sequence) / 2) / 8) ** 2)) for p in range(len(sequence))]
            rows = [
                [0.0 if base == own else draw.gauss(-0.5, 1) * s for base in "ACGT"] if own in "ACGT" else [None] * 4
                for own, s in zip(sequence.upper(), strength, strict=True)
            ]
            return found | {"bases": "ACGT", "log_likelihood_ratio": rows}
        case "predict":
            return found | {
                "prediction": "acceptor",
                "probabilities": {"donor": 0.08, "acceptor": 0.9, "neither": 0.02},
            }
        case _:
            return found | {"embedding": [draw.gauss(0, 1) for _ in range(128)]}


def events(body: dict[str, Any]) -> list[str]:
    """What is written for a request: the half of all sequences, then the rest, then the answer."""
    draw, length, items, halves = random.Random(body["seed"]), body["length"], [], ([], [])
    for row in range(body["count"]):
        bases = "".join(draw.choices("ACGT", k=length))
        nats = [-draw.expovariate(0.7) for _ in bases]
        if not body["prompt"]:
            nats[0] = None
        for half, part in zip(halves, (slice(0, length // 2), slice(length // 2, length)), strict=True):
            half.append({"row": row, "bases": bases[part], "nats": nats[part]})
        scored = [value for value in nats if value is not None]
        items.append({"row": row, "sequence": bases, "length": length, "scored": len(scored), "nats": sum(scored),
                      "bits_per_base": -sum(scored) / len(scored) / math.log(2), "stopped": "length"})  # fmt: skip
    found = [f"event: bases\ndata: {json.dumps({'pieces': half})}\n\n" for half in halves]
    found[1] = ": still there\n\n" + found[1]
    answer = {"model": "starter", "seed": body["seed"], "items": items}
    return [*found, f"event: done\ndata: {json.dumps(answer)}\n\n"]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._lets_in():
                self._answer(200, {}, json.dumps(MODELS).encode())
            return
        if self.server.locks_page and not self._lets_in("Basic realm=hyena"):
            return
        file = PAGE / ("index.html" if self.path == "/" else self.path.removeprefix("/page/"))
        if file.parent != PAGE or not file.is_file():
            return self._answer(404, {}, b"{}")
        self._answer(200, {"content-type": KINDS[file.suffix]}, file.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        task = self.path.removeprefix("/v1/")
        self.server.requests.append((task, dict(self.headers), body))
        streams = task == "generate" and self.server.refusal is None
        if not streams:
            self.server.hold.wait(20)
        if not self._lets_in():
            return
        if streams:
            return self._stream(body)
        if self.server.refusal is not None:
            return self._answer(*self.server.refusal)
        items = [item(task, number, given) for number, given in enumerate(body["sequences"], 1)]
        self._answer(200, {}, json.dumps({"model": "starter", "items": items}).encode())

    def _lets_in(self, challenge: str = "Bearer") -> bool:
        token = self.server.token
        password = base64.b64encode(f"x:{token}".encode()).decode()
        if token and self.headers.get("Authorization") not in (f"Bearer {token}", f"Basic {password}"):
            message = "send the server's token as Authorization: Bearer TOKEN"
            refusal = {"error": {"code": "unauthorized", "message": message}}
            self._answer(401, {"www-authenticate": challenge}, json.dumps(refusal).encode())
            return False
        return True

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        for name, value in (HEADERS | {"content-type": "text/event-stream; charset=utf-8"}).items():
            self.send_header(name, value)
        self.end_headers()
        first, *rest = events(body) if self.server.failure is None else [events(body)[0], self.server.failure]
        with contextlib.suppress(ConnectionError):  # the page has cancelled
            # cut where no event ends
            self.wfile.write(first[:-9].encode())
            self.wfile.flush()
            self.wfile.write(first[-9:].encode())
            self.wfile.flush()
            self.server.hold.wait(20)
            self.wfile.write("".join(rest).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        headers = {"content-type": "application/json"} | HEADERS | headers
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the page has cancelled
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
