"""Who may ask, and how much may be sent: the token, the name by which the server was reached, the size of a body."""

import asyncio
import base64
import binascii
import hmac
import stat
from pathlib import Path

from hyenadna.errors import UsageError
from hyenadna.serve.exchange import Asgi, Message, Receive, Refusal, Scope, Send, header

OPEN = "/health"
"""The one route that needs no token."""
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every answer: nothing of it is kept, and no other site may show or read it."""

_SHORTEST_TOKEN = 16
_BODY_SECONDS = 60.0
"""In which a body must have come."""
_BODIES_AT_ONCE = 8
"""Largest bodies whose bytes may be in memory before they are read, of all requests together."""
_LINGER_BYTES, _LINGER_SECONDS = 1 << 26, 2.0
"""Of a body that is too large, read and dropped so that the client gets to read the answer."""
_MARKS_PER_SEQUENCE = 64
"""Commas, brackets and braces that a body may hold for each sequence that is allowed; JSON of nothing else becomes
objects of fifty times its size."""


def read_token(path: Path) -> bytes:
    """The token that a file holds, without the space around it.

    Raises
    ------
    UsageError              no such file, readable for everybody, or not a token of at least 16 printable characters
    """
    try:
        readable_by_all = path.stat().st_mode & stat.S_IROTH
        token = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--token-file {path} cannot be read: {error.strerror}") from error
    if readable_by_all:
        raise UsageError(f"--token-file {path} can be read by every user of this machine: chmod 600 {path}")
    if len(token) < _SHORTEST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise UsageError(
            f"--token-file {path} must hold at least {_SHORTEST_TOKEN} ASCII characters without spaces, "
            f"such as: openssl rand -hex 24 > {path}"
        )
    return token


class Door:
    """Lets in who shows the token; without a token, who asks for this machine by one of its own names.

    The second keeps out web pages elsewhere whose name was made to mean 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, inner: Asgi, *, token: bytes | None, host: str) -> None:
        self._inner, self._token = inner, token
        self._names = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if self._token is None:
            name = _without_port(header(scope, "host") or "")
            if name not in self._names:
                raise Refusal(400, "this server answers to localhost alone; its Host header must say so")
        elif scope["path"] != OPEN and not self._shows_token(header(scope, "authorization") or ""):
            # a browser asks for a password only if it is told to by name, and it must not for a program's requests
            is_page = scope["path"] == "/" or scope["path"].startswith("/page/")
            challenge = 'Basic realm="hyena", charset="UTF-8"' if is_page else "Bearer"
            raise Refusal(
                401, "send the server's token as Authorization: Bearer TOKEN", {"www-authenticate": challenge}
            )
        await self._inner(scope, receive, send)

    def _shows_token(self, authorization: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        shown = value.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        assert self._token is not None
        return hmac.compare_digest(shown, self._token)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


class Body:
    """Takes in the whole body of a POST to one of `paths`, no more than is allowed, before anything reads it."""

    def __init__(self, inner: Asgi, *, paths: frozenset[str], max_body: int, max_sequences: int) -> None:
        self._inner, self._paths, self._max_body = inner, paths, max_body
        self._max_marks = _MARKS_PER_SEQUENCE * (max_sequences + 1)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or refuse it."""
        if scope["method"] != "POST" or scope["path"] not in self._paths:
            return await self._inner(scope, receive, send)
        _check_kind(scope)
        declared = header(scope, "content-length") or "0"
        if int(declared) > self._max_body:
            await self._refuse_size(scope, receive)
        body = await self._received(scope, receive)
        if sum(map(body.count, (b",", b"{", b"["))) > self._max_marks:
            raise Refusal(413, f"the body holds more than {self._max_marks:,} commas, brackets and braces")
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._inner(scope, replay, send)

    async def _received(self, scope: Scope, receive: Receive) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(408, "the client left before its body was complete")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._held += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self._max_body:
                        parts.clear()
                        await self._refuse_size(scope, receive if more else None)
                    if self._held > _BODIES_AT_ONCE * self._max_body:
                        raise Refusal(429, "too many bodies come at once", {"retry-after": "1"})
        except TimeoutError as error:
            raise Refusal(
                408, f"the body did not come within {_BODY_SECONDS:g} seconds", {"connection": "close"}
            ) from error
        finally:
            self._held -= size
        return b"".join(parts)

    async def _refuse_size(self, scope: Scope, receive: Receive | None) -> None:
        # a connection closed on a client that still sends is reset, and the client never sees the answer
        dropped, more = 0, receive is not None and header(scope, "expect") is None
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while more and receive is not None and dropped < _LINGER_BYTES:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        raise Refusal(
            413,
            f"the body has more than {self._max_body:,} bytes (--max-body); send fewer sequences at once",
            {"connection": "close"},
        )


def _check_kind(scope: Scope) -> None:
    """A page of another site can send any kind but JSON without asking first.

    Raises
    ------
    Refusal                 not JSON in UTF-8, or compressed
    """
    kind, *parameters = [part.strip().lower() for part in (header(scope, "content-type") or "").split(";")]
    charset = [part for part in parameters if part.startswith("charset=")]
    if kind != "application/json" or charset not in ([], ["charset=utf-8"], ['charset="utf-8"']):
        raise Refusal(415, "send JSON in UTF-8, with Content-Type: application/json")
    if (header(scope, "content-encoding") or "identity").lower() != "identity":
        raise Refusal(415, "send the body as it is, without Content-Encoding")
