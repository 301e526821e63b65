"""Inference on the CPU: ours against the textbook at the published contexts.

    python benchmarks/forward.py -o benchmarks/results/forward.json

Both run on the same weights and tokens, in turns; each contender's memory is measured in a process of its own, whose
logits must agree before anything is timed. The textbook computes in float32; ours in float32 and, where the CPU has
matrix units for it, in bfloat16. Ours keeps its filters' spectra from the first call on: those of every layer at
32,770, of half of them at 160,002. Takes about eight minutes on two cores.

With each case goes the machine's own floor: what its matrix products and its transforms take by themselves, in memory
that is used again. Nothing that computes in float32 with this library can be faster than they are.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import (
    ContendersDiffer,
    QuietMachine,
    arguments,
    check_same,
    compared,
    in_fresh_process,
    run,
    table,
    take_turns,
)
from textbook import Textbook
from torch import Tensor

from hyenadna.kernels.fft_conv import good_size
from hyenadna.kernels.working_set import channels_at_once, rows_at_once
from hyenadna.model.config import Size, named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import notice

BITS_PER_BASE = 1e-3
"""By so much the contenders may differ, in any dtype."""


class Case(NamedTuple):
    size: Size
    length: int
    """Tokens."""
    repetitions: int
    bar: float
    """How many times faster ours must be."""
    dtype: torch.dtype = torch.float32
    """Of our matrix products."""


CASES = (
    Case("small-32k", 32_770, 7, 3.0),
    Case("medium-160k", 160_002, 2, 5.0),
    Case("small-32k", 32_770, 7, 5.0, torch.bfloat16),
    Case("medium-160k", 160_002, 2, 10.0, torch.bfloat16),
)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 8 * torch.finfo(torch.bfloat16).eps}
"""Of the largest logit: what the package promises in float32, and what its tests allow in bfloat16."""


class Forward:
    """One contender with its input."""

    def __init__(self, name: str, case: Case) -> None:
        torch.manual_seed(0)
        ours = HyenaDNA(named_size(case.size)).eval()
        self.tokens = torch.randint(7, 11, (1, case.length))
        self.model: HyenaDNA | Textbook = ours.to(case.dtype) if name == "ours" else ours
        if name == "textbook":
            self.model = Textbook(ours.config).eval()
            self.model.load_state_dict(ours.state_dict())

    def __call__(self) -> Tensor:
        with torch.no_grad():
            output = self.model(self.tokens)
        return output if isinstance(output, Tensor) else output.logits


def logits(name: str, case: Case) -> Any:
    return Forward(name, case)().numpy()


def bits_per_base(logits: Tensor, tokens: Tensor) -> float:
    """Of all tokens but the first."""
    return float(F.cross_entropy(logits[0, :-1], tokens[0, 1:])) / math.log(2)


def floor(case: Case, quiet: QuietMachine) -> dict[str, float]:
    """What this machine takes, whatever the code, for one forward pass's matrix products and transforms."""
    config, cpu = named_size(case.size), torch.device("cpu")
    D, inner, rows = config.d_model, config.d_inner, min(case.length, rows_at_once(cpu))
    n = good_size(2 * case.length - 1)
    shapes = ((D, 3 * D), (D, D), (D, inner), (inner, D))
    factors = [(torch.randn(rows, i), torch.randn(i, o), torch.empty(rows, o)) for i, o in shapes]
    signals = torch.randn(min(D, channels_at_once(cpu, n)), n)
    memory, copied = torch.randn(1 << 26), torch.empty(1 << 26)

    def products() -> None:
        for _ in range(case.length // rows):
            for a, b, out in factors:
                torch.mm(a, b, out=out)

    def transforms() -> None:
        for _ in range(D // len(signals)):
            spectra = torch.fft.rfft(signals)
            torch.fft.irfft(spectra, n=n)

    def least(work: Callable[[], Any]) -> float:
        work()
        return min(quiet.timed(work) for _ in range(3))

    products_s, transforms_s = least(products), least(transforms)
    flop = 2 * (case.length // rows) * rows * sum(i * o for i, o in shapes)
    return {
        "products_gflop_per_s": flop / products_s / 1e9,
        "copy_gb_per_s": 2 * memory.nbytes / least(lambda: copied.copy_(memory)) / 1e9,
        "products_s": config.n_layer * products_s * case.length / (case.length // rows * rows),
        "transforms_s": config.n_layer * transforms_s * D / (D // len(signals) * len(signals)),
    }


def measured(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    """One case: memory and agreement in fresh processes, then the times."""
    outputs, peaks = {}, {}
    for name in ("ours", "textbook"):
        output, peaks[name] = in_fresh_process(logits, name, case)
        outputs[name] = torch.from_numpy(output)
    difference = check_same(case.size, outputs["ours"], outputs["textbook"], TOLERANCE[case.dtype])
    contenders = {name: Forward(name, case) for name in ("ours", "textbook")}
    bits = [bits_per_base(output, contenders["ours"].tokens) for output in outputs.values()]
    if not abs(bits[0] - bits[1]) < BITS_PER_BASE:
        raise ContendersDiffer(
            f"{case.size}: bits per base are {bits[0]:.5f} and {bits[1]:.5f}; they may differ by {BITS_PER_BASE}"
        )
    first = take_turns(contenders, 1, quiet) if case.repetitions > 2 else None
    seconds = take_turns(contenders, case.repetitions, quiet)
    facts = {
        "size": case.size,
        "length": case.length,
        "dtype": str(case.dtype).removeprefix("torch."),
        "largest_difference": difference,
        "bits_per_base_difference": bits[0] - bits[1],
        "first_call_s": first,
    }
    result = facts | compared(seconds, case.length, peaks, case.bar)
    if case.dtype == torch.float32:
        least = floor(case, quiet)
        floor_s = least["products_s"] + least["transforms_s"]
        result |= {"floor": least | {"seconds": floor_s, "ratio": result["textbook"]["seconds"]["median"] / floor_s}}
    return result


def has_bfloat16_units() -> bool:
    """Whether the CPU multiplies matrices in bfloat16; without, torch emulates it and is slower than in float32."""
    flags = Path("/proc/cpuinfo").read_text()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        units = has_bfloat16_units()
        if not units:
            notice("no bfloat16 cases: this CPU has no matrix units for it")
        done = [measured(case, quiet) for case in cases if units or case.dtype == torch.float32]
        table(done)
        return done

    return run(arguments(argv, "Inference: ours against the textbook."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
