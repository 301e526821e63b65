"""A small served model, and jobs computed without a server."""

import random

from adapting import BASES, NUMBER, THREE, adapted
from checkpoints import small_model

from hyenadna.finetune.task import Task
from hyenadna.serve.served_model import ServedAdapter, ServedModel

LABELS = Task("multilabel", ("a", "b", "c"))


def served(**adapters) -> ServedModel:
    """A model of a context of 68 with an adapter of each kind, or with those that are given."""
    network = small_model()
    adapters = adapters or {
        "prompt": ServedAdapter(adapted("soft-prompt", base=network)),
        "head": ServedAdapter(adapted("head", THREE, base=network), reverse_complement=True),
        "lora": ServedAdapter(adapted("lora", NUMBER, base=network)),
        "bases": ServedAdapter(adapted("soft-prompt", BASES, base=network, prompt_length=3), reverse_complement=True),
        "labels": ServedAdapter(adapted("head", LABELS, base=network)),
        "sites": ServedAdapter(adapted("head", base=network, pool="positions", positions=20)),
    }
    return ServedModel(network, name="small", adapters=adapters)


def computed(*jobs, batch_tokens=300, seed=0):
    """The answers of jobs whose units are computed in batches of any units of equal kind, in any order."""
    works = [job.cut(batch_tokens) for job in jobs]
    units = [(work, unit) for work in works for unit in work.units]
    random.Random(seed).shuffle(units)
    by_kind = {}
    for pair in units:
        by_kind.setdefault(pair[1].kind, []).append(pair)
    for kind, pairs in by_kind.items():
        for first in range(0, len(pairs), 3):
            some = pairs[first : first + 3]
            results = kind.compute(jobs[0].model, [unit.piece for _, unit in some])
            for (work, unit), result in zip(some, results, strict=True):
                work.put(unit, result)
    return [work.answer() for work in works]
