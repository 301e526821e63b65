"""Scoring variants on the CPU: the shared prefix against two full passes a variant.

    python benchmarks/score_speed.py -o benchmarks/results/score_speed.json

SNVs on both strands in windows of 1,024 bases, in float32: dense (all substitutions of a stretch), as in a population's
VCF (one in 35 bases), and sparse (one in about 2,000 bases, so that no window has two), by the starter model and by a
small-32k of random weights. The opponent reads the same windows with the same model, both haplotypes of each variant
and strand from the window's start to its last scored base, 8 haplotypes in a batch; of many variants it scores an
evenly spread part, and rates are compared. Both run in turns; their scores must agree to 1e-3 nats before anything is
timed.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import ContendersDiffer, QuietMachine, arguments, run, spread, take_turns

from hyenadna.data.alleles import Variant
from hyenadna.data.alphabet import BASES
from hyenadna.data.tokenizer import encode
from hyenadna.inference.likelihood import next_base_nats
from hyenadna.inference.variant_scores import VariantScorer
from hyenadna.inference.variant_windows import Sign, haplotypes, place
from hyenadna.machine import keep_freed_memory
from hyenadna.model.config import Size, named_size
from hyenadna.model.hub import STARTER
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import notice

TOLERANCE = 1e-3
"""Nats."""
_BATCH = 8


class Case(NamedTuple):
    name: str
    model: Size | None
    """A size with random weights; None is the starter model."""
    variants: int
    spacing: int
    """Bases from one place to the next; at 1 all three substitutions of every base."""
    compared: int
    """How many of them the opponent scores."""
    bar: float
    """How many times more variants a second ours must score."""
    window: int = 1024
    repetitions: int = 5


CASES = (
    Case("dense", None, 1536, 1, 24, 3.0),
    Case("population", None, 256, 35, 24, 1.5),
    Case("sparse", None, 64, 2001, 24, 1.0),
    Case("dense", "small-32k", 384, 1, 8, 3.0),
    Case("sparse", "small-32k", 32, 2001, 8, 1.0),
)


class Bases:
    """A genome of one contig in memory."""

    def __init__(self, sequence: str) -> None:
        self.sequence, self.lengths = sequence, {"1": len(sequence)}

    def fetch(self, contig: str, start: int, end: int) -> str:
        return self.sequence[start:end]


class Scoring:
    """Both contenders with their input."""

    def __init__(self, case: Case) -> None:
        keep_freed_memory()
        torch.manual_seed(0)
        self.case, margin = case, 2 * case.window
        if case.model is None:
            self.model = HyenaDNA.from_pretrained(STARTER)
        else:
            self.model = HyenaDNA(named_size(case.model)).eval()
        draw = np.random.default_rng(0)
        self.genome = Bases("".join(draw.choice(list(BASES), 2 * margin + case.variants * case.spacing)))
        self.variants = []
        for number in range(case.variants):
            at = margin + (number // 3 if case.spacing == 1 else number * case.spacing)
            own = self.genome.fetch("1", at, at + 1)
            alt = BASES[(BASES.index(own) + 1 + number % 3) % 4]
            self.variants.append(Variant("1", at, own, alt))
        self.some = self.variants[:: max(1, case.variants // case.compared)][: case.compared]

    def ours(self) -> NDArray[np.float64]:
        scorer = VariantScorer(self.model, self.genome, window=self.case.window)
        return np.array([score.llr for score in scorer.score(self.variants)])

    def two_passes(self) -> NDArray[np.float64]:
        signs: tuple[Sign, Sign] = ("+", "-")
        jobs = [(variant, place(variant, sign, self.case.window, self.genome.lengths["1"]))
                for variant in self.some for sign in signs]  # fmt: skip
        pairs = [haplotypes(variant, at, self.genome) for variant, at in jobs]
        tokens = [encode(letters, self.model.config.n_token) for pair in pairs for letters in pair]
        sums = []
        for first in range(0, len(tokens), _BATCH):
            group = tokens[first : first + _BATCH]
            padded = np.zeros((len(group), max(map(len, group))), dtype=np.uint8)
            for row, own in zip(padded, group, strict=True):
                row[: len(own)] = own
            nats = next_base_nats(self.model, torch.from_numpy(padded), dtype=torch.float32)
            for number, row in enumerate(nats, start=first):
                at = jobs[number // 2][1]
                sums.append(row[at.offset - 1 : at.offset - 1 + at.scored].sum())
        reference, alternative = np.array(sums).reshape(-1, 2).T
        means: NDArray[np.float64] = (alternative - reference).reshape(-1, 2).mean(axis=1)
        return means


def measure(case: Case, timer: QuietMachine) -> dict[str, Any]:
    """One case of the report."""
    scoring = Scoring(case)
    ours = dict(zip(scoring.variants, scoring.ours(), strict=True))
    difference = float(np.abs(np.array([ours[variant] for variant in scoring.some]) - scoring.two_passes()).max())
    if not difference <= TOLERANCE:
        raise ContendersDiffer(f"{case.name}: scores differ by {difference:.2g} nats, {TOLERANCE:g} are allowed")
    seconds = take_turns({"ours": scoring.ours, "two_passes": scoring.two_passes}, case.repetitions, timer)
    sizes = {"ours": len(scoring.variants), "two_passes": len(scoring.some)}
    rates = {name: spread([sizes[name] / one for one in values]) for name, values in seconds.items()}
    turns = [
        theirs / sizes["two_passes"] / (one / sizes["ours"])
        for one, theirs in zip(seconds["ours"], seconds["two_passes"], strict=True)
    ]
    ratio = rates["ours"]["median"] / rates["two_passes"]["median"]
    return case._asdict() | {
        "variants_per_s": rates,
        "ratio": ratio,
        "ratio_of_turns": spread(turns),
        "bar_met": ratio >= case.bar,
        "largest_difference_nats": difference,
    }


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Measure the cases; the exit code."""
    flags = arguments(argv, __doc__ or "")

    def benchmark(timer: QuietMachine) -> Any:
        for case in cases:
            result = measure(case, timer)
            rates = result["variants_per_s"]
            name = f"{case.name}, {case.model or STARTER}"
            notice(
                f"{name:24}{rates['ours']['median']:>10.1f} variants/s, two full passes "
                f"{rates['two_passes']['median']:.1f}: {result['ratio']:.2f} times (bar {case.bar:g}); they differ by "
                f"{result['largest_difference_nats']:.1g} nats at most"
            )
            yield result

    return run(flags, benchmark)


if __name__ == "__main__":
    sys.exit(main())
