"""metrics.csv of a run: a line a step or an epoch, added as the run goes on."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from hyenadna.errors import WriteError
from hyenadna.files import write_text


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of the file; what is empty is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave half a line
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: float(value) if value else math.nan for name, value in row.items()} for row in rows]


def append_metrics(path: Path, row: Mapping[str, float]) -> None:
    """Add a line; the first one brings the header.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    new = not path.exists()
    try:
        with path.open("a", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({name: _cell(value) for name, value in row.items()})
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}; free some space, then run the same command "
            "again: it continues from what was saved last"
        ) from error


def cut_metrics(path: Path, column: str, last: int) -> None:
    """Drop the lines in which `column`, the step or the epoch, is beyond `last`: they will be computed again."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row[column] <= last]
    if not rows:
        path.unlink()
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"
