"""Simple models trained on the same rows: what a language model must beat to be worth its size.

All see the train part alone; what they leave open (k, regularisation, neighbours) is chosen on valid, or where there is
none on a fifth of train, whole groups where rows have groups. Time and memory are bounded: rows above the caps below
are drawn at random, and the note of the baseline says so.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import InputError
from hyenadna.finetune import metrics
from hyenadna.finetune.composition import gc_and_cpg, kmer_counts, one_hot, window_kmers
from hyenadna.finetune.linear import Matrix, fit_linear
from hyenadna.finetune.task import Task

TRAIN_BASES = 20_000_000
"""Most bases of training rows that any baseline sees."""
SEARCH_ROWS = 10_000
"""Most rows, of the train and of the valid part, by which k and the like are chosen."""
SEARCH_BASES = 1_500_000
"""Most bases of those rows for the linear models, which are fitted some twenty times."""
NEIGHBOUR_ROWS = 10_000
"""Most training rows among which the nearest are looked for."""
WINDOWS = 100_000
"""Most bases, drawn at random, on which the window model of nucleotide labels is trained."""
MANY_LABELS = 8
"""Above this number of outputs k-mers are of k = 5 alone and the penalty is fixed, or the search would take hours."""
LONGEST_ONE_HOT = 20_000
"""Most bases of a sequence for the positional model."""
_BASES_AT_ONCE = 4_000_000
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)

Features = Callable[[Sequence[str]], Matrix]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What a simple model says of the test rows, or why it says nothing."""

    name: str
    predictions: NDArray[np.float64] | None
    """(n, K) as `Task.predictions` gives them, (n, L, K) for nucleotide; None where the model does not apply."""
    seconds: float
    """Time of choosing, training and predicting."""
    note: str = ""
    """What was chosen and how many rows were used; or why the model does not apply."""


