"""Memory of one training step of large-1m: ours, ours recomputing its blocks, the textbook, and the textbook likewise.

    python benchmarks/train_memory.py -o benchmarks/results/train_memory.json

A step on the CPU is forward, cross entropy and backward of one sequence of 16,384 tokens in float32, each contender in
a process of its own. Its peak is what the process held at most, beyond what it held before the step with the model and
its gradients; `at_a_million_gb` is that figure times a million / 16,384, an estimate (a GPU's memory is measured by
gpu_model.py). The textbook recomputes through `torch.utils.checkpoint` around each block. Seconds are those of one
step, for orientation.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import QuietMachine, arguments, in_fresh_process, run
from textbook import Textbook
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyenadna.model.config import named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import notice

MILLION = 1_000_000


class Case(NamedTuple):
    size: str
    length: int


CONTENDERS = ("ours", "ours, recomputing", "textbook", "textbook, recomputing")


class Recomputed(nn.Module):
    """A block of the textbook of which only the input is saved."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


def contender(name: str, case: Case) -> nn.Module:
    config = named_size(case.size, max_length=case.length)
    recomputing = name.endswith("recomputing")
    if name.startswith("ours"):
        ours = HyenaDNA(dataclasses.replace(config, embed_dropout=0.0))
        ours.backbone.checkpoint_activations = recomputing
        return ours
    textbook = Textbook(config)
    if recomputing:
        textbook.backbone.layers = nn.ModuleList(Recomputed(block) for block in textbook.backbone.layers)
    return textbook


def step(model: nn.Module, tokens: torch.Tensor) -> None:
    output = model(tokens[:, :-1])
    logits = output if isinstance(output, torch.Tensor) else output.logits
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def measured(name: str, case: Case) -> dict[str, float]:
    """Peak of a step in GB, also estimated for a million tokens, and its seconds."""
    torch.manual_seed(0)
    model = contender(name, case).train()
    tokens = torch.randint(7, 11, (1, case.length + 1))
    step(model, tokens[:, :65])  # makes the gradients, and imports what recomputation needs
    before, start = held("VmRSS"), time.perf_counter()
    step(model, tokens)
    seconds, peak = time.perf_counter() - start, (held("VmHWM") - before) / 1e9
    return {"peak_gb": peak, "at_a_million_gb": peak * MILLION / case.length, "seconds": seconds}


def held(field: str) -> int:
    """Bytes of memory of this process: 'VmRSS' now, 'VmHWM' at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def report(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": case.size, "length": case.length}
    for name in CONTENDERS:
        quiet.others.append(quiet.wait())
        facts[name], _ = in_fresh_process(measured, name, case)
        shown = "  ".join(f"{key} {x:.2f}" for key, x in facts[name].items())
        notice(f"{case.size} at {case.length:,}  {name:24}{shown}")
    return facts


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = (Case("large-1m", 16_384),)) -> int:
    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        return [report(case, quiet) for case in cases]

    return run(arguments(argv, "Memory of a training step: ours and the textbook, recomputing or not."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
