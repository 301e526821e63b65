"""The queue in front of a model: who is served when, what is refused, and what is left behind."""

import asyncio
import contextlib
import dataclasses
import gc
import random
import threading
import weakref
from types import SimpleNamespace

import pytest
from served_models import computed, served
from test_jobs import assert_same

from hyenadna.errors import HyenaError, NotFiniteError
from hyenadna.serve.batcher import Batcher, DeadlineExceeded, Draining, JobTooLarge, QueueFull
from hyenadna.serve.jobs import EmbedJob, LikelihoodJob, PredictJob, SubstitutionsJob
from hyenadna.serve.units import Kind, Unit

LONG = 60.0
MODEL = SimpleNamespace(batch_overhead=8)


class Machine:
    """A model that computes a batch when it is told to."""

    def __init__(self, *, free=False):
        self.loop, self.free, self.batches = asyncio.get_running_loop(), free, []
        self._started, self._permits = asyncio.Queue(), threading.Semaphore(0)

    async def started(self):
        """The names of the jobs of the units in the batch that begins next."""
        async with asyncio.timeout(LONG):
            return await self._started.get()

    def finish(self):
        self._permits.release()

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
    batcher = Batcher(MODEL, **{"batch_tokens": 100, "queue_tokens": 10**6, "wait_ms": 0} | options)
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


def in_a_loop(test):
    """An asynchronous test in an event loop of its own."""

    def run():
        asyncio.run(asyncio.wait_for(test(), LONG))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_a_loop
async def test_jobs_of_a_kind_share_batches():
    machine = Machine()
    async with running(machine) as batcher:
        first = submitted(batcher, Task(machine, "first", 1))
        assert await machine.started() == ["first"]
        jobs = [Task(machine, name, 4) for name in "xyz"]
        tasks = [submitted(batcher, job) for job in jobs]
        await queued(batcher, 4)
        machine.finish()
        assert sorted(await machine.step()) == list("xxxxyyyyzz")
        assert await machine.step() == ["z", "z"]
        assert await asyncio.gather(*tasks) == [job.expected for job in jobs]
        assert await first == [("first", 0)]
        assert (batcher.stats.batches, batcher.stats.tokens) == (3, 130)


@in_a_loop
async def test_jobs_of_different_kinds_do_not():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        jobs = [Task(machine, kind, 3, kind) for kind in "abc"]
        assert await asyncio.gather(*(batcher.submit(job, deadline=LONG) for job in jobs)) == [
            job.expected for job in jobs
        ]
        assert sorted(machine.batches) == [["a"] * 3, ["b"] * 3, ["c"] * 3]


@in_a_loop
async def test_shorter_rows_fill_a_batch_where_their_pads_cost_less_than_a_batch():
    machine = Machine()
    async with running(machine) as batcher:
        first = submitted(batcher, Task(machine, "first", 1))
        await machine.started()
        lengths = {"long": 10, "near": 8, "far": 5, "other": 8}
        tasks = [
            submitted(batcher, Task(machine, name, 3, "b" if name == "other" else "a", length))
            for name, length in lengths.items()
        ]
        tasks.append(submitted(batcher, Task(machine, "long", 1)))
        await queued(batcher, 6)
        machine.finish()
        turns = [await machine.step() for _ in range(3)]
        # 3 times 2 pads are less than the 8 tokens of a batch, 3 times 5 are not
        assert list(map(sorted, turns)) == [["long"] * 4 + ["near"] * 3, ["far"] * 3, ["other"] * 3]
        await asyncio.gather(first, *tasks)


@in_a_loop
async def test_a_huge_job_delays_a_short_one_by_the_batch_in_work():
    machine = Machine()
    async with running(machine) as batcher:
        huge = submitted(batcher, Task(machine, "huge", 10_000))
        for _ in range(50):
            await machine.step()
        await machine.started()
        same, other = submitted(batcher, Task(machine, "same", 2)), submitted(batcher, Task(machine, "other", 2, "b"))
        await queued(batcher, 3)
        machine.finish()
        turns = [await machine.step(), await machine.step()]
        assert ["other"] * 2 in turns
        assert ["same"] * 2 + ["huge"] * 8 in turns
        await asyncio.gather(same, other)
        huge.cancel()


