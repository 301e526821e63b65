"""The queue in front of a model: what is refused, dropped and broken, and what is left behind."""

import asyncio
import contextlib
import gc
import threading
import weakref

import pytest
from batching import LIMITS, LONG, MODEL, Machine, Task, in_a_loop, queued, running, submitted

from hyenadna.errors import HyenaError, NotFiniteError
from hyenadna.serve.admission import DeadlineExceeded, Draining, JobTooLarge, QueueFull
from hyenadna.serve.batcher import Batcher


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
    batcher = Batcher(MODEL, **LIMITS)
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
    batcher = Batcher(MODEL, **LIMITS)
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
