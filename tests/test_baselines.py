import csv
import gzip
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import InputError
from hyenadna.finetune import baselines as module
from hyenadna.finetune import cnn, composition
from hyenadna.finetune.baselines import baselines
from hyenadna.finetune.cnn import SHORTEST, BenchmarkCNN, as_letters, cnn_predictions, train_cnn
from hyenadna.finetune.task import Task


def labelled(sequences, labels, **more):
    ids = tuple(str(row) for row in range(len(sequences)))
    return LabelledSequences(ids, tuple(sequences), tuple(map(str, labels)), source="toy", **more)


def random_sequences(random, n, length):
    return ["".join(row) for row in random.choice(list("ACGT"), size=(n, length))]


def planted(random, n, length=60, motif="TATAAA", place=None):
    """Random sequences; every second one holds the motif, anywhere or at one place."""
    sequences = random_sequences(random, n, length)
    for row in range(0, n, 2):
        at = random.integers(length - len(motif)) if place is None else place
        sequences[row] = sequences[row][:at] + motif + sequences[row][at + len(motif) :]
    return labelled(sequences, [1 - row % 2 for row in range(n)])


def by_name(found):
    return {one.name: one for one in found}


def oracle_kmers(sequence, k, both):
    words = [sequence[at : at + k] for at in range(len(sequence) - k + 1)]
    known = [word for word in words if set(word) <= set("ACGT")]
    return Counter(min(word, reverse_complement(word)) if both else word for word in known)


@given(
    some.lists(some.text(alphabet="ACGTN", max_size=12), min_size=1, max_size=5), some.integers(1, 4), some.booleans()
)
def test_kmer_counts(sequences, k, both):
    counts = composition.kmer_counts(sequences, k, both_strands=both)
    assert counts.shape == (len(sequences), 4**k)
    for sequence, row in zip(sequences, counts.toarray(), strict=True):
        found = {
            "".join("ACGT"[column // 4 ** (k - 1 - at) % 4] for at in range(k)): row[column]
            for column in row.nonzero()[0]
        }
        assert found == oracle_kmers(sequence, k, both)


def test_chunks_of_counts_are_the_whole(monkeypatch):
    sequences = random_sequences(np.random.default_rng(0), 50, 30)
    whole = composition.kmer_counts(sequences, 3).toarray()
    monkeypatch.setattr(composition, "_BASES_AT_ONCE", 70)
    assert np.array_equal(composition.kmer_counts(sequences, 3).toarray(), whole)
    assert composition.kmer_counts([], 3).shape == (0, 64)


def test_gc_one_hot_and_windows():
    shares = composition.gc_and_cpg(["CGCGNN", "AATT", "NN", "ACGT"])
    assert np.allclose(shares, [[1, 2 / 3], [0, 0], [0, 0], [0.5, 1 / 3]])
    assert composition.one_hot(["AN", "TG"]).toarray().tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]]
    sequences = ["ACGTAC", "GGNCA"]
    windows = composition.window_kmers(sequences, 2).toarray().reshape(11, 3, 64)
    base = 0
    for sequence in sequences:
        around = "NN" + sequence + "NN"
        for at in range(len(sequence)):
            for place in range(3):
                word = around[at + place : at + place + 3]
                expected = (
                    [sum("ACGT".index(letter) * 4 ** (2 - n) for n, letter in enumerate(word))]
                    if "N" not in word
                    else []
                )
                assert windows[base, place].nonzero()[0].tolist() == expected
            base += 1
    some_bases = composition.window_kmers(sequences, 2, np.array([7, 2])).toarray()
    assert np.array_equal(some_bases.reshape(2, 3, 64), windows[[7, 2]])


