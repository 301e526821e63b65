"""Generations in the queue in front of a model: whose turn it is, what they may hold, and what is left behind."""

import asyncio
import gc
import threading
import weakref

import pytest
from batching import LONG, MODEL, Machine, Task, in_a_loop, pass_time, queued, running, submitted

from hyenadna.errors import NotFiniteError
from hyenadna.inference.generation import Piece
from hyenadna.serve.admission import Draining, JobTooLarge, QueueFull
from hyenadna.serve.generation import GenerateJob, units


class Machinery(GenerateJob):
    """A generation of one sequence that writes A when the machine is told to; a step costs 9 tokens."""

    def __init__(self, machine, name="writes", length=1000, prompt=10):
        self.machine, self.name = machine, name
        self.prompt, self.length, self.count, self.seed = "A" * prompt, length, 1, 0
        self.tokens, self.step_cost, self.cost = prompt + length, 9, prompt + 9 * length
        self.is_over, self.threads = False, []
        self._left = length

    def advance(self, steps):
        self.threads.append(threading.current_thread().name)
        steps = min(steps, self._left)
        self.machine.run([(self.name, steps)])
        self._left -= steps
        self.is_over = not self._left
        return [Piece(0, "A", -1.0)] * steps

    def close(self):
        self.threads.append(f"closed by {threading.current_thread().name}")


@pytest.fixture(autouse=True)
def _computing(monkeypatch):
    """The model of these tests has no dtype."""
    monkeypatch.setattr(
        "hyenadna.serve.generation.Steps.compute", lambda self, model, pieces: [self.job.advance(*pieces)]
    )
    assert MODEL.batch_overhead == 8


async def written(batcher, job, deadline=LONG):
    with batcher.writing(job, deadline=deadline) as writing:
        await writing.end(deadline)
        return len(writing.pieces), writing.error


def test_units_cost_what_a_batch_does():
    job = Machinery(None, length=25)
    cut = units(job, 100)
    first, second, third = (next(cut) for _ in range(3))
    assert (first.piece, first.cost) == (1, 10 + 9)  # the prompt, and a base as soon as can be
    assert (second.piece, second.cost) == (third.piece, third.cost) == (11, 99)
    assert next(units(job, 5)).piece == 1 and [next(cut).number for _ in range(2)] == [1, 1]


@in_a_loop
async def test_a_generation_and_other_work_have_equal_shares():
    machine = Machine()
    async with running(machine) as batcher:
        writes = asyncio.create_task(written(batcher, Machinery(machine)))
        assert await machine.started() == ["writes"]
        huge = submitted(batcher, Task(machine, "reads", 10_000))
        await queued(batcher, 2)
        turns = []
        for _ in range(41):
            machine.finish()
            turns.append((await machine.started())[0])
        assert 19 <= turns.count("writes") <= 22  # of 99 tokens, as the others have 100
        for task in (writes, huge):
            task.cancel()
        machine.free = True
        machine.finish()


@in_a_loop
async def test_a_short_job_waits_for_one_unit_and_two_generations_take_turns():
    machine = Machine()
    async with running(machine) as batcher:
        tasks = [asyncio.create_task(written(batcher, Machinery(machine, name))) for name in ("one", "other")]
        turns = [(await machine.step())[0] for _ in range(20)]
        assert turns.count("one") == 10
        await machine.started()
        short = submitted(batcher, Task(machine, "short", 2))
        await queued(batcher, 3)
        machine.finish()
        assert await machine.step() == ["short"] * 2
        await short
        for task in tasks:
            task.cancel()
        machine.free = True
        machine.finish(9)


@in_a_loop
async def test_an_idle_server_does_not_wait_for_others_to_share_a_step():
    machine = Machine(free=True)
    async with running(machine, wait_ms=1000 * LONG) as batcher:
        assert await written(batcher, Machinery(machine, length=50)) == (50, None)
        stats = batcher.stats
        assert (stats.generated, stats.tokens, stats.batches) == (50, 60, 6)  # 1 and 4 times 11 and 5 steps


