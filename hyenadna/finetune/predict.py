"""Predictions of an adapted model for sequences of any number and length.

A sequence longer than the model takes is read in overlapping full windows. Its prediction is the mean of theirs (of
probabilities, not of logits) or the largest one; that of each nucleotide is the mean of those of the windows that hold
it.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import SequenceTooLong, UsageError
from hyenadna.finetune.apply import apply
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.inference.line_file import LineFile
from hyenadna.inference.long_windows import LongWindow, long_windows
from hyenadna.inference.ragged import batches
from hyenadna.inference.sequence_chunks import bases_between_writes, chunks

Aggregate = Literal["mean", "max"]
_TOGETHER = 1 << 18
"""Bases, pads included, whose predictions are held in one array."""


class Predictor:
    """Predicts by an adapted model; call it with the tokens of any number of sequences.

    Parameters
    ----------
    model : SequenceModel
        On the device to use.
    stride : int, optional
        Bases between the windows of a longer sequence. Default: half of what the model takes.
    aggregate : {'mean', 'max'}
        How the predictions of windows become one; `max`, for what a single window may show, takes the largest number
        of a regression, the largest probability of each label and that of a binary task's second class.
    reverse_complement : bool
        Predict the mean of both strands.
    batch_tokens : int
        Most tokens of a batch, pads included; changes speed and memory, not the result.

    Raises
    ------
    UsageError              a stride longer than a window, or an aggregate that the task does not have
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        stride: int | None = None,
        aggregate: Aggregate = "mean",
        reverse_complement: bool = False,
        batch_tokens: int = 1 << 13,
    ) -> None:
        self.model, self.aggregate, self.reverse_complement = model, aggregate, reverse_complement
        self.context, self.batch_tokens = model.longest, batch_tokens
        self.stride = max(1, self.context // 2) if stride is None else stride
        long_windows([], self.context, self.stride)
        if aggregate == "max" and model.task.kind in ("multiclass", "nucleotide"):
            raise UsageError(
                f"--aggregate max has no meaning for a {model.task.kind} task, whose probabilities must sum to 1; "
                "take mean"
            )

    def __call__(self, sequences: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
        """The prediction of each sequence, in their order: (K,), or (its length, K) for nucleotides.

        Parameters
        ----------
        sequences : sequence of uint8 arrays
            Tokens, at least one each, of any lengths.

        Raises
        ------
        NotFiniteError          the model gives something that is not a number
        SequenceTooLong         the adapter reads by position, and a sequence has more of them than it was trained on
        """
        lengths = [len(tokens) for tokens in sequences]
        if self.model.adaptation.pool == "positions" and max(lengths, default=0) > self.context:
            raise SequenceTooLong(
                f"a sequence has {max(lengths):,} bases; this adapter has weights for {self.context:,} positions: cut "
                "sequences as those that it was trained on"
            )
        windows = long_windows(lengths, self.context, self.stride)
        by_base = self.model.task.kind == "nucleotide"
        found = [np.zeros((length, self.model.task.outputs)) for length in (lengths if by_base else [1] * len(lengths))]
        counts = [np.zeros((len(values), 1)) for values in found]
        for numbers in batches(np.array([window.end - window.start for window in windows]), _TOGETHER):
            some = [windows[number] for number in numbers]
            for window, predicted in zip(some, self._of(some, sequences), strict=True):
                bases = slice(window.start, window.end) if by_base else slice(None)
                values, count = found[window.row][bases], counts[window.row][bases]
                own = predicted[: window.end - window.start] if by_base else predicted[None]
                values[:] = np.maximum(values, own) if self.aggregate == "max" and count.any() else values + own
                count += 1
        return [self._aggregated(values, count) for values, count in zip(found, counts, strict=True)]

    def _of(self, windows: list[LongWindow], sequences: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        tokens = [sequences[window.row][window.start : window.end] for window in windows]
        return apply(self.model, tokens, batch_tokens=self.batch_tokens, reverse_complement=self.reverse_complement)

    def _aggregated(self, values: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.aggregate == "mean":
            values /= count
        elif self.model.task.kind == "binary":
            values[:, 0] = 1 - values[:, 1]
        return values if self.model.task.kind == "nucleotide" else values[0]


def predict(predictor: Predictor, source: Iterable[tuple[str, str]], file: LineFile[NDArray[np.float64]]) -> int:
    """Predict a stream of (id, sequence) into a file, in order and in flat memory; how many sequences there were.

    Raises
    ------
    InputError              no sequence, an empty one, or a letter that is no nucleotide; other sequences than those
                            which the file already holds
    WriteError              the disk is full; what was predicted is kept
    """
    base = predictor.model.base
    bases = bases_between_writes(base, predictor.batch_tokens)
    return file.fill(predictor, chunks(source, n_token=base.config.n_token, bases=bases), "predicting")
