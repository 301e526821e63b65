"""Splits of labelled rows: whole groups, balanced classes, given parts untouched, the same in any order."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from hyenadna.data.duplicates import clusters, duplicated
from hyenadna.data.label_split import carve, folds
from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import InputError, UsageError

PARTS = ("train", "valid", "test")


def dna(length, random):
    return "".join(random.choice(list("ACGT"), size=length))


def rows(n=400, labels="ab", seed=0, *, groups=0, families=0):
    """Random rows; `families` rows more are copies of earlier ones with one base changed."""
    random = np.random.default_rng(seed)
    sequences = [dna(int(length), random) for length in random.integers(60, 90, n - families)]
    for row in range(families):
        copy = sequences[row % 7]
        place = int(random.integers(0, len(copy)))
        sequences.append(copy[:place] + "ACGT"[int(random.integers(0, 4))] + copy[place + 1 :])
    return LabelledSequences(
        ids=tuple(map(str, range(n))),
        sequences=tuple(sequences),
        labels=tuple(labels[int(number)] for number in random.integers(0, len(labels), n)),
        groups=tuple(f"g{number}" for number in random.integers(0, groups, n)) if groups else None,
        source="rows.csv",
    )


def counts(data):
    return Counter(data.parts)


@pytest.mark.parametrize("by", ["row", "cluster", "group"])
@pytest.mark.parametrize("seed", range(3))
def test_shares_and_classes(by, seed):
    data = carve(rows(1000, "aaabbc", families=60, groups=40), by=by, valid=0.1, test=0.2, seed=seed)
    for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        assert counts(data)[part] / 1000 == pytest.approx(share, abs=0.03)
        for name, total in Counter(data.labels).items():
            of_class = Counter(data.part(part).labels)[name]
            assert of_class / total == pytest.approx(share, abs=0.06), (part, name)
    assert all(f"{part} {counts(data)[part]:,}" in data.rule for part in PARTS) and "stratified by class" in data.rule


def test_nothing_is_torn_apart():
    data = rows(300, families=90, groups=25)
    by_group = carve(data, by="group")
    assert all(len(places) == 1 for places in places_of(by_group.groups, by_group.parts))
    by_cluster = carve(data, by="cluster")
    assert all(len(places) == 1 for places in places_of(clusters(data.sequences), by_cluster.parts))
    train, test = by_cluster.part("train"), by_cluster.part("test")
    assert not duplicated(train.sequences, test.sequences).any.any()
    assert duplicated(*(carve(data, by="row").part(part).sequences for part in ("train", "test"))).any.any()


def places_of(units, parts):
    places = {}
    for unit, part in zip(units, parts, strict=True):
        places.setdefault(unit, set()).add(part)
    return places.values()


@pytest.mark.parametrize("by", ["row", "cluster", "group"])
def test_the_seed_decides_and_the_order_of_rows_does_not(by):
    data = rows(200, families=30, groups=20)
    order = np.random.default_rng(3).permutation(200)
    part_of = dict(zip(data.ids, carve(data, by=by).parts, strict=True))
    shuffled = carve(data.take(order), by=by)
    assert dict(zip(shuffled.ids, shuffled.parts, strict=True)) == part_of
    assert dict(zip(data.ids, carve(data, by=by, seed=1).parts, strict=True)) != part_of


def test_a_given_test_is_never_touched():
    data = rows(300, families=60)
    given = ("test",) * 50 + ("train",) * 250
    made = carve(dataclasses.replace(data, parts=given), valid=0.2)
    assert [part == "test" for part in made.parts] == [part == "test" for part in given]
    assert counts(made)["valid"] == pytest.approx(50, abs=2)
    assert made.rule.startswith("test as given (50 rows); train, valid by")
    complete = dataclasses.replace(data, parts=("test", "valid", "train") * 100)
    assert carve(complete) is complete
    only_valid = carve(dataclasses.replace(data, parts=("valid",) * 30 + ("train",) * 270))
    assert only_valid.parts[:30] == ("valid",) * 30 and counts(only_valid)["test"] == pytest.approx(54, abs=2)
    with pytest.raises(InputError, match="no row is in train"):
        carve(dataclasses.replace(data, parts=("test",) * 300))


def test_auto_says_what_it_took():
    assert "whole groups, the largest of" in carve(rows(200, groups=12)).rule
    few = carve(rows(200, groups=3)).rule
    assert "whole clusters" in few and "the 3 groups of the data are too few to split by" in few
    lopsided = dataclasses.replace(rows(200), groups=("chr1",) * 150 + tuple(f"c{n % 6}" for n in range(50)))
    assert "group 'chr1' has 75% of the rows, too many to split by groups" in carve(lopsided).rule
    assert "too" not in carve(rows(200)).rule
    assert set(carve(rows(200), valid=0).parts) == {"train", "test"}


def test_regression_and_multilabel():
    random = np.random.default_rng(4)
    data = rows(600)
    values = random.lognormal(size=600)
    numbers = dataclasses.replace(data, labels=tuple(f"{value}" for value in values))
    made = carve(numbers)
    medians = {part: np.median([float(label) for label in made.part(part).labels]) for part in PARTS}
    assert all(math.isclose(median, np.median(values), rel_tol=0.2) for median in medians.values())
    assert "fifths of the values" in made.rule
    several = tuple(";".join(name for name in "xyz" if random.random() < 0.3) for _ in range(600))
    made = carve(dataclasses.replace(data, labels=several))
    for name in "xyz":
        total = sum(name in label for label in several)
        share = sum(name in label for label in made.part("test").labels) / total
        assert share == pytest.approx(0.2, abs=0.03)
    whole = dataclasses.replace(data, labels=tuple("01" * (len(s) // 2) for s in data.sequences))
    assert counts(carve(whole, kind="nucleotide"))["test"] == 120
    assert counts(carve(dataclasses.replace(data, labels=None)))["test"] == 120


@pytest.mark.parametrize("by", ["row", "cluster", "group"])
@pytest.mark.parametrize("n", [2, 5])
def test_folds_test_each_row_once(n, by):
    data = rows(200, families=30, groups=20)
    made = folds(data, n, by=by)
    assert len(made) == n and all(fold.ids == data.ids for fold in made)
    assert (np.sum([[part == "test" for part in fold.parts] for fold in made], axis=0) == 1).all()
    units = {"row": range(200), "cluster": clusters(data.sequences), "group": data.groups}[by]
    for number, fold in enumerate(made, 1):
        assert counts(fold)["test"] == pytest.approx(200 / n, abs=12)
        assert counts(fold)["valid"] == pytest.approx(0.1 * (200 - 200 / n), abs=8)
        assert all(len(places) == 1 for places in places_of(units, fold.parts))
        assert fold.rule.startswith(f"fold {number} of {n} by ")
    assert folds(data, n, by=by) == made and set(folds(data, n, by=by, valid=0)[0].parts) == {"train", "test"}


def test_what_cannot_be_split():
    data = rows(50)
    with pytest.raises(InputError, match=r"rows\.csv: there is one class only, 'a'"):
        carve(dataclasses.replace(data, labels=("a",) * 50))
    with pytest.raises(InputError, match="1 classes have a single row, the first is 'c'"):
        carve(dataclasses.replace(data, labels=("a", "b") * 24 + ("a", "c")))
    with pytest.raises(InputError, match="2 rows have no label, the first is row 1"):
        carve(dataclasses.replace(data, labels=("", "b") + ("a", "b") * 23 + ("", "a")))
    with pytest.raises(InputError, match=r"row 2 has the target 'nan'"):
        carve(dataclasses.replace(data, labels=("1", "nan") + ("0.5",) * 48), kind="regression")
    with pytest.raises(UsageError, match="no groups; name their column"):
        carve(data, by="group")
    with pytest.raises(InputError, match=r"2 whole groups, the largest of 25 rows cannot be dealt to 3 parts"):
        carve(dataclasses.replace(data, groups=("x", "y") * 25), by="group")
    with pytest.raises(InputError, match="cannot be dealt to 3 parts"):
        carve(dataclasses.replace(rows(2), labels=None))
    with pytest.raises(UsageError, match=r"shares of 0\.5 for valid and 0\.5 for test"):
        carve(data, valid=0.5, test=0.5)
    with pytest.raises(UsageError, match="1 folds"):
        folds(data, 1)
    with pytest.raises(InputError, match="cannot be dealt to 60 parts"):
        folds(data, 60, by="row")


def test_a_class_in_one_group():
    data = dataclasses.replace(rows(60), groups=tuple(f"g{n % 6}" for n in range(60)))
    labels = tuple("c" if group == "g0" else label for group, label in zip(data.groups, data.labels, strict=True))
    tested = dataclasses.replace(data, labels=labels)
    outcomes = []
    for seed in range(6):
        try:
            outcomes.append(carve(tested, by="group", seed=seed).rule)
        except InputError as error:
            outcomes.append(str(error))
    assert all("no row of" in outcome and "'c'" in outcome for outcome in outcomes)
