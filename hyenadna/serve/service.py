"""From a checked job to its answer: what is taken on, until when, and what happens if the client leaves."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from hyenadna.errors import HyenaError, InputError, UsageError
from hyenadna.inference.generation import Piece
from hyenadna.serve.admission import DeadlineExceeded, QueueFull
from hyenadna.serve.batcher import Batcher, beside_the_loop
from hyenadna.serve.config import ServeConfig
from hyenadna.serve.entries import Writing
from hyenadna.serve.event_stream import ALIVE, EventStream, event
from hyenadna.serve.exchange import LEFT, Exchange, Refusal, left
from hyenadna.serve.generation import GenerateJob, by_row, items
from hyenadna.serve.jobs import Job, longest_substituted
from hyenadna.serve.metrics import Metrics
from hyenadna.serve.schemas import Limits
from hyenadna.serve.served_model import ServedModel

T = TypeVar("T")
_MOST_REQUESTS = 512
"""That wait for their answers at once; short ones would otherwise come to more connections than a process may have."""
_LARGE_TOKENS = 1024
"""From which on an answer may have thousands of numbers, at a microsecond and a half each."""
_EVENT_S, _ALIVE_S = 0.05, 10.0
"""Seconds between two events of a stream at least, and at most."""
_RETRY_S = 5
"""What a client is told to wait for another server while this one stops."""


class Service:
    """A model, the batcher in front of it, and the requests whose work was taken on.

    Attributes
    ----------
    is_draining : bool      whether the server was told to stop: it takes on nothing, and ends what it has
    """

    def __init__(self, model: ServedModel, batcher: Batcher, config: ServeConfig) -> None:
        self.model, self.batcher, self.config = model, batcher, config
        self.metrics = Metrics(batcher, model.description)
        self.is_draining = False
        self._accepted: set[Exchange] = set()

    @property
    def limits(self) -> Limits:
        """What is refused above, as clients read it."""
        config = self.config
        return Limits(
            body_bytes=config.max_body,
            sequences=config.max_sequences,
            sequence_bases=config.max_bases,
            substitutions_bases=longest_substituted(self.model, config.max_request_tokens),
            request_tokens=config.max_request_tokens,
            generate_tokens=config.max_generate,
            queue_tokens=config.queue_tokens,
            deadline_s=config.deadline,
        )

    def check_ready(self) -> None:
        """Whether new work would be taken on.

        Raises
        ------
        Refusal                 the server stops, or its model does
        """
        if self.is_draining:
            raise Refusal(503, "the server is stopping", {"retry-after": str(_RETRY_S), "connection": "close"})
        self.check_health()

    def check_health(self) -> None:
        """Whether the model still runs.

        Raises
        ------
        Refusal                 it does not
        """
        if not self.batcher.is_running:
            raise Refusal(503, "the model stopped; restart the server", {"retry-after": str(_RETRY_S)})

    def check_sequences(self, sequences: list[tuple[str, str]]) -> None:
        """Whether they are within the limits, before anything is made of them.

        Raises
        ------
        Refusal                 too many, or one too long
        """
        if len(sequences) > self.config.max_sequences:
            raise Refusal(
                413,
                f"{len(sequences):,} sequences; a request takes {self.config.max_sequences:,} (--max-sequences)",
            )
        longest = max(len(sequence) for _, sequence in sequences)
        if longest > self.config.max_bases:
            raise Refusal(
                413, f"a sequence of {longest:,} bases; at most {self.config.max_bases:,} are read (--max-bases)"
            )

    def check_prompt(self, prompt: str, count: int) -> None:
        """Whether a prompt and the number of its continuations are within the limits.

        Raises
        ------
        Refusal                 too many, or too long
        """
        if count > self.config.max_sequences:
            raise Refusal(413, f"{count:,} sequences; a request takes {self.config.max_sequences:,} (--max-sequences)")
        self.check_sequences([("prompt", prompt)])

    async def answer(self, request: Request, job: Job, timeout_s: float | None) -> Response:
        """The job's answer, once it is computed.

        Raises
        ------
        Refusal                 too many tokens, no room in the queue, too late, or the server stops
        """
        tokens, most = job.tokens, self.config.max_request_tokens
        exchange: Exchange = request.scope["exchange"]
        exchange.tokens = tokens
        if tokens > most:
            raise Refusal(
                413,
                f"the request costs {tokens:,} tokens, at most {most:,} are taken (--max-request-tokens); send fewer "
                "or shorter sequences",
            )
        self._accept(exchange)
        submitted = self.batcher.submit(job, deadline=self._seconds(timeout_s))
        items = await self._unless_left(request, submitted)
        if items is None:
            return Response(status_code=LEFT)
        found = {"model": self.model.name, "items": items}
        # the text of a large answer takes longer to write than others should wait; a small one less than a thread does
        body = await beside_the_loop(tokens >= _LARGE_TOKENS, encoded, found)
        return Response(body, media_type="application/json")

    async def generate(
        self, request: Request, job: GenerateJob, timeout_s: float | None, *, per_base: bool, stream: bool
    ) -> Response:
        """What was written, when all of it is or its time is over; or an event stream that tells it meanwhile.

        Raises
        ------
        Refusal                 too many tokens, no room in the queue or in memory, too late for any base, or the server
                                stops
        """
        tokens, most = job.tokens, self.config.max_generate
        exchange: Exchange = request.scope["exchange"]
        exchange.tokens = tokens
        if tokens > most:
            blocks = f", {job.blocks} times for its typical_kmer," if job.blocks > 1 else ""
            raise Refusal(
                413,
                f"{job.count:,} times a prompt of {len(job.prompt):,} bases and {job.length:,} more{blocks} are "
                f"{tokens:,} tokens, at most {most:,} are taken (--max-generate); ask for fewer or shorter sequences",
            )
        self._accept(exchange)
        seconds = self._seconds(timeout_s)
        if stream:
            return EventStream(self._events(job, seconds, per_base), exchange)
        answer = await self._unless_left(request, self._whole(job, seconds, per_base))
        if answer is None:
            return Response(status_code=LEFT)
        return Response(answer, media_type="application/json")

    def finished(self, exchange: Exchange) -> None:
        """The request's answer is sent, or nobody waits for it."""
        self._accepted.discard(exchange)

    async def drain(self) -> None:
        """Take on no more, and return when every answer that was promised is sent."""
        self.is_draining = True
        await self.batcher.drain()
        while self._accepted:
            await asyncio.sleep(0.02)

    def _accept(self, exchange: Exchange) -> None:
        self.check_ready()
        if len(self._accepted) >= _MOST_REQUESTS:
            raise Refusal(429, f"{_MOST_REQUESTS} requests wait already, and no more may", {"retry-after": "1"})
        self._accepted.add(exchange)

    def _seconds(self, timeout_s: float | None) -> float:
        return min(timeout_s or math.inf, self.config.deadline)

    async def _unless_left(self, request: Request, computing: Coroutine[Any, Any, T]) -> T | None:
        """What is computed, or None if the client left first."""
        work = asyncio.ensure_future(computing)
        leaving = asyncio.ensure_future(left(request.receive))
        try:
            with self._refusing():
                await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
                return work.result() if work.done() else None
        finally:
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Failures of the batcher as what clients get."""
        try:
            yield
        except QueueFull as error:
            wait = str(max(1, math.ceil(error.retry_after)))
            raise Refusal(429, str(error), {"retry-after": wait}) from error
        except DeadlineExceeded as error:
            raise Refusal(504, str(error)) from error
        except HyenaError:
            # it ended between the check and now
            self.check_ready()
            raise

    async def _whole(self, job: GenerateJob, seconds: float, per_base: bool) -> str:
        with self.batcher.writing(job, deadline=seconds) as writing:
            await writing.end(seconds)
            _check_written(writing, seconds)
            # the unit in work may still add to it
            pieces = writing.pieces.copy()
        return await self._text(job, pieces, per_base)

    async def _events(self, job: GenerateJob, seconds: float, per_base: bool) -> AsyncGenerator[str, None]:
        """A comment once it is taken on, then the bases as they come, and at the end the whole as without a stream."""
        with self._refusing():
            with self.batcher.writing(job, deadline=seconds) as writing:
                yield ALIVE
                sent = 0
                while not writing.is_over or sent < len(writing.pieces):
                    await writing.news(_ALIVE_S)
                    new = writing.pieces[sent:]
                    sent += len(new)
                    yield event("bases", await beside_the_loop(len(new) >= _LARGE_TOKENS, _told, new)) if new else ALIVE
                    # so that there are not more events than anybody can see
                    await writing.end(_EVENT_S)
                _check_written(writing, seconds)
                pieces = writing.pieces[:sent]
            yield event("done", await self._text(job, pieces, per_base))

    async def _text(self, job: GenerateJob, pieces: list[Piece], per_base: bool) -> str:
        """The answer as JSON."""

        def text() -> str:
            found = items(job, pieces, per_base=per_base)
            return encoded({"model": self.model.name, "seed": job.seed, "items": found})

        return await beside_the_loop(len(pieces) >= _LARGE_TOKENS, text)


def _told(pieces: list[Piece]) -> str:
    """What an event says of new pieces."""
    return encoded({"pieces": by_row(pieces)})


def _check_written(writing: Writing, seconds: float) -> None:
    """Whether there is an answer, of all that was asked for or of what there was time for.

    Raises
    ------
    Refusal                 it failed
    DeadlineExceeded        there was no time for a single base
    HyenaError              nothing computes any more
    """
    error = writing.error
    if isinstance(error, UsageError | InputError):
        raise Refusal(422, str(error)) from error
    if error is not None:
        # what another exception says is not for clients
        raise Refusal(500, str(error) if isinstance(error, HyenaError) else "the model failed") from error
    if not writing.is_whole and not writing.is_late:
        raise HyenaError("the server's model stopped; it must be started again")
    if not writing.pieces:
        raise DeadlineExceeded(f"not a base was written within {seconds:g} s; allow more time, or come again later")


def encoded(value: Any) -> str:
    """The value as JSON; its numbers have 8 digits, which are within a unit of float32's last place.

    The json module holds the interpreter until it is done, a tenth of a second for the changes of 20,000 bases, in
    which nobody else is answered; this does not.

    Raises
    ------
    ValueError              a number that JSON does not have

    Examples
    --------
    >>> encoded({"id": "a", "nats": [-1.23456789123, None]})
    '{"id":"a","nats":[-1.2345679,null]}'
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        return f"{value:.8g}"
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join([encoded(element) for element in value])}]"
    if isinstance(value, dict):
        return f"{{{','.join([f'{json.dumps(name)}:{encoded(element)}' for name, element in value.items()])}}}"
    return json.dumps(value)
