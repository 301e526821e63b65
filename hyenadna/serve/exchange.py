"""A request and its answer on their way through the layers: what they say to each other, how they refuse and fail."""

import dataclasses
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application, or a layer around one (ASGI 3.0, https://asgi.readthedocs.io)."""

CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "queue_full",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
"""What `code` of an error says, by status."""
LEFT = 499
"""Status in log and metrics of a request whose client left; nobody gets it."""


class Refusal(Exception):
    """A request that gets no answer: status, one line that says why, and headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}

    @property
    def body(self) -> bytes:
        """What the client gets."""
        return json.dumps({"error": {"code": CODES[self.status], "message": str(self)}}).encode()

    async def send(self, send: Send) -> None:
        """Answer with it."""
        body = self.body
        headers = {"content-type": "application/json", "content-length": str(len(body))} | self.headers
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})


@dataclasses.dataclass(eq=False)
class Exchange:
    """What is known of a request so far; it lies in its scope as `exchange`."""

    tokens: int = 0
    """That it costs the model."""
    ended: int | None = None
    """Status for log and metrics where the answer ended otherwise than it had begun: it was left, or failed midway."""


async def left(receive: Receive) -> None:
    """Return when the client has left, once its body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def tell_defect(error: Exception) -> None:
    """One line on stderr: the class and the last calls, but not its message, which may hold what a client sent."""
    calls = traceback.extract_tb(error.__traceback__)[-6:]
    places = " > ".join(f"{Path(call.filename).name}:{call.lineno}" for call in calls)
    print(f"hyena: defect: {type(error).__name__} in {calls[-1].name} ({places})", file=sys.stderr, flush=True)


def header(scope: Scope, name: str) -> str | None:
    """A header's value; of several, the first."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)
