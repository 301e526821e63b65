"""Log-likelihood ratios of haplotype pairs, what they have in common being read once.

A causal model gives both haplotypes of a variant, and all variants of one window, the same up to where they differ. So
the reference of a window is carried along (`HyenaDNA.extend`) to where its variants begin, in steps of W / 32 (32 bases
of 1,024), and behind each step the variants of that step are read, as rows of about W / 4 bases (`State.select` gives
each row its window's state). Of W = 1,024 an SNV takes 288 tokens of its own, and its window about 640 and 288 for the
reference, which is a row of every batch that has one of its alternatives: where two full passes a variant take 2,048.

Windows are read side by side, and rows of different windows in one batch. What a row gives depends on its own window
and on itself, but for rounding, which depends on the shapes of what is computed. So these are always the same: steps
that do not depend on which variants there are, rows of one length for all SNVs, and batches that are filled up. What is
read with a variant then changes its sum by nothing, as far as torch's products and transforms round a row alike
wherever it stands in a batch (they do on CPUs with MKL); at most by 1e-5 nats in float32 and 1e-9 in float64.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.tokenizer import PAD, A
from hyenadna.inference.likelihood import is_base, not_finite
from hyenadna.inference.variant_windows import Place
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.state import State

_LEAST_STEP = 32
_BATCH_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 17}
"""On a CPU 16 rows of SNVs at W = 1,024: 32 take a tenth less where variants are dense, and more where they are not."""


class Reading(NamedTuple):
    """Both haplotypes of a variant on one strand."""

    place: Place
    reference: NDArray[np.uint8]
    """(offset + scored,) or longer: tokens in reading direction. Of all variants of a window the same is best."""
    alternative: NDArray[np.uint8]
    """(offset + scored,): the first `offset` of them the same."""


class _Steps(NamedTuple):
    """How the reference of a window is carried along."""

    window: int
    step: int

    @classmethod
    def of(cls, window: int) -> "_Steps":
        return cls(window, min(window // 4, _LEAST_STEP * max(1, window // (32 * _LEAST_STEP))))

    def number(self, at: Place) -> int:
        """Behind which step a variant is read."""
        return (at.cut + at.offset - self.window // 2) // self.step

    def end(self, number: int, cut: int) -> int:
        """Tokens of the window before that branch: the next one foretells the first base of its first variant."""
        return max(0, self.window // 2 - 1 + number * self.step - cut)

    def row(self, number: int, reading: Reading) -> int:
        """Tokens of a variant's row: as many for all SNVs, and some lengths more for longer alleles."""
        at = reading.place
        behind = at.offset + at.scored - 1 - self.end(number, at.cut)
        usual = self.step + self.window // 4
        longer = -(-max(0, behind - usual) // _LEAST_STEP) * _LEAST_STEP
        return min(usual + longer, self.window - 1 - self.end(number, 0))


class _Window(NamedTuple):
    """The readings of one window, by step and by the length of their rows."""

    cut: int
    last: int
    """The last step that has any."""
    tokens: NDArray[np.uint8]
    """The reference, as far as the last step's variants reach."""
    readings: dict[tuple[int, int], list[int]]
    """From step and row to numbers of readings."""


class _Task(NamedTuple):
    """Some alternatives of one window, read in one batch."""

    window: int
    """In its group."""
    rows: list[NDArray[np.uint8]]
    """(row + 1,) each: the reference first; the last token is foretold and not read."""
    pairs: list[tuple[int, int, int]]
    """Number of a reading, and the rows of its reference and its alternative."""


def ratios(
    model: HyenaDNA,
    readings: Sequence[Reading],
    window: int,
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
) -> NDArray[np.float64]:
    """The ratio ln p(alternative) - ln p(reference) of each reading over its scored bases, nats; float64 (n,).

    A base is scored where both haplotypes have A, C, G or T; the first base of a contig is not. NaN where none is.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    readings : sequence of Reading
        Of windows that this model can read.
    window : int
        W.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.
    batch_tokens : int, optional
        About how many tokens are read at once.

    Raises
    ------
    NotFiniteError          the model gives something that is not a number
    """
    steps = _Steps.of(window)
    batch_tokens = batch_tokens or _BATCH_TOKENS[model.device.type]
    found = np.full(len(readings), np.nan)
    half = dtype in (torch.bfloat16, torch.float16)
    with torch.inference_mode(), torch.autocast(model.device.type, dtype=dtype, enabled=half):
        for group in _groups(_windows(readings, steps), _fitting(batch_tokens, window // 2)):
            for number, nats in _read(model, group, readings, steps, batch_tokens):
                found[number] = nats
    return found


def _windows(readings: Sequence[Reading], steps: _Steps) -> list[_Window]:
    members: dict[Place, list[int]] = defaultdict(list)
    for number, reading in enumerate(readings):
        if reading.place.scored:
            members[reading.place.window].append(number)
    windows = []
    for at, numbers in members.items():
        by_row: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number in numbers:
            step = steps.number(readings[number].place)
            by_row[step, steps.row(step, readings[number])].append(number)
        # before a variant its window holds what the genome holds
        furthest = max(numbers, key=lambda number: readings[number].place.offset)
        tokens = readings[furthest].reference[: readings[furthest].place.offset]
        windows.append(_Window(at.cut, max(by_row)[0], tokens, by_row))
    return windows


def _groups(windows: Iterable[_Window], most: int) -> Iterator[list[_Window]]:
    """Windows that are read side by side: cut alike, and where it can be had with the same last step."""
    group: list[_Window] = []
    for window in sorted(windows, key=lambda window: (window.cut, window.last)):
        if group and (len(group) == most or window.cut != group[0].cut):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _read(
    model: HyenaDNA, group: list[_Window], readings: Sequence[Reading], steps: _Steps, batch_tokens: int
) -> Iterator[tuple[int, float]]:
    """Numbers and ratios of all readings of some windows."""
    cut, last = group[0].cut, max(window.last for window in group)
    reached, state = 0, None
    shared = np.full((_fitting(batch_tokens, steps.window // 2), steps.end(last, cut)), PAD, dtype=np.uint8)
    for own, window in zip(shared, group, strict=False):
        known = window.tokens[: len(own)]
        own[: len(known)] = known
    tokens = torch.from_numpy(shared).to(model.device)
    for step in range(last + 1):
        end = steps.end(step, cut)
        if end > reached:
            # enough for the rows behind the first step; those behind others follow from it
            ahead = steps.step + steps.window // 4 if state is None else 0
            _, state = model.extend(tokens[:, reached:end], state, ahead=ahead)
            reached = end
        for row in sorted({row for window in group for at, row in window.readings if at == step}):
            most = max(2, _fitting(batch_tokens, row))
            tasks = [
                task
                for number, window in enumerate(group)
                for task in _tasks(number, window.readings.get((step, row), []), readings, end, row, most)
            ]
            for batch in _batches(tasks, most):
                yield from _read_batch(model, batch, most, state, readings, end)


def _tasks(
    window: int, numbers: Sequence[int], readings: Sequence[Reading], end: int, row: int, most: int
) -> Iterator[_Task]:
    """The readings of one window behind one step, in batches of up to `most` rows, each with its references."""
    rows: list[NDArray[np.uint8]] = []
    places: dict[bytes, int] = {}
    pairs: list[tuple[int, int, int]] = []
    for number in numbers:
        both = [_row(tokens, end, row) for tokens in (readings[number].reference, readings[number].alternative)]
        new = {tokens.tobytes(): tokens for tokens in both if tokens.tobytes() not in places}
        if rows and len(rows) + len(new) > most:
            yield _Task(window, rows, pairs)
            rows, places, pairs = [], {}, []
            new = {tokens.tobytes(): tokens for tokens in both}
        for key, tokens in new.items():
            places[key] = len(rows)
            rows.append(tokens)
        pairs.append((number, places[both[0].tobytes()], places[both[1].tobytes()]))
    if rows:
        yield _Task(window, rows, pairs)


def _row(tokens: NDArray[np.uint8], end: int, row: int) -> NDArray[np.uint8]:
    """What follows the first `end` tokens, one more than are read, padded."""
    padded = np.full(row + 1, PAD, dtype=np.uint8)
    own = tokens[end : end + row + 1]
    padded[: len(own)] = own
    return padded


def _batches(tasks: Iterable[_Task], most: int) -> Iterator[list[_Task]]:
    """Full tasks by themselves, as rows of one state; the rest together, those of different windows too."""
    batch: list[_Task] = []
    rest = []
    for task in tasks:
        if len(task.rows) > most // 2:
            yield [task]
        else:
            rest.append(task)
    for task in rest:
        if sum(len(other.rows) for other in batch) + len(task.rows) > most:
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def _read_batch(
    model: HyenaDNA, batch: list[_Task], most: int, state: State | None, readings: Sequence[Reading], end: int
) -> Iterator[tuple[int, float]]:
    rows = np.stack([row for task in batch for row in task.rows])
    which = [task.window for task in batch for _ in task.rows]
    missing = most - len(rows)
    rows, which = np.concatenate([rows, rows[:1].repeat(missing, 0)]), which + which[:1] * missing
    prefix = None
    if state is not None:
        prefix = state.select(torch.tensor(which[:1] if len(batch) == 1 else which))
    nats = _nats(model, rows, prefix)
    first = 0
    for task in batch:
        for number, reference, alternative in task.pairs:
            reading = readings[number]
            first_scored = max(reading.place.offset, end + 1)
            both = reading.reference[: len(reading.alternative)], reading.alternative
            here = np.flatnonzero(np.logical_and(*(is_base(tokens[first_scored:]) for tokens in both)))
            here += first_scored - end - 1
            if len(here):
                difference = nats[first + alternative, here] - nats[first + reference, here]
                total = float(difference.sum())
                if not np.isfinite(total):
                    raise not_finite(len(reading.alternative))
                yield number, total
        first += len(task.rows)


def _nats(model: HyenaDNA, rows: NDArray[np.uint8], prefix: State | None) -> NDArray[np.float64]:
    """Of rows (B, n + 1), ln p of every token but the first, among A, C, G, T: (B, n)."""
    tokens = torch.from_numpy(rows).to(model.device).long()
    logits = model(tokens[:, :-1], prefix=prefix).logits[..., A : A + 4].double()
    code = (tokens[:, 1:] - A).clamp(0, 3)
    values: NDArray[np.float64] = logits.log_softmax(dim=-1).gather(-1, code[..., None])[..., 0].cpu().numpy()
    return values


def _fitting(batch_tokens: int, length: int) -> int:
    """How many rows of so many tokens are read at once: a power of two."""
    return 1 << (max(1, batch_tokens // length).bit_length() - 1)
