"""The report on generated sequences: planted copies, wrong composition, and what real sequence looks like."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from checkpoints import small_model
from evaluating import random_dna

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval, Region
from hyenadna.data.packed import packed
from hyenadna.data.splits import bed_split, splits_to_json
from hyenadna.errors import InputError
from hyenadna.inference.generation_reference import Reference
from hyenadna.inference.generation_report import GenerationReport, report
from hyenadna.inference.generation_report_files import FILES, text, write
from hyenadna.inference.likelihood import likelihoods

LENGTH = 60


class Written(NamedTuple):
    sequence: str
    nats: float = -80.0
    scored: int = LENGTH


def at_rich(n: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n, p=(0.4, 0.1, 0.1, 0.4)))


@pytest.fixture(scope="module")
def model():
    return small_model(layers="HH", filter_length=LENGTH + 2).eval()


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    """A genome rich in A and T whose split is stored: the second half of contig one is held out."""
    folder = tmp_path_factory.mktemp("genome")
    path = folder / "genome.fa"
    path.write_text(f">one\n{at_rich(40_000, 1)}\n>two\n{at_rich(20_000, 2)}\n")
    pack = packed(path)
    regions = [("one", 0, 20_000, "train"), ("one", 20_000, 40_000, "test"), ("two", 0, 15_000, "train"),
               ("two", 15_000, 20_000, "valid")]  # fmt: skip
    split = bed_split([Region(Interval(*where), name, "+") for *where, name in regions], pack)
    (folder / "split.json").write_text(json.dumps(splits_to_json([split])))
    return path


def of(sequences: list[str], model, fasta: Path | None, out: Path | None = None) -> GenerationReport:
    folder = None if fasta is None else fasta.parent
    found = report([Written(s) for s in sequences], model=model, reference=fasta, model_folder=folder)
    if out is not None:
        write(found, out)
    return found


def test_a_copy_of_the_training_part_is_told_and_one_of_the_held_out_part_is_not(model, fasta) -> None:
    train, held_out = (packed(fasta).contig(name).tobytes().decode() for name in ("two", "one"))
    sequences = [at_rich(LENGTH, n) for n in range(10, 18)]
    sequences[3] = reverse_complement(train[7000:7060])
    sequences[5] = held_out[30_000:30_060]
    found = of(sequences, model, fasta)
    match = found.generated.matches[3]
    assert (match.length, match.contig, match.position, match.strand, match.identity) == (60, "two", 7000, "-", 1.0)
    assert 3 in found.beyond_held_out
    held_out_longest = max(match.length for match in found.held_out.matches)
    assert all(found.generated.matches[row].length > held_out_longest for row in found.beyond_held_out)
    assert f"{len(found.beyond_held_out)} of 8 generated sequences match over more" in text(found)
    assert "the longest: sequence 4, 60 bp from base 1 on = two:7,001-7,060 (-)" in text(found)


def test_what_is_like_the_genome_is_within_the_yardstick_and_other_composition_is_not(model, fasta) -> None:
    alike = of([at_rich(LENGTH, n) for n in range(20, 60)], model, fasta)
    other = of([random_dna(LENGTH, n) for n in range(20, 60)], model, fasta)
    for k in (1, 2, 3):
        mean, largest = alike.yardstick[k]
        assert 0 < mean <= largest
        assert alike.generated.distances[k] < 2 * largest
        assert other.generated.distances[k] > 5 * largest
    assert alike.held_out.shares["GC"].value == pytest.approx(0.2, abs=0.03)
    assert alike.markov.shares["GC"].value == pytest.approx(0.2, abs=0.03)
    assert alike.held_out.shares["GC"].low < alike.held_out.shares["GC"].value < alike.held_out.shares["GC"].high
    assert other.generated.shares["GC"].value == pytest.approx(0.5, abs=0.03)


def test_nats_are_those_of_the_likelihood_of_each_sequence_alone(model, fasta) -> None:
    sequences = [at_rich(n, n) for n in (40, 60)]
    found = of(sequences, model, fasta)
    scores = likelihoods(model, sequences)
    assert found.generated.nats_of_each == pytest.approx([-score.nats / score.scored for score in scores])
    total = -sum(score.nats for score in scores) / sum(score.scored for score in scores)
    assert found.generated.nats_per_base.value == pytest.approx(total)
    assert found.as_written.value == pytest.approx(80 / LENGTH)
    assert found.held_out.lengths == (40, 60)


def test_without_a_reference_the_sequences_are_described(model, tmp_path) -> None:
    found = of(["ACGTTGCA" * 6, "AAAAAAAACGCGCGCGCGCGCG"], model, None, tmp_path / "out")
    assert found.held_out is None and found.beyond_held_out is None
    assert found.generated.shares["in homopolymers of 6 bp or more"].value == pytest.approx(8 / 70)
    assert "no reference was given" in text(found)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"generation.json", "sequences.png", "sequences.tsv"}
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["generated"]["lengths"] == [48, 22]


def test_the_folder_holds_numbers_and_plots(model, fasta, tmp_path) -> None:
    found = of([at_rich(LENGTH, n) for n in range(4)], model, fasta, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    kept = json.loads((tmp_path / "generation.json").read_text())
    assert kept["yardstick"]["3"] == pytest.approx(list(found.yardstick[3]))
    assert kept["reference"]["train_bases"] == 35_000
    rows = [line.split("\t") for line in (tmp_path / "sequences.tsv").read_text().splitlines()]
    assert len(rows) == 1 + 3 * 4
    assert int(rows[1][rows[0].index("match_length")]) == found.generated.matches[0].length


def test_windows_are_held_out_and_of_either_strand(fasta) -> None:
    pack = packed(fasta)
    reference = Reference(pack, (Interval("one", 0, 10),), (Interval("one", 100, 105), Interval("two", 50, 57)), "")
    windows = reference.windows([5] * 300, np.random.default_rng(0))
    one, two = (pack.contig(name).tobytes().decode() for name in ("one", "two"))
    plus = [one[100:105], *(two[start : start + 5] for start in (50, 51, 52))]
    assert set(windows) == {*plus, *map(reverse_complement, plus)}


def test_markov_samples_have_the_words_of_the_training_part(tmp_path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text(f">one\n{'AACCG' * 2000}\n")
    reference = Reference(packed(path), (Interval("one", 0, 10_000),), (), "")
    [long, short] = reference.markov_samples([400, 7], np.random.default_rng(0))
    assert (len(long), len(short)) == (400, 7)
    words = [long[i : i + 5] for i in range(100, 395)]
    both = "AACCG" * 3 + "N" + "CGGTT" * 3
    assert np.mean([word in both for word in words]) > 0.9


def test_what_cannot_be_reported_says_why(model, fasta, tmp_path) -> None:
    with pytest.raises(InputError, match="on 0 sequences"):
        of([], model, fasta)
    with pytest.raises(InputError, match="on 2 sequences, 1 of them empty"):
        of(["ACGT", ""], model, fasta)
    with pytest.raises(InputError, match="has 20,001 bases, but the longest held-out interval of genome"):
        of(["A" * 20_001], model, fasta)
    masked = tmp_path / "masked.fa"
    masked.write_text(">one\n" + "ACGTN" * 4000 + "\n")
    with pytest.raises(InputError, match="no window of 60 bases was found that is all A, C, G, T"):
        of([at_rich(LENGTH, 1)], model, masked)
    assert not math.isnan(of(["ACGTNNACGT"], model, None).generated.nats_per_base.value)
