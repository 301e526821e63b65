"""Lightning attention in linear time: ours against torch's softmax attention and the masked form, by length.

    python benchmarks/lightning_attention.py --threads 1 -o benchmarks/results/lightning_attention.json

Takes a few minutes on a quiet CPU. All are causal, over 4 heads of 64 as in the models of width 256, float32 on a CPU,
bfloat16 on a GPU; they compute from the same q, k and v in memory (1, L, 4, 64), as a projection leaves them. Inference
is the value, training also the gradients of q, k and v.

- softmax: torch's scaled_dot_product_attention. It is another function, and the bar is only its time;
- masked: the same as ours by the whole matrix (Q K^T) . M. Ours must agree with it before anything is timed.

Doubling the length is to double our time within a quarter from 8,192 on, while it multiplies the others' by four.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from side_by_side import Timer, arguments, check_same, run, spread, take_turns
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyenadna.kernels.lightning_attention import lightning_attention, lightning_attention_reference
from hyenadna.model.lightning import slopes
from hyenadna.progress import notice

HEADS, WIDTH = 4, 64
LONGEST = {"softmax": 16_384, "masked": 4_096}
"""On a CPU, beyond which it would take minutes or gigabytes; on a GPU four times that."""
LINEAR_FROM, WITHIN = 8_192, 0.25
AT_LEAST = 0.05
"""Seconds of a repetition; shorter ones are repeated within it."""


class Case(NamedTuple):
    kind: Literal["inference", "training"]
    length: int
    repetitions: int = 5


def cases_of(device: torch.device) -> list[Case]:
    lengths = [1024 << i for i in range(1, 7 if device.type == "cpu" else 11)]
    return [Case(kind, L) for kind in ("inference", "training") for L in lengths]


Work = Callable[[], tuple[Tensor, ...]]


def works_of(case: Case, device: torch.device) -> dict[str, Work]:
    """Each contender that is measured at this length."""
    random = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    training = case.kind == "training"
    q, k, v, grad = (
        torch.randn(1, case.length, HEADS, WIDTH, generator=random).to(device, dtype).transpose(1, 2) for _ in range(4)
    )
    leaves = [x.requires_grad_(training) for x in (q, k, v)]
    decay = slopes("context", HEADS, layer=0, n_layer=1, context=case.length).to(device)
    functions: dict[str, Callable[..., Tensor]] = {
        "ours": lambda q, k, v: lightning_attention(q, k, v, decay),
        "softmax": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
        "masked": lambda q, k, v: lightning_attention_reference(q, k, v, decay)[0],
    }

    def work(function: Callable[..., Tensor]) -> Work:
        def step() -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(training):
                o = function(*leaves)
            return (o.detach(), *(torch.autograd.grad(o, leaves, grad) if training else ()))

        return step

    reach = 1 if device.type == "cpu" else 4
    return {
        name: work(function)
        for name, function in functions.items()
        if case.length <= reach * LONGEST.get(name, case.length)
    }


def measured(case: Case, device: torch.device, timer: Timer) -> dict[str, Any]:
    """One case: agreement, then seconds and tokens a second of each, in turns."""
    works = works_of(case, device)
    outputs = {name: work() for name, work in works.items()}
    if "masked" in works:
        tolerance = 1e-5 if device.type == "cpu" else 4 * torch.finfo(torch.bfloat16).eps
        for ours, masked in zip(outputs["ours"], outputs["masked"], strict=True):
            check_same(f"{case.kind} at {case.length:,}", ours.float(), masked.float(), tolerance)
    del outputs
    calls = {name: max(1, round(AT_LEAST / timer.timed(work))) for name, work in works.items()}

    def repeated(name: str) -> Callable[[], None]:
        def repetition() -> None:
            for _ in range(calls[name]):
                works[name]()

        return repetition

    seconds = take_turns({name: repeated(name) for name in works}, case.repetitions, timer)
    each = {name: [value / calls[name] for value in values] for name, values in seconds.items()}
    return case._asdict() | {
        "heads": HEADS,
        "width": WIDTH,
        "contenders": {
            name: {"seconds": spread(values), "tokens_per_s": case.length / median(values)}
            for name, values in each.items()
        },
    }


def growth(facts: dict[str, Any], half: dict[str, Any] | None) -> dict[str, float]:
    """How many times longer each took than at half the length."""
    if half is None:
        return {}
    return {
        name: fact["seconds"]["median"] / half["contenders"][name]["seconds"]["median"]
        for name, fact in facts["contenders"].items()
    }


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    flags = arguments(argv, "Lightning attention by length.", ("cpu", "cuda"))
    device = torch.device(flags.device)

    def benchmark(timer: Timer) -> Iterator[dict[str, Any]]:
        done: dict[tuple[str, int], dict[str, Any]] = {}
        for case in cases_of(device) if cases is None else cases:
            facts = measured(case, device, timer)
            grown = growth(facts, done.get((case.kind, case.length // 2)))
            facts["times_that_of_half_the_length"] = grown
            facts["bar_met"] = None
            if case.length >= 2 * LINEAR_FROM and "ours" in grown:
                facts["bar_met"] = 2 * (1 - WITHIN) <= grown["ours"] <= 2 * (1 + WITHIN)
            done[case.kind, case.length] = facts
            show(facts)
            yield facts

    return run(flags, benchmark)


def show(facts: dict[str, Any]) -> None:
    grown = facts["times_that_of_half_the_length"]
    each = "".join(
        f"  {name} {fact['tokens_per_s']:>12,.0f} tokens/s" + (f" (x {grown[name]:.2f})" if name in grown else "")
        for name, fact in facts["contenders"].items()
    )
    notice(f"{facts['kind']:<10}{facts['length']:>10,}{each}")


if __name__ == "__main__":
    sys.exit(main())
