"""Does data loading keep up? Windows of the bundled genome a second, next to the CPU training rate of tiny-1k.

    python benchmarks/loader.py -o benchmarks/results/loader.json

The loader alone must deliver 20 times what a training step takes; both are measured in turns, 8,192 tokens a batch,
with reverse complements. Takes about a minute on two cores.
"""

import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from side_by_side import QuietMachine, arguments, run, spread, take_turns
from train_step import CASES, STEPS, Case, Training

from hyenadna.data.genomes import ecoli
from hyenadna.data.intervals import kept_contigs
from hyenadna.data.packed import packed
from hyenadna.data.sampler import Source, WindowSampler
from hyenadna.progress import notice

BAR = 20.0
BATCHES = 200
"""In one repetition."""


class Loading:
    """Draws batches as training does, each of another step."""

    def __init__(self, case: Case) -> None:
        pack = packed(ecoli())
        source = Source(pack, tuple(kept_contigs(pack.lengths, None).intervals), 1.0)
        self.sampler = WindowSampler([source], 0, n_token="n", soft_mask="upper", reverse_complement=True)
        self.case, self.steps = case, count()

    def __call__(self) -> None:
        for _ in range(BATCHES):
            windows = self.sampler.windows(next(self.steps), 0, self.case.windows, self.case.length)
            torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)


def measured(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    """One case: the rates of loading and of training, in nucleotides a second."""
    contenders = {"loading": Loading(case), "training": Training("ours", case)}
    for work in contenders.values():
        work()
    seconds = take_turns(contenders, case.repetitions, quiet)
    batches = {"loading": BATCHES, "training": STEPS}
    rates = {
        name: spread([batches[name] * case.windows * case.length / value for value in values])
        for name, values in seconds.items()
    }
    ratio = rates["loading"]["median"] / rates["training"]["median"]
    notice(
        f"{case.length:>6,} nt: loading {rates['loading']['median']:>13,.0f} nt/s, "
        f"training {rates['training']['median']:>9,.0f} nt/s, ratio {ratio:.0f} (bar {BAR:g})"
    )
    return {"length": case.length, "nt_per_s": rates, "ratio": ratio, "bar": BAR, "bar_met": ratio >= BAR}


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    flags = arguments(argv, "Loading against training.")
    return run(flags, lambda quiet: [measured(case, quiet) for case in cases])


if __name__ == "__main__":
    sys.exit(main())
