"""A model that computes when it is told to, and jobs for it: for tests of the queue in front of a model."""

import asyncio
import contextlib
import dataclasses
import threading
from types import SimpleNamespace

from hyenadna.errors import NotFiniteError
from hyenadna.serve.batcher import Batcher
from hyenadna.serve.units import Kind, Unit

LONG = 60.0
MODEL = SimpleNamespace(batch_overhead=8)
LIMITS = {"batch_tokens": 100, "queue_tokens": 10**6, "generating_tokens": 10**6, "wait_ms": 0}


class Machine:
    """A model that computes a batch when it is told to."""

    def __init__(self, *, free=False):
        self.loop, self.free, self.batches = asyncio.get_running_loop(), free, []
        self._started, self._permits = asyncio.Queue(), threading.Semaphore(0)

    async def started(self):
        """The names of the jobs of the units in the batch that begins next."""
        async with asyncio.timeout(LONG):
            return await self._started.get()

    def finish(self, batches=1):
        self._permits.release(batches)

    async def step(self):
        """Let a batch begin and end."""
        names = await self.started()
        self.finish()
        return names

    def run(self, pieces):
        names = [name for name, _ in pieces]
        self.batches.append(names)
        self.loop.call_soon_threadsafe(self._started.put_nowait, names)
        if not self.free and not self._permits.acquire(timeout=LONG):
            raise TimeoutError
        if "broken" in names:
            raise NotFiniteError("no numbers")
        if "crash" in names:
            raise RuntimeError("out of memory in /secret")
        return pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Kind):
    name: str
    machine: Machine = dataclasses.field(compare=False)

    def compute(self, model, pieces):
        return self.machine.run(pieces)


class Task:
    """A job of so many units, of 10 tokens each."""

    def __init__(self, machine, name, units, kind="a", length=10):
        self.name, self.count, self.tokens = name, units, length * units
        self.kind = Rows(name=kind, length=length, machine=machine)
        self.results = {}

    def cut(self, batch_tokens):
        self.units = [Unit(self.kind, (self.name, number), self.kind.length, number, 0) for number in range(self.count)]
        return self

    def put(self, unit, result):
        self.results[unit.row] = result

    def answer(self):
        return [self.results[row] for row in range(self.count)]

    @property
    def expected(self):
        return [(self.name, number) for number in range(self.count)]


@contextlib.asynccontextmanager
async def running(machine, **options):
    """A batcher that computes 10 units at once, and is drained afterwards."""
    batcher = Batcher(MODEL, **LIMITS | options)
    await batcher.start()
    yield batcher
    machine.free = True
    machine._permits.release(1000)
    await batcher.drain()
    stats = batcher.stats
    assert (stats.jobs, stats.queued_tokens, stats.running) == (0, 0, 0)
    assert not batcher._pending


def submitted(batcher, job, deadline=LONG):
    return asyncio.create_task(batcher.submit(job, deadline=deadline))


async def queued(batcher, jobs):
    """Until so many jobs are in the queue, cut into units."""
    while sum(entry.since > 0 for entry in batcher._entries) < jobs:
        await asyncio.sleep(0)


def pass_time(seconds):
    """The event loop's clock from now on, as if so many seconds had passed."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds


def in_a_loop(test):
    """An asynchronous test in an event loop of its own."""

    def run():
        asyncio.run(asyncio.wait_for(test(), LONG))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
