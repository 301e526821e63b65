"""The model card of an adapter or a fine-tuned model."""

from collections.abc import Mapping
from typing import Any

from hyenadna import __version__
from hyenadna.finetune.comparison import Comparison
from hyenadna.finetune.metrics import main_metric, metric_names
from hyenadna.finetune.report import Report

_KINDS = {
    "binary": "Two classes",
    "multiclass": "Classes",
    "multilabel": "Labels, each present or not",
    "regression": "A number",
    "nucleotide": "A class of every base",
}


def model_card(
    report: Report,
    *,
    method: str,
    base: str,
    data: str,
    rows_sha256: str,
    split_rule: str,
    command: str,
    rows: Mapping[str, int],
    licence: str = "",
) -> str:
    """README.md of the folder of an adapter or a fine-tuned model.

    Parameters
    ----------
    report : Report
    method : str
        How the base was adapted.
    base : str
        The model that was adapted, with the SHA-256 of its weights.
    data, rows_sha256 : str
        Where the labelled sequences come from, and the SHA-256 of the rows that were used.
    split_rule : str
        How train, valid and test were told apart, in words.
    command : str
        The command line that repeats it all.
    rows : mapping
        Number of rows of train, valid and test.
    licence : str
        Of the data, if it is known.
    """
    task = report.task
    counts = ", ".join(f"{part} {number:,}" for part, number in rows.items())
    return f"""# {_title(report)}

{_KINDS[task.kind]}: {", ".join(f"`{name}`" for name in task.labels)}. Fine-tuned with hyenadna {__version__}.

## Base

{base}. Method: {method}.
{_belongs(method)}

## Data

{data}; SHA-256 of the rows `{rows_sha256}`. Rows: {counts}.
Split: {split_rule}.

## How good it is

{report.verdict.text}

{_table(report, "All test rows", report.full)}
{_deduplicated(report)}
In brackets: 95 % bootstrap intervals over {report.full.drawn}, and over splits and seeds where there are several
({len(report.runs)} trainings). The test part was predicted once, after everything was chosen.

## Command

    {command}

## Limits

It knows the kind of sequences that it was trained on: expect worse on other species, lengths, assays and ways of
choosing negatives. Probabilities are not calibrated. It is for research, not for diagnosis.

## Licence

{licence or "The licence of the data is not known to this program; look it up before passing the weights on."}
The adapter carries the licence of whoever trained it, the base its own.
"""


def _belongs(method: str) -> str:
    if method == "full":
        return (
            "All its weights were changed: the model that came of it lies in `model/` beside the adapter, as its base."
        )
    return "The adapter belongs to this model and to those quantised from it; loading it on another one is refused."


def _title(report: Report) -> str:
    task = report.task
    if task.kind == "regression":
        return f"Predicts {task.labels[0]} from DNA"
    names = ", ".join(task.labels[:6]) + (f" and {task.outputs - 6} more" if task.outputs > 6 else "")
    return f"Tells {names} from DNA"


def _table(report: Report, title: str, test: Comparison) -> str:
    names, main = metric_names(report.task), main_metric(report.task)
    lines = [
        f"| {title} ({test.rows:,}) | {' | '.join(names)} | {main}: model - this |",
        "|---" * (len(names) + 2) + "|",
    ]
    for name, found in test.models.items():
        gap: Any = test.differences.get(name, {}).get(main, "")
        lines.append(f"| {name} | {' | '.join(str(found[metric]) for metric in names)} | {gap} |")
    return "\n".join(lines).replace("nan [nan, nan]", "-").replace(" [nan, nan]", "") + "\n"


def _deduplicated(report: Report) -> str:
    if report.deduplicated is None:
        return "Every test row has a copy in train.\n"
    if report.deduplicated is report.full:
        return "No test row has a copy in train.\n"
    return _table(report, "Test rows without a copy in train", report.deduplicated)