@in_a_loop
async def test_short_jobs_without_end_do_not_starve_a_huge_one():
    machine = Machine()
    async with running(machine) as batcher:
        huge = submitted(batcher, Task(machine, "huge", 10_000, "b"))
        await machine.started()
        turns, shorts = [], []
        for turn in range(60):
            shorts.append(submitted(batcher, Task(machine, f"short {turn}", 5)))
            await queued(batcher, 2)
            machine.finish()
            turns.append(await machine.started())
        served = sum(len(names) for names in turns if names[0] == "huge")
        # as many units each, of which there are ten a batch of the one and five of the others
        assert 0.4 <= served / sum(map(len, turns)) <= 0.7
        for task in (huge, *shorts):
            task.cancel()


@in_a_loop
async def test_jobs_that_wait_have_equal_shares():
    machine = Machine()
    async with running(machine) as batcher:
        first = submitted(batcher, Task(machine, "first", 10_000, "a"))
        await machine.started()
        for _ in range(20):
            machine.finish()
            await machine.started()
        others = [submitted(batcher, Task(machine, name, 10_000, name)) for name in "bc"]
        await queued(batcher, 3)
        counts = dict.fromkeys(["first", "b", "c"], 0)
        for _ in range(30):
            machine.finish()
            counts[(await machine.started())[0]] += 1
        # what the first one had before they came is not held against it
        assert all(9 <= count <= 11 for count in counts.values())
        for task in (first, *others):
            task.cancel()


@in_a_loop
async def test_a_batch_that_is_not_full_waits_for_more_and_a_full_one_does_not():
    machine = Machine(free=True)
    async with running(machine, wait_ms=1000 * LONG) as batcher:
        await batcher.submit(Task(machine, "full", 10), deadline=LONG)
        one = submitted(batcher, Task(machine, "one", 6))
        await queued(batcher, 1)
        assert len(machine.batches) == 1
        await batcher.submit(Task(machine, "two", 4), deadline=LONG)
        await one
        assert machine.batches[1:] == [["two"] * 4 + ["one"] * 6]
        last = submitted(batcher, Task(machine, "last", 1))
        await queued(batcher, 1)
        await batcher.drain()  # waits for nobody
        assert await last == [("last", 0)]


@in_a_loop
async def test_the_wait_ends():
    machine = Machine(free=True)
    async with running(machine, wait_ms=1) as batcher:
        assert await batcher.submit(Task(machine, "one", 2), deadline=LONG) == [("one", 0), ("one", 1)]


@in_a_loop
async def test_what_is_late_is_dropped_at_once():
    machine = Machine()
    async with running(machine) as batcher:
        running_job = submitted(batcher, Task(machine, "in work", 10))
        await machine.started()
        with pytest.raises(DeadlineExceeded, match=r"not done within 0.01 s"):
            await batcher.submit(Task(machine, "late", 500), deadline=0.01)
        assert batcher.stats.queued_tokens == 100
        machine.finish()
        await running_job
    assert machine.batches == [["in work"] * 10]


