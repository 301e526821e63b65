"""What is computed when: the queue of jobs in front of one model, and the batches that their units share.

The order is that of weighted fair queueing with equal weights (Demers, Keshav and Shenker 1989): every job has a tag,
the tokens that it was served since it came, on a clock that all jobs share and that advances by the tokens computed
over the number of jobs that wait. The job whose next batch would end first on that clock is served next, and its batch
is filled up with units of the same kind of other jobs, in the same order. So among many jobs each has its share of the
model, and a small one that comes while large ones are computed waits for the batch in work and no other.
"""

import asyncio
import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from hyenadna.errors import HyenaError
from hyenadna.serve.exchange import tell_defect
from hyenadna.serve.jobs import Job, Work
from hyenadna.serve.served_model import ServedModel
from hyenadna.serve.units import Kind, Result, Unit

P = ParamSpec("P")
R = TypeVar("R")
_REMEMBERED = 0.9
"""Share of the earlier batches in the measured rate, a batch later."""
_OF_NEW, _OF_ACCEPTED = 0.4, 0.7
"""Of the time that a job has besides its own work, what others that are there may take when it comes, and what they may
take still when another one comes. The rest is for small ones, which are always let in. Without these bounds, load that
lasts is answered by work that is dropped half done."""


class QueueFull(HyenaError):
    """The queue has no room for the job now; it will after `retry_after` seconds, at the rate measured last."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobTooLarge(HyenaError):
    """The job has more tokens than the whole queue may hold."""


class DeadlineExceeded(HyenaError):
    """The job was not done in time; what was left of it is dropped."""


class Draining(HyenaError):
    """The server takes no new jobs, because it is ending."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the batcher holds and has done since its start."""

    jobs: int
    """Accepted and not yet answered."""
    queued_tokens: int
    """Of units that wait, and of those that are computed now."""
    running: int
    """Units that are computed now."""
    batches: int
    """Computed."""
    tokens: int
    """Computed, pads included."""
    failures: int
    """Units of which the model gave no result."""
    seconds: float
    """In which the model was busy."""


class _Entry:
    """A job that was accepted and is not answered."""

    def __init__(self, reserved: int, tag: float, until: float) -> None:
        self.reserved, self.tag, self.served, self.until = reserved, tag, 0, until
        self.pending: dict[Kind, deque[Unit]] = {}
        self.remaining = 0  # tokens of all pending
        self.left = 0  # units without a result
        self.results: list[tuple[Unit, Result | Exception]] = []
        self.since = 0.0  # when it was cut into units
        self.done = asyncio.Event()


