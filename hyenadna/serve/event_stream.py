"""Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html has them, and their sending."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fastapi.responses import Response

from hyenadna.serve.exchange import LEFT, Exchange, Receive, Refusal, Scope, Send, left, tell_defect

ALIVE = ": still there\n\n"
"""A comment, which clients skip: so that nobody between takes the connection for dead."""


def event(name: str, data: str) -> str:
    """An event whose data has no line ends, as JSON has none."""
    return f"event: {name}\ndata: {data}\n\n"


class EventStream(Response):
    """An answer that is sent event by event; it ends with its client.

    Whatever is raised before the first event is there may still become an answer of another kind. Later, a refusal is
    sent as an event `error`.

    Parameters
    ----------
    events : async generator of str
        Closed in any case.
    exchange : Exchange
        Where it is kept how it ended.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], exchange: Exchange) -> None:
        # or nginx collects events until it has some kilobytes
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._exchange = events, exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end, or nobody takes them."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                return sending.result()
            self._exchange.ended = LEFT
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_part(send, first)
            try:
                async for one in events:
                    await self._send_part(send, one)
            except Refusal as refusal:
                await self._send_error(send, refusal)
            except Exception as error:
                tell_defect(error)
                await self._send_error(send, Refusal(500, "the server failed; its log says where"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def _send_error(self, send: Send, refusal: Refusal) -> None:
        self._exchange.ended = refusal.status
        await self._send_part(send, event("error", refusal.body.decode()))
