"""Work that the queue has accepted and that is not answered: jobs of units that are all there, and generations."""

import asyncio
import contextlib
from collections import deque
from typing import Any

from hyenadna.inference.generation import Piece
from hyenadna.serve.generation import GenerateJob, units
from hyenadna.serve.units import Kind, Result, Unit


class Entry:
    """A job that was accepted and is not answered.

    Attributes
    ----------
    reserved : int          tokens in the queue that are not units yet
    later : int             tokens of units that follow others, which are not in the queue
    remaining : int         tokens of all units that wait
    left : int              units without a result
    tag, served             its place in the order, see the batcher
    until : float           its deadline, on the clock of the event loop
    since : float           when it was cut into units
    done : asyncio.Event    set when nothing is left, or the batcher has failed
    """

    def __init__(self, reserved: int, tag: float, until: float) -> None:
        self.reserved, self.tag, self.served, self.until = reserved, tag, 0, until
        self.pending: dict[Kind, deque[Unit]] = {}
        self.later = self.remaining = self.left = 0
        self.results: list[tuple[Unit, Result | Exception]] = []
        self.since = 0.0
        self.done = asyncio.Event()

    @property
    def to_do(self) -> int:
        """Tokens that are not computed."""
        return self.reserved + self.later + self.remaining

    def take(self, unit: Unit, result: Any) -> tuple[int, Unit | None]:
        """Keep a unit's result; tokens that the model has read for it, and the unit that follows, if there is one."""
        self.results.append((unit, result))
        self.left -= 1
        if not self.left:
            self.finish()
        return unit.cost, None

    def finish(self) -> None:
        """Wake who waits for it."""
        self.done.set()


class Writing(Entry):
    """A generation that was accepted: its units follow one another, each made when the one before is done.

    Attributes
    ----------
    pieces : list of Piece          all that was written so far
    error : Exception, optional     why there is no more
    is_whole : bool                 whether that is because all is written
    """

    def __init__(self, job: GenerateJob, tag: float, until: float, batch_tokens: int) -> None:
        super().__init__(0, tag, until)
        self.job, self.later, self.left = job, job.cost, 1
        self.pieces: list[Piece] = []
        self.error: Exception | None = None
        self.is_whole = False
        self._units = units(job, batch_tokens)
        self._news = asyncio.Event()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return asyncio.get_running_loop().time() >= self.until

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, or be waited for."""
        return self.done.is_set() or self.is_late

    def next_unit(self) -> Unit:
        """The unit to compute next."""
        unit = next(self._units)
        self.later = max(0, self.later - unit.cost)
        return unit

    def take(self, unit: Unit, result: Any) -> tuple[int, Unit | None]:
        """Keep what was written, and go on unless that was the end of it."""
        read = 0 if unit.number else len(self.job.prompt)
        if isinstance(result, Exception):
            self.error = result
        else:
            self.pieces += result
            read += len(result)
            self.is_whole = self.job.is_over
            self._news.set()
        # it is late before that is noticed, if its client takes nothing
        if self.error is None and not self.is_whole and not self.is_late:
            return read, self.next_unit()
        self.left = 0
        self.finish()
        return read, None

    def finish(self) -> None:
        """Wake who waits for it."""
        super().finish()
        self._news.set()

    async def news(self, seconds: float) -> None:
        """Return when something was written since this was asked last, when it is over, or after so many seconds."""
        await self._until(self._news, seconds)
        self._news.clear()

    async def end(self, seconds: float) -> None:
        """Return when it is over, or after so many seconds."""
        await self._until(self.done, seconds)

    async def _until(self, event: asyncio.Event, seconds: float) -> None:
        end = min(self.until, asyncio.get_running_loop().time() + seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await event.wait()
