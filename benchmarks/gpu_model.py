"""The whole model on a GPU under bfloat16 autocast: training step, forward pass and memory, ours against the textbook.

    python benchmarks/gpu_model.py -o benchmarks/results/gpu/model.json

A training step is forward, backward and AdamW, without dropout (which the textbook does not have). At 1,000,000 tokens
the textbook fits no GPU as it is written: there both recompute each block in the backward pass (the textbook by
torch's checkpoint), and their times and memory are those. Logits and gradients are compared with the textbook's in
float32: ours may be twice as far off as the textbook under the same autocast, and a few units of bfloat16, or the case
is refused and gets no times.
"""

import dataclasses
import functools
import gc
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import Timer, arguments, run, spread, take_turns
from textbook import Textbook
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyenadna.errors import KernelError
from hyenadna.model.config import Size, named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import notice

DTYPE = torch.bfloat16


class Bar(NamedTuple):
    must: float
    stretch: float


class Case(NamedTuple):
    work: Literal["training", "forward"]
    size: Size
    length: int
    """Tokens in a window."""
    windows: int
    repetitions: int
    checkpointed: bool = False
    """Whether both recompute their blocks in training."""
    ratio: Bar | None = None
    """How many times faster than the textbook ours must be and is meant to be."""
    milliseconds: Bar | None = None
    """And how long it may take,"""
    gigabytes: Bar | None = None
    """and need at most."""


CASES = (
    Case("training", "tiny-1k-d256", 1_024, 256, 10, ratio=Bar(2, 4)),
    Case("training", "small-32k", 32_768, 1, 20, ratio=Bar(3, 6)),
    Case("training", "large-1m", 1_000_000, 1, 5, checkpointed=True, ratio=Bar(4, 8), gigabytes=Bar(60, 20)),
    Case("forward", "tiny-1k-d256", 1_024, 256, 20),
    Case("forward", "small-32k", 32_768, 1, 20),
    Case("forward", "large-1m", 1_000_000, 1, 10, milliseconds=Bar(90, 45)),
)


class Contender:
    """One model with its optimizer and its batch."""

    def __init__(self, name: Literal["ours", "textbook"], case: Case, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        tokens = torch.randint(7, 11, (case.windows, case.length + 1)).to(device)
        config = dataclasses.replace(named_size(case.size), embed_dropout=0.0)
        ours = HyenaDNA(config).to(device)
        ours.backbone.checkpoint_activations = case.checkpointed
        self.model: HyenaDNA | Textbook = ours
        if name == "textbook":
            self.model = Textbook(config).to(device)
            self.model.load_state_dict(ours.state_dict())
            for block in self.model.backbone.layers if case.checkpointed else ():
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        self.model.train(case.work == "training")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-4, fused=device.type == "cuda")
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        self.case, self.device, self.dtype = case, device, dtype

    def logits(self) -> Tensor:
        with torch.autocast(self.device.type, DTYPE, enabled=self.dtype == DTYPE):
            output = self.model(self.inputs)
        return (output if isinstance(output, Tensor) else output.logits).float()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits().flatten(0, 1), self.targets).backward()

    def __call__(self) -> None:
        if self.case.work == "training":
            self.backward()
            self.optimizer.step()
        else:
            with torch.no_grad():
                self.logits()

    def values(self) -> Tensor:
        """What must agree: the logits, or in training all gradients in the order of the parameters' names."""
        if self.case.work == "training":
            self.backward()
            return torch.cat([p.grad.flatten() for _, p in sorted(self.model.named_parameters())]).cpu()
        with torch.no_grad():
            return self.logits().cpu()


def examined(name: Literal["ours", "textbook"], case: Case, device: torch.device, dtype: torch.dtype) -> tuple[
    Tensor, float | None
]:  # fmt: skip
    """The values of a contender that is alone on the device, and the most gigabytes that its work held there."""
    contender = Contender(name, case, device, dtype)
    values = contender.values()
    if device.type == "cpu":
        return values, None
    contender()  # makes the optimizer's state
    torch.cuda.reset_peak_memory_stats()
    contender()
    peak = torch.cuda.max_memory_allocated() / 1e9
    del contender
    gc.collect()
    torch.cuda.empty_cache()
    return values, peak


def measured(case: Case, device: torch.device, timer: Timer) -> dict[str, Any]:
    """One case of the report: agreement and memory of each contender by itself, then the times, in turns."""
    facts = case._asdict() | {"dtype": str(DTYPE).removeprefix("torch.")}
    exact, _ = examined("textbook", case, device, torch.float32)
    errors, peaks = {}, {}
    for name in ("ours", "textbook"):
        values, peaks[name] = examined(name, case, device, DTYPE)
        errors[name] = float((values - exact).norm() / exact.norm())
    allowed = 2 * errors["textbook"] + 4 * torch.finfo(DTYPE).eps
    if not errors["ours"] <= allowed:
        return facts | {
            "refused": f"ours is {errors['ours']:.2g} off the textbook in float32; {allowed:.2g} is allowed"
        }
    contenders = {name: Contender(name, case, device, DTYPE) for name in ("ours", "textbook")}
    for contender in contenders.values():
        contender()
    seconds = take_turns(contenders, case.repetitions, timer)
    for name, values in seconds.items():
        rate = case.windows * case.length / median(values)
        facts[name] = {"seconds": spread(values), "nt_per_s": rate, "peak_gb": peaks[name], "error": errors[name]}
    found = {
        "ratio": median(seconds["textbook"]) / median(seconds["ours"]),
        "milliseconds": 1e3 * median(seconds["ours"]),
        "gigabytes": peaks["ours"],
    }
    return facts | {name: judged(value, getattr(case, name)) for name, value in found.items()}


def judged(value: float | None, bar: Bar | None) -> dict[str, Any]:
    """A figure beside what it must and is meant to be; milliseconds and gigabytes must be below, the ratio above."""
    if bar is None or value is None:
        return {"value": value}
    sign = 1 if bar.stretch > bar.must else -1
    met = {f"{aim}_met": sign * value >= sign * limit for aim, limit in bar._asdict().items()}
    return {"value": value} | bar._asdict() | met


def show(facts: dict[str, Any]) -> None:
    what = f"{facts['work']:<9}{facts['size']:<13}{facts['windows']:>4} x {facts['length']:<10,}"
    if "refused" in facts:
        notice(f"{what} REFUSED: {facts['refused']}")
        return
    figures = []
    for name, unit in (("ratio", "x"), ("milliseconds", " ms"), ("gigabytes", " GB")):
        figure = facts[name]
        if figure["value"] is not None:
            bar = f" (bar {figure['must']:g} {'met' if figure['must_met'] else 'MISSED'})" if "must" in figure else ""
            figures.append(f"{figure['value']:.2f}{unit}{bar}")
    rates = "  ".join(f"{name} {facts[name]['nt_per_s']:,.0f} nt/s" for name in ("ours", "textbook"))
    notice(f"{what} {rates}  {'  '.join(figures)}")


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    flags = arguments(argv, "The whole model on a GPU: ours against the textbook.", ("cpu", "cuda"))

    def benchmark(timer: Timer) -> Iterator[dict[str, Any]]:
        for case in cases:
            try:
                facts = measured(case, torch.device(flags.device), timer)
            except (KernelError, torch.OutOfMemoryError) as error:
                facts = case._asdict() | {"refused": str(error).splitlines()[0]}
            show(facts)
            yield facts

    return run(flags, benchmark)


if __name__ == "__main__":
    sys.exit(main())
