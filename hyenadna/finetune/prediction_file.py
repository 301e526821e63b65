"""Predictions as lines of text, TSV or JSON, that are continued where a run was killed."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.files import fsync
from hyenadna.finetune.task import Task

_COMMAND = "command"


class PredictionLines:
    """One line a sequence: id, prediction, and the probability of each class or label.

    A regression has no probabilities; nucleotides have one class each, written in a row, and the mean of the classes'
    probabilities. A label of a multilabel task is predicted above a probability of 0.5; several are joined by ';'.
    """

    def __init__(self, task: Task, *, as_json: bool = False) -> None:
        self.task, self.as_json = task, as_json

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the predictions come from, in one line, and the columns of a TSV."""
        if self.as_json:
            return json.dumps(dict(about), ensure_ascii=False) + "\n"
        text = "; ".join(f"{name} {' '.join(str(value).split())}" for name, value in about.items())
        return f"# {text}\n" + "\t".join(_cell(name) for name in self._columns()) + "\n"

    def line(self, name: str, values: NDArray[np.float64]) -> str:
        """The line of one sequence; values (K,), or (its length, K) for nucleotides."""
        prediction, numbers = self._prediction(values)
        if not self.as_json:
            return "\t".join([_cell(name), _cell(prediction), *numbers.values()]) + "\n"
        row: dict[str, Any] = {"id": name, "prediction": prediction}
        match self.task.kind:
            case "regression":
                row["prediction"] = float(prediction)
            case "nucleotide":
                row |= {name: float(number) for name, number in numbers.items()}
            case _:
                row["probabilities"] = dict(zip(self.task.labels, map(float, numbers.values()), strict=True))
        return json.dumps(row, ensure_ascii=False) + "\n"

    def name(self, line: str) -> str:
        """The id in a line."""
        return str(json.loads(line)["id"]) if self.as_json else line.split("\t", 1)[0]

    def _columns(self) -> list[str]:
        match self.task.kind:
            case "regression":
                return ["id", "prediction"]
            case "nucleotide":
                return ["id", "prediction", "mean_probability"]
        return ["id", "prediction", *(f"probability_{label}" for label in self.task.labels)]

    def _prediction(self, values: NDArray[np.float64]) -> tuple[str, dict[str, str]]:
        labels = self.task.labels
        match self.task.kind:
            case "regression":
                return f"{values[0]:.6g}", {}
            case "nucleotide":
                classes = "".join(labels[best] for best in values.argmax(axis=1))
                return classes, {"mean_probability": f"{values.max(axis=1).mean():.6g}"}
            case "multilabel":
                prediction = ";".join(label for label, value in zip(labels, values, strict=True) if value > 0.5)
            case _:
                prediction = labels[int(values.argmax())]
        return prediction, {label: f"{value:.6g}" for label, value in zip(labels, values, strict=True)}


class PredictionFile:
    """Where predictions go: stdout, or OUT, which grows as OUT.partial and takes its name when it is complete.

    Parameters
    ----------
    path : Path, optional
        OUT. None: stdout.
    lines : PredictionLines
        What is written.
    about : mapping
        Where the predictions come from. What is there is continued if all of it but the command is the same.
    overwrite : bool
        Drop what is there.

    Raises
    ------
    UsageError              OUT exists, or OUT.partial was begun by another job
    """

    def __init__(
        self, path: Path | None, lines: PredictionLines, about: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path, self.lines, self.about, self.written = path, lines, dict(about), 0
        self._file: IO[bytes] | None = None
        self._reading = path is not None
        if path is None:
            _to_stdout(lines.header(self.about))
            return
        if path.exists() and not overwrite:
            raise UsageError(f"-o {path} exists; give another name, or --overwrite to replace it")
        self.partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            with self._closed_on_failure(self._file):
                self._begin(self._file, overwrite)
        except OSError as error:
            raise self._full(error) from error

    @staticmethod
    @contextmanager
    def _closed_on_failure(file: IO[bytes]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            file.close()  # and with it the lock
            raise

    def _begin(self, file: IO[bytes], overwrite: bool) -> None:
        """Take hold of the file, and stand behind its header."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{self.partial} is being written by another process; wait for it to end") from error
        size = 1 if self.lines.as_json else 2
        there = [file.readline() for _ in range(size)]
        if not overwrite and there[-1].endswith(b"\n"):
            self._check_header(b"".join(there).decode(errors="replace"))
            return
        file.seek(0)
        file.truncate()
        file.write(self.lines.header(self.about).encode())
        file.flush()

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # what was buffered did not fit the disk
                raise self._full(error) from error

    def holds(self, ids: Sequence[str]) -> bool:
        """Whether an earlier run wrote the lines of these sequences; lines of some of them are dropped.

        Raises
        ------
        InputError              other sequences stand in their place
        """
        if self._file is None or not self._reading:
            return False
        start = self._file.tell()
        for name in ids:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(start)
                self._file.truncate()
                self._reading = False
                return False
            if (there := self.lines.name(line.decode())) != name:
                raise InputError(
                    f"{self.partial} holds {there!r} in row {self.written + 1}, where the input has {name!r}; "
                    "give another name, or --overwrite to start anew"
                )
            self.written += 1
        return True

    def append(self, ids: Sequence[str], predictions: Sequence[NDArray[np.float64]]) -> None:
        """Write the lines of sequences behind all others.

        Raises
        ------
        WriteError              the disk is full
        InputError              an id that a line of a table cannot hold
        """
        text = "".join(self.lines.line(name, values) for name, values in zip(ids, predictions, strict=True))
        if self._file is None:
            _to_stdout(text)
            return
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise self._full(error) from error

    def finish(self) -> None:
        """Give the file its name.

        Raises
        ------
        InputError              it holds more sequences than the input
        """
        if self.path is None or self._file is None:
            return
        if self._file.read(1):
            raise InputError(
                f"{self.partial} holds more sequences than the input's {self.written:,}; give another name, or "
                "--overwrite to start anew"
            )
        try:
            self._file.close()
            fsync(self.partial)
            os.replace(self.partial, self.path)
            fsync(self.path.parent)
        except OSError as error:
            raise self._full(error) from error

    def _check_header(self, there: str) -> None:
        same = {name: value for name, value in self.about.items() if name != _COMMAND}
        if self.lines.as_json:
            try:
                known = json.loads(there)
            except ValueError:
                known = None
            fits = isinstance(known, dict) and {k: v for k, v in known.items() if k != _COMMAND} == same
        else:
            fits = _without_command(there) == _without_command(self.lines.header(self.about))
        if not fits:
            raise UsageError(
                f"{self.partial} was begun by another job ({' '.join(there.split())[:300]}); run its command to finish "
                "it, give another name, or --overwrite to start anew"
            )

    def _full(self, error: OSError) -> WriteError:
        return WriteError(
            f"{self.partial} could not be written: {error.strerror or error}; what was predicted is kept. Free some "
            "space, then run the same command again to continue"
        )


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"the predictions could not be written to stdout: {error.strerror or error}") from error


def _without_command(header: str) -> tuple[str, str]:
    about, _, columns = header.partition("\n")
    return about.split(f"; {_COMMAND} ")[0], columns


def _cell(text: str) -> str:
    if "\t" in text or "\n" in text or "\r" in text:
        raise InputError(f"{text[:80]!r} holds a tab or the end of a line, which a table cannot hold; take --json")
    return text
