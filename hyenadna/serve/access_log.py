"""The outermost layer: every request is counted and told in one line on stderr, but never what was sent."""

import datetime
import time

from hyenadna.progress import notice
from hyenadna.serve.exchange import LEFT, Asgi, Exchange, Message, Receive, Refusal, Scope, Send, tell_defect
from hyenadna.serve.security import HEADERS
from hyenadna.serve.service import Service

_PROBES = ("/health", "/ready", "/metrics")
"""Told only if they fail."""
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
_CLOSE = (b"connection", b"close")


class AccessLog:
    """Answers what the inner ones refuse, and counts and logs every request."""

    def __init__(self, inner: Asgi, service: Service, routes: frozenset[str]) -> None:
        self._inner, self._service, self._metrics, self._routes = inner, service, service.metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer back with the headers that every answer has."""
        if scope["type"] != "http":
            # how ASGI says that there is nothing to do when a server starts and ends
            raise ValueError("this application knows HTTP alone")
        exchange = scope["exchange"] = Exchange()
        start, status = time.monotonic(), LEFT

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_ENCODED]
                if self._service.is_draining and _CLOSE not in message["headers"]:
                    message["headers"].append(_CLOSE)
            await send(message)

        try:
            with self._metrics.in_flight.track_inprogress():
                try:
                    await self._inner(scope, receive, send_with_headers)
                except Refusal as refusal:
                    await refusal.send(send_with_headers)
                except Exception as error:
                    tell_defect(error)
                    if status == LEFT:
                        await Refusal(500, "the server failed; its log says where").send(send_with_headers)
        finally:
            self._service.finished(exchange)
            status = exchange.ended or status
            # other paths are one, or a scan of the server would fill the memory
            route = scope["path"] if scope["path"] in self._routes else "other"
            seconds = time.monotonic() - start
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if route not in _PROBES or status != 200:
                now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                notice(f"{now} {method} {route} {status} {seconds:.3f} s {exchange.tokens} tokens")
