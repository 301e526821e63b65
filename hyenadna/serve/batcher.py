"""What is computed when: the queue of jobs in front of one model."""

import dataclasses
from typing import Any

from hyenadna.errors import HyenaError
from hyenadna.serve.jobs import Job
from hyenadna.serve.served_model import ServedModel


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


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the batcher holds and has done since its start."""

    jobs: int
    """Accepted and not yet answered."""
    queued_tokens: int
    """Of units that wait, and of those that are computed now."""
    running: int
    """Units that are computed now."""
    batches: int
    """Computed."""
    tokens: int
    """Computed, pads included."""
    failures: int
    """Units of which the model gave no result."""
    seconds: float
    """In which the model was busy."""


class Batcher:
    """Computes jobs of any number of requests in common batches, in one worker thread; for one event loop.

    Parameters
    ----------
    model : ServedModel
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one row.
    queue_tokens : int
        Most tokens of all jobs that were accepted and are not computed.
    wait_ms : float
        How long a batch that is not full waits for more while nothing else is to be done.
    """

    def __init__(self, model: ServedModel, *, batch_tokens: int, queue_tokens: int, wait_ms: float) -> None:
        self.model, self.batch_tokens, self.queue_tokens, self.wait = model, batch_tokens, queue_tokens, wait_ms / 1000

    async def start(self) -> None:
        """Begin to compute."""

    async def submit(self, job: Job, *, deadline: float) -> list[dict[str, Any]]:
        """The items of the job's answer, in the order of its sequences.

        Cancelling the task that awaits this drops what is left of the job.

        Parameters
        ----------
        job : Job
        deadline : float
            Seconds from now.

        Raises
        ------
        QueueFull           there is no room now
        JobTooLarge         there never will be
        DeadlineExceeded    not done in time
        Draining            after `drain` was called
        """
        raise NotImplementedError

    async def drain(self) -> None:
        """Take no new jobs, finish those that were accepted, and end the worker."""

    @property
    def stats(self) -> Stats:
        """What it holds and has done."""
        raise NotImplementedError
