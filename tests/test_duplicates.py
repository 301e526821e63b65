"""Duplicates: exact and reverse-complement ones against Python's sets, near ones against k-mer sets, and planted."""

import csv
import gzip
import math
from functools import cache

import numpy as np
import pytest

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.duplicates import CONTAINMENT, K, clusters, duplicated
from hyenadna.data.splice import splice

RANDOM = np.random.default_rng(0)


def text(codes):
    return "".join("ACGT"[code] for code in codes)


def dna(length, random=RANDOM, gc=0.5):
    return random.choice(4, size=length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])


def substituted(codes, share, random=RANDOM):
    codes = codes.copy()
    places = random.choice(len(codes), round(share * len(codes)), replace=False)
    codes[places] = (codes[places] + random.integers(1, 4, len(places))) % 4
    return codes


@cache
def kmers(sequence):
    """Those that count, in plain Python: the oracle."""
    found = set()
    for start in range(len(sequence) - K + 1):
        word = sequence[start : start + K]
        if set(word) <= set("ACGT") and not any(word[unit:] == word[:-unit] for unit in (1, 2, 3, 4)):
            found.add(min(word, reverse_complement(word)))
    return found


def near(a, b):
    a, b = kmers(a), kmers(b)
    if not a or not b:
        return False
    by_chance = math.log(2e8 * len(a) * len(b), 4) - (K - 1)
    return len(a & b) >= max(by_chance, CONTAINMENT * min(len(a), len(b)))


def mixed(n):
    """Relatives at every distance, short ones, N, repeats of short units."""
    random = np.random.default_rng(5)
    made = []
    for _ in range(n):
        first = dna(int(random.integers(2, 300)), random)
        start = int(random.integers(0, len(first)))
        made += [text(first), text(substituted(first, random.uniform(0, 0.3), random)), text(first[start:]) or "A"]
        made.append(reverse_complement(text(substituted(first, 0.05, random))))
        made.append("N" * 30 + text(first)[:60] + "N" + "CA" * int(random.integers(1, 40)))
    return made


def test_like_sets_of_kmers():
    sequences = mixed(16)
    train, test = sequences[::2], sequences[1::2]
    found = duplicated(train, test)
    assert found.exact.tolist() == [sequence in train for sequence in test]
    other = [reverse_complement(s) in train and s not in train for s in test]
    assert found.reverse_complement.tolist() == other
    expected = [
        any(near(a, b) for a in train) and not found.exact[row] and not other[row] for row, b in enumerate(test)
    ]
    assert found.near.tolist() == expected and 5 < sum(expected) < len(test)
    assert (found.any == (found.exact | found.reverse_complement | found.near)).all()


def test_clusters_are_what_near_pairs_link():
    sequences = mixed(12)
    expected = list(range(len(sequences)))
    for i, a in enumerate(sequences):
        for j, b in enumerate(sequences[:i]):
            if a == b or a == reverse_complement(b) or near(a, b):
                old, new = expected[i], expected[j]
                expected = [new if number == old else number for number in expected]
    first = {number: place for place, number in enumerate(dict.fromkeys(expected))}
    assert clusters(sequences).tolist() == [first[number] for number in expected]


def test_clusters_do_not_depend_on_the_order():
    sequences = mixed(12)
    order = np.random.default_rng(1).permutation(len(sequences))
    one, other = clusters(sequences), clusters([sequences[row] for row in order])
    assert len({*zip(one[order].tolist(), other.tolist(), strict=True)}) == one.max() + 1 == other.max() + 1


# least share of planted pairs of 60, 100, 300 and 2,000 bp that must be found; the docstring's threshold says why the
# rest is not: 0.9^12 is 0.28, and short sequences spread widely around it
RECALL = {
    "1 %": (0.01, (1, 1, 1, 1)),
    "2 %": (0.02, (1, 1, 1, 1)),
    "5 %": (0.05, (0.97, 0.99, 1, 1)),
    "10 %": (0.1, (0.5, 0.8, 0.95, 1)),
}


