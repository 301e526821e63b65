"""Scores of finished batches on the disk, so that the same command goes on where it was stopped.

A folder holds `score.json` (what decides the scores), `score.batches` (a line for each batch, in their order) and
`score.lock`. A line is the CRC-32 of what follows, a blank, and JSON: the CRC-32 of the batch's records, and its values
as they are printed. A line that a kill cut short, or that a disk damaged, ends what counts.

Nothing of the output is kept: it is written anew from the values, which takes no time beside scoring, and so has the
same bytes however often the job was stopped.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.files import lock, write_json

JOB, BATCHES, LOCK = "score.json", "score.batches", "score.lock"
Values = list[list[list[str]]]
"""What is printed of a batch: of each record, of each of its alleles, the texts of HYENA_LLR and so on."""
_FSYNC_EVERY_S = 1.0


@contextmanager
def journal(folder: Path, job: Mapping[str, Any], *, keep_folder: bool, overwrite: bool = False) -> Iterator["Journal"]:
    """The journal of a job in a folder that no other process uses meanwhile; an empty one is removed at the end.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    job : mapping
        What decides the scores: a journal that was begun with the same is gone on with.
    keep_folder : bool
        Whether the folder stays when the journal is removed.
    overwrite : bool
        Drop the journal of another job, or of other records, rather than refuse it.

    Raises
    ------
    UsageError              another process has it, or it was begun by another job
    WriteError              the folder cannot be written
    """
    busy = UsageError(f"{folder} is in use by another process; wait for it, or give each job a --state of its own")
    with lock(folder / LOCK, busy):
        one = None
        try:
            one = Journal(folder, job, overwrite=overwrite)
            yield one
        finally:
            if one is not None:
                one.close()
            nothing_kept = one is not None and (one.done or not (folder / BATCHES).stat().st_size)
            _remove([BATCHES, JOB] if nothing_kept else [], folder, keep_folder)


def check_journal(folder: Path, job: Mapping[str, Any]) -> None:
    """Nothing, if a folder has no journal or that of this job.

    Raises
    ------
    UsageError              a journal was begun by another job
    """
    if not (folder / JOB).exists():
        return
    known = _read(folder / JOB)
    for name in sorted({*known, *job}):
        if known.get(name) != job.get(name):
            raise UsageError(
                f"{folder} holds the scores of a stopped run with {name} {known.get(name)!r}, and this is "
                f"{job.get(name)!r}; run the earlier command to finish it, or --overwrite to start anew"
            )


class Journal:
    """Takes up what an earlier run stored, batch after batch, then stores more."""

    records: int
    """In the batches that were taken up and stored."""
    done: bool
    """Whether the job is complete, so that nothing need be kept."""

    def __init__(self, folder: Path, job: Mapping[str, Any], *, overwrite: bool) -> None:
        self.folder, self.records, self.done = folder, 0, False
        self._overwrite, self._synced = overwrite, time.monotonic()
        goes_on = (folder / JOB).exists() and self._fits(job)
        with self._telling():
            if not goes_on:
                # in this order, so that no old batch is ever taken for one of the new job
                (folder / BATCHES).unlink(missing_ok=True)
                write_json(folder / JOB, dict(job))
            self._file: IO[bytes] = os.fdopen(os.open(folder / BATCHES, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self._reading = True

    def take(self, checksum: int, records: int) -> Values | None:
        """The values of the next batch, if an earlier run stored them; once there are none, there are no more.

        Parameters
        ----------
        checksum : int
            CRC-32 of the batch's records.
        records : int
            How many these are.

        Raises
        ------
        InputError              what was stored is of other records
        """
        if not self._reading:
            return None
        start = self._file.tell()
        stored = _parsed(self._file.readline())
        if stored is None or (self._overwrite and stored[0] != checksum):
            with self._telling():
                self._file.seek(start)
                self._file.truncate()
            self._reading = False
            return None
        if stored[0] != checksum:
            raise InputError(
                f"{self.folder} was begun with another input: records {self.records + 1:,} to "
                f"{self.records + records:,} are not what they were; give the earlier input, or --overwrite to score "
                "these"
            )
        self.records += records
        return stored[1]

    def append(self, checksum: int, values: Values) -> None:
        """Store the values of a batch behind all others.

        Raises
        ------
        WriteError              the disk is full
        """
        text = json.dumps([checksum, values], separators=(",", ":")).encode()
        with self._telling():
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
            self._file.flush()  # a kill of the process loses nothing of it now
            if time.monotonic() - self._synced > _FSYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.records += len(values)

    def close(self) -> None:
        """Let go of the file."""
        with suppress(OSError):  # of a full disk, which is told already
            self._file.close()

    def _fits(self, job: Mapping[str, Any]) -> bool:
        """Whether the folder's journal is of this job; False if it may be dropped."""
        if self._overwrite:
            return _read(self.folder / JOB) == job
        check_journal(self.folder, job)
        return True

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self.folder} could not be written: {error.strerror or error}; the scores of {self.records:,} "
                "records are kept. Free some space, then run the same command again to continue"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    return known if isinstance(known, dict) else {}


def _parsed(line: bytes) -> tuple[int, Values] | None:
    crc, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
        return None
    checksum, values = json.loads(text)
    return checksum, values


def _remove(names: Sequence[str], folder: Path, keep_folder: bool) -> None:
    """Remove these files of ours, then the lock, and a folder that holds nothing else."""
    with suppress(OSError):
        for name in (*names, LOCK):
            (folder / name).unlink(missing_ok=True)
        if not keep_folder:
            folder.rmdir()
