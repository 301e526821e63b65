"""The queue in front of a model: who is served when, and what a real model answers."""

import asyncio
import random

from batching import LIMITS, LONG, Machine, Task, in_a_loop, queued, running, submitted
from served_models import computed, served
from test_jobs import assert_same

from hyenadna.serve.batcher import Batcher
from hyenadna.serve.jobs import EmbedJob, LikelihoodJob, PredictJob, SubstitutionsJob


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
        batcher = Batcher(model, **LIMITS | {"batch_tokens": 600, "wait_ms": 2})
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
