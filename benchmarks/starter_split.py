"""Which parts of human chr20 the starter model is trained on, as a BED file for `hyena pretrain --split-bed`.

Held out are five pieces of 2 Mb (test), three of 250 kb (valid), and every labelled test sequence that lies on the
chromosome, so that what the starter model reaches on GenomicBenchmarks and GUE is not memory. A sequence is found by
its words of 24 letters, in either strand: where half of them stand in line, give or take a few bases, it lies there.
So single differences between two assemblies hide nothing.

    python benchmarks/starter_split.py chr20.fa.gz starter.bed --tests GB/*.test.csv.gz GUE/*/*/test.csv.gz
"""

import argparse
import csv
import gzip
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.fasta import read_records
from hyenadna.data.intervals import Interval, merge, subtract
from hyenadna.files import write_text

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tests", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    (record,) = read_records(arguments.fasta)
    length = len(record.sequence)
    test = [Interval(record.name, start, end) for start, end in TEST]
    valid = [Interval(record.name, start, end) for start, end in VALID]
    labelled = places(set(test_sequences(arguments.tests)), record.name, record.sequence)
    wide = [Interval(i.contig, max(0, i.start - GUARD), min(length, i.end + GUARD)) for i in (*test, *valid)]
    train = subtract(Interval(record.name, 0, length), merge([*wide, *labelled]))
    rows = [
        *((i, "train") for i in train if len(i) >= GUARD),
        *((i, "valid") for i in valid),
        *((i, "test") for i in test),
    ]
    rows.sort(key=lambda row: row[0].start)
    write_text(arguments.out, "".join(f"{i.contig}\t{i.start}\t{i.end}\t{part}\n" for i, part in rows))
    print(f"{len(labelled):,} places of labelled test sequences, {sum(map(len, labelled)):,} bases")
    for part in ("train", "valid", "test"):
        print(f"{part}: {sum(len(i) for i, name in rows if name == part):,} bases")


if __name__ == "__main__":
    main()
