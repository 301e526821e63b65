"""Composition and repeats against counts by hand and by loops, spectra against scipy."""

import numpy as np
import pytest
from evaluating import random_dna
from scipy.spatial.distance import jensenshannon

from hyenadna.inference.sequence_statistics import WORD, jensen_shannon, shares, spectra

GC, HOMOPOLYMERS, TANDEM, REPEATED, COMPLEXITY = range(5)


def of(sequence: str, which: int) -> tuple[float, float]:
    share = shares([sequence])[which]
    return share.part[0], share.whole[0]


def test_gc_leaves_out_what_is_no_base() -> None:
    assert of("GCgcATNNRu", GC) == (4, 7)


@pytest.mark.parametrize(
    ("sequence", "bases"),
    [("AAAAA", 0), ("AAAAAA", 6), ("CAAAAAAAG", 7), ("AAAAAATTTTTTT", 13), ("AAANAAA", 0), ("aaaAAA", 6)],
)
def test_homopolymers(sequence, bases) -> None:
    assert of(sequence, HOMOPOLYMERS)[0] == bases


@pytest.mark.parametrize(
    ("sequence", "bases"),
    [
        ("ACACACACACAC", 12),  # 6 units of 2
        ("ACACACACACA", 0),  # 11 bases
        ("GGTACACACACACACT", 12),
        ("ACGTT" * 3, 15),
        ("ACGTT" * 2 + "ACGT", 0),  # not three units
        ("ACGTTG" * 3, 18),
        ("A" * 20, 0),  # a homopolymer
        ("ACGTTGC" * 4, 0),  # period 7
    ],
)
def test_tandem_repeats(sequence, bases) -> None:
    assert of(sequence, TANDEM)[0] == bases


def test_words_met_before_and_linguistic_complexity_are_those_of_a_loop() -> None:
    word = random_dna(40, 1)
    sequences = [word + random_dna(30, 2) + word, random_dna(200, 3), "AC" * 50, "ACG", word[:20] + "N" + word[:20]]
    found = shares(sequences)
    for row, sequence in enumerate(sequences):
        pieces = sequence.split("N")
        words = {k: [p[i : i + k] for p in pieces for i in range(len(p) - k + 1)] for k in range(1, WORD + 1)}
        assert found[REPEATED].part[row] == len(words[WORD]) - len(set(words[WORD]))
        assert found[REPEATED].whole[row] == len(words[WORD])
        assert found[COMPLEXITY].part[row] == sum(len(set(of_k)) for of_k in words.values())
        assert found[COMPLEXITY].whole[row] == sum(min(4**k, len(of_k)) for k, of_k in words.items())
    assert found[REPEATED].part[0] == 29  # the second copy has 40 - 11 words


def test_sequences_are_counted_each_by_itself() -> None:
    sequences = [random_dna(50, 1), "A" * 30, random_dna(50, 1), "AC" * 10]
    together = shares(sequences)
    for row, sequence in enumerate(sequences):
        for alone, joined in zip(shares([sequence]), together, strict=True):
            assert (alone.part[0], alone.whole[0]) == (joined.part[row], joined.whole[row])


def test_spectra_count_words_within_sequences() -> None:
    counts = spectra(["AAC", "NCA"])
    assert counts[1].tolist() == [3, 2, 0, 0]
    assert {i: n for i, n in enumerate(counts[2]) if n} == {0: 1, 1: 1, 4: 1}  # AA, AC, CA; none over the gap
    assert counts[4].sum() == 0


def test_divergence_by_hand_and_by_scipy() -> None:
    # p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4): H(m) = 2 - 3/4 log2 3, less half of H(p) = 1
    assert jensen_shannon(np.array([1, 1]), np.array([5, 0])) == pytest.approx(2 - 0.75 * np.log2(3) - 0.5)
    assert jensen_shannon(np.array([2, 0]), np.array([0, 7])) == 1.0
    assert jensen_shannon(np.array([2, 4]), np.array([1, 2])) == 0.0
    assert np.isnan(jensen_shannon(np.array([0, 0]), np.array([1, 2])))
    random = np.random.default_rng(0)
    a, b = random.integers(0, 50, (2, 256))
    assert jensen_shannon(a, b) == pytest.approx(jensenshannon(a, b, base=2) ** 2)


def test_bias_of_two_samples_is_what_the_docstring_says() -> None:
    n, random = 20_000, np.random.default_rng(1)
    a, b = random.multinomial(n, np.full(1024, 1 / 1024), size=2)
    assert jensen_shannon(a, b) == pytest.approx(1023 / (4 * n * np.log(2)), rel=0.1)
