"""What a fine-tuned model says of sequences, in batches of alike lengths, in the order in which they were given."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.tokenizer import reverse_complement_tokens
from hyenadna.errors import NotFiniteError
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.inference.ragged import batches, padded


def apply(
    model: SequenceModel, sequences: Sequence[NDArray[np.uint8]], *, batch_tokens: int, reverse_complement: bool
) -> NDArray[np.float64]:
    """Predictions of sequences, without gradients; the model is left in the mode in which it was.

    Parameters
    ----------
    model : SequenceModel
        On any device; computes there.
    sequences : sequence of uint8 arrays
        Tokens, at least one each, in any order of lengths.
    batch_tokens : int
        Most tokens of a batch, pads included.
    reverse_complement : bool
        Give the mean of the predictions of both strands; those of single nucleotides are turned round to meet.

    Returns
    -------
    float64 array (n, K), as `Task.predictions` gives them; for nucleotide (n, longest, K), NaN behind each sequence.

    Raises
    ------
    SequenceTooLong         a sequence does not fit the model's context
    NotFiniteError          the model gives something that is not a number
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    by_base = model.task.kind == "nucleotide"
    shape = (len(sequences), int(lengths.max(initial=0)), model.task.outputs)
    found = np.full(shape if by_base else shape[::2], np.nan)
    was_training = model.training
    model.eval()
    try:
        for rows in batches(lengths, batch_tokens):
            predicted = _predict(model, [sequences[row] for row in rows])
            if reverse_complement:
                other = _predict(model, [reverse_complement_tokens(sequences[row]) for row in rows])
                predicted = [
                    (one + (two[::-1] if by_base else two)) / 2 for one, two in zip(predicted, other, strict=True)
                ]
            for row, values in zip(rows, predicted, strict=True):
                if not np.isfinite(values).all():
                    raise NotFiniteError(f"the model's prediction of sequence {row + 1} is not a number")
                if by_base:
                    found[row, : len(values)] = values
                else:
                    found[row] = values
    finally:
        model.train(was_training)
    return found


@torch.inference_mode()
def _predict(model: SequenceModel, sequences: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
    """Of each sequence (K,), or for nucleotide (its length, K)."""
    tokens, lengths = padded(sequences)
    device = next(model.parameters()).device
    predicted = model.task.predictions(model(tokens.to(device), lengths.to(device))).cpu().numpy()
    if model.task.kind == "nucleotide":
        return [values[:length] for values, length in zip(predicted, lengths.tolist(), strict=True)]
    return list(predicted)
