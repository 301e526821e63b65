"""Longest exact matches against a search with Python's own `in`, and planted copies."""

import math
from pathlib import Path

import numpy as np
import pytest
from evaluating import random_dna

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack, pack
from hyenadna.inference import longest_match
from hyenadna.inference.longest_match import chance_match, longest_matches, seed_length


def genome(folder: Path, **contigs: str) -> Pack:
    fasta = folder / "genome.fa"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    pack(fasta, folder / "genome.h5")
    return Pack.open(folder / "genome.h5")


def whole(pack_: Pack) -> list[Interval]:
    return [Interval(name, 0, length) for name, length in pack_.lengths.items()]


def longest_by_search(sequence: str, pieces: list[str]) -> int:
    """The length alone, by trying every start and every length."""
    texts = [text for piece in pieces for text in piece.upper().split("N")]
    found = 0
    for strand in (sequence.upper(), reverse_complement(sequence.upper())):
        for start in range(len(strand)):
            while start + found < len(strand):
                word = strand[start : start + found + 1]
                if "N" in word or not any(word in text for text in texts):
                    break
                found += 1
    return found


def letters(pack_: Pack, match: longest_match.Match) -> str:
    piece = pack_.contig(match.contig)[match.position : match.position + match.length].tobytes().decode().upper()
    return piece if match.strand == "+" else reverse_complement(piece)


@pytest.mark.parametrize("piece", [7, 64, 1 << 20])
@pytest.mark.parametrize("alphabet", ["ACGT", "AC", "AAAAAAAAC", "ACGTN", "acgtACGT"])
def test_lengths_are_those_of_a_plain_search(tmp_path, monkeypatch, alphabet, piece) -> None:
    monkeypatch.setattr(longest_match, "_PIECE", piece)
    contigs = {f"c{i}": random_dna(n, i, alphabet) for i, n in enumerate((150, 1, 40))}
    pack_ = genome(tmp_path, **contigs)
    intervals = [Interval("c0", 3, 90), Interval("c0", 100, 150), Interval("c2", 0, 40)]
    sequences = [random_dna(n, 10 + n, alphabet) for n in (1, 2, 5, 17, 33, 64)]
    sequences += [sequences[3], contigs["c0"][60:120], "A" * 50, reverse_complement(contigs["c2"])]
    pieces = [contigs[i.contig][i.start : i.end] for i in intervals]
    seed = seed_length(sequences, intervals)
    for sequence, match in zip(sequences, longest_matches(sequences, pack_, intervals), strict=True):
        expected = longest_by_search(sequence, pieces)
        assert match.length == (expected if expected >= seed else 0)
        if match.length:
            assert sequence[match.start : match.start + match.length].upper() == letters(pack_, match)


def test_a_planted_copy_is_found_with_its_place_and_strand(tmp_path) -> None:
    pack_ = genome(tmp_path, one=random_dna(3000, 1), two=random_dna(5000, 2))
    copied = pack_.contig("two")[1234:1304].tobytes().decode()
    around = random_dna(100, 3), random_dna(30, 4)
    forward = around[0] + copied + around[1]
    plus, minus, neither = longest_matches(
        [forward, reverse_complement(forward), random_dna(200, 5)], pack_, whole(pack_)
    )
    # a letter beside the copy may be the genome's by chance
    assert plus.contig == minus.contig == "two"
    assert 70 <= plus.length < 80 and minus.length == plus.length
    assert plus.strand == "+" and plus.position - plus.start == 1234 - 100
    assert minus.strand == "-" and minus.position == plus.position
    assert minus.start == len(forward) - plus.start - plus.length
    assert abs(neither.length - chance_match(200, 8000)) < 4

    diagonal = pack_.contig("two")[1134:1334].tobytes().decode()
    same = sum(a == b for a, b in zip(forward, diagonal, strict=True)) / 200
    assert plus.identity == pytest.approx(same) and minus.identity == pytest.approx(same)


def test_a_copy_with_a_few_changes_has_its_identity_over_the_whole_length(tmp_path) -> None:
    pack_ = genome(tmp_path, one=random_dna(5000, 1))
    copied = list(pack_.contig("one")[700:1000].tobytes().decode())
    for place in (20, 90, 250):
        copied[place] = {"A": "C", "C": "G", "G": "T", "T": "A"}[copied[place]]
    [match] = longest_matches(["".join(copied)], pack_, whole(pack_))
    assert (match.length, match.start, match.position) == (159, 91, 791)
    assert match.identity == pytest.approx(297 / 300)


def test_a_copy_at_the_edge_of_a_contig_is_laid_over_what_there_is(tmp_path) -> None:
    pack_ = genome(tmp_path, one=random_dna(400, 1))
    ends = [random_dna(50, 2) + pack_.contig("one")[:50].tobytes().decode(),
            pack_.contig("one")[-50:].tobytes().decode() + random_dna(50, 3)]  # fmt: skip
    for match in longest_matches(ends, pack_, whole(pack_)):
        assert match.identity == pytest.approx(0.5)


def test_random_sequence_matches_a_random_genome_about_as_long_as_chance_says(tmp_path) -> None:
    pack_ = genome(tmp_path, one=random_dna(1 << 18, 1))
    sequences = [random_dna(256, seed) for seed in range(2, 42)]
    found = [match.length for match in longest_matches(sequences, pack_, whole(pack_))]
    assert chance_match(256, 1 << 18) == pytest.approx(math.log(2 * 2**26, 4))
    # the mean of the extreme-value law lies log4(e^0.577 * 3/4) - 1/2 beside it: -0.3, with a deviation of 0.93
    assert np.mean(found) == pytest.approx(chance_match(256, 1 << 18) - 0.3, abs=0.6)


def test_nothing_is_found_where_the_genome_has_no_base(tmp_path) -> None:
    pack_ = genome(tmp_path, one="N" * 100 + "ACGT")
    [match] = longest_matches(["ACGTTTGA"], pack_, [Interval("one", 0, 100)])
    assert match.length == 0 and math.isnan(match.identity)
