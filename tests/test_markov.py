"""Markov baselines against counting word by word with a dictionary, and against figures measured by another program."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.alphabet import reverse_complement
from hyenadna.inference import markov
from hyenadna.inference.markov import MarkovModels, best_prior_weight, count_both_strands, count_forward

ECOLI = Path(markov.__file__).parents[1] / "data" / "genomes" / "ecoli_K12_MG1655.fa.gz"
SHARED = Path(__file__).parents[1].parent / "shared" / "data"
ORDER = 4

dna = st.text(alphabet="ACGTacgtNR", max_size=60)


def ascii_array(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.encode(), dtype=np.uint8)


def word_counts(sequences: list[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for sequence in sequences:
        upper = sequence.upper()
        for k in range(ORDER + 1):
            for i in range(len(upper) - k):
                word = upper[i : i + k + 1]
                if set(word) <= set("ACGT"):
                    words[word] += 1
    return words


def as_words(counts: tuple[np.ndarray, ...]) -> Counter[str]:
    words: Counter[str] = Counter()
    for k, table in enumerate(counts):
        for code in np.flatnonzero(table):
            word = "".join("ACGT"[code >> 2 * (k - j) & 3] for j in range(k + 1))
            words[word] = int(table.reshape(-1)[code])
    return words


@given(st.lists(dna, max_size=4), st.sampled_from([1, 5, 7, 1 << 22]))
@settings(max_examples=80, deadline=None)
def test_counts_equal_those_of_a_dictionary(sequences: list[str], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markov, "_PIECE", piece)
        forward = count_forward(map(ascii_array, sequences), ORDER)
        both = count_both_strands(map(ascii_array, sequences), ORDER, many=True)
    assert as_words(forward) == word_counts(sequences)
    assert as_words(both) == word_counts(sequences + [reverse_complement(sequence) for sequence in sequences])
    assert forward[0].dtype == np.int32
    assert both[0].dtype == np.int64


def naive_bits(words: Counter[str], sequence: str, position: int, order: int | None, weight: float) -> float:
    """By the definition, with probabilities of words; order None is the interpolated model."""

    def seen(context: str) -> int:
        return sum(words[context + base] for base in "ACGT")

    upper, available = sequence.upper(), 0
    while available < min(ORDER, position) and upper[position - available - 1] in "ACGT":
        available += 1
    base = upper[position]
    if order is not None:
        context = upper[position - min(order, available) : position]
        return -np.log2((words[context + base] + 4) / (seen(context) + 16))
    p = 0.25
    for k in range(available + 1):
        context = upper[position - k : position]
        p = (words[context + base] + weight * p) / (seen(context) + weight)
    return -np.log2(p)


@given(st.lists(dna, min_size=1, max_size=3), dna.filter(len), st.data())
@settings(max_examples=80, deadline=None)
def test_bits_equal_the_definition(training: list[str], sequence: str, data: st.DataObject) -> None:
    models = MarkovModels(count_forward(map(ascii_array, training), ORDER), prior_weight=3.0)
    start = data.draw(st.integers(0, len(sequence) - 1))
    bits = models.bits(ascii_array(sequence), start)
    words = word_counts(training)
    assert bits.shape == (ORDER + 2, len(sequence) - start)
    for position in range(start, len(sequence)):
        column = bits[:, position - start]
        if sequence[position].upper() not in "ACGT":
            assert np.isnan(column).all()
            continue
        orders = [*range(ORDER + 1), None]
        np.testing.assert_allclose(column, [naive_bits(words, sequence, position, k, 3.0) for k in orders], rtol=1e-12)


@given(dna, dna)
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one(training: str, context: str) -> None:
    models = MarkovModels(count_both_strands([ascii_array(training)], ORDER))
    np.testing.assert_allclose(models.distribution(ascii_array(context)).sum(axis=1), 1, rtol=1e-12)


def test_reverse_strand_counts_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list("ACGT"), 500, p=[0.4, 0.3, 0.2, 0.1]))
    words = as_words(count_both_strands([ascii_array(sequence)], ORDER))
    assert all(words[reverse_complement(word)] == n for word, n in words.items())


def test_prior_weight_is_the_best_of_the_grid() -> None:
    rng = np.random.default_rng(1)
    training, valid = (ascii_array("".join(rng.choice(list("ACGT"), n, p=[0.4, 0.1, 0.2, 0.3]))) for n in (3000, 900))
    counts = count_both_strands([training], ORDER)
    chosen = best_prior_weight(MarkovModels(counts), [valid])

    def cost(weight: float) -> float:
        backward = ascii_array(reverse_complement(valid.tobytes().decode()))
        return sum(MarkovModels(counts, weight).bits(letters)[-1].sum() for letters in (valid, backward))

    assert chosen == min(markov.PRIOR_WEIGHTS, key=cost)
    assert best_prior_weight(MarkovModels(counts), []) is None
    assert best_prior_weight(MarkovModels(counts), [ascii_array("NNNN")]) is None


def genome(path: Path) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(b"".join(line.strip() for line in file if not line.startswith(b">")), dtype=np.uint8)


def last_tenth(letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean bits per base on the last tenth of each model, trained on one strand and on both strands of the rest."""
    cut = len(letters) * 9 // 10
    one = MarkovModels(count_forward([letters[:cut]]), prior_weight=100.0)
    both = MarkovModels(count_both_strands([letters[:cut]]), prior_weight=100.0)
    return np.nanmean(one.bits(letters, cut), axis=1), np.nanmean(both.bits(letters, cut), axis=1)


# the figures of the next two tests are those of shared/data/README.md, from another implementation
def test_ecoli_baselines_as_measured_by_another_program() -> None:
    one, both = last_tenth(genome(ECOLI))
    assert one[2] == pytest.approx(1.9646, abs=5e-5)
    assert int(one[:-1].argmin()) == 6
    assert one[6] == pytest.approx(1.9339, abs=5e-5)
    assert int(both[:-1].argmin()) == 7
    assert both[7] == pytest.approx(1.9308, abs=4e-4)  # 1.9305; 1.9308 is what a pseudo-count of 1 gives here
    assert both[-1] == pytest.approx(1.9225, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order_2", "plain_one", "plain_both", "interpolated"),
    [
        ("yeast_S288C_pacbio", 1.9455, (8, 1.9356), (12, 1.9214), 1.8940),
        ("human_GRCh37_chr20", 1.9474, (10, 1.8577), (10, 1.8500), 1.8360),
    ],
)
def test_baselines_as_measured_by_another_program(
    name: str, order_2: float, plain_one: tuple[int, float], plain_both: tuple[int, float], interpolated: float
) -> None:
    path = SHARED / "genomes" / f"{name}.fa.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in shared/data/genomes")
    one, both = last_tenth(genome(path))
    assert one[2] == pytest.approx(order_2, abs=5e-5)
    assert (int(one[:-1].argmin()), one[:-1].min()) == (plain_one[0], pytest.approx(plain_one[1], abs=5e-5))
    assert (int(both[:-1].argmin()), both[:-1].min()) == (plain_both[0], pytest.approx(plain_both[1], abs=5e-5))
    assert both[-1] == pytest.approx(interpolated, abs=3e-4)
