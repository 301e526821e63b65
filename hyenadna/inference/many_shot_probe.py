"""`hyena probe`: every cell of a many-shot probe, into a folder that the same command continues."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hyenadna import __version__
from hyenadna.errors import RunFolderError, UsageError
from hyenadna.files import lock
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.many_shot import BATCH_TOKENS, answers_of
from hyenadna.inference.many_shot_arms import CANDIDATES, Ended, Step, new_prompt, reinforced, swept
from hyenadna.inference.many_shot_cells import NONE, Cell, Journal, Key
from hyenadna.inference.many_shot_config import ProbeConfig
from hyenadna.inference.many_shot_report import Report
from hyenadna.inference.many_shot_task import ProbeTask, read_task, seeds_of, shots_of
from hyenadna.machine import available_cpus, keep_freed_memory, peak_memory, torch_device
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import base_sha256
from hyenadna.progress import duration, notice, progress, quantity

_BATCH_TOKENS = {"cpu": BATCH_TOKENS, "cuda": 1 << 17}
_TRIED_S = 2.0
FILES = ("cells.jsonl", "report.json", "cells.tsv", "accuracy.png", "accuracy.tsv")
"""What the folder holds."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is known before the first prompt."""

    config: ProbeConfig
    model: HyenaDNA
    task: ProbeTask
    shots: dict[str, tuple[int, ...]]
    """Of each arm that was asked for."""
    batch_tokens: int

    @classmethod
    def of(cls, config: ProbeConfig, model: HyenaDNA | None = None, tuned_on: str | None = None) -> "Plan":
        """Read the data, and the model where it is not given; `tuned_on` is as `read_task` takes it.

        Raises
        ------
        InputError, UsageError, SequenceTooLong     as `read_task` and `shots_of`
        """
        torch.set_num_threads(config.threads or available_cpus())
        keep_freed_memory()
        device = torch_device(config.device)
        model = model or HyenaDNA.from_pretrained(config.model, device=device)
        task = read_task(config, model.config, tuned_on=tuned_on)
        shots = shots_of(config, task, model)
        return cls(config, model, task, shots, config.batch_tokens or _BATCH_TOKENS[device.type])

    @property
    def settings(self) -> dict[str, Any]:
        """What the cells depend on."""
        layout = self.task.layout
        return {
            "base_sha256": base_sha256(self.model.state_dict()),
            "rows": self.task.sha256,
            "layout": dataclasses.asdict(layout) | {"label_words": list(layout.label_words)},
            "context": context_of(self.model),
            "shots": list(self.config.shots) or "doubled",
        }

    @property
    def tokens(self) -> int:
        """About how many tokens are read for all cells."""
        layout, task, total = self.task.layout, self.task, 0
        asked = [*task.query_tokens, *task.contentless]
        queries = sum(len(query) + len(layout.separator_tokens) for query in asked)
        typical = float(np.mean([len(sequence) for sequence in task.sequences])) + 2 * len(layout.separator_tokens) + 1
        for arm, all_shots in self.shots.items():
            shots = [k for k in all_shots if k]
            prompt = max(shots, default=0) * len(task.classes) * typical
            if arm == "reinforced":
                total += round((2 + CANDIDATES) * prompt) + 2 * len(shots) * queries
            else:
                total += round((2 if arm == "reverse-complement" else 1) * prompt) + len(shots) * queries
        # without examples is asked once for all
        return total * self.config.seeds + queries * any(0 in shots for shots in self.shots.values())


def probe_data(
    config: ProbeConfig, *, overwrite: bool = False, model: HyenaDNA | None = None, tuned_on: str | None = None
) -> dict[str, Any]:
    """Probe a model on labelled data, and write what came out.

    Parameters
    ----------
    config : ProbeConfig
    overwrite : bool
        Drop an earlier probe in the folder.
    model : HyenaDNA, optional
        In eval mode. Default: read from `config.model`.
    tuned_on : str, optional
        The layout that the model was tuned on.

    Returns
    -------
    dict                    what report.json holds, and `text` for a person

    Raises
    ------
    InputError, UsageError, SequenceTooLong     as `read_task` and `shots_of`
    RunFolderError                              the folder is in use, or holds another probe
    """
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"-o {config.out} is a file; give a folder")
    plan = Plan.of(config, model, tuned_on)
    busy = RunFolderError(f"{config.out} is in use by another process; wait for it, or name another folder by -o")
    with lock(config.out / ".lock", busy):
        journal = Journal(config.out / FILES[0], plan.settings, overwrite=overwrite)
        start, earlier = time.perf_counter(), len(journal.cells)
        _fill(plan, journal)
        about = {
            "hyenadna": __version__,
            "model": config.model,
            "data": config.data or "the bundled splice table",
            "seconds": round(time.perf_counter() - start, 3),
            "cells_of_earlier_runs": earlier,
            **plan.settings,
        }
        report = Report(plan.task, plan.shots, seeds_of(config), journal)
        return report.write(config.out, about)


