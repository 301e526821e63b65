"""The table of predictions and the plots of a fine-tuned model's test."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna import plots
from hyenadna.data.tokenizer import IGNORE
from hyenadna.finetune import plots as drawings
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.comparison import MODEL, Comparison, TestRun
from hyenadna.finetune.plots import Curve
from hyenadna.finetune.task import Task
from hyenadna.inference.bootstrap import Estimate

PLOTS = ("confusion.png", "confusion.tsv", "curves.png", "curves.tsv", "scatter.png", "scatter.tsv")
_MOST_RUNS = 20


def write_predictions(task: Task, runs: Sequence[TestRun], path: Path) -> None:
    """Write what each run says of each test row: split, seed, id, label, prediction, probabilities, duplicated.

    Probabilities stand in a column for each class or label, named p_NAME; regression and nucleotide have none.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    probable = task.kind in ("binary", "multiclass", "multilabel")
    header = ["split", "seed", "id", "label", "prediction"]
    header += [f"p_{name}" for name in task.labels] if probable else []
    rows = []
    for run in runs:
        said = list(called(task, run.predictions, run.test.lengths))
        labels = run.test.labels or ("",) * len(run.test)
        for row, (name, label, prediction) in enumerate(zip(run.test.ids, labels, said, strict=True)):
            shares = [f"{share:.6g}" for share in run.predictions[row]] if probable else []
            rows.append([run.split, run.seed, name, label, prediction, *shares, int(run.duplicated[row])])
    plots.write_tsv(path, [*header, "duplicated"], rows)


def called(task: Task, predictions: NDArray[np.float64], lengths: NDArray[np.int64]) -> Iterator[str]:
    """The predictions as labels stand in a file: a name, 'a;b', a number, or a letter a base."""
    for row, length in zip(predictions, lengths, strict=True):
        match task.kind:
            case "regression":
                yield f"{row[0]:.6g}"
            case "multilabel":
                yield ";".join(name for name, share in zip(task.labels, row, strict=True) if share > 0.5)
            case "nucleotide":
                yield "".join(task.labels[number] for number in row[:length].argmax(axis=1))
            case _:
                yield task.labels[int(row.argmax())]


def draw_confusion(task: Task, runs: Sequence[TestRun], path: Path) -> None:
    """Draw how often each class was taken for each, counts of all runs together.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    table = np.zeros((task.outputs, task.outputs), dtype=np.int64)
    for run in runs:
        known = run.targets != IGNORE
        said = np.nan_to_num(run.predictions).argmax(axis=-1)
        np.add.at(table, (run.targets[known], said[known]), 1)
    size = 2.4 + 0.75 * min(task.outputs, 12)
    drawn, ax = plots.figure(size + 0.2, size)
    drawings.confusion(ax, table, task.labels)
    counted = "test bases" if task.kind == "nucleotide" else "test rows"
    title = f"{table.sum():,} {counted}" if len(runs) == 1 else f"{table.sum():,} predictions of {len(runs)} trainings"
    ax.set_title(title, fontsize="medium")
    rows = [[name, *map(int, counts)] for name, counts in zip(task.labels, table, strict=True)]
    plots.save(drawn, path, ["true", *(f"predicted_{name}" for name in task.labels)], rows)


def draw_curves(
    task: Task,
    runs: Sequence[TestRun],
    baselines: Mapping[int, Sequence[Baseline]],
    test: Comparison,
    path: Path,
) -> None:
    """Draw ROC and precision-recall curves: of every run and the best baseline for a binary task, else of each class.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    if task.kind == "binary":
        curves = list(_binary_curves(runs[:_MOST_RUNS], baselines, test))
        positives = float(np.mean([run.targets.mean() for run in runs]))
        title = f"{test.rows:,} test rows; 95 % bootstrap over {test.drawn}"
    else:
        curves, positives = list(_class_curves(task, runs[0])), float("nan")
        title = f"{len(runs[0].test):,} test rows, each class against the others"
    if len(runs) > 1:
        one = f"split {runs[0].split}, seed {runs[0].seed}"
        shown = f"; {min(len(runs), _MOST_RUNS)} of {len(runs)} trainings" if len(runs) > _MOST_RUNS else ", trainings"
        title += shown if task.kind == "binary" else f"; {one}"
    if not curves:
        return
    drawn, panels = plots.side_by_side()
    drawings.roc_and_precision_recall(panels, curves, positives)
    drawn.suptitle(title, fontsize="medium")
    rows: list[list[Any]] = []
    for curve in curves:
        rows += [[curve.name, "roc", x, y] for x, y in zip(curve.false_positive, curve.true_positive, strict=True)]
        rows += [[curve.name, "precision-recall", x, y] for x, y in zip(curve.recall, curve.precision, strict=True)]
    plots.save(drawn, path, ["name", "curve", "x", "y"], rows)


