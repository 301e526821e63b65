"""How the starter model was made: what of human chr20 it may see, and the card that it comes with.

    python benchmarks/starter.py split chr20.fa.gz starter.bed --tests GB/*.test.csv.gz GUE/*/*/test.csv.gz
    hyena pretrain --fasta chr20.fa.gz --split-bed starter.bed --tokens 6e7 --batch-tokens 4096 -o run
    hyena evaluate -m run --fasta chr20.fa.gz -o evaluation
    python benchmarks/starter.py install run evaluation

Held out are five pieces of 2 Mb (test), three of 250 kb (valid), and every labelled test sequence that lies on the
chromosome, so that what the starter model reaches on GenomicBenchmarks and GUE is not memory. A sequence is found by
its words of 24 letters, in either strand: where half of them stand in line, give or take a few bases, it lies there.
So single differences between two assemblies hide nothing.
"""

import argparse
import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.fasta import read_records
from hyenadna.data.intervals import Interval, merge, subtract
from hyenadna.files import write_text
from hyenadna.model import checkpoint
from hyenadna.model.hub import STARTER, find_model

WORD = 24
GUARD = 1026
SLACK = 32
"""Bases by which insertions may shift the words of one sequence."""
TEST = [(start * 1_000_000, (start + 2) * 1_000_000) for start in (4, 15, 34, 45, 57)]
VALID = [(start * 1_000_000, start * 1_000_000 + 250_000) for start in (9, 40, 53)]
_CODE = np.full(256, 4, dtype=np.uint8)
_CODE[np.frombuffer(b"ACGTacgt", dtype=np.uint8)] = [0, 1, 2, 3, 0, 1, 2, 3]


def words(sequence: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The words of a sequence that hold no N, as numbers, and where they start."""
    code = _CODE[sequence]
    numbers = np.zeros(max(0, len(code) - WORD + 1), dtype=np.int64)
    for offset in range(WORD):
        numbers = numbers * 4 + (code[offset : offset + len(numbers)] & 3)
    bad = np.concatenate([[0], np.cumsum(code == 4)])
    starts = np.flatnonzero(bad[WORD:] == bad[:-WORD]) if len(numbers) else np.zeros(0, dtype=np.int64)
    return numbers[starts], starts


def test_sequences(tables: Iterable[Path]) -> Iterator[str]:
    """The column `sequence` of each table."""
    for table in tables:
        with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
            yield from (row["sequence"] for row in csv.DictReader(file))


def places(sequences: set[str], contig: str, chromosome: NDArray[np.uint8]) -> list[Interval]:
    """Where the sequences lie on the chromosome."""
    numbers, starts = words(chromosome)
    order = np.argsort(numbers, kind="stable")
    numbers, starts = numbers[order], starts[order]
    found = []
    for sequence in sequences:
        for strand in (sequence.upper(), reverse_complement(sequence.upper())):
            asked, offsets = words(np.frombuffer(strand.encode(), dtype=np.uint8))
            low, high = np.searchsorted(numbers, asked, "left"), np.searchsorted(numbers, asked, "right")
            once = (high - low > 0) & (high - low <= 8)  # words of long repeats lie everywhere
            diagonals = Counter(
                int(start - offset) // SLACK
                for first, last, offset in zip(low[once], high[once], offsets[once], strict=True)
                for start in starts[first:last]
            )
            for diagonal in {d for d in diagonals if 2 * (diagonals[d] + diagonals[d + 1]) >= max(1, len(asked))}:
                start = diagonal * SLACK
                found.append(Interval(contig, max(0, start), min(len(chromosome), start + 2 * SLACK + len(strand))))
    return merge(found)


def split(fasta: Path, out: Path, tests: list[Path]) -> None:
    """Write the BED file for `hyena pretrain --split-bed`."""
    (record,) = read_records(fasta)
    length = len(record.sequence)
    test = [Interval(record.name, start, end) for start, end in TEST]
    valid = [Interval(record.name, start, end) for start, end in VALID]
    labelled = places(set(test_sequences(tests)), record.name, record.sequence)
    wide = [Interval(i.contig, max(0, i.start - GUARD), min(length, i.end + GUARD)) for i in (*test, *valid)]
    train = subtract(Interval(record.name, 0, length), merge([*wide, *labelled]))
    parts = {"train": [i for i in train if len(i) >= GUARD], "valid": valid, "test": test}
    rows = sorted((i.start, i.end, name) for name, part in parts.items() for i in part)
    write_text(out, "".join(f"{record.name}\t{start}\t{end}\t{name}\n" for start, end, name in rows))
    print(f"{len(labelled):,} places of labelled test sequences, {sum(map(len, labelled)):,} bases")
    for name, part in parts.items():
        print(f"{name}: {sum(map(len, part)):,} bases")


def install(run: Path, evaluation: Path) -> None:
    """Put the run's model into the package, with what it reached on the held-out pieces in its card."""
    found = checkpoint.read(run)
    measured = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))
    assert found.card is not None
    card = found.card[: found.card.index("## Use")].replace("# HyenaDNA", "# Starter model: HyenaDNA", 1)
    checkpoint.save(
        found.model,
        find_model(STARTER),
        card=card + _use(measured),
        overwrite=True,
        training=found.description["training"],
        extra={"split.json": found.json("split.json")},
    )


def _use(measured: dict[str, Any]) -> str:
    best = min(measured["baselines"][1:], key=lambda baseline: baseline["bits_per_base"]["value"])
    rows = [
        ("this model", measured["model"]),
        ("interpolated Markov model of orders 0 to 12", measured["baselines"][0]["bits_per_base"]),
        (f"best plain Markov model (order {best['order']})", best["bits_per_base"]),
    ]
    table = "\n".join(f"| {name} | {e['value']:.4f} | {e['low']:.4f} to {e['high']:.4f} |" for name, e in rows)
    pieces = ", ".join(f"{start // 10**6} to {end // 10**6}" for start, end in TEST)
    return f"""## What it reaches

Held out were five pieces of 2 Mb (in Mb, 0-based: {pieces}), and every test sequence of
GenomicBenchmarks and GUE that was found on the chromosome by its words of {WORD} letters, so that tests on these sets
do not ask for what it has seen. On {measured["bases"]:,} bases of the five pieces, beside Markov models counted on its
training part:

| | bits per base | 95 % interval |
|---|---|---|
{table}

## Use

    hyena finetune my.csv          # -m starter is the default of every verb
    hyena embed my.fa -o my.h5

It is good for a first try of every verb without a network, as a base for fine-tuning on short sequences, and for
tests. It is not good for judging variants or genomes: it is small, has seen one human chromosome once, sees
1,024 bases, and knows no other species. Its likelihoods say what is usual on that chromosome, not what is healthy or
functional. For anything that matters take a larger model (`-m LongSafari/hyenadna-small-32k-seqlen-hf`), or pretrain.

## Licence

The weights are under the licence of this package, Apache-2.0; the sequence is the public human reference, GRCh37.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    splitting = commands.add_parser("split", help="write the BED file")
    splitting.add_argument("fasta", type=Path)
    splitting.add_argument("out", type=Path)
    splitting.add_argument("--tests", type=Path, nargs="+", required=True)
    splitting.set_defaults(work=split)
    installing = commands.add_parser("install", help="put the model into the package")
    installing.add_argument("run", type=Path)
    installing.add_argument("evaluation", type=Path)
    installing.set_defaults(work=install)
    arguments = vars(parser.parse_args())
    arguments.pop("work")(**arguments)


if __name__ == "__main__":
    main()
