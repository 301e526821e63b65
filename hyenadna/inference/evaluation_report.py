"""An evaluation as text for people, as tables for programs, and as plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyenadna import plots
from hyenadna.files import write_json
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.evaluation import Comparison, ContextBin, Evaluation

FILES = (
    "evaluation.json", "experts.tsv", "models.png", "models.tsv", "context.png", "context.tsv", "annotations.png",
    "annotations.tsv",
)  # fmt: skip
"""What `write` may write."""


class Table(NamedTuple):
    """A header and rows of numbers and names; a cell that could not be measured is None or NaN."""

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


_COMPARED = (
    "bases", "model_bits_per_base", "model_low", "model_high", "interpolated_bits_per_base", "interpolated_low",
    "interpolated_high", "difference", "difference_low", "difference_high",
)  # fmt: skip


def models_table(evaluation: Evaluation) -> Table:
    """The language model and each Markov model on all scored bases."""
    header = ("model", "bits_per_base", "low", "high", "perplexity", "difference", "difference_low", "difference_high")
    nothing = Estimate(0.0, float("nan"), float("nan"))
    models = [("language model", evaluation.model, nothing)]
    models += [(f"Markov {line.name}", line.bits_per_base, line.difference) for line in evaluation.baselines]
    rows = [(name, *_triple(bits), 2**bits.value, *_triple(less), evaluation.bases) for name, bits, less in models]
    return Table((*header, "bases"), rows)


def context_table(evaluation: Evaluation) -> Table:
    """The language model and the interpolated Markov model by bases of context."""
    rows = [(part.start, part.end, *_compared(part.comparison)) for part in evaluation.contexts]
    return Table(("context_start", "context_end", *_COMPARED), rows)


def annotations_table(evaluation: Evaluation) -> Table:
    """The language model and the interpolated Markov model inside and outside of each annotation."""
    rows: list[tuple[Any, ...]] = []
    for annotation in evaluation.annotations:
        rows.append((annotation.name, "inside", *_compared(annotation.inside)))
        rows.append((annotation.name, "outside", *_compared(annotation.outside)))
    return Table(("annotation", "side", *_COMPARED), rows)


def text(evaluation: Evaluation, provenance: Mapping[str, Any]) -> str:
    """All tables, for people to read, after lines that say where the numbers come from."""
    best = evaluation.best_plain.name
    lines = [f"# {name}: {value}" for name, value in provenance.items()]
    lines.append(f"# windows: {evaluation.length:,} bases, half overlapping; the second half of each is scored")
    lines += [
        "",
        f"{'':<22}{'bits/base':>10}{'perplexity':>12}{'model - this':>14}  {'95 % interval':<20}{'bases':>15}",
    ]
    for name, bits, _, _, perplexity, *difference, bases in models_table(evaluation).rows:
        mark = " *" if name == f"Markov {best}" else ""
        gap = (
            f"{'':>14}  {'':<20}"
            if name == "language model"
            else f"{difference[0]:>+14.4f}  {_range(*difference[1:]):<20}"
        )
        lines.append(f"{name + mark:<22}{bits:>10.4f}{perplexity:>12.4f}{gap}{bases:>15,}")
    lines.append(
        f"* best plain order. Both strands; {evaluation.blocks} blocks of 10 kb. Probability that the model gives to "
        f"other tokens than A, C, G, T: {evaluation.mass_elsewhere:.2e}"
    )
    contexts = [(_range_of(part), part.comparison) for part in evaluation.contexts]
    lines += ["", *_compared_lines("by bases of context", contexts)]
    classes = []
    for annotation in evaluation.annotations:
        classes += [(annotation.name, annotation.inside), (f"not {annotation.name}", annotation.outside)]
    if classes:
        lines += ["", *_compared_lines("by annotation", classes)]
    return "\n".join(lines)


def write(evaluation: Evaluation, provenance: Mapping[str, Any], folder: Path) -> None:
    """Write evaluation.json, and each table as TSV beside its plot.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    (folder / "experts.tsv").unlink(missing_ok=True)  # of an earlier evaluation; the command writes a new one itself
    write_json(folder / "evaluation.json", {**provenance, **evaluation.to_json()})
    drawn, ax = plots.figure()
    plain = np.array([_triple(line.bits_per_base) for line in evaluation.baselines[1:]]).T
    interpolated, model = (
        np.array(_triple(bits)) for bits in (evaluation.interpolated.bits_per_base, evaluation.model)
    )
    plots.markov_orders(ax, plain, interpolated, model, evaluation.bases)
    plots.save(drawn, folder / "models.png", *models_table(evaluation))

    table = context_table(evaluation)
    columns = np.array(table.rows, dtype=np.float64).T
    drawn, ax = plots.figure()
    starts, ends = columns[:2].astype(np.int64)
    plots.context_curve(ax, starts, ends, columns[3:6], columns[6:9], int(columns[2].sum()))
    plots.save(drawn, folder / "context.png", *table)

    table = annotations_table(evaluation)
    rows = [row for row in table.rows if row[2]]
    for name in FILES[-2:]:
        (folder / name).unlink(missing_ok=True)  # of an earlier evaluation that had annotations
    if rows:
        drawn, ax = plots.figure(height=1.2 + 0.5 * len(rows))
        names = [name if side == "inside" else f"not {name}" for name, side, *_ in rows]
        differences = np.array([row[9:] for row in rows], dtype=np.float64).T
        plots.annotation_differences(ax, names, differences, [row[2] for row in rows])
        plots.save(drawn, folder / "annotations.png", *table)


def _triple(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _compared(part: Comparison) -> tuple[Any, ...]:
    return (part.bases, *_triple(part.model), *_triple(part.interpolated), *_triple(part.difference))


def _compared_lines(title: str, parts: Sequence[tuple[str, Comparison]]) -> list[str]:
    width = max(22, *(len(name) + 2 for name, _ in parts))
    lines = [f"{title:<{width}}{'model':>10}{'interpolated':>14}{'difference':>12}  {'95 % interval':<20}{'bases':>15}"]
    for name, part in parts:
        if not part.bases:
            lines.append(f"{name:<{width}}{'no base':>10}")
            continue
        interval = _range(part.difference.low, part.difference.high)
        lines.append(
            f"{name:<{width}}{part.model.value:>10.4f}{part.interpolated.value:>14.4f}{part.difference.value:>+12.4f}  "
            f"{interval:<20}{part.bases:>15,}"
        )
    return lines


def _range_of(part: ContextBin) -> str:
    return f"{part.start:,}" if part.end == part.start + 1 else f"{part.start:,}-{part.end - 1:,}"


def _range(low: float, high: float) -> str:
    return f"[{low:+.4f}, {high:+.4f}]" if low == low else "one block only"
