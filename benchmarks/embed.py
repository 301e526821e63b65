"""Embeddings on the CPU: `hyena embed`'s own path against the textbook model.

    python benchmarks/embed.py -o benchmarks/results/embed.json

20,000 sequences of 300 bp, mean-pooled over the last layer, by tiny-1k, and 5,000 of 50 to 550 bp, as real sets have.
Ours goes from strings to an HDF5 file on the disk. The textbook gets its tokens for nothing and writes none of it: once
in batches of 32, padded to the longest of each and pooled by the lengths; and once one sequence at a time, which is
what people do who do not trust padding. Both compute in float32, on the same weights, in turns; their embeddings must
agree before anything is timed, and the peaks of memory are measured in processes of their own.
"""

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from side_by_side import QuietMachine, arguments, check_same, compared, in_fresh_process, run, table, take_turns
from textbook import Textbook
from torch import Tensor

from hyenadna.data.tokenizer import encode
from hyenadna.inference.embed import Embedder, embed
from hyenadna.inference.embedding_files import embedding_file
from hyenadna.inference.ragged import padded
from hyenadna.machine import keep_freed_memory
from hyenadna.model.config import named_size
from hyenadna.model.language_model import HyenaDNA

TOLERANCE = 1e-4
"""Of the largest number of an embedding."""


class Case(NamedTuple):
    name: str
    sequences: int
    shortest: int
    longest: int
    """Bases."""
    batch: int
    """Sequences of a batch of the textbook."""
    bar: float
    """How many times faster ours must be."""
    repetitions: int = 3


CASES = (
    Case("300 bp, batches of 32", 20_000, 300, 300, 32, 2.0),
    Case("50-550 bp, batches of 32", 5_000, 50, 550, 32, 2.0),
    Case("300 bp, one at a time", 5_000, 300, 300, 1, 2.0),
)


class Embedding:
    """One contender with its input."""

    def __init__(self, name: str, case: Case) -> None:
        keep_freed_memory()
        torch.manual_seed(0)
        draw = random.Random(0)
        lengths = [draw.randint(case.shortest, case.longest) for _ in range(case.sequences)]
        self.pairs = [(str(row), "".join(draw.choices("ACGT", k=length))) for row, length in enumerate(lengths)]
        self.bases, self.case = sum(lengths), case
        self.model = HyenaDNA(named_size("tiny-1k")).eval()
        self.work = self.ours if name == "ours" else self.theirs
        if name == "textbook":
            self.tokens = [encode(sequence) for _, sequence in self.pairs]
            self.textbook = Textbook(self.model.config).eval()
            self.textbook.load_state_dict(self.model.state_dict())

    def __call__(self) -> Tensor:
        return self.work()

    def ours(self) -> Tensor:
        import h5py

        embedder = Embedder(self.model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.h5"
            embed(embedder, iter(self.pairs), embedding_file(path, {}, width=embedder.width, ragged=False))
            with h5py.File(path) as file:
                return torch.from_numpy(file["embeddings"][:])

    def theirs(self) -> Tensor:
        backbone, found = self.textbook.backbone, []
        with torch.inference_mode():
            for first in range(0, len(self.tokens), self.case.batch):
                tokens, lengths = padded(self.tokens[first : first + self.case.batch])
                x = backbone.embeddings["word_embeddings"](tokens.long())
                for layer in backbone.layers:
                    x = layer(x)
                inside = torch.arange(x.shape[1]) < lengths[:, None]
                found.append((backbone.ln_f(x) * inside[..., None]).sum(1) / lengths[:, None])
        return torch.cat(found)


def embeddings(name: str, case: Case) -> np.ndarray[Any, Any]:
    return Embedding(name, case)().numpy()


def measured(case: Case, quiet: QuietMachine) -> dict[str, Any]:
    """One case: memory and agreement in fresh processes, then the times."""
    outputs, peaks = {}, {}
    for name in ("ours", "textbook"):
        output, peaks[name] = in_fresh_process(embeddings, name, case)
        outputs[name] = torch.from_numpy(output)
    difference = check_same(case.name, outputs["ours"], outputs["textbook"], TOLERANCE)
    _, twice = in_fresh_process(embeddings, "ours", case._replace(sequences=2 * case.sequences))
    contenders = {name: Embedding(name, case) for name in ("ours", "textbook")}
    seconds = take_turns(contenders, case.repetitions, quiet)
    facts = {
        "size": case.name,
        "length": case.longest,
        "sequences": case.sequences,
        "bases": contenders["ours"].bases,
        "largest_difference": difference,
        "peak_memory_gb_twice_the_sequences": round(twice / 1e9, 3),
    }
    return facts | compared(seconds, contenders["ours"].bases, peaks, case.bar)


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    def benchmark(quiet: QuietMachine) -> list[dict[str, Any]]:
        done = [measured(case, quiet) for case in cases]
        table(done)
        return done

    return run(arguments(argv, "Embeddings: ours against the textbook."), benchmark)


if __name__ == "__main__":
    sys.exit(main())
