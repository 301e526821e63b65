"""Progress of long jobs on stderr: a bar on a terminal, a line every few seconds elsewhere, nothing with --quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_EVERY_S = 15.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notices; errors and results are not affected."""
    global _quiet
    _quiet = quiet


def notice(message: str) -> None:
    """Print one line to stderr."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


class Job:
    """A running job: knows how much is done, how fast it goes and how long it will take.

    The rate is measured over this process alone, so that a resumed job does not count what an earlier one did.
    """

    def __init__(self, description: str, total: float, unit: str, done: float = 0) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self._from, self._start, self._last_line = done, time.monotonic(), time.monotonic()
        self._bar = self._task = None
        if not _quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(description, total=total or None, state="")
            self._bar.update(self._task, completed=done)
            self._bar.start()

    def advance(self, amount: float, detail: str = "") -> None:
        """Count `amount` more units as done, and show `detail` beside the rate."""
        self.done += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, state=self._state(detail))
        elif not _quiet and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            done = f"{self.done / self.total:.0%}" if self.total else f"{quantity(self.done)}{self.unit}"
            notice(f"{self.description}: {done}  {self._state(detail)}")

    @property
    def rate(self) -> float:
        """Units a second since this process began the job."""
        return (self.done - self._from) / max(time.monotonic() - self._start, 1e-9)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _state(self, detail: str) -> str:
        rate = f"{quantity(self.rate)}{self.unit}/s"
        left = f"{duration((self.total - self.done) / self.rate)} left" if self.rate and self.total else ""
        return "  ".join(part for part in (detail, rate, left) if part)


@contextmanager
def progress(description: str, total: float, unit: str = "nt", done: float = 0) -> Iterator[Job]:
    """Show the progress of a job of `total` units (0 if unknown) for as long as the block runs."""
    job = Job(description, total, unit, done)
    try:
        yield job
    finally:
        job.close()


def quantity(value: float) -> str:
    """A number with a metric prefix and a space before the unit that follows: 27500 -> '27.5 k'."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """A time as people say it: 4000 -> '1 h 07 min'."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds / 86400:.1f} days"
