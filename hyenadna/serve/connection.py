"""A connection of uvicorn's that does not wait for ever: for a request's headers, or for a reader of the answer."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""In which the headers of a request must be complete, from when it, or the connection, began."""
READ_SECONDS = 60.0
"""After which a client that takes nothing of its answer is dropped."""


class Connection(H11Protocol):
    """HTTP/1.1, with two clocks; uvicorn's own closes what is idle between requests."""

    _head: asyncio.TimerHandle | None = None
    _read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is there; begin to wait at the first byte of the next one."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The answer waits for its reader."""
        super().pause_writing()
        if self._read is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        """The reader has taken most of it."""
        super().resume_writing()
        self._stop_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_head()
        self._stop_read()
        super().connection_lost(exc)

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._watch_reader()
            else:
                self.transport.abort()

        self._read = self.loop.call_later(READ_SECONDS, check)

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_read(self) -> None:
        if self._read is not None:
            self._read.cancel()
            self._read = None