def draw_scatter(task: Task, runs: Sequence[TestRun], test: Comparison, path: Path) -> None:
    """Draw prediction against target of a regression, all runs together.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    targets = np.concatenate([run.targets for run in runs])
    said = np.concatenate([run.predictions[:, 0] for run in runs])
    drawn, ax = plots.figure(5.2, 5.0)
    drawings.target_and_prediction(ax, targets, said, task.labels[0])
    found = test.models[MODEL]
    title = f"{test.rows:,} test rows; Pearson {_short(found['pearson'])}, Spearman {_short(found['spearman'])}"
    ax.set_title(title, fontsize="small")
    names = [(run.split, run.seed, name) for run in runs for name in run.test.ids]
    rows = [[*name, *pair] for name, pair in zip(names, zip(targets, said, strict=True), strict=True)]
    plots.save(drawn, path, ["split", "seed", "id", "target", "prediction"], rows)


def _binary_curves(
    runs: Sequence[TestRun], baselines: Mapping[int, Sequence[Baseline]], test: Comparison
) -> Iterator[Curve]:
    """The best baseline of each split first, so that the model lies on top."""
    legend = {
        name: [f"{name}, {metric.upper()} {_short(test.models[name][metric])}" for metric in ("auroc", "auprc")]
        for name in (test.best, MODEL)
        if name
    }
    drawn: Counter[tuple[str, int]] = Counter()
    for name, colour in ((test.best, 1), (MODEL, 0)):
        for run in runs:
            if name is None or len(np.unique(run.targets)) < 2:
                continue
            said: NDArray[np.float64] | None = run.predictions
            if name != MODEL:
                if drawn[(name, run.split)]:
                    continue
                said = next(one.predictions for one in baselines[run.split] if one.name == name)
            assert said is not None  # the best baseline applies in every split
            full = f"{name}, split {run.split}" + (f", seed {run.seed}" if name == MODEL else "")
            yield _curve(full, run.targets == 1, said[:, 1], colour, *legend.pop(name, ()))
            drawn[(name, run.split)] += 1


def _class_curves(task: Task, run: TestRun) -> Iterator[Curve]:
    """Of the commonest classes or labels that some test rows have and some have not."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    yes = run.targets > 0 if task.kind == "multilabel" else np.eye(task.outputs, dtype=bool)[run.targets]
    counts = yes.sum(axis=0)
    known = [number for number in np.argsort(-counts, kind="stable") if 0 < counts[number] < len(yes)]
    for colour, number in enumerate(known[: drawings.MOST_CURVES]):
        name, said = task.labels[number], run.predictions[:, number]
        areas = roc_auc_score(yes[:, number], said), average_precision_score(yes[:, number], said)
        legend = [
            f"{name} (n = {counts[number]:,}), {metric} {area:.3f}"
            for metric, area in zip(("AUROC", "AUPRC"), areas, strict=True)
        ]
        yield _curve(name, yes[:, number], said, colour, *legend)


def _curve(name: str, truth: NDArray[np.bool_], said: NDArray[np.float64], colour: int, *legend: str) -> Curve:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_positive, true_positive, _ = roc_curve(truth, said)
    precision, recall, _ = precision_recall_curve(truth, said, drop_intermediate=True)
    return Curve(name, false_positive, true_positive, recall, precision, colour, *legend)


def _short(found: Estimate) -> str:
    interval = "" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{interval}"