@in_a_loop
async def test_a_cancelled_job_is_dropped_at_once():
    machine = Machine()
    async with running(machine) as batcher:
        gone = submitted(batcher, Task(machine, "gone", 500))
        await machine.started()
        stays = submitted(batcher, Task(machine, "stays", 3))
        await queued(batcher, 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.stats.queued_tokens == 100 + 30  # the batch in work, whose result nobody wants
        assert batcher.stats.jobs == 1
        machine.finish()
        assert await machine.step() == ["stays"] * 3
        await stays
    assert len(machine.batches) == 2


@in_a_loop
async def test_a_full_queue_says_when_to_come_again():
    machine = Machine()
    async with running(machine, queue_tokens=1000) as batcher:
        with pytest.raises(JobTooLarge, match="costs 1,010 tokens; this server takes up to 1,000"):
            await batcher.submit(Task(machine, "larger than the queue", 101), deadline=LONG)
        one = submitted(batcher, Task(machine, "one", 100))
        await machine.started()
        with pytest.raises(QueueFull) as refused:
            await batcher.submit(Task(machine, "two", 30), deadline=LONG)
        assert refused.value.retry_after == 1  # nothing is known of the rate
        machine.finish()
        await machine.started()
        with pytest.raises(QueueFull, match="900 tokens wait already, and at most 1,000 may") as refused:
            await batcher.submit(Task(machine, "two", 30), deadline=LONG)
        stats = batcher.stats
        assert (stats.tokens, stats.queued_tokens) == (100, 900)
        assert refused.value.retry_after == pytest.approx(200 * stats.seconds / stats.tokens)
        two = submitted(batcher, Task(machine, "fits", 10))
        machine.free = True
        machine.finish()
        await asyncio.gather(one, two)


def test_a_failure_is_told_without_its_words(capsys):
    test_a_failure_stays_with_its_item()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "secret" not in "".join(told)
    assert all(line.startswith("hyena: defect: RuntimeError in ") and "(batcher.py:" in line for line in told)


@in_a_loop
async def test_what_could_not_be_done_in_time_is_not_taken_on():
    """At 10 ms a token, by hand: jobs of 2 s of work in batches of 1 s, and a small one that may always come."""
    machine = Machine()
    async with running(machine) as batcher:
        batcher._recent_tokens, batcher._recent_seconds = 1e9, 1e7
        alone = submitted(batcher, Task(machine, "alone", 20), deadline=0.5)  # nobody else is there
        await machine.started()
        with pytest.raises(DeadlineExceeded):
            await alone
        machine.finish()
        one = submitted(batcher, Task(machine, "one", 20), deadline=3.5)
        await machine.started()  # 1 s of it waits
        with pytest.raises(QueueFull, match=r"could not be done in time") as refused:
            await batcher.submit(Task(machine, "hasty", 20), deadline=2.5)
        assert refused.value.retry_after == pytest.approx(1 - 0.4 * (2.5 - 2), abs=0.01)
        two = submitted(batcher, Task(machine, "two", 20), deadline=LONG)
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="or one before it"):  # the first would be late
            await batcher.submit(Task(machine, "three", 20), deadline=LONG)
        small = submitted(batcher, Task(machine, "small", 10), deadline=LONG)
        machine.free = True
        machine.finish()
        await asyncio.gather(one, two, small)


@in_a_loop
async def test_a_failure_stays_with_its_item():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        jobs = [Task(machine, name, 2) for name in ("good", "broken", "crash", "fine")]
        answers = await asyncio.gather(*(batcher.submit(job, deadline=LONG) for job in jobs))
        assert answers[0] == jobs[0].expected
        assert answers[3] == jobs[3].expected
        assert [type(result) for result in answers[1] + answers[2]] == [NotFiniteError] * 2 + [RuntimeError] * 2
        assert batcher.stats.failures == 4
        assert await batcher.submit(Task(machine, "later", 1), deadline=LONG) == [("later", 0)]


@in_a_loop
async def test_a_job_that_cannot_be_cut_fails_alone():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        job = Task(machine, "odd", 5)
        job.cut = lambda batch_tokens: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(job, deadline=LONG)
        assert await batcher.submit(Task(machine, "later", 1), deadline=LONG) == [("later", 0)]