@pytest.mark.parametrize("strand", [1, -1])
@pytest.mark.parametrize("change", RECALL)
def test_recall_of_planted_substitutions(change, strand):
    share, least = RECALL[change]
    random = np.random.default_rng(7)
    for length, wanted in zip((60, 100, 300, 2000), least, strict=True):
        n = 100 if length <= 300 else 20
        firsts = [dna(length, random) for _ in range(n)]
        copies = [text(substituted(first, share, random)) for first in firsts]
        if strand < 0:
            copies = [reverse_complement(copy) for copy in copies]
        assert duplicated([text(first) for first in firsts], copies).any.mean() >= wanted, length


@pytest.mark.parametrize("length", [40, 60, 101, 300, 5000, 10000])
def test_shifted_windows_are_found(length):
    random = np.random.default_rng(8)
    firsts = [dna(length, random) for _ in range(20)]
    shifted = [text(np.concatenate([first[length // 5 :], dna(length // 5, random)])) for first in firsts]
    assert duplicated([text(first) for first in firsts], shifted).near.all()


@pytest.mark.parametrize("gc", [0.25, 0.7])  # an even one has fewer k-mers in common by chance
def test_random_sequences_are_not_joined(gc):
    random = np.random.default_rng(9)
    sequences = [text(dna(int(length), random, gc)) for length in random.integers(60, 300, 2000)]
    sequences += [text(dna(10_000, random, gc)) for _ in range(20)]
    assert clusters(sequences).max() + 1 == len(sequences)


def test_short_unlike_and_empty_ones():
    short = "ACGTTGCAACGTGCATCGA"[: K - 1]
    assert duplicated([short], [short, reverse_complement(short), short[:-1] + "T"]).any.tolist() == [True, True, False]
    assert duplicated([], ["ACGT"]).any.tolist() == [False] and duplicated(["ACGT"], []).any.shape == (0,)
    assert clusters([]).shape == (0,)
    assert clusters(["N" * 50, "N" * 60, "A" * 50, "A" * 60, "CA" * 30, "CA" * 40]).tolist() == [0, 1, 2, 3, 4, 5]
    palindrome = "GAATTC"
    assert duplicated([palindrome], [palindrome]).exact.all()


def test_each_row_is_of_one_sort():
    first = text(dna(100))
    found = duplicated([first, reverse_complement(first)], [first, reverse_complement(first)])
    assert found.exact.all() and not found.reverse_complement.any() and not found.near.any()


def test_many_variants_of_one_sequence(monkeypatch):
    """Every k-mer is in nearly all of them: where 16 of each list are followed, all are still one cluster."""
    monkeypatch.setattr("hyenadna.data.duplicates._COMPARISONS", 1)
    random = np.random.default_rng(10)
    first = dna(120, random)
    variants = [text(substituted(first, 0.025, random)) for _ in range(800)]
    assert clusters(variants).max() == 0
    assert duplicated(variants[:640], variants[640:]).any.all()


def test_within_a_much_longer_one():
    random = np.random.default_rng(11)
    long = [dna(10_000, random) for _ in range(10)]
    inside = [text(sequence[3000:3400]) for sequence in long]
    assert duplicated([text(sequence) for sequence in long], inside).near.all()


def test_splice_table():
    """17.9 % of its different sequences lie in clusters, 25.0 % of its rows (9.7 % of rows repeat another)."""
    with gzip.open(splice(), "rt") as file:
        rows = [row["sequence"] for row in csv.DictReader(file)]
    sizes = np.bincount(clusters(rows))
    assert sizes[sizes > 1].sum() / len(rows) == pytest.approx(0.250, abs=0.001)
    distinct = list(dict.fromkeys(rows))
    sizes = np.bincount(clusters(distinct))
    assert sizes[sizes > 1].sum() / len(distinct) == pytest.approx(0.179, abs=0.001)


EXACT = {
    "genomic_benchmarks/human_enhancers_ensembl.{}.csv.gz": (471, 1014),
    "GUE/prom/prom_core_tata/{}.csv.gz": (16, 613),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_copies_of_published_sets(shared, name):
    def read(part):
        path = shared / "data" / name.format(part)
        if not path.exists():
            pytest.skip(f"{path.name} is missing")
        with gzip.open(path, "rt") as file:
            return [row["sequence"].upper() for row in csv.DictReader(file)]

    found = duplicated(read("train"), read("test"))
    assert (int(found.exact.sum()), len(found.exact)) == EXACT[name]
