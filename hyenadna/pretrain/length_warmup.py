"""Sequence-length warm-up: short windows first, doubling from stage to stage (Nguyen et al. 2023, section 3.2)."""

import dataclasses

from hyenadna.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps that train on windows of one length."""

    length: int
    """Bases of a window, L."""
    first_step: int
    steps: int
    windows: int
    """Windows of an optimizer step, over all devices and micro-batches."""


@dataclasses.dataclass(frozen=True)
class LengthWarmup:
    """The stages of a run, in order; together they cover its steps."""

    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.stages[-1].first_step + self.stages[-1].steps

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on."""
        return sum(stage.steps * stage.windows * stage.length for stage in self.stages)

    def at(self, step: int) -> Stage:
        """The stage of a step; steps beyond the end belong to the last one."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)


def doubled_lengths(warmup_from: int, max_length: int) -> tuple[int, ...]:
    """Lengths from `warmup_from`, doubling below `max_length`, then `max_length` itself.

    Examples
    --------
    >>> doubled_lengths(64, 1000)
    (64, 128, 256, 512, 1000)
    """
    lengths = []
    length = warmup_from
    while length < max_length:
        lengths.append(length)
        length *= 2
    return (*lengths, max_length)


def length_warmup(
    *,
    warmup_from: int,
    max_length: int,
    steps: int,
    batch_tokens: int,
    micro_batches: int,
    share: float | None = None,
    stage_steps: int | None = None,
) -> LengthWarmup:
    """The stages of a run.

    Parameters
    ----------
    warmup_from, max_length : int
        First and last length, in bases.
    steps : int
        Optimizer steps of the whole run.
    batch_tokens : int
        Tokens of a step; a stage has batch_tokens // length windows a step, rounded down to a multiple of
        `micro_batches`.
    micro_batches : int
        Devices times micro-batches accumulated on each.
    share, stage_steps : float, int
        Steps before the last stage: their share of the run in equal stages, or the steps of each. Give one.

    Raises
    ------
    UsageError              a stage would get no window, or the run ends before its last stage
    """
    lengths = doubled_lengths(warmup_from, max_length)
    each = stage_steps if stage_steps is not None else (share or 0.0) * steps / max(1, len(lengths) - 1)
    starts = [round(each * index) for index in range(len(lengths))]
    if each == 0:
        lengths, starts = lengths[-1:], [0]
    ends = [*starts[1:], steps]
    stages = []
    for length, start, end in zip(lengths, starts, ends, strict=True):
        windows = batch_tokens // length // micro_batches * micro_batches
        if windows == 0:
            raise UsageError(
                f"a step of {batch_tokens:,} tokens has no window of {length:,} bases for each of {micro_batches} "
                f"micro-batches; --batch-tokens must be at least {length * micro_batches:,}"
            )
        if end > start:  # a short run passes over stages that would get less than half a step
            stages.append(Stage(length, start, end - start, windows))
    if stages[-1].length < max_length or sum(stage.steps for stage in stages) != steps:
        raise UsageError(
            f"{steps:,} steps end before the length warm-up does, at step {starts[-1]:,}; "
            "ask for more steps, fewer steps a stage, or a later start of the length warm-up"
        )
    return LengthWarmup(tuple(stages))
