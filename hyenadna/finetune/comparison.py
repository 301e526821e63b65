"""A fine-tuned model beside the baselines, over splits, seeds and test rows: means, differences, intervals.

A number of a report is the mean over the splits of the mean over a split's seeds. Its interval comes from a bootstrap
on three levels: splits are drawn with replacement, within each drawn split its seeds, and, once for all runs, the test
rows. Rows are drawn by their id (or group), so that a row that several splits test is drawn in all of them or in none,
and the model and the baselines are measured on the same draws, which pairs them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import ShapeError
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.metrics import (
    Score,
    Scores,
    drawn,
    estimate,
    main_metric,
    metric_names,
    resample_chunks,
    scorer,
)
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
    """Different test rows, over all splits."""
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
    points = _means(splits, [np.ones((1, len(unit))) for unit in units], None)
    random = np.random.default_rng(seed)
    total = max(int(unit.max()) for unit in units) + 1
    chunks: list[dict[str, Scores]] = []
    for resamples in resample_chunks(max(total, sum(map(len, units)))):
        weights = drawn(total, resamples, random)
        chunks.append(_means(splits, [weights[:, unit] for unit in units], random))
    resampled = {
        name: {metric: np.concatenate([chunk[name][metric] for chunk in chunks]) for metric in points[name]}
        for name in points
    }
    if total < 2:  # one row or group alone has no spread
        resampled = {name: {metric: np.full(1, np.nan) for metric in points[name]} for name in points}
    models, differences = {}, {}
    for name in points:
        pairs = {metric: (points[name][metric], resampled[name][metric]) for metric in metric_names(task)}
        models[name] = {metric: estimate(float(value[0]), draws) for metric, (value, draws) in pairs.items()}
        differences[name] = {
            metric: estimate(float((points[MODEL][metric] - value)[0]), resampled[MODEL][metric] - draws)
            for metric, (value, draws) in pairs.items()
        }
    del differences[MODEL]
    return Comparison(total, how, models, differences, _best(task, models))


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


def _means(
    splits: Sequence[_Split], weights: Sequence[NDArray[np.float64]], random: np.random.Generator | None
) -> dict[str, Scores]:
    """Each metric of each model, mean over (drawn) splits and seeds: (resamples,). Without random, all once."""
    resamples = len(weights[0])

    def times(number: int) -> NDArray[np.float64]:
        return np.ones((resamples, number)) if random is None else drawn(number, resamples, random)

    of_split = times(len(splits))
    sums: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for index, split in enumerate(splits):
        of_seed = times(len(split.runs))
        scored = [(MODEL, score(weights[index]), of_seed[:, run]) for run, score in enumerate(split.runs)]
        scored += [(name, score(weights[index]), np.full(resamples, 1.0)) for name, score in split.baselines.items()]
        for name, scores, share in scored:
            count = len(split.runs) if name == MODEL else 1
            for metric, values in scores.items():
                # a run on which a metric is not defined is left out of the mean
                weight = np.where(np.isnan(values), 0.0, of_split[:, index] * share / count)
                total = sums.setdefault(name, {}).setdefault(metric, [np.zeros(resamples), np.zeros(resamples)])
                total[0] += weight * np.nan_to_num(values)
                total[1] += weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: {metric: value / n for metric, (value, n) in found.items()} for name, found in sums.items()}


def _best(task: Task, models: Mapping[str, Mapping[str, Estimate]]) -> str | None:
    metric = main_metric(task)
    known = [name for name in models if name != MODEL and not np.isnan(models[name][metric].value)]
    return max(known, key=lambda name: models[name][metric].value) if known else None