def dry_run(config: ProbeConfig, *, model: HyenaDNA | None = None, tuned_on: str | None = None) -> dict[str, Any]:
    """Check all inputs, read for some seconds, and say what the whole probe would take; nothing is written.

    Parameters
    ----------
    config, model, tuned_on
        As `probe_data` takes them.

    Returns
    -------
    dict                    tokens, tokens_per_s, seconds, memory_bytes, shots, and `text` for a person
    """
    plan = Plan.of(config, model, tuned_on)
    prompt, start = new_prompt(plan.model, plan.task, plan.batch_tokens), time.perf_counter()
    some, number = plan.task.query_tokens, 0
    while number == 0 or (number < len(some) and time.perf_counter() - start < _TRIED_S):
        prompt.ask(some[number : number + 16])
        number += 16
    rate, memory = prompt.tokens_read / (time.perf_counter() - start), peak_memory()
    seconds = plan.tokens / rate
    shots = {arm: list(ks) for arm, ks in plan.shots.items()}
    most = max(itertools.chain.from_iterable(shots.values()), default=0)
    text = (
        f"{len(plan.task.queries):,} queries of {len(plan.task.classes)} classes, {config.seeds} seeds, "
        f"{len(shots)} arms of up to {most:,} examples a class: about {plan.tokens:,} tokens. "
        f"At {quantity(rate)}nt/s: {duration(seconds)}, and {quantity(memory)}B of memory so far. Nothing was written"
    )
    return {
        "tokens": plan.tokens, "tokens_per_s": round(rate), "seconds": round(seconds, 1), "memory_bytes": memory,
        "shots": shots, "text": text,
    }  # fmt: skip


def _fill(plan: Plan, journal: Journal) -> None:
    """Make the cells that are missing."""
    with progress("probing", plan.tokens) as job:
        for seed, found in _missing(plan, journal):
            if isinstance(found, Ended):
                journal.end(seed, found)
                notice(f"seed {seed}: reinforced examples end before k = {found.shots}: {found.why}")
                continue
            journal.add(Cell.of(found, seed))
            job.advance(found.answers.tokens_read, f"{found.arm}, k = {found.shots}, seed {seed}")


def _missing(plan: Plan, journal: Journal) -> Iterator[tuple[int, Step | Ended]]:
    first = plan.config.seed
    zero_wanted = any(0 in shots for shots in plan.shots.values())
    # without examples there is nothing that arms or seeds could change
    if zero_wanted and not any(key.arm == NONE for key in journal.cells):
        prompt = new_prompt(plan.model, plan.task, plan.batch_tokens)
        yield first, Step(NONE, 0, answers_of(prompt, plan.task.query_tokens, plan.task.contentless), {})
    for seed in seeds_of(plan.config):
        for arm, all_shots in plan.shots.items():
            shots = tuple(k for k in all_shots if k)
            if arm == "reinforced":
                end = journal.ended.get(seed)
                missing = {k for k in shots if Key("matched", seed, k) not in journal.cells}
                if any(end is None or k < end.shots for k in missing):
                    for found in reinforced(plan.model, plan.task, shots, seed, plan.batch_tokens):
                        if isinstance(found, Ended) or Key(found.arm, seed, found.shots) not in journal.cells:
                            yield seed, found
            elif wanted := {k for k in shots if Key(arm, seed, k) not in journal.cells}:
                for step in swept(plan.model, plan.task, arm, shots, seed, wanted, plan.batch_tokens):
                    yield seed, step