@pytest.fixture(autouse=True)
def few_strengths_and_no_warnings(monkeypatch):
    monkeypatch.setattr(module, "_STRENGTHS", (1.0, 10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def test_a_motif_anywhere_is_found_by_kmers_and_one_at_a_place_by_positions():
    random = np.random.default_rng(0)
    anywhere, tested = planted(random, 400), planted(random, 300)
    task, truth = Task.of(anywhere.labels), np.array([1 - row % 2 for row in range(300)])
    found = by_name(baselines(task, anywhere, tested, valid=planted(random, 150), cnn=False))
    area = {
        name: roc_auc_score(truth, one.predictions[:, 1]) for name, one in found.items() if one.predictions is not None
    }
    assert area["k-mer logistic regression"] > 0.85 > 0.75 > area["positional one-hot"]
    assert area["majority class"] == 0.5 and next(iter(found)) == "majority class"
    assert "length alone" not in area and found["length alone"].note == "all training sequences have 60 bases"
    for one in found.values():
        if one.predictions is not None:
            assert (
                one.predictions.shape == (300, 2) and np.allclose(one.predictions.sum(axis=1), 1) and one.seconds >= 0
            )
    fixed = planted(random, 300, place=20)
    found = by_name(baselines(task, fixed, planted(random, 300, place=20), cnn=False))
    assert roc_auc_score(truth, found["positional one-hot"].predictions[:, 1]) > 0.97


def test_length_and_gc_alone():
    random = np.random.default_rng(0)
    lengths = random.integers(30, 60, size=400)
    sequences = [random_sequences(random, 1, length)[0] for length in lengths]
    data = labelled(sequences, np.where(lengths < 40, "s", np.where(lengths < 50, "m", "l")))
    found = by_name(baselines(Task.of(data.labels), data, data.take(range(100)), cnn=False))
    assert (found["length alone"].predictions.argmax(axis=1) == (Task.of(data.labels).targets(data.labels[:100]))).all()
    assert found["positional one-hot"].predictions is None and "30 to 59 bases" in found["positional one-hot"].note
    rich = [sequence.replace("A", "C") if row % 2 else sequence for row, sequence in enumerate(sequences)]
    data = labelled(rich, [row % 2 for row in range(400)])
    found = by_name(baselines(Task.of(data.labels), data, data, cnn=False))
    assert roc_auc_score(np.arange(400) % 2, found["GC + CpG"].predictions[:, 1]) > 0.95


def test_nearest_rows_are_those_of_the_cosine():
    random = np.random.default_rng(0)
    train, asked = random_sequences(random, 40, 50), random_sequences(random, 7, 50)
    asked[3] = reverse_complement(train[11])
    known = np.eye(2)[random.integers(2, size=40)]
    found = module._neighbours(train, known, asked, 3, (1, 5))
    similarity = cosine_similarity(*(composition.kmer_counts(some, 3, both_strands=True) for some in (asked, train)))
    assert similarity[3].argmax() == 11
    for row, near in enumerate(np.argsort(-similarity, axis=1)):
        assert np.array_equal(found[1][row], known[near[0]])
        weights = similarity[row, near[:5]]
        assert np.allclose(found[5][row], weights @ known[near[:5]] / weights.sum())
    # nothing shared with any row: a mean, no division by zero
    assert np.isfinite(module._neighbours(["AAAAAA"], np.eye(2)[:1], ["CCCCCC"], 3, (1,))[1]).all()


def test_multilabel_and_regression():
    random = np.random.default_rng(0)
    sequences = random_sequences(random, 300, 40)
    has = [["GC" * 3 in sequence.replace("A", "G"), sequence.count("A") > 12] for sequence in sequences]
    data = labelled(sequences, [";".join(name for name, yes in zip("xy", row, strict=True) if yes) for row in has])
    task = Task.of(data.labels, "multilabel")
    for one in baselines(task, data, data.take(range(100)), cnn=True):
        assert (one.predictions is None) == (one.name == "length alone")
        if one.predictions is not None:
            assert one.predictions.shape == (100, 2) and ((one.predictions >= 0) & (one.predictions <= 1)).all()
    values = [100 + 3 * sequence.count("AC") for sequence in sequences]
    data = labelled(sequences, values)
    task = Task.of(data.labels, "regression")
    found = by_name(baselines(task, data.take(range(200)), data.take(range(200, 300)), cnn=False))
    said = found["k-mer ridge regression"].predictions[:, 0]
    assert np.corrcoef(said, values[200:])[0, 1] > 0.8 and abs(said.mean() - np.mean(values[200:])) < 1
    assert np.allclose(found["mean"].predictions, np.mean(values[:200]))


def test_nucleotides():
    random = np.random.default_rng(0)
    sequences = [random_sequences(random, 1, length)[0] for length in random.integers(20, 60, size=80)]
    labels = [
        "".join("c" if "AC" in sequence[max(0, at - 1) : at + 1] else "n" for at in range(len(sequence)))
        for sequence in sequences
    ]
    data = labelled(sequences, labels)
    task = Task.of(data.labels, "nucleotide")
    train, test = data.take(range(60)), data.take(range(60, 80))
    majority, window = baselines(task, train, test)
    targets = task.targets(test.labels)
    known = targets >= 0
    assert window.predictions.shape == (*targets.shape, 2)
    assert (window.predictions.argmax(axis=2) == targets)[known].mean() > 0.97
    assert (majority.predictions.argmax(axis=2)[known] == task.labels.index("n")).all()


def test_only_the_train_part_is_learnt_from(monkeypatch):
    """Another valid part may change what is chosen, never what the chosen model has learnt."""
    random = np.random.default_rng(0)
    train, test = planted(random, 200), planted(random, 50)
    monkeypatch.setattr(module, "_STRENGTHS", (1.0,))
    task = Task.of(train.labels)
    gc = [
        by_name(baselines(task, train, test, valid=valid, cnn=False))["GC + CpG"].predictions
        for valid in (planted(random, 40), None)
    ]
    assert np.array_equal(*gc)
    again = [by_name(baselines(task, train, test, seed=3, cnn=False)) for _ in range(2)]
    assert all(
        np.array_equal(again[0][name].predictions, again[1][name].predictions)
        for name in again[0]
        if again[0][name].predictions is not None
    )


def test_groups_are_not_torn_apart_when_rows_are_held_out():
    random = np.random.default_rng(0)
    data = planted(random, 60)
    groups = tuple(str(row // 6) for row in range(60))
    data = labelled(data.sequences, data.labels, groups=groups)
    problem = module._problem(Task.of(data.labels), data, data, None, 0)
    fitted = {groups[row] for row in problem.fit}
    held = {groups[data.sequences.index(sequence)] for sequence in problem.check}
    assert len(held) == 2 and len(fitted) == 8 and not fitted & held


def test_caps_are_said(monkeypatch):
    random = np.random.default_rng(0)
    monkeypatch.setattr(module, "TRAIN_BASES", 3000)
    monkeypatch.setattr(module, "NEIGHBOUR_ROWS", 20)
    found = by_name(baselines(Task("binary", ("0", "1")), planted(random, 200), planted(random, 20), cnn=False))
    assert found["k-mer logistic regression"].note.endswith("50 of 200 training rows")
    assert "among 20 rows" in found["nearest training sequences"].note
    with pytest.raises(InputError, match="toy: no labelled row to train the baselines on"):
        baselines(Task("binary", ("0", "1")), labelled([], []), planted(random, 20))
    with pytest.raises(InputError, match="toy: no test row to measure the baselines on"):
        baselines(Task("binary", ("0", "1")), planted(random, 20), labelled([], []))


def test_few_rows_and_one_class_in_what_is_left():
    data = labelled(["ACGTACGTAC", "GGGTTTAAAC", "ACGTTTTTTT"], ["a", "b", "a"])
    for task in (Task.of(data.labels), Task("multiclass", ("a", "b", "c"))):
        for one in baselines(task, data, data.take([0, 1]), cnn=True):
            assert one.predictions is None or np.isfinite(one.predictions).all(), one.name


def test_the_cnn_is_that_of_the_plain_layers():
    """Embedding and first convolution in one step are the two steps, and the state of torch's generator is kept."""
    torch.manual_seed(0)
    network = BenchmarkCNN(80, 3).eval()
    letters = as_letters(["ACGTN" * 10, "GATTACA" * 11], 80).long()
    x = network.embedding(letters).transpose(1, 2)
    for convolution, norm in zip(network.convolutions, network.norms, strict=True):
        x = torch.max_pool1d(torch.relu(norm(convolution(x))), 2)
    assert torch.allclose(network(letters), network.out(network.wide(x.flatten(1))), atol=1e-5)
    assert [tuple(c.weight.shape) for c in network.convolutions] == [(16, 100, 8), (8, 16, 8), (4, 8, 8)]
    assert as_letters(["A"], 3).shape == (1, SHORTEST)


def test_the_cnn_learns_and_repeats(monkeypatch):
    random = np.random.default_rng(0)
    task, before = Task("binary", ("0", "1")), torch.get_rng_state()
    train, check, test = (planted(random, n, place=20) for n in (300, 60, 200))

    def trained():
        held_out = (check.sequences, task.targets(check.labels))
        network, epoch = train_cnn(task, train.sequences, task.targets(train.labels), held_out, longest=60, seed=1)
        return cnn_predictions(task, network, test.sequences, 60), epoch

    predictions, epoch = trained()
    assert roc_auc_score(task.targets(test.labels), predictions[:, 1]) > 0.9
    assert epoch > 1 and torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(cnn, "_EPOCHS", 2)
    assert np.array_equal(trained()[0], trained()[0])


def test_the_cnn_refuses_long_sequences():
    long = labelled(["ACGT" * 1100, "AGGT" * 1100, "ACCT" * 1100], ["a", "b", "a"])
    found = by_name(baselines(Task.of(long.labels), long, long))
    assert "4,400 bases, above its limit of 4,096" in found["GenomicBenchmarks CNN"].note


@pytest.mark.slow
def test_measured_on_real_promoters(shared):
    parts = []
    for name in ("train", "dev", "test"):
        path = shared / "data" / "GUE" / "prom" / "prom_core_tata" / f"{name}.csv.gz"
        if not path.is_file():
            pytest.skip(f"{path.name} is missing")
        with gzip.open(path, "rt") as file:
            rows = list(csv.DictReader(file))
        parts.append(labelled([row["sequence"] for row in rows], [row["label"] for row in rows]))
    task = Task.of(parts[0].labels)
    found = by_name(baselines(task, parts[0], parts[2], valid=parts[1], cnn=False))
    truth = task.targets(parts[2].labels)
    area = {
        name: roc_auc_score(truth, one.predictions[:, 1]) for name, one in found.items() if one.predictions is not None
    }
    assert area["k-mer logistic regression"] > 0.81 and area["GC + CpG"] == pytest.approx(0.71, abs=0.01)
