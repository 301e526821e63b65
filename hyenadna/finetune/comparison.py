"""A fine-tuned model beside the baselines, over splits, seeds and test rows: means, differences, intervals.

A number of a report is the mean over the splits of the mean over a split's seeds. Its interval is that of a
hierarchical bootstrap. Test rows are drawn with replacement by their id (or group), the same ones for the model, the
baselines and every split that tests them. To each resample come effects of the split and of the seed, drawn with
replacement from the observed ones, which are scaled to the variance that is left of the spread between runs when what
rows alone cause is taken away:

    seeds:   sum over s, k of (m_sk - m_s)^2 / sum over s of (K_s - 1)  -  the same under resampling of rows
    splits:  sum over s of (m_s - m)^2 / (S - 1)  -  the same under resampling of rows  -  what the seeds explain

Drawing whole runs instead would count the rows' noise once in the rows and again in the runs, and give intervals up to
1.7 times too wide. With fewer than about five splits or seeds their variance itself is hardly known.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import ShapeError
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.metrics import Score, drawn, estimate, main_metric, metric_names, resample_chunks, scorer
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import Estimate

MODEL = "language model"
FEWEST_GROUPS = 10
"""With fewer groups in the test part, rows are drawn instead: a bootstrap of three contigs says nothing."""


@dataclasses.dataclass(frozen=True)
class TestRun:
    """What one training says of the test rows of its split."""

    split: int
    """Number of the split or fold; runs of one split have the same test rows."""
    seed: int
    """Of the training."""
    test: LabelledSequences
    targets: NDArray[Any]
    """As `Task.targets` gives them."""
    predictions: NDArray[np.float64]
    """(n, K) as `Task.predictions` gives them; (n, L, K) for nucleotide."""
    duplicated: NDArray[np.bool_]
    """(n,): rows of which train holds a copy, on either strand, exact or near."""

    __test__ = False  # no test for pytest to collect


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The model and the baselines on the same test rows."""

    rows: int
    """Different test rows, over all splits: of other ids or sequences."""
    drawn: str
    """What the bootstrap draws, in words."""
    models: dict[str, dict[str, Estimate]]
    """Of the language model and of each baseline: each metric."""
    differences: dict[str, dict[str, Estimate]]
    """Of each baseline: each metric of the language model minus that of the baseline, paired."""
    best: str | None
    """The baseline with the best main metric on these rows; None if there is none, or nothing to compare by."""


def compare(
    task: Task,
    runs: Sequence[TestRun],
    baselines: Mapping[int, Sequence[Baseline]],
    *,
    deduplicated: bool = False,
    seed: int = 0,
) -> Comparison | None:
    """Measure the runs, and the baselines that apply in every split; None if no row is left.

    Parameters
    ----------
    task : Task
    runs : sequence of TestRun
        Of every split and seed; at least one.
    baselines : mapping
        Of each split: the baselines trained on its train part.
    deduplicated : bool
        Leave out the rows of which train holds a copy.
    seed : int
        Of the draws.

    Raises
    ------
    ShapeError              predictions that do not fit the rows
    """
    splits = _splits(task, runs, baselines, deduplicated)
    if not splits:
        return None
    units, how = _units([split.test for split in splits])
    measured = _measured(splits, units, seed)
    names = metric_names(task)
    models = {name: {metric: found[metric].estimate(seed) for metric in names} for name, found in measured.items()}
    differences = {
        name: {metric: measured[MODEL][metric].minus(found[metric]).estimate(seed) for metric in names}
        for name, found in measured.items()
        if name != MODEL
    }
    rows = {key for split in splits for key in zip(split.test.ids, split.test.sequences, strict=True)}
    return Comparison(len(rows), how, models, differences, _best(task, models))


@dataclasses.dataclass(frozen=True)
class Runs:
    """One metric of one model in every run, on the rows as they are and on resampled rows."""

    split: NDArray[np.int64]
    """(runs,)"""
    points: NDArray[np.float64]
    """(runs,); NaN where it is not defined."""
    resampled: NDArray[np.float64]
    """(resamples, runs): rows drawn anew, the same ones for all runs."""

    def minus(self, other: "Runs") -> "Runs":
        """Each run less the one run that `other` has of its split."""
        column = np.array([np.flatnonzero(other.split == split)[0] for split in self.split])
        return Runs(self.split, self.points - other.points[column], self.resampled - other.resampled[:, column])

    def estimate(self, seed: int) -> Estimate:
        """Mean over splits and seeds; the interval holds rows, and splits and seeds where there are several."""
        known = ~np.isnan(self.points)
        if not known.any():
            return Estimate(float("nan"), float("nan"), float("nan"))
        _, split = np.unique(self.split[known], return_inverse=True)
        # a resample of rows on which a run is not defined says nothing of the mean
        rows = self.resampled[:, known]
        rows = rows[~np.isnan(rows).any(axis=1)]
        random = np.random.default_rng(seed)
        of_split = np.eye(split.max() + 1)[:, split]
        of_split /= of_split.sum(axis=1, keepdims=True)  # (splits, runs): means over the seeds of a split
        points = self.points[known]
        means, row_means = of_split @ points, rows @ of_split.T
        values = row_means.mean(axis=1)
        if len(rows):
            seeds = _effects(points - means[split], rows - row_means[:, split], len(points) - len(means), 0.0)
            explained = float(np.mean((of_split**2).sum(axis=1)) * np.mean(seeds**2))
            splits = _effects(means - means.mean(), row_means - values[:, None], len(means) - 1, explained)
            values = values + random.choice(splits, size=(len(rows), len(means))).mean(axis=1)
            values = values + (random.choice(seeds, size=rows.shape) @ of_split.T).mean(axis=1)
        return estimate(float(means.mean()), values)


