"""What is computed when: the queue of jobs in front of one model, and the batches that their units share.

The order is that of weighted fair queueing with equal weights (Demers, Keshav and Shenker 1989): every job has a tag,
the tokens that it was served since it came, on a clock that all jobs share and that advances by the tokens computed
over the number of jobs that wait. The job whose next batch would end first on that clock is served next, and its batch
is filled up with units of the same kind of other jobs, in the same order. So among many jobs each has its share of the
model, and a small one that comes while large ones are computed waits for the batch in work and no other.

A generation takes its turns in the same order. It is cut into units that cost what a batch costs and follow one
another. Each is a batch by itself, as the steps of a sequence wait for each other and not for those of another one.
"""

import asyncio
import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from hyenadna.errors import HyenaError
from hyenadna.serve.admission import DeadlineExceeded, Draining, JobTooLarge, QueueFull, check_time
from hyenadna.serve.entries import Entry, Writing
from hyenadna.serve.exchange import tell_defect
from hyenadna.serve.generation import GenerateJob
from hyenadna.serve.jobs import Job, Work
from hyenadna.serve.served_model import ServedModel
from hyenadna.serve.units import Kind, Result, Unit

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Entry)
_REMEMBERED = 0.9
"""Share of the earlier batches in the measured rate, a batch later."""


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
    generations: int
    """Accepted and not ended, of the jobs."""
    generated: int
    """Bases that generations have written."""
    failures: int
    """Units of which the model gave no result."""
    seconds: float
    """In which the model was busy."""