@in_a_loop
async def test_who_leaves_ends_it_after_the_unit_in_work():
    machine = Machine()
    async with running(machine) as batcher:
        job = Machinery(machine)
        task = asyncio.create_task(written(batcher, job))
        await machine.step()
        await machine.started()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert batcher.stats.queued_tokens == 99  # the unit in work, whose result nobody wants
        assert batcher.stats.generations == 0 and batcher._generating == job.tokens  # which it still keeps
        machine.finish()
        while batcher._generating:
            await asyncio.sleep(0)
        # the thread that writes has closed it, as nobody else can
        assert len(set(job.threads[:-1])) == 1 and job.threads[2:] == [f"closed by {job.threads[0]}"]
    assert len(machine.batches) == 2


@in_a_loop
async def test_what_all_of_them_hold_is_bounded():
    machine = Machine()
    async with running(machine, generating_tokens=150) as batcher:
        with pytest.raises(
            JobTooLarge, match="writes on 151 tokens, prompts included; this server writes on up to 150 at"
        ):
            await written(batcher, Machinery(machine, length=141))
        task = asyncio.create_task(written(batcher, Machinery(machine, length=90)))
        await machine.started()
        with pytest.raises(
            QueueFull, match="generations of 100 tokens are under way already, and at most 150"
        ) as refused:
            await written(batcher, Machinery(machine, length=41))
        assert refused.value.retry_after == 1  # nothing is known of the rate
        machine.finish()
        await machine.started()
        with pytest.raises(QueueFull) as refused:
            await written(batcher, Machinery(machine, length=41))
        stats = batcher.stats
        assert refused.value.retry_after == pytest.approx(78 * 9 * stats.seconds / 19)  # what it has yet to write
        machine.free = True
        machine.finish()
        assert await task == (90, None)
        while batcher._generating:
            await asyncio.sleep(0)
        assert await written(batcher, Machinery(machine, length=140)) == (140, None)


@in_a_loop
async def test_a_deadline_ends_it_and_is_kept_without_a_listener():
    machine = Machine()
    async with running(machine) as batcher:
        task = asyncio.create_task(written(batcher, Machinery(machine), deadline=9))
        await machine.step()
        await machine.started()
        pass_time(9)
        assert await task == (1, None)
        machine.finish()
        with batcher.writing(Machinery(machine, "slow"), deadline=9) as writing:
            assert await machine.started() == ["slow"]
            pass_time(9)  # a client that takes nothing of its answer
            machine.finish()
            await writing.done.wait()
            assert len(writing.pieces) == 1 and not writing.is_whole


@in_a_loop
async def test_it_waits_for_nobody_who_could_not_be_in_time():
    """At 10 ms a token: another one of 9 s has 10 s, of which too little is left."""
    machine = Machine()
    async with running(machine) as batcher:
        batcher._recent_tokens, batcher._recent_seconds = 1e9, 1e7
        task = asyncio.create_task(written(batcher, Machinery(machine, length=100), deadline=10))
        await machine.started()
        with pytest.raises(QueueFull, match="could not be done in time"):
            await written(batcher, Machinery(machine, length=100), deadline=10)
        machine.free = True
        machine.finish()
        assert await task == (100, None)


@in_a_loop
async def test_a_failure_ends_it_alone():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        found = await asyncio.gather(*(written(batcher, Machinery(machine, name, 30)) for name in ("broken", "good")))
        assert found[1] == (30, None) and found[0][0] == 0 and isinstance(found[0][1], NotFiniteError)
        assert batcher.stats.failures == 1


@in_a_loop
async def test_draining_ends_what_is_written_and_begins_no_other():
    machine = Machine()
    async with running(machine) as batcher:
        task = asyncio.create_task(written(batcher, Machinery(machine, length=30)))
        await machine.started()
        drained = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining, match="takes no new requests"):
            await written(batcher, Machinery(machine))
        assert not drained.done()
        machine.free = True
        machine.finish()
        assert await task == (30, None)
        await drained


@in_a_loop
async def test_nothing_of_it_is_kept():
    machine = Machine(free=True)
    async with running(machine) as batcher:
        job = Machinery(machine, length=30)
        kept = weakref.ref(job)
        await written(batcher, job)
        del job
        await batcher.submit(Task(machine, "next", 1), deadline=LONG)
        gc.collect()
        assert kept() is None