def _effects(
    observed: NDArray[np.float64], of_rows: NDArray[np.float64], freedom: int, explained: float
) -> NDArray[np.float64]:
    """Deviations (n,) scaled to the variance that neither rows nor what else is explained cause; 0 without freedom."""
    total = float((observed**2).sum())
    if freedom == 0 or total == 0:
        return np.zeros_like(observed)
    by_rows = float(of_rows.var(axis=0).sum()) / freedom
    left = max(0.0, total / freedom - by_rows - explained)
    scaled: NDArray[np.float64] = observed * np.sqrt(left * len(observed) / total)
    return scaled


def _measured(splits: "Sequence[_Split]", units: Sequence[NDArray[np.int64]], seed: int) -> dict[str, dict[str, Runs]]:
    """Every metric of the model and of the baselines, in every run."""
    columns = [(MODEL, index, score) for index, split in enumerate(splits) for score in split.runs]
    columns += [(name, index, score) for index, split in enumerate(splits) for name, score in split.baselines.items()]
    total = max(int(unit.max()) for unit in units) + 1
    points = [score(np.ones((1, len(units[index])))) for _, index, score in columns]
    random = np.random.default_rng(seed)
    chunks = []
    # one row or group alone has no spread
    for resamples in resample_chunks(max(total, max(map(len, units)))) if total > 1 else ():
        weights = drawn(total, resamples, random)
        chunks.append([score(weights[:, units[index]]) for _, index, score in columns])
    found: dict[str, dict[str, Runs]] = {}
    for name in dict.fromkeys(name for name, _, _ in columns):
        of_name = [number for number, column in enumerate(columns) if column[0] == name]
        for metric in points[of_name[0]]:
            rows = [np.stack([chunk[number][metric] for number in of_name], axis=1) for chunk in chunks]
            found.setdefault(name, {})[metric] = Runs(
                np.array([columns[number][1] for number in of_name]),
                np.array([points[number][metric][0] for number in of_name]),
                np.concatenate(rows) if rows else np.zeros((0, len(of_name))),
            )
    return found


@dataclasses.dataclass(frozen=True)
class _Split:
    test: LabelledSequences
    runs: list[Score]
    baselines: dict[str, Score]


def _splits(
    task: Task, runs: Sequence[TestRun], baselines: Mapping[int, Sequence[Baseline]], deduplicated: bool
) -> list[_Split]:
    """The runs by split, with what each model scores under weights of the rows; splits without rows are left out."""
    shared = applicable(baselines, {run.split for run in runs})
    found = []
    for number in sorted({run.split for run in runs}):
        same = [run for run in runs if run.split == number]
        first = same[0]
        if any(run.test.ids != first.test.ids for run in same):
            raise ShapeError(f"the runs of split {number} have different test rows; give them numbers of their own")
        rows = np.flatnonzero(~first.duplicated) if deduplicated else np.arange(len(first.test))
        if not len(rows):
            continue
        targets = first.targets[rows]
        found.append(
            _Split(
                first.test.take(rows),
                [scorer(task, targets, run.predictions[rows]) for run in same],
                {
                    one.name: scorer(task, targets, one.predictions[rows])
                    for one in baselines.get(number, ())
                    if one.name in shared and one.predictions is not None
                },
            )
        )
    return found


def applicable(baselines: Mapping[int, Sequence[Baseline]], splits: set[int]) -> list[str]:
    """Names of the baselines that have predictions in every split, in their order."""
    by_split = [[one.name for one in baselines.get(split, ()) if one.predictions is not None] for split in splits]
    return [name for name in by_split[0] if all(name in names for names in by_split)] if by_split else []


def _units(tests: Sequence[LabelledSequences]) -> tuple[list[NDArray[np.int64]], str]:
    """What is drawn together: for each split a number of each row; and in words."""
    groups = {group for test in tests for group in test.groups or ()}
    if len(groups) >= FEWEST_GROUPS and all(test.groups for test in tests):
        keys: list[list[Any]] = [list(test.groups or ()) for test in tests]
        how = f"{len(groups):,} groups"
    else:
        keys = [list(zip(test.ids, test.sequences, strict=True)) for test in tests]
        how = f"{len({key for rows in keys for key in rows}):,} rows"
    number: dict[Any, int] = {}
    return [np.array([number.setdefault(key, len(number)) for key in rows]) for rows in keys], how


def _best(task: Task, models: Mapping[str, Mapping[str, Estimate]]) -> str | None:
    metric = main_metric(task)
    known = [name for name in models if name != MODEL and not np.isnan(models[name][metric].value)]
    return max(known, key=lambda name: models[name][metric].value) if known else None