class Batcher:
    """Computes the jobs of any number of requests in common batches, in one worker thread; for one event loop.

    Parameters
    ----------
    model : ServedModel
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one row.
    queue_tokens : int
        Most tokens of all jobs that were accepted and are not computed, besides generations.
    generating_tokens : int
        Most tokens of all generations at once, as each keeps its own in memory.
    wait_ms : float
        How long a batch that is not full waits for more while nothing else is to be done.
    """

    def __init__(
        self, model: ServedModel, *, batch_tokens: int, queue_tokens: int, generating_tokens: int, wait_ms: float
    ) -> None:
        self.model, self.batch_tokens, self.wait = model, batch_tokens, wait_ms / 1000
        self.queue_tokens, self.generating_tokens = queue_tokens, generating_tokens
        self._entries: dict[Entry, None] = {}  # in the order in which they came
        self._pending = Counter[Kind]()  # tokens of each kind
        self._queued = self._running = self._batches = self._tokens = self._failures = 0
        self._generating = self._generated = 0
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
                work = await beside_the_loop(entry.reserved > self.batch_tokens, job.cut, self.batch_tokens)
                large = self._enqueue(entry, work.units) > self.batch_tokens
                await entry.done.wait()
                if entry.left:
                    raise HyenaError("the server's model stopped; it must be started again")
                return await beside_the_loop(large, _answer, work, entry.results)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"not done within {deadline:g} s; send fewer or shorter sequences, allow more time, or come again "
                "when the server has less to do"
            ) from error
        finally:
            self._leave(entry)

    @contextlib.contextmanager
    def writing(self, job: GenerateJob, *, deadline: float) -> Iterator[Writing]:
        """A generation that is under way from here to the end of the block, where it is closed if it is not over.

        Parameters
        ----------
        job : GenerateJob
        deadline : float
            Seconds from now, after which nobody waits for more of it.

        Raises
        ------
        QueueFull           others have the memory now, or too much waits for it to be done in time
        JobTooLarge         there never will be memory for it
        Draining            after `drain` was called
        """
        entry = self._admitted_writing(job, deadline)
        try:
            self._enqueue(entry, [entry.next_unit()])
            yield entry
        finally:
            self._leave(entry)
            # the worker may be writing on, and can end that only between two units
            closing = asyncio.get_running_loop().run_in_executor(self._worker, job.close)
            closing.add_done_callback(lambda closed: self._forget(job, closed))

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
            generations=sum(isinstance(entry, Writing) for entry in self._entries),
            generated=self._generated,
            failures=self._failures,
            seconds=self._seconds,
        )

    @property
    def is_running(self) -> bool:
        """Whether it computes: it was started, not drained to the end, and met no defect of its own."""
        return self._task is not None and not self._task.done()

    def _admitted(self, tokens: int, deadline: float) -> Entry:
        self._check_open()
        if tokens > self.queue_tokens:
            raise JobTooLarge(
                f"the request costs {tokens:,} tokens; this server takes up to {self.queue_tokens:,}: send fewer or "
                "shorter sequences"
            )
        if (excess := self._queued + tokens - self.queue_tokens) > 0:
            seconds = excess * self._rate or 1.0
            raise QueueFull(f"{self._queued:,} tokens wait already, and at most {self.queue_tokens:,} may", seconds)
        check_time(self._entries, tokens, deadline, rate=self._rate, small=self.batch_tokens)
        self._queued += tokens
        return self._entered(Entry(tokens, self._clock, self._until(deadline)))

    def _admitted_writing(self, job: GenerateJob, deadline: float) -> Writing:
        self._check_open()
        tokens, most = job.tokens, self.generating_tokens
        if tokens > most:
            raise JobTooLarge(
                f"the request writes on {tokens:,} tokens, prompts included; this server writes on up to {most:,} at "
                "once: ask for fewer or shorter sequences"
            )
        if self._generating + tokens > most:
            ends = min((entry.to_do for entry in self._entries if isinstance(entry, Writing)), default=0)
            raise QueueFull(
                f"generations of {self._generating:,} tokens are under way already, and at most {most:,} may be",
                ends * len(self._entries) * self._rate or 1.0,
            )
        check_time(self._entries, job.cost, deadline, rate=self._rate, small=self.batch_tokens)
        self._generating += tokens
        return self._entered(Writing(job, self._clock, self._until(deadline), self.batch_tokens))

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the server is ending and takes no new requests")

    def _until(self, deadline: float) -> float:
        return asyncio.get_running_loop().time() + deadline

    def _entered(self, entry: E) -> E:
        self._entries[entry] = None
        return entry

    @property
    def _rate(self) -> float:
        """Seconds that a token takes; 0 before the first batch, when nothing is known."""
        return self._recent_seconds / self._recent_tokens if self._recent_tokens else 0.0

    def _enqueue(self, entry: Entry, units: list[Unit]) -> int:
        """How many tokens there are to compute."""
        entry.left = len(units)
        entry.since = asyncio.get_running_loop().time()
        for unit in units:
            entry.pending.setdefault(unit.kind, deque()).append(unit)
            self._pending[unit.kind] += unit.cost
            entry.remaining += unit.cost
        # a sequence with an error has no units
        self._queued += entry.remaining - entry.reserved
        entry.reserved = 0
        if not entry.left:
            entry.finish()
        self._wake.set()
        return entry.remaining

    def _leave(self, entry: Entry) -> None:
        """Forget the job; units of it that are computed now still count until they are."""
        del self._entries[entry]
        for kind, units in entry.pending.items():
            self._took(kind, sum(unit.cost for unit in units))
        self._queued -= entry.reserved + entry.remaining
        entry.pending, entry.results = {}, []
        self._wake.set()

    def _forget(self, job: GenerateJob, closed: "asyncio.Future[None]") -> None:
        """Its memory is free."""
        self._generating -= job.tokens
        if isinstance(error := closed.exception(), Exception):
            tell_defect(error)

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
                entry.finish()

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
        if self._draining or any(
            not kind.waits or tokens + kind.length > self.batch_tokens for kind, tokens in self._pending.items()
        ):
            return 0.0
        return first + self.wait - asyncio.get_running_loop().time()

    def _next_batch(self) -> list[tuple[Entry, Unit]]:
        waiting = sorted((entry for entry in self._entries if entry.pending), key=self._order)
        kind = max(waiting[0].pending, key=lambda kind: min(self._pending[kind], self.batch_tokens))
        batch: list[tuple[Entry, Unit]] = []
        room = self._take(kind, 0, waiting, batch, self.batch_tokens)
        # of shorter rows too, while to pad them costs less than another batch
        for shorter in sorted(filter(kind.is_longer, self._pending), key=lambda kind: -kind.length):
            pads = kind.length - shorter.length
            if self._pending[shorter] * pads > self.model.batch_overhead * shorter.length:
                break
            room = self._take(shorter, pads, waiting, batch, room)
        self._clock += sum(unit.cost for _, unit in batch) / len(waiting)
        return batch

    def _take(self, kind: Kind, pads: int, waiting: list[Entry], batch: list[tuple[Entry, Unit]], room: int) -> int:
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

    def _order(self, entry: Entry) -> tuple[float, int]:
        """When its next batch would end on the common clock; of equals the one served least goes first."""
        return entry.tag + min(entry.remaining, self.batch_tokens), entry.served

    async def _compute(self, batch: list[tuple[Entry, Unit]]) -> None:
        loop, units = asyncio.get_running_loop(), [unit for _, unit in batch]
        tokens, self._running, start = sum(unit.cost for unit in units), len(units), loop.time()
        results = await loop.run_in_executor(self._worker, _results, self.model, units)
        seconds = loop.time() - start
        for (entry, unit), result in zip(batch, results, strict=True):
            self._failures += isinstance(result, Exception)
            read, following = entry.take(unit, result)
            self._tokens += read
            if following is not None and entry in self._entries:
                self._enqueue(entry, [following])
            if isinstance(entry, Writing) and not isinstance(result, Exception):
                self._generated += len(result)
        self._running, self._queued, self._batches = 0, self._queued - tokens, self._batches + 1
        self._seconds += seconds
        self._recent_tokens = _REMEMBERED * self._recent_tokens + tokens
        self._recent_seconds = _REMEMBERED * self._recent_seconds + seconds


async def beside_the_loop(large: bool, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
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
