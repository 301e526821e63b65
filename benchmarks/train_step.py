"""Training in float32 on the CPU: a step of ours against a step of the textbook, tiny-1k, 8,192 tokens a step.

    python benchmarks/train_step.py -o benchmarks/results/train_step.json

A step is forward, backward and AdamW. Both start from the same weights on the same tokens, without dropout (which the
textbook does not have), and take turns; the gradients of the first step and the losses of the first 20 must agree
before anything is timed. Each contender's memory is measured in a process of its own. Takes about three minutes on two
cores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import QuietMachine, arguments, check_same, compared, in_fresh_process, run, table, take_turns
from textbook import Textbook
from torch import Tensor

from hyenadna.model.config import named_size
from hyenadna.model.language_model import HyenaDNA

TOLERANCE = 1e-4
"""Of the largest gradient of all, and of the loss."""
CURVE = 20
"""Steps in which the losses are compared."""
STEPS = 3
"""In one repetition: long enough to see who else uses the machine."""


class Case(NamedTuple):
    length: int
    """Tokens in a window."""
    windows: int
    """In a step."""
    repetitions: int
    bar: float = 1.25
    """How many times faster ours must be."""


CASES = (Case(256, 32, 15, bar=1.0), Case(1024, 8, 15), Case(8192, 1, 15))


class Training:
    """One contender with its optimizer and its batch."""

    def __init__(self, name: str, case: Case) -> None:
        torch.manual_seed(0)
        config = named_size("tiny-1k", max_length=max(1024, case.length))
        ours = HyenaDNA(dataclasses.replace(config, embed_dropout=0.0)).train()
        tokens = torch.randint(7, 11, (case.windows, case.length + 1))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        self.model: HyenaDNA | Textbook = ours
        if name == "textbook":
            self.model = Textbook(ours.config).train()
            self.model.load_state_dict(ours.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-4)

    def gradients(self) -> Tensor:
        """All of them in one row, in the order of the parameters' names."""
        return torch.cat([parameter.grad.flatten() for _, parameter in sorted(self.model.named_parameters())])

    def backward(self) -> Tensor:
        self.optimizer.zero_grad()
        output = self.model(self.inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets)
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        for _ in range(STEPS):
            self.backward()
            self.optimizer.step()


def gradients_and_losses(name: str, case: Case) -> Any:
    """Of the first step, and of the first steps."""
    training = Training(name, case)
    losses = [training.backward()]
    gradients = training.gradients().numpy()
    for _ in range(CURVE - 1):
        training.optimizer.step()
        losses.append(training.backward())
    return gradients, torch.stack(losses).numpy()


def measured(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    """One case: memory and agreement in fresh processes, then the times."""
    outputs, peaks = {}, {}
    for name in ("ours", "textbook"):
        outputs[name], peaks[name] = in_fresh_process(gradients_and_losses, name, case)
    gradients, losses = ([torch.from_numpy(output[i]) for output in outputs.values()] for i in (0, 1))
    label = f"tiny-1k at {case.length}"
    differences = {
        "largest_difference": check_same(f"{label}, gradients", *gradients, TOLERANCE),
        "largest_difference_of_losses": check_same(f"{label}, losses", *losses, TOLERANCE),
    }
    contenders = {name: Training(name, case) for name in ("ours", "textbook")}
    for training in contenders.values():
        training()
    seconds = take_turns(contenders, case.repetitions, quiet)
    facts = {"size": "tiny-1k", "length": case.length, "windows": case.windows, "steps_a_repetition": STEPS}
    nucleotides = STEPS * case.windows * case.length
    return facts | differences | compared(seconds, nucleotides, peaks, case.bar)


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        done = [measured(case, quiet) for case in cases]
        table(done)
        return done

    return run(arguments(argv, "Training: ours against the textbook."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