class NotApplicable(Exception):
    """A baseline makes no sense for these data; the message says why."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """The rows of a split as the baselines take them."""

    task: Task
    train: Sequence[str]
    targets: NDArray[Any]
    fit: NDArray[np.int64]
    """Rows of train that are not in `check`; all of them where there is a valid part."""
    check: Sequence[str]
    """Of the valid part, or of the other rows of train: what is left open is chosen on them."""
    check_targets: NDArray[Any]
    test: Sequence[str]
    seed: int
    left: str
    """Says how many rows were left out, if any."""

    def search(self, rows: int) -> NDArray[np.int64]:
        """At most so many of the rows of `fit`, drawn at random."""
        return np.sort(np.random.default_rng(self.seed).permutation(self.fit)[:rows])


def baselines(
    task: Task,
    train: LabelledSequences,
    test: LabelledSequences,
    *,
    valid: LabelledSequences | None = None,
    seed: int = 0,
    cnn: bool = True,
) -> list[Baseline]:
    """Every baseline, in the order in which reports show them; those that do not apply have no predictions.

    Parameters
    ----------
    task : Task
        Made of the labels of `train`.
    train, test, valid : LabelledSequences
        Labels of test are not looked at.
    seed : int
        Of what is drawn at random.
    cnn : bool
        Whether to train the small CNN of GenomicBenchmarks too, the slowest of them.

    Raises
    ------
    InputError              no training or test row, or labels that the task does not know
    """
    problem = _problem(task, train, test, valid, seed)
    if task.kind == "nucleotide":
        models = {"majority class": _shares_of_bases, "window 3-mers": _windows}
    else:
        models = {
            "majority class" if task.kind != "regression" else "mean": _shares,
            "GC + CpG": _gc,
            "length alone": _length,
            "nearest training sequences": _nearest,
            "k-mer logistic regression" if task.kind != "regression" else "k-mer ridge regression": _kmers,
            "positional one-hot": _positional,
        }
        if cnn:
            models["GenomicBenchmarks CNN"] = _cnn
    return [_timed(name, model, problem) for name, model in models.items()]


def _timed(name: str, model: Callable[[Problem], tuple[NDArray[np.float64], str]], problem: Problem) -> Baseline:
    start = time.perf_counter()
    try:
        predictions, note = model(problem)
    except NotApplicable as reason:
        return Baseline(name, None, time.perf_counter() - start, str(reason))
    note = ", ".join(part for part in (note, problem.left) if part)
    return Baseline(name, predictions, time.perf_counter() - start, note)


def _problem(
    task: Task, train: LabelledSequences, test: LabelledSequences, valid: LabelledSequences | None, seed: int
) -> Problem:
    if not len(train) or train.labels is None:
        raise InputError(f"{train.source or 'the data'}: no labelled row to train the baselines on")
    if not len(test):
        raise InputError(f"{test.source or 'the data'}: no test row to measure the baselines on")
    random = np.random.default_rng(seed)
    order = random.permutation(len(train))
    within = np.cumsum(train.lengths[order]) <= TRAIN_BASES
    rows = np.sort(order[within]) if within.any() else order[:1]
    left = "" if len(rows) == len(train) else f"{len(rows):,} of {len(train):,} training rows"
    train = train.take(rows)
    assert train.labels is not None
    targets = task.targets(train.labels)
    fit = np.arange(len(train))
    if valid is not None and len(valid) and valid.labels is not None:
        some = np.sort(random.permutation(len(valid))[:SEARCH_ROWS])
        valid = valid.take(some)
        checked, checked_targets = valid.sequences, task.targets(valid.labels or ())
    else:
        groups = np.unique(train.groups, return_inverse=True)[1] if train.groups else fit
        held = np.isin(groups, random.permutation(groups.max() + 1)[: max(1, (groups.max() + 1) // 5)])
        if held.all():
            held = np.arange(len(train)) % 5 == 0
        fit = np.flatnonzero(~held) if not held.all() else fit
        checked = tuple(train.sequences[row] for row in np.flatnonzero(held))
        checked_targets = targets[held]
    return Problem(task, train.sequences, targets, fit, checked, checked_targets, test.sequences, seed, left)


def columns(task: Task, targets: NDArray[Any]) -> NDArray[np.float64]:
    """Targets as (n, K): one-hot classes, labels, or the number; means of rows are predictions."""
    if task.kind == "regression":
        return np.asarray(targets, dtype=np.float64)[:, None]
    return np.asarray(targets, dtype=np.float64) if task.kind == "multilabel" else np.eye(task.outputs)[targets]


def _goodness(problem: Problem, predictions: NDArray[np.float64]) -> float:
    value = metrics.point(problem.task, problem.check_targets, predictions)[metrics.main_metric(problem.task)]
    return value if value == value else -np.inf


def _shares(problem: Problem) -> tuple[NDArray[np.float64], str]:
    mean = columns(problem.task, problem.targets).mean(axis=0)
    return np.repeat(mean[None], len(problem.test), axis=0), ""


def _gc(problem: Problem) -> tuple[NDArray[np.float64], str]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(gc_and_cpg(problem.train))
    return _linear(problem, iter([("", lambda sequences: scaler.transform(gc_and_cpg(sequences)))]), (1.0,))


def _length(problem: Problem) -> tuple[NDArray[np.float64], str]:
    from sklearn.tree import DecisionTreeRegressor

    lengths, asked = (
        np.array([len(sequence) for sequence in sequences])[:, None] for sequences in (problem.train, problem.test)
    )
    if lengths.min() == lengths.max():
        raise NotApplicable(f"all training sequences have {lengths.min():,} bases")
    # the squared error of one-hot targets is the Gini impurity: one tree for every kind of task
    tree = DecisionTreeRegressor(
        max_leaf_nodes=32, min_samples_leaf=min(10, max(1, len(lengths) // 10)), random_state=0
    )
    tree.fit(lengths, columns(problem.task, problem.targets))
    return tree.predict(asked).reshape(len(asked), -1), "a tree of at most 32 leaves"


def _kmers(problem: Problem) -> tuple[NDArray[np.float64], str]:
    many = problem.task.outputs > MANY_LABELS

    def features() -> Iterator[tuple[str, Features]]:
        for k in (5,) if many else (4, 5, 6):
            for both in (False, True):
                note = f"k = {k} on {'both strands' if both else 'one strand'}"
                yield note, functools.partial(_log_counts, k=k, both_strands=both)

    return _linear(problem, features(), (1.0,) if many else _STRENGTHS)


def _log_counts(sequences: Sequence[str], *, k: int, both_strands: bool) -> Matrix:
    """log(1 + count) of each k-mer, rows scaled to length 1: what did best on valid of the GUE and promoter sets."""
    from sklearn.preprocessing import normalize

    counts = kmer_counts(sequences, k, both_strands=both_strands)
    counts.data = np.log1p(counts.data)
    return normalize(counts, copy=False)


def _positional(problem: Problem) -> tuple[NDArray[np.float64], str]:
    lengths = {len(sequence) for part in (problem.train, problem.check, problem.test) for sequence in part}
    if len(lengths) > 1:
        raise NotApplicable(f"sequences have {min(lengths):,} to {max(lengths):,} bases; it needs one length")
    if max(lengths) > LONGEST_ONE_HOT:
        raise NotApplicable(f"sequences have {max(lengths):,} bases, above its limit of {LONGEST_ONE_HOT:,}")
    strengths = (0.1,) if problem.task.outputs > MANY_LABELS else (0.01, *_STRENGTHS)
    return _linear(problem, iter([("", one_hot)]), strengths)


def _linear(
    problem: Problem, candidates: Iterator[tuple[str, Features]], strengths: Sequence[float]
) -> tuple[NDArray[np.float64], str]:
    """A logistic or ridge regression on the features and with the strength that did best on the check rows."""
    task, typical = problem.task, max(1, sum(map(len, problem.train)) // len(problem.train))
    rows = problem.search(min(SEARCH_ROWS, max(100, SEARCH_BASES // typical)))
    fit = [problem.train[row] for row in rows]
    tried: list[tuple[float, str, Features, float]] = []
    for note, features in candidates:
        to_fit, to_check = features(fit), features(problem.check)
        last = -np.inf
        for strength in strengths:
            predict = fit_linear(task, to_fit, problem.targets[rows], strength)
            value = _goodness(problem, predict(to_check))
            tried.append((value, note, features, strength))
            if value < last:  # a weaker penalty, the slower to fit, would not do better
                break
            last = value
    _, note, features, strength = max(tried, key=lambda one: one[0])
    predict = fit_linear(task, features(problem.train), problem.targets, strength)
    predictions = np.concatenate([predict(features(chunk)) for chunk in _chunks(problem.test)])
    chosen = f"C = {strength:g}" if len(strengths) > 1 else ""
    return predictions, ", ".join(part for part in (note, chosen) if part)


def _nearest(problem: Problem) -> tuple[NDArray[np.float64], str]:
    fit = problem.search(NEIGHBOUR_ROWS)
    check = slice(0, 500)
    some = dataclasses.replace(problem, check=problem.check[check], check_targets=problem.check_targets[check])
    known = columns(problem.task, problem.targets)
    tried = []
    for k in (5, 8):
        found = _neighbours([problem.train[row] for row in fit], known[fit], some.check, k, (1, 5, 25))
        tried += [(_goodness(some, predictions), k, number) for number, predictions in found.items()]
    _, k, number = max(tried, key=lambda one: one[0])
    rows = np.random.default_rng(problem.seed).permutation(len(problem.train))[:NEIGHBOUR_ROWS]
    train = [problem.train[row] for row in rows]
    note = f"{number} by cosine of {k}-mer counts, both strands"
    if len(rows) < len(problem.train):
        note += f", among {len(rows):,} rows"
    return _neighbours(train, known[rows], problem.test, k, (number,))[number], note


def _neighbours(
    train: Sequence[str], known: NDArray[np.float64], asked: Sequence[str], k: int, numbers: Sequence[int]
) -> dict[int, NDArray[np.float64]]:
    """For each number of neighbours, the mean of their targets, weighted by their similarity."""
    from sklearn.preprocessing import normalize

    base = normalize(kmer_counts(train, k, both_strands=True)).T.tocsr()
    found: dict[int, list[NDArray[np.float64]]] = {number: [] for number in numbers}
    for first in range(0, len(asked), 512):
        rows = normalize(kmer_counts(asked[first : first + 512], k, both_strands=True))
        similarity = (rows @ base).toarray()
        most = min(max(numbers), len(train))
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        nearest, near = (np.take_along_axis(table, order, axis=1) for table in (nearest, near))
        for number in numbers:
            # a sequence that shares no k-mer with any row takes the mean of some
            weight = np.maximum(near[:, :number, None], 1e-6)
            found[number].append((weight * known[nearest[:, :number]]).sum(axis=1) / weight.sum(axis=1))
    return {number: np.concatenate(parts) for number, parts in found.items()}


def _cnn(problem: Problem) -> tuple[NDArray[np.float64], str]:
    from hyenadna.finetune.cnn import BASES_AN_EPOCH, LONGEST, cnn_predictions, train_cnn

    longest = max(len(sequence) for part in (problem.train, problem.check, problem.test) for sequence in part)
    if longest > LONGEST:
        raise NotApplicable(f"the longest sequence has {longest:,} bases, above its limit of {LONGEST:,}")
    # never the rows of `check`: the epoch must not be chosen on what was learnt
    rows = problem.search(max(2, BASES_AN_EPOCH // longest))
    sequences = [problem.train[row] for row in rows]
    held_out = (problem.check, problem.check_targets)
    network, epoch = train_cnn(
        problem.task, sequences, problem.targets[rows], held_out, longest=longest, seed=problem.seed
    )
    note = f"epoch {epoch}" + (f", {len(rows):,} rows" if len(rows) < len(problem.train) else "")
    return cnn_predictions(problem.task, network, problem.test, longest), note


def _flat(sequences: Sequence[str], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([row[: len(sequence)] for sequence, row in zip(sequences, targets, strict=True)])


def _unflat(sequences: Sequence[str], flat: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = [len(sequence) for sequence in sequences]
    found = np.zeros((len(sequences), max(lengths), flat.shape[1]))
    for row, part in enumerate(np.split(flat, np.cumsum(lengths)[:-1])):
        found[row, : len(part)] = part
    return found


def _shares_of_bases(problem: Problem) -> tuple[NDArray[np.float64], str]:
    counts = np.bincount(_flat(problem.train, problem.targets), minlength=problem.task.outputs)
    bases = sum(len(sequence) for sequence in problem.test)
    return _unflat(problem.test, np.repeat((counts / counts.sum())[None], bases, axis=0)), ""


def _windows(problem: Problem) -> tuple[NDArray[np.float64], str]:
    """Logistic regression on the 3-mers around each base, by their place; one penalty, the flank chosen on check."""
    task, random = problem.task, np.random.default_rng(problem.seed)

    def drawn(sequences: Sequence[str], targets: NDArray[np.int64], flank: int) -> tuple[Matrix, NDArray[np.int64]]:
        flat = _flat(sequences, targets)
        bases = np.sort(random.permutation(len(flat))[:WINDOWS])
        return window_kmers(sequences, flank, bases), flat[bases]

    fit = [problem.train[row] for row in problem.fit]
    tried = []
    for flank in (5, 15):
        predict = fit_linear(task, *drawn(fit, problem.targets[problem.fit], flank), 0.1)
        features, truth = drawn(problem.check, problem.check_targets, flank)
        alone = metrics.point(task, truth[:, None], predict(features)[:, None])[metrics.main_metric(task)]
        tried.append((alone if alone == alone else -np.inf, flank))
    flank = max(tried, key=lambda one: one[0])[1]
    predict = fit_linear(task, *drawn(problem.train, problem.targets, flank), 0.1)
    flat = [predict(window_kmers(chunk, flank)) for chunk in _chunks(problem.test, 500_000)]
    bases = sum(len(sequence) for sequence in problem.train)
    note = f"{flank} bases to each side" + (f", {WINDOWS:,} of {bases:,} bases" if bases > WINDOWS else "")
    return _unflat(problem.test, np.concatenate(flat)), note


def _chunks(sequences: Sequence[str], most: int = _BASES_AT_ONCE) -> Iterator[Sequence[str]]:
    first = bases = 0
    for last, sequence in enumerate(sequences):
        if bases and bases + len(sequence) > most:
            yield sequences[first:last]
            first, bases = last, 0
        bases += len(sequence)
    yield sequences[first:]
