"""Memory of one training step of large-1m: ours, ours recomputing its blocks, the textbook, and the textbook likewise.

    python benchmarks/train_memory.py -o benchmarks/results/train_memory.json

A step is forward, cross entropy and backward of one sequence, each contender in a process of its own. On a CUDA GPU it
has a million tokens under bfloat16 autocast, and its peak is what torch allocated at most; a contender that runs out of
memory is reported with none. Without a GPU it has 16,384 tokens in float32, and its peak is what the process held at
most, beyond what it held before the step with the model and its gradients; `at_a_million_gb` is that figure times a
million / 16,384, an estimate. The textbook recomputes through `torch.utils.checkpoint` around each block. Seconds are
those of one step, for orientation.
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
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
        output = model(tokens[:, :-1])
    logits = output if isinstance(output, torch.Tensor) else output.logits
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()


def measured(name: str, case: Case) -> dict[str, float] | None:
    """Peak of a step in GB and its seconds; None if it does not fit."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = contender(name, case).to(device).train()
    tokens = torch.randint(7, 11, (1, case.length + 1), device=device)
    step(model, tokens[:, :65])  # makes the gradients, and imports what recomputation needs
    before, start = held("VmRSS"), time.perf_counter()
    try:
        step(model, tokens)
    except torch.OutOfMemoryError:
        return None
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = held("VmHWM") - before
    return {"peak_gb": peak / 1e9, "seconds": time.perf_counter() - start}


def held(field: str) -> int:
    """Bytes of memory of this process: 'VmRSS' now, 'VmHWM' at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def report(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": case.size, "length": case.length, "cuda": torch.cuda.is_available()}
    for name in CONTENDERS:
        quiet.others.append(quiet.wait())
        result, _ = in_fresh_process(measured, name, case)
        if result is not None and not facts["cuda"]:
            result["at_a_million_gb"] = result["peak_gb"] * MILLION / case.length
        facts[name] = result
        shown = "out of memory" if result is None else "  ".join(f"{key} {x:.2f}" for key, x in result.items())
        notice(f"{case.size} at {case.length:,}  {name:24}{shown}")
    return facts


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = ()) -> int:
    chosen = cases or (Case("large-1m", MILLION if torch.cuda.is_available() else 16_384),)

    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        return [report(case, quiet) for case in chosen]

    return run(arguments(argv, "Memory of a training step: ours and the textbook, recomputing or not."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
