"""What the check says of data whose faults are known, and of the published sets."""

import csv
import dataclasses
import gzip
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from hyenadna.cli.data import app
from hyenadna.data import label_check
from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.giveaways import composition, shuffled
from hyenadna.data.label_check import check
from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import InputError


def dna(length, random, gc=0.5):
    return "".join(random.choice(list("ACGT"), size=length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def rows(n=600, *, gc=(0.5, 0.5), lengths=(80, 80), labels="ab", seed=0):
    """Two classes, the first half of the rows train; GC and mean length of each class as given."""
    random = np.random.default_rng(seed)
    which = random.integers(0, 2, n)
    sequences = tuple(dna(int(lengths[k] + random.integers(0, 10)), random, gc[k]) for k in which)
    parts = ("train",) * (n // 2) + ("test",) * (n - n // 2)
    names = tuple(labels[k] for k in which)
    return LabelledSequences(tuple(map(str, range(n))), sequences, names, parts, None, "rows.csv")


@pytest.fixture
def nothing_alone(monkeypatch):
    """Where something else is looked at: the classifiers take most of the time of a check."""
    monkeypatch.setattr(label_check, "giveaways", lambda data, kind: (None, ()))


def value(found, feature):
    return {alone.feature: alone.value for alone in found.alone}[feature]


def test_nothing_to_beware():
    found = check(rows(1000))
    assert found.warnings == () and all(abs(alone.value - 0.5) < 0.1 for alone in found.alone)
    assert found.rows == {"train": 500, "test": 500} and found.kind == "binary" and found.rule == ""
    assert found.copies[0].rows == 500 and found.conflicting == found.repeated == found.shuffled == 0


def test_gc_gives_the_class_away():
    data = rows(gc=(0.45, 0.55))
    found = check(data)
    gc = composition(data.part("test").sequences)[:, 0]
    truth = [label == "b" for label in data.part("test").labels]
    assert value(found, "GC") == pytest.approx(roc_auc_score(truth, gc), abs=0.02)
    assert any(warning.startswith("GC alone") for warning in found.warnings) and value(found, "length") < 0.6


def test_length_gives_the_class_away():
    found = check(rows(lengths=(80, 120)))
    assert found.warnings[0].startswith("length alone gives the class away: AUROC 1.000, accuracy 1.000 (the most freq")
    assert "lengths   least/median/largest: a 80/" in found.text()
    assert found.lengths["b"][0] >= 120 > found.lengths["a"][2]


def test_copies_and_conflicts(nothing_alone):
    data = rows(400)
    sequences = list(data.sequences)
    for test_row, copy in ((200, sequences[0]), (201, sequences[1]), (202, reverse_complement(sequences[2]))):
        sequences[test_row] = copy
    sequences[203] = sequences[3][:40] + ("A" if sequences[3][40] != "A" else "C") + sequences[3][41:]
    labels = list(data.labels)
    labels[0], labels[200], labels[1], labels[201] = "a", "b", "a", "a"
    labels[2] = labels[202] = "b"
    found = check(dataclasses.replace(data, sequences=tuple(sequences), labels=tuple(labels)))
    copies = found.copies[0]
    assert (copies.part, copies.within, copies.exact, copies.reverse_complement, copies.near) == (
        "test", "train", 2, 1, 1,
    )  # fmt: skip
    assert found.repeated == 2 and found.repeated_reverse == 1 and found.conflicting == 2
    assert found.clustered == 8 and found.largest_cluster == 2
    assert found.warnings[0] == (
        "of 200 test sequences 3 are in train too (1 as reverse complement), 1 are near duplicates: 2.0% in all"
    )
    assert "2 rows have a sequence that also stands with another label" in found.warnings
    assert "200 test rows are few: an accuracy measured on them is known to ± 7 points" in found.warnings


def test_many_even_classes_are_not_rare(nothing_alone):
    data = rows(1000)
    labels = tuple(f"c{row % 25:02}" for row in range(1000))
    assert not any("rare" in warning for warning in check(dataclasses.replace(data, labels=labels)).warnings)


def test_rare_missing_and_unknown_classes(nothing_alone):
    data = rows(400)
    labels = ["c"] * 4 + list(data.labels[4:-1]) + ["d"]
    warnings = check(dataclasses.replace(data, labels=tuple(labels))).warnings
    assert "'c' is rare: 4 train rows (2.0%)" in warnings
    assert "test has no row of 'c'" in warnings and "test has labels that train has not: 'd'" in warnings


def test_shuffled_negatives(nothing_alone):
    """The left and the right part between two equal bases change places: all dinucleotides stay."""
    random = np.random.default_rng(2)
    real = [f"A{dna(20, random)}A{dna(30, random)}A" for _ in range(50)]
    turned = [f"A{s[22:52]}A{s[1:21]}A" for s in real]
    n = len(real)
    data = LabelledSequences(
        tuple(map(str, range(2 * n))), (*real, *turned), ("1",) * n + ("0",) * n, ("train", "test") * n, None, "x"
    )
    assert shuffled(data, "binary") == 2 * n
    assert any("100 rows have exactly the dinucleotides" in warning for warning in check(data).warnings)


def test_data_without_parts_show_the_split_that_carve_makes(nothing_alone):
    found = check(dataclasses.replace(rows(), parts=None))
    assert "whole clusters" in found.rule and set(found.rows) == {"train", "valid", "test"}
    assert "split     train, valid, test by" in found.text()
    assert [(copies.part, copies.within) for copies in found.copies] == [
        ("test", "train"), ("valid", "train"), ("test", "valid"),
    ]  # fmt: skip


def test_regression_multilabel_and_nucleotides():
    data = rows(500)
    gc = composition(data.sequences)[:, 0]
    random = np.random.default_rng(1)
    numbers = tuple(f"{g + 0.05 * random.normal():.4f}" for g in gc)
    found = check(dataclasses.replace(data, labels=numbers))
    assert found.kind == "regression" and found.majority is None and 0.5 < value(found, "GC") < 0.95
    assert found.warnings[1 if "few" in found.warnings[0] else 0].startswith("GC alone tells of the value: Spearman's")
    assert found.classes["train"]["mean"] == pytest.approx(np.mean([float(v) for v in numbers[:250]]))
    both = tuple(";".join((["rich"] if g > 0.5 else []) + (["coin"] if random.random() < 0.5 else [])) for g in gc)
    found = check(dataclasses.replace(data, labels=both))
    assert found.kind == "multilabel" and 0.6 < value(found, "GC") < 0.85  # one label of two
    whole = tuple("01" * (len(s) // 2) + "0" * (len(s) % 2) for s in data.sequences)
    found = check(dataclasses.replace(data, labels=whole), kind="nucleotide")
    assert found.alone == () and set(found.classes["train"]) == {"0", "1"} and "alone" not in found.text()


def test_json_holds_everything():
    found = check(dataclasses.replace(rows(300), labels=("a", "b") * 75 + ("a",) * 150))
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["warnings"] == list(found.warnings) and said["measure"] == "auroc"
    assert all(alone["value"] is None for alone in said["alone"]) and "test has no row of 'b'" in said["warnings"]
    assert said["copies"][0]["part"] == "test" and said["rows"]["train"] == 150
    assert "alone     AUROC on test: GC not measurable, CpG not measurable" in found.text()


def test_composition_by_hand():
    assert composition(["CGCG", "NNNN", "GGCC"]).tolist() == [[1, 2, 4], [0, 0, 4], [1, 0, 4]]


def test_no_labels():
    with pytest.raises(InputError, match=r"rows\.csv has no labels; name their column"):
        check(dataclasses.replace(rows(20), labels=None))


def test_the_verb(tmp_path, monkeypatch):
    data = rows(400, lengths=(80, 120))
    lines = [",".join(row) for row in zip(data.sequences, data.labels, data.parts, strict=True)]
    (tmp_path / "my.csv").write_text("sequence,label,split\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv("HYENA_DATA", str(tmp_path / "my.csv"))
    printed = CliRunner().invoke(app, ["check"]).stdout
    assert "400 rows, binary; 80 to" in printed and "beware    length alone gives the class away" in printed
    said = json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)
    assert said["rows"] == {"train": 200, "test": 200} and said["warnings"]


def test_length_gives_away_a_published_set(shared):
    pieces = []
    for part in ("train", "test"):
        path = shared / "data" / "genomic_benchmarks" / f"human_ensembl_regulatory.{part}.csv.gz"
        if not path.exists():
            pytest.skip(f"{path.name} is missing")
        with gzip.open(path, "rt") as file:
            pieces += [(row["sequence"].upper(), row["label"], part) for row in csv.DictReader(file)]
    sequences, labels, parts = zip(*pieces, strict=True)
    from hyenadna.data.giveaways import giveaways

    data = LabelledSequences(tuple(map(str, range(len(parts)))), sequences, labels, parts, None, "regulatory")
    majority, alone = giveaways(data, "multiclass")
    length = next(found for found in alone if found.feature == "length")
    assert length.accuracy == pytest.approx(0.905, abs=0.005) and majority == pytest.approx(0.381, abs=0.001)
