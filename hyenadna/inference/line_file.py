"""Results as lines of text, a table or JSON, that are continued where a run was killed."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.files import fsync
from hyenadna.progress import progress

if TYPE_CHECKING:
    from hyenadna.inference.sequence_chunks import Chunk

Values = TypeVar("Values")
_Written = TypeVar("_Written", contravariant=True)
_COMMAND = "command"


class Lines(Protocol[_Written]):
    """What the lines of a file look like: one for each thing that has a name and values."""

    @property
    def as_json(self) -> bool:
        """Whether each line is JSON, the header a single one; a table's header has two lines."""

    def header(self, about: Mapping[str, Any]) -> str:
        """Where the results come from, and what a table's columns are."""

    def line(self, name: str, values: _Written) -> str:
        """The line of one thing, with its end."""

    def name(self, line: str) -> str:
        """The name in a line."""


class LineFile(Generic[Values]):
    """Where results go: stdout, or OUT, which grows as OUT.partial and takes its name when it is complete.

    Parameters
    ----------
    path : Path, optional
        OUT. None: stdout.
    lines : Lines
        What is written.
    about : mapping
        Where the results come from. What is there is continued if all of it but the command is the same.
    overwrite : bool
        Drop what is there.
    resume : bool
        Continue what the same job left behind; without it, as for an input that cannot be told from another, the job is
        begun anew.

    Raises
    ------
    UsageError              OUT exists, or OUT.partial was begun by another job
    """

    def __init__(
        self,
        path: Path | None,
        lines: Lines[Values],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
        resume: bool = True,
    ) -> None:
        self.path, self.lines, self.about, self.written = path, lines, dict(about), 0
        self._file: BufferedRandom | None = None
        self._reading = path is not None
        self._header = lines.header(self.about)
        """Written with the first lines, so that nothing is where the input is refused."""
        if path is None:
            return
        if path.exists() and not overwrite:
            raise UsageError(f"-o {path} exists; give another name, or --overwrite to replace it")
        self.partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            with self._closed_on_failure(self._file):
                self._begin(self._file, overwrite, resume)
        except OSError as error:
            raise self._full(error) from error

    @staticmethod
    @contextmanager
    def _closed_on_failure(file: BufferedRandom) -> Iterator[None]:
        try:
            yield
        except BaseException:
            file.close()  # and with it the lock
            raise

    def _begin(self, file: BufferedRandom, overwrite: bool, resume: bool) -> None:
        """Take hold of the file, and stand behind its header if it holds results to continue."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{self.partial} is being written by another process; wait for it to end") from error
        size = 1 if self.lines.as_json else 2
        there = [file.readline() for _ in range(size)]
        if not overwrite and there[-1].endswith(b"\n") and file.peek(1):
            self._check_header(b"".join(there).decode(errors="replace"))
            if resume:
                self._header = ""
                return
        file.seek(0)
        file.truncate()

    def __enter__(self) -> "LineFile[Values]":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None or self._file.closed:
            return
        try:
            if self._header:
                self.partial.unlink()
            self._file.close()
        except OSError as error:  # what was buffered did not fit the disk
            raise self._full(error) from error

    def fill(
        self,
        read: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Values]],
        chunks: "Iterable[Chunk]",
        description: str,
    ) -> int:
        """Write a line for each sequence, in order, and give the file its name; how many sequences there were.

        Parameters
        ----------
        read : callable
            From the tokens of some sequences to the values of each; not asked of what an earlier run wrote.
        chunks : iterable of Chunk
            All sequences.
        description : str
            What is shown beside the progress.

        Raises
        ------
        InputError              other sequences than those which the file already holds
        WriteError              the disk is full; what was written is kept
        """
        sequences = 0
        with self, progress(description, 0) as job:
            for chunk in chunks:
                sequences = chunk.end
                if not self.holds(chunk.ids):
                    self.append(chunk.ids, read(chunk.tokens))
                    job.advance(int(chunk.lengths.sum()), f"{sequences:,} sequences")
            self.finish()
        return sequences

    def holds(self, ids: Sequence[str]) -> bool:
        """Whether an earlier run wrote the lines of these names; lines of some of them are dropped.

        Raises
        ------
        InputError              other names stand in their place
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

    def append(self, ids: Sequence[str], values: Sequence[Values]) -> None:
        """Write lines behind all others.

        Raises
        ------
        WriteError              the disk is full
        InputError              a name that a line of a table cannot hold
        """
        rows = (self.lines.line(name, own) for name, own in zip(ids, values, strict=True))
        text = "".join((self._header, *rows))
        if self._file is None:
            _to_stdout(text)
        else:
            try:
                self._file.write(text.encode())
                self._file.flush()
            except OSError as error:
                raise self._full(error) from error
        self._header = ""

    def finish(self) -> None:
        """Give the file its name.

        Raises
        ------
        InputError              it holds more lines than the input gives
        """
        if self._header:
            self.append([], [])
        if self.path is None or self._file is None:
            return
        if self._file.read(1):
            raise InputError(
                f"{self.partial} holds more than the {self.written:,} rows that the input gives; give another name, or "
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
            f"{self.partial} could not be written: {error.strerror or error}; what was written is kept. Once there is "
            "room and the folder can be written, the same command continues"
        )


def table_header(about: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The two lines above a table: where its numbers come from, and the names of its columns."""
    return f"# {described(about)}\n" + "\t".join(cell(name) for name in columns) + "\n"


def described(about: Mapping[str, Any]) -> str:
    """Where numbers come from, in one line.

    Examples
    --------
    >>> described({"model": "tiny", "command": "hyena likelihood a.fa"})
    'model tiny; command hyena likelihood a.fa'
    """
    return "; ".join(f"{name} {' '.join(str(value).split())}" for name, value in about.items())


def json_line(row: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


def cell(text: str) -> str:
    """The text itself.

    Raises
    ------
    InputError              it cannot stand in a cell of a table
    """
    if "\t" in text or "\n" in text or "\r" in text:
        raise InputError(f"{text[:80]!r} holds a tab or the end of a line, which a table cannot hold; take --json")
    return text


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"the results could not be written to stdout: {error.strerror or error}") from error


def _without_command(header: str) -> tuple[str, str]:
    about, _, columns = header.partition("\n")
    return about.split(f"; {_COMMAND} ")[0], columns