class Batcher:
    """Computes the jobs of any number of requests in common batches, in one worker thread; for one event loop.

    Parameters
    ----------
    model : ServedModel
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one row.
    queue_tokens : int
        Most tokens of all jobs that were accepted and are not computed.
    wait_ms : float
        How long a batch that is not full waits for more while nothing else is to be done.
    """

    def __init__(self, model: ServedModel, *, batch_tokens: int, queue_tokens: int, wait_ms: float) -> None:
        self.model, self.batch_tokens, self.queue_tokens, self.wait = model, batch_tokens, queue_tokens, wait_ms / 1000
        self._entries: dict[_Entry, None] = {}  # in the order in which they came
        self._pending = Counter[Kind]()  # tokens of each kind
        self._queued = self._running = self._batches = self._tokens = self._failures = 0
        self._clock = self._seconds = 0.0
        self._recent_tokens = self._recent_seconds = 0.0
        self._wake, self._draining = asyncio.Event(), False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to compute."""
        self._task = asyncio.create_task(self._run())

    async def submit(self, job: Job, *, deadline: float) -> list[dict[str, Any]]:
        """The items of the job's answer, in the order of its sequences.

        Cancelling the task that awaits this drops what is left of the job.

        Parameters
        ----------
        job : Job
        deadline : float
            Seconds from now.

        Raises
        ------
        QueueFull           there is no room now, or too much waits for the job to be done in time
        JobTooLarge         there never will be room
        DeadlineExceeded    not done in time; what was left of it is dropped
        Draining            after `drain` was called
        """
        entry = self._admitted(job.tokens, deadline)
        try:
            async with asyncio.timeout(deadline):
                work = await _beside_the_loop(entry.reserved > self.batch_tokens, job.cut, self.batch_tokens)
                large = self._enqueue(entry, work.units) > self.batch_tokens
                await entry.done.wait()
                if entry.left:
                    raise HyenaError("the server's model stopped; it must be started again")
                return await _beside_the_loop(large, _answer, work, entry.results)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"not done within {deadline:g} s; send fewer or shorter sequences, allow more time, or come again "
                "when the server has less to do"
            ) from error
        finally:
            self._leave(entry)

    async def drain(self) -> None:
        """Take no new jobs, finish those that were accepted, and end the worker."""
        self._draining = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._worker.shutdown()

    @property
    def stats(self) -> Stats:
        """What it holds and has done."""
        return Stats(
            jobs=len(self._entries),
            queued_tokens=self._queued,
            running=self._running,
            batches=self._batches,
            tokens=self._tokens,
            failures=self._failures,
            seconds=self._seconds,
        )

    @property
    def is_running(self) -> bool:
        """Whether it computes: it was started, not drained to the end, and met no defect of its own."""
        return self._task is not None and not self._task.done()

    def _admitted(self, tokens: int, deadline: float) -> _Entry:
        if self._draining:
            raise Draining("the server is ending and takes no new requests")
        if tokens > self.queue_tokens:
            raise JobTooLarge(
                f"the request costs {tokens:,} tokens; this server takes up to {self.queue_tokens:,}: send fewer or "
                "shorter sequences"
            )
        # before the first batch nothing is known
        rate = self._recent_seconds / self._recent_tokens if self._recent_tokens else 0.0
        if (excess := self._queued + tokens - self.queue_tokens) > 0:
            seconds = excess * rate or 1.0
            raise QueueFull(f"{self._queued:,} tokens wait already, and at most {self.queue_tokens:,} may", seconds)
        if (seconds := self._too_late(tokens, deadline, rate)) > 0:
            raise QueueFull(
                "so much work waits already that the request, or one before it, could not be done in time", seconds
            )
        self._queued += tokens
        entry = _Entry(tokens, self._clock, asyncio.get_running_loop().time() + deadline)
        self._entries[entry] = None
        return entry

    def _too_late(self, tokens: int, deadline: float, rate: float) -> float:
        """Seconds of work too many for a new job; not above 0 if it can be let in. `rate` is in seconds a token.

        Until a job is done, of each longer one as much is computed as of it, and the shorter ones are as a whole.
        """
        left = sorted((entry.reserved + entry.remaining, entry.until) for entry in self._entries)
        now, before = asyncio.get_running_loop().time(), 0
        wait = rate * sum(min(own, tokens) for own, _ in left)
        worst = wait - _OF_NEW * max(0.0, deadline - rate * tokens)
        if tokens <= self.batch_tokens:
            return worst
        for place, (own, until) in enumerate(left):
            others = rate * (before + own * (len(left) - place - 1))
            spare = until - now - rate * own
            if others <= spare:  # one that will be late anyway is no reason to refuse others
                worst = max(worst, others + rate * min(own, tokens) - _OF_ACCEPTED * spare)
            before += own
        return worst

    def _enqueue(self, entry: _Entry, units: list[Unit]) -> int:
        """How many tokens there are to compute."""
        entry.left, entry.since = len(units), asyncio.get_running_loop().time()
        for unit in units:
            entry.pending.setdefault(unit.kind, deque()).append(unit)
            self._pending[unit.kind] += unit.cost
            entry.remaining += unit.cost
        # a sequence with an error has no units
        self._queued += entry.remaining - entry.reserved
        entry.reserved = 0
        if not entry.left:
            entry.done.set()
        self._wake.set()
        return entry.remaining

    def _leave(self, entry: _Entry) -> None:
        """Forget the job; units of it that are computed now still count until they are."""
        del self._entries[entry]
        for kind, units in entry.pending.items():
            self._took(kind, sum(unit.cost for unit in units))
        self._queued -= entry.reserved + entry.remaining
        entry.pending, entry.results = {}, []
        self._wake.set()

    def _took(self, kind: Kind, tokens: int) -> None:
        self._pending[kind] -= tokens
        if not self._pending[kind]:
            del self._pending[kind]

    async def _run(self) -> None:
        try:
            while await self._ready():
                await self._compute(self._next_batch())
        finally:  # nobody waits for what never comes, if this fails
            for entry in self._entries:
                entry.done.set()

    async def _ready(self) -> bool:
        """Once there is a batch to compute; False when there will be none any more."""
        while True:
            self._wake.clear()
            delay = self._delay()
            if delay is not None and delay <= 0:
                return True
            if self._draining and not self._entries:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    def _delay(self) -> float | None:
        """Seconds for which to wait for more; None while there is nothing to compute."""
        first = next((entry.since for entry in self._entries if entry.pending), None)
        if first is None:
            return None
        if self._draining or any(tokens + kind.length > self.batch_tokens for kind, tokens in self._pending.items()):
            return 0.0
        return first + self.wait - asyncio.get_running_loop().time()

    def _next_batch(self) -> list[tuple[_Entry, Unit]]:
        waiting = sorted((entry for entry in self._entries if entry.pending), key=self._order)
        kind = max(waiting[0].pending, key=lambda kind: min(self._pending[kind], self.batch_tokens))
        batch: list[tuple[_Entry, Unit]] = []
        room = self._take(kind, 0, waiting, batch, self.batch_tokens)
        # of shorter rows too, while to pad them costs less than another batch
        for shorter in sorted(filter(kind.is_longer, self._pending), key=lambda kind: -kind.length):
            pads = kind.length - shorter.length
            if self._pending[shorter] * pads > self.model.batch_overhead * shorter.length:
                break
            room = self._take(shorter, pads, waiting, batch, room)
        self._clock += sum(unit.cost for _, unit in batch) / len(waiting)
        return batch

    def _take(self, kind: Kind, pads: int, waiting: list[_Entry], batch: list[tuple[_Entry, Unit]], room: int) -> int:
        """Move units of a kind into the batch in the order of their jobs; the tokens for which there is room then."""
        for entry in waiting:
            if kind not in entry.pending:
                continue
            units, own = entry.pending[kind], 0
            while units and (not batch or units[0].cost + pads <= room):
                room -= units[0].cost + pads
                own += units[0].cost
                batch.append((entry, units.popleft()))
            if not units:
                del entry.pending[kind]
            if own:
                self._took(kind, own)
            entry.tag, entry.served, entry.remaining = entry.tag + own, entry.served + own, entry.remaining - own
        return room

    def _order(self, entry: _Entry) -> tuple[float, int]:
        """When its next batch would end on the common clock; of equals the one served least goes first."""
        return entry.tag + min(entry.remaining, self.batch_tokens), entry.served

    async def _compute(self, batch: list[tuple[_Entry, Unit]]) -> None:
        loop, units = asyncio.get_running_loop(), [unit for _, unit in batch]
        tokens, self._running, start = sum(unit.cost for unit in units), len(units), loop.time()
        results = await loop.run_in_executor(self._worker, _results, self.model, units)
        seconds = loop.time() - start
        for (entry, unit), result in zip(batch, results, strict=True):
            self._failures += isinstance(result, Exception)
            entry.results.append((unit, result))
            entry.left -= 1
            if not entry.left:
                entry.done.set()
        self._running, self._queued, self._batches = 0, self._queued - tokens, self._batches + 1
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._recent_tokens = _REMEMBERED * self._recent_tokens + tokens
        self._recent_seconds = _REMEMBERED * self._recent_seconds + seconds


async def _beside_the_loop(large: bool, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """What the function gives, in another thread if it is large: a tenth of a second for a million bases."""
    return await asyncio.to_thread(function, *args, **options) if large else function(*args, **options)


def _answer(work: Work, results: list[tuple[Unit, Result | Exception]]) -> list[dict[str, Any]]:
    for unit, result in results:
        work.put(unit, result)
    return work.answer()


def _results(model: ServedModel, units: list[Unit]) -> list[Result | Exception]:
    """The result of each unit, or why there is none; if they fail together, each is tried by itself."""
    try:
        found = units[0].kind.compute(model, [unit.piece for unit in units])
        return [result for _, result in zip(units, found, strict=True)]
    except Exception as error:  # whatever goes wrong with a batch, others must go on
        if len(units) == 1:
            if not isinstance(error, HyenaError):
                tell_defect(error)
            return [error.with_traceback(None)]  # which would keep what the model held
    return [_results(model, [unit])[0] for unit in units]
