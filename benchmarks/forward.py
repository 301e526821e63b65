"""Inference in float32 on the CPU: ours against the textbook at the published contexts.

    python benchmarks/forward.py -o benchmarks/results/forward.json

Both run on the same weights and tokens, in turns; each contender's memory is measured in a process of its own, whose
logits must agree before anything is timed. Ours keeps its filters' spectra from the first call on where these are small
enough (32,770), and makes them anew at every call at 160,002. Takes about eight minutes on two cores.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from side_by_side import QuietMachine, arguments, check_same, compared, in_fresh_process, run, table, take_turns
from textbook import Textbook
from torch import Tensor

from hyenadna.model.config import Size, named_size
from hyenadna.model.language_model import HyenaDNA

TOLERANCE = 1e-4
"""Of the largest logit: what the package promises in float32."""


class Case(NamedTuple):
    size: Size
    length: int
    """Tokens."""
    repetitions: int
    bar: float
    """How many times faster ours must be."""


CASES = (Case("small-32k", 32_770, 7, 2.0), Case("medium-160k", 160_002, 2, 3.0))


class Forward:
    """One contender with its input."""

    def __init__(self, name: str, size: Size, length: int) -> None:
        torch.manual_seed(0)
        ours = HyenaDNA(named_size(size)).eval()
        self.tokens = torch.randint(7, 11, (1, length))
        self.model: HyenaDNA | Textbook = ours
        if name == "textbook":
            self.model = Textbook(ours.config).eval()
            self.model.load_state_dict(ours.state_dict())

    def __call__(self) -> Tensor:
        with torch.no_grad():
            output = self.model(self.tokens)
        return output if isinstance(output, Tensor) else output.logits


def logits(name: str, size: Size, length: int) -> Any:
    return Forward(name, size, length)().numpy()


def measured(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    """One case: memory and agreement in fresh processes, then the times."""
    outputs, peaks = {}, {}
    for name in ("ours", "textbook"):
        outputs[name], peaks[name] = in_fresh_process(logits, name, case.size, case.length)
    difference = check_same(case.size, *(torch.from_numpy(outputs[name]) for name in ("ours", "textbook")), TOLERANCE)
    contenders = {name: Forward(name, case.size, case.length) for name in ("ours", "textbook")}
    first = take_turns(contenders, 1, quiet) if case.repetitions > 2 else None
    seconds = take_turns(contenders, case.repetitions, quiet)
    facts = {"size": case.size, "length": case.length, "largest_difference": difference, "first_call_s": first}
    return facts | compared(seconds, case.length, peaks, case.bar)


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        done = [measured(case, quiet) for case in cases]
        table(done)
        return done

    return run(arguments(argv, "Inference: ours against the textbook."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