@in_a_loop
async def test_nobody_waits_for_a_batcher_that_failed():
    machine = Machine()
    batcher = Batcher(MODEL, batch_tokens=100, queue_tokens=10**6, wait_ms=0)
    await batcher.start()
    assert batcher.is_running
    task = submitted(batcher, Task(machine, "one", 30))
    await machine.started()
    batcher._next_batch = None
    machine.finish()
    with pytest.raises(HyenaError, match="the server's model stopped"):
        await task
    assert not batcher.is_running
    batcher._worker.shutdown()


@in_a_loop
async def test_draining_finishes_what_was_accepted_and_takes_no_more():
    machine = Machine()
    batcher = Batcher(MODEL, batch_tokens=100, queue_tokens=10**6, wait_ms=0)
    await batcher.start()
    jobs = [Task(machine, name, 25) for name in "ab"]
    tasks = [submitted(batcher, job) for job in jobs]
    await machine.started()
    drained = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining, match="takes no new requests"):
        await batcher.submit(Task(machine, "c", 1), deadline=LONG)
    assert not drained.done()
    machine.free = True
    machine.finish()
    await drained
    assert [await task for task in tasks] == [job.expected for job in jobs]
    assert not batcher.is_running
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("model")]


@in_a_loop
async def test_nothing_of_a_finished_job_is_kept():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        kept = []
        for name, deadline in (("done", LONG), ("late", 0.0), ("broken", LONG)):
            job = Task(machine, name, 30)
            kept.append(weakref.ref(job))
            with contextlib.suppress(DeadlineExceeded):
                await batcher.submit(job, deadline=deadline)
            del job
        await batcher.submit(Task(machine, "next", 1), deadline=LONG)
        gc.collect()
        assert [reference() for reference in kept] == [None] * 3


@in_a_loop
async def test_a_job_without_units_is_answered():
    async with running(machine := Machine(free=True)) as batcher:
        assert await batcher.submit(Task(machine, "none", 0), deadline=LONG) == []


def test_requests_of_a_real_model_get_what_they_would_get_alone():
    model, draw = served(), random.Random(0)
    jobs = []
    for number in range(24):
        pairs = [
            (f"{number}/{row}", "".join(draw.choices("ACGTN", k=draw.randint(0, 80))))
            for row in range(draw.randint(1, 3))
        ]
        makers = [
            lambda pairs: LikelihoodJob(model=model, sequences=pairs, per_base=True, strand="both"),
            lambda pairs: EmbedJob(model=model, sequences=pairs, pool=draw.choice(["mean", "max"])),
            lambda pairs: PredictJob(model=model, sequences=pairs, adapter=draw.choice(list(model.adapters))),
            lambda pairs: SubstitutionsJob(model=model, sequences=[(name, some[:5]) for name, some in pairs]),
        ]
        jobs.append(makers[number % 4](pairs))

    async def all_at_once():
        batcher = Batcher(model, batch_tokens=600, queue_tokens=10**6, wait_ms=2)
        await batcher.start()
        answers = await asyncio.gather(*(batcher.submit(job, deadline=LONG) for job in jobs))
        await batcher.drain()
        units = sum(len(job.cut(600).units) for job in jobs)
        assert batcher.stats.failures == 0
        assert batcher.stats.batches < units / 2
        return answers

    for answer, job in zip(asyncio.run(all_at_once()), jobs, strict=True):
        [alone] = computed(job)
        assert_same(answer, alone)


def test_what_is_kept_of_lengths_is_bounded():
    """The spectra of the filters of one transform for each padded length at most, however many lengths come."""
    model = served()
    sequences = [(str(n), "A" * n) for n in range(1, 69, 2)]
    for job in (LikelihoodJob(model=model, sequences=sequences), EmbedJob(model=model, sequences=sequences)):
        computed(job)
    kept = model.network.backbone.layers[0].mixer.spectra.kept
    sizes = {transform.size for _, transform in kept}
    assert len(kept) == len(sizes) * model.network.config.n_layer
    assert len(sizes) <= len({model.padded_length(n) for n in range(1, 69)})
