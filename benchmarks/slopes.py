"""Which decays a Lightning layer should have for DNA: the three families of slopes, trained alike from several seeds.

    python benchmarks/slopes.py --fasta chr20.fa.gz --threads 1 -o benchmarks/results/slopes.json
    python benchmarks/slopes.py --quick                                               some seconds, and says nothing

Small models (by default two Lightning blocks, width 64, 4 heads) of a context of 1,024, and the same first weights and
the same data for every family, so that a seed's results differ by the family alone. Two tasks:

- dna, with --fasta: next-base prediction, then bits per base in windows that no training window touches: every tenth
  megabase is held out.
- memory: random bases, among which a token that DNA does not use announces one of the four, and SEP asks, so many bases
  later, for the one announced last; the model must hold it that long, and not take an older one for it. Only the
  answers are scored; a model that remembers nothing has 2 bits. Distances 8 to 1,000 are trained together, a row each.
  In the first --steps every answer counts alike: the short distances fill their rows with answers and are learnt first,
  without which nothing is learnt in so few steps. In as many more every row does, and the long ones have their turn.

The report has the mean of every family, and the differences from 'context' seed by seed.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from side_by_side import commit, spread
from torch import Tensor

from hyenadna import machine
from hyenadna.data.fasta import read_records
from hyenadna.data.tokenizer import IGNORE, SEP, A, N, T, encode
from hyenadna.files import write_json
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.lightning import SlopeFamily
from hyenadna.progress import notice

CONTEXT = 1_024
DISTANCES = (8, 16, 64, 250, 1_000)
ANNOUNCING = np.array([0, 2, 3, 5])
"""Tokens that stand for A, C, G and T."""
BLOCK, HELD_OUT = 1_000_000, 10
"""The genome is cut into blocks, and every tenth is held out."""


class Plan(NamedTuple):
    layers: str
    steps: int
    batch: int
    seeds: int
    test_batches: int
    learning_rate: float = 3e-3


class Batch(NamedTuple):
    """What is read and what is scored."""

    tokens: Tensor
    """(B, L)."""
    targets: Tensor
    """(B, L), and IGNORE where nothing is scored."""
    by_row: bool = False
    """Whether every row counts alike in the loss; otherwise every target does."""


def announced(distances: Sequence[int], random: np.random.Generator, by_row: bool = False) -> Batch:
    """One row for each distance, in which announcements are answered so many bases later."""
    tokens = random.integers(A, T + 1, (len(distances), CONTEXT))
    targets = np.full_like(tokens, IGNORE)
    for distance, row, target in zip(distances, tokens, targets, strict=True):
        at = int(random.integers(0, 8))
        while at + distance + 1 < CONTEXT:
            base = int(random.integers(0, 4))
            row[at], row[at + distance], row[at + distance + 1] = ANNOUNCING[base], SEP, A + base
            target[at + distance] = A + base
            at += distance + 2 + int(random.integers(0, 8))
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), by_row)


def windows(genome: NDArray[np.uint8], held_out: bool, batch: int, random: np.random.Generator) -> Batch:
    """Tokens (B, L) of windows within held-out blocks, or within the others, without N; targets are the next bases."""
    rows = []
    while len(rows) < batch:
        start = int(random.integers(0, len(genome) - CONTEXT - 1))
        row = genome[start : start + CONTEXT + 1]
        in_one_block = start // BLOCK == (start + CONTEXT) // BLOCK
        if in_one_block and (start // BLOCK % HELD_OUT == 0) == held_out and not (row == N).any():
            rows.append(row.astype(np.int64))
    both = torch.from_numpy(np.stack(rows))
    return Batch(both[:, :-1], both[:, 1:])


def loss_of(model: HyenaDNA, batch: Batch) -> Tensor:
    """Mean nats of the scored targets, or the mean over rows of their means."""
    logits = model(batch.tokens).logits
    nats = F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORE, reduction="none")
    scored = (batch.targets != IGNORE).sum(1)
    return (nats.sum(1) / scored).mean() if batch.by_row else nats.sum() / scored.sum()


def trained(family: SlopeFamily, seed: int, steps: int, plan: Plan, batches: Iterator[Batch]) -> HyenaDNA:
    """A model after all steps."""
    torch.manual_seed(seed)
    config = HyenaConfig(
        d_model=64, d_inner=128, heads=4, layers=plan.layers, filter_length=CONTEXT, slopes=family, embed_dropout=0.0
    )
    model = HyenaDNA(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _, batch in zip(range(steps), batches, strict=False):
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def bits(model: HyenaDNA, batches: Sequence[Batch]) -> float:
    """Mean bits of the scored targets."""
    with torch.no_grad():
        return statistics.fmean(float(loss_of(model, batch)) for batch in batches) / math.log(2)


def memory(family: SlopeFamily, seed: int, plan: Plan) -> dict[str, float]:
    """Bits of an answer, by distance and on the mean over them."""
    random = np.random.default_rng(seed)
    rows = DISTANCES * max(1, plan.batch // len(DISTANCES))

    def batches() -> Iterator[Batch]:
        for step in range(2 * plan.steps):
            yield announced(rows, random, by_row=step >= plan.steps)

    model = trained(family, seed, 2 * plan.steps, plan, batches())
    random = np.random.default_rng(1_000_000)
    found = {
        str(distance): bits(model, [announced((distance,) * plan.batch, random) for _ in range(plan.test_batches)])
        for distance in DISTANCES
    }
    return found | {"mean": statistics.fmean(found.values())}


def dna(family: SlopeFamily, seed: int, plan: Plan, genome: NDArray[np.uint8]) -> dict[str, float]:
    """Bits per base in held-out windows."""
    random = np.random.default_rng(seed)

    def batches() -> Iterator[Batch]:
        while True:
            yield windows(genome, False, plan.batch, random)

    model = trained(family, seed, plan.steps, plan, batches())
    random = np.random.default_rng(1_000_000)
    return {"mean": bits(model, [windows(genome, True, plan.batch, random) for _ in range(plan.test_batches)])}


def compared(task: str, plan: Plan, genome: NDArray[np.uint8] | None) -> dict[str, Any]:
    """One task under all families: bits of every seed, their means, and what each family costs over 'context'."""
    found: dict[str, list[dict[str, float]]] = {}
    for family in get_args(SlopeFamily):
        found[family] = []
        for seed in range(plan.seeds):
            start = time.perf_counter()
            one = memory(family, seed, plan) if genome is None else dna(family, seed, plan, genome)
            found[family].append(one)
            each = "  ".join(f"{name} {value:.4f}" for name, value in one.items())
            notice(f"{task}  {family:<8} seed {seed}: bits {each}  ({time.perf_counter() - start:.0f} s)")
    means = {
        family: {name: statistics.fmean(one[name] for one in each) for name in each[0]}
        for family, each in found.items()
    }
    over = {
        family: spread([one["mean"] - ours["mean"] for one, ours in zip(each, found["context"], strict=True)])
        for family, each in found.items()
        if family != "context"
    }
    for family, difference in over.items():
        notice(
            f"{task}  {family} costs {difference['median']:+.4f} bits over context "
            f"({difference['min']:+.4f} to {difference['max']:+.4f} over {plan.seeds} seeds)"
        )
    return {"task": task, **plan._asdict(), "bits": found, "means": means, "over_context": over}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The three families of slopes, trained alike.")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    parser.add_argument("--fasta", type=Path, help="real sequence, such as a chromosome; without, memory alone")
    parser.add_argument("--layers", default="LL", help="as the model takes them (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of dna, and half of memory's (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=10, help="sequences of 1,024 (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.available_cpus())
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed: whether it runs")
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    plan = Plan(flags.layers, flags.steps, flags.batch, flags.seeds, test_batches=20)
    if flags.quick:
        plan = plan._replace(steps=2, batch=len(DISTANCES), seeds=1, test_batches=1)
    genome = None if flags.fasta is None else np.concatenate([encode(x.sequence) for x in read_records(flags.fasta)])
    report: dict[str, Any] = {"benchmark": "slopes", "commit": commit(), "machine": machine.describe(),
                              "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "cases": []}  # fmt: skip
    for task, of in (*((("dna", genome),) if genome is not None else ()), ("memory", None)):
        report["cases"].append(compared(task, plan, of))
        if flags.out is not None:
            write_json(flags.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
