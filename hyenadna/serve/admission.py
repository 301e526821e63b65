"""What is let into the queue, and what is told to come back."""

import asyncio
from collections.abc import Iterable

from hyenadna.errors import HyenaError
from hyenadna.serve.entries import Entry

_OF_NEW, _OF_ACCEPTED = 0.4, 0.7
"""Of the time that a job has besides its own work, what others that are there may take when it comes, and what they may
take still when another one comes. The rest is for small ones, which are always let in. Without these bounds, load that
lasts is answered by work that is dropped half done."""


class QueueFull(HyenaError):
    """The queue has no room for the job now; it will after `retry_after` seconds, at the rate measured last."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobTooLarge(HyenaError):
    """The job has more tokens than the whole queue may hold."""


class DeadlineExceeded(HyenaError):
    """The job was not done in time; what was left of it is dropped."""


class Draining(HyenaError):
    """The server takes no new jobs, because it is ending."""


def check_time(entries: Iterable[Entry], tokens: int, deadline: float, *, rate: float, small: int) -> None:
    """Whether a new job, and those that were accepted, can be done in time with it.

    Parameters
    ----------
    entries : iterable of Entry
        What was accepted.
    tokens : int
        Of the new job.
    deadline : float
        Seconds that it has.
    rate : float
        Seconds that a token takes; 0 while nothing is known.
    small : int
        Tokens up to which a job is no burden to those that were accepted.

    Raises
    ------
    QueueFull               it cannot, for so many seconds about
    """
    if (seconds := _too_late(entries, tokens, deadline, rate, small)) > 0:
        raise QueueFull(
            "so much work waits already that the request, or one before it, could not be done in time", seconds
        )


def _too_late(entries: Iterable[Entry], tokens: int, deadline: float, rate: float, small: int) -> float:
    """Seconds of work too many for a new job; not above 0 if it can be let in.

    Until a job is done, of each longer one as much is computed as of it, and the shorter ones are as a whole.
    """
    left = sorted((entry.to_do, entry.until) for entry in entries)
    now, before = asyncio.get_running_loop().time(), 0
    wait = rate * sum(min(own, tokens) for own, _ in left)
    worst = wait - _OF_NEW * max(0.0, deadline - rate * tokens)
    if tokens <= small:
        return worst
    for place, (own, until) in enumerate(left):
        others = rate * (before + own * (len(left) - place - 1))
        spare = until - now - rate * own
        if others <= spare:  # one that will be late anyway is no reason to refuse others
            worst = max(worst, others + rate * min(own, tokens) - _OF_ACCEPTED * spare)
        before += own
    return worst
