"""Embeddings of sequences: a layer's hidden states, pooled over the bases of each sequence or left as they are.

Sequences are batched with others of alike length, right-padded; pads come after what is pooled and are never part of
it, so that an embedding does not depend on its neighbours.

A sequence longer than the model's context is read in overlapping windows, and each of its bases takes its hidden state
from the first window that holds it; pooling then goes over all bases of the sequence, each of them once.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.data.tokenizer import reverse_complement_tokens
from hyenadna.errors import InputError, NotFiniteError, UsageError
from hyenadna.inference.embedding_files import EmbeddingFile
from hyenadna.inference.long_windows import LongWindow, long_windows
from hyenadna.inference.ragged import batches, padded
from hyenadna.inference.sequence_chunks import bases_between_writes, chunks
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import progress

Pool = Literal["mean", "max", "last", "none"]
MOST_BYTES = 4 << 30
"""Of one sequence's embedding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What is taken for the embedding of a sequence."""

    layer: int = -1
    """Block whose output is taken: 0 is the embedding, the last one is taken after the final norm; -1 is the last."""
    pool: Pool = "mean"
    """Over the bases of a sequence: their mean, their largest values, the last base alone; or none: all bases."""
    bins: int | None = None
    """Mean over every so many bases, which gives several rows a sequence. The last bin may be shorter."""
    reverse_complement: bool = False
    """Mean of the embeddings of both strands; bases and bins are those of the forward strand."""
    stride: int | None = None
    """Bases between the windows of a sequence longer than the model's context. Default: half the context."""

    def __post_init__(self) -> None:
        if self.bins is not None and self.bins < 1:
            raise UsageError(f"--bins {self.bins}: it takes a number of bases, at least 1")
        if self.bins is not None and self.pool != "mean":
            raise UsageError(f"--bins {self.bins} takes means; leave out --pool {self.pool}")

    @property
    def ragged(self) -> bool:
        """Whether a sequence has several rows, as many as its length asks for."""
        return self.pool == "none" or self.bins is not None

    def rows(self, length: int) -> int:
        """Rows of a sequence of so many bases."""
        return -(-length // (self.bins or 1)) if self.ragged else 1


class Embedded(NamedTuple):
    """What a job of embedding came to."""

    sequences: int
    """In the file."""
    earlier: int
    """Of these, embedded by an earlier run of the same job."""
    bases: int
    """Embedded by this run."""


class Embedder:
    """Embeds sequences by a model; call it with the tokens of any number of them.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    config : EmbedConfig
        What is taken.
    batch_tokens : int
        Most tokens of a batch, pads included, but at least one window; changes speed and memory, not the result.
    dtype : torch.dtype
        What the model computes in; pooling is in float32 or, for a float64 model, in float64.

    Attributes
    ----------
    context : int           bases that are read at once: two fewer than the filters have taps
    stride : int            bases between the windows of longer sequences

    Raises
    ------
    UsageError              no such layer, or a stride that is longer than the context
    """

    def __init__(
        self,
        model: HyenaDNA,
        config: EmbedConfig | None = None,
        *,
        batch_tokens: int = 1 << 13,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.config, self.batch_tokens, self.dtype = model, config or EmbedConfig(), batch_tokens, dtype
        self.layer = model.block_of(self.config.layer)
        self.context = max(1, model.config.filter_length - 2)
        self.stride = max(1, self.context // 2) if self.config.stride is None else self.config.stride
        self.width = model.config.d_model
        long_windows([], self.context, self.stride)

    def __call__(self, sequences: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """The embedding of each sequence, in their order: (D,), or (rows, D) where there are bins or no pooling.

        Parameters
        ----------
        sequences : sequence of uint8 arrays
            Tokens, at least one each, of any lengths.

        Raises
        ------
        InputError              an embedding of more than 4 GiB
        NotFiniteError          the model gives something that is not a number
        """
        largest = max(map(len, sequences), default=0)
        if 4 * self.config.rows(largest) * self.width > MOST_BYTES:
            raise InputError(
                f"a sequence of {largest:,} bases would give {self.config.rows(largest):,} rows of {self.width} "
                "numbers, over 4 GiB; take larger --bins, or cut it by a BED file"
            )
        found = self._strand(sequences, reverse=False)
        if self.config.reverse_complement:
            other = self._strand([reverse_complement_tokens(tokens) for tokens in sequences], reverse=True)
            found = [np.add(one, two, out=one) for one, two in zip(found, other, strict=True)]
            for values in found:
                values /= 2
        for row, values in enumerate(found):
            if not np.isfinite(values).all():
                raise NotFiniteError(
                    f"the embedding of a sequence of {len(sequences[row]):,} bases is not made of numbers; are the "
                    "weights whole, and is float32 used?"
                )
        return [values.astype(np.float32, copy=False) for values in found]

    @property
    def chunk(self) -> dict[str, int]:
        """Bases and sequences that are embedded between two writes: seconds of work, 64 MB of results."""
        bases = bases_between_writes(self.model, self.batch_tokens)
        rows = max(1, (1 << 24) // self.width)
        return {"bases": min(bases, rows * (self.config.bins or 1)) if self.config.ragged else bases, "rows": rows}

    def _strand(self, sequences: Sequence[NDArray[np.uint8]], *, reverse: bool) -> list[NDArray[np.floating]]:
        lengths = [len(tokens) for tokens in sequences]
        windows = long_windows(lengths, self.context, self.stride)
        pools = (
            _Rows(self.config.bins or 1, lengths, self.width, reverse)
            if self.config.ragged
            else Pooled(self.config.pool, lengths, self.width)
        )
        with torch.inference_mode():
            for numbers in batches(np.array([window.end - window.start for window in windows]), self.batch_tokens):
                batch = [windows[number] for number in numbers]
                tokens, _ = padded([sequences[window.row][window.start : window.end] for window in batch])
                pools.add(batch, self._states(tokens))
        return pools.values()

    def _states(self, tokens: Tensor) -> Tensor:
        device = self.model.device
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype in (torch.bfloat16, torch.float16)):
            states = self.model.hidden_states(tokens.to(device), self.layer)
        return states if states.dtype == torch.float64 else states.float()


def embed(embedder: Embedder, source: Iterable[tuple[str, str]], file: EmbeddingFile) -> Embedded:
    """Embed a stream of (id, sequence) into a file, in order, in memory that does not grow with the stream.

    Raises
    ------
    InputError              no sequence, an empty one, or a letter that is no nucleotide; other sequences than those
                            which the file already holds; the rest is as in `Embedder`
    WriteError              the disk is full; the file says what is kept
    """
    sequences = earlier = bases = 0
    try:
        with progress("embedding", 0) as job:
            for chunk in chunks(source, n_token=embedder.model.config.n_token, **embedder.chunk):
                sequences = chunk.end
                if file.holds(chunk):
                    earlier = chunk.end
                    continue
                file.append(chunk, embedder(chunk.tokens))
                bases += int(chunk.lengths.sum())
                job.advance(int(chunk.lengths.sum()), f"{sequences:,} sequences")
        file.finish(sequences)
    finally:
        file.close()
    return Embedded(sequences, earlier, bases)


class Pooled:
    """One row a sequence, gathered from windows that come in any order."""

    def __init__(self, pool: Pool, lengths: list[int], width: int) -> None:
        self.pool, self.lengths = pool, np.array(lengths)
        # float64, as a sequence may have a million windows
        self.found = np.full((len(lengths), width), -np.inf if pool == "max" else 0.0)

    def add(self, windows: list[LongWindow], states: Tensor) -> None:
        """Count in the bases that each window is the first to hold; states (B, L, D)."""
        rows = [window.row for window in windows]
        first = torch.tensor([window.first - window.start for window in windows], device=states.device)
        last = torch.tensor([window.end - window.start for window in windows], device=states.device)
        position = torch.arange(states.shape[1], device=states.device)
        counts = (position >= first[:, None]) & (position < last[:, None])
        match self.pool:
            case "mean":
                # as a product, which reads the states once and makes no copy of them
                np.add.at(self.found, rows, _numbers((counts.to(states.dtype)[:, None] @ states)[:, 0]))
            case "max":
                np.maximum.at(self.found, rows, _numbers(states.masked_fill(~counts[..., None], -torch.inf).amax(1)))
            case "last":
                ending = [number for number, window in enumerate(windows) if window.end == self.lengths[window.row]]
                self.found[[rows[number] for number in ending]] = _numbers(states[ending, last[ending] - 1])

    def values(self) -> list[NDArray[np.floating]]:
        """The row of each sequence."""
        return list(self.found / self.lengths[:, None] if self.pool == "mean" else self.found)


class _Rows:
    """Means over every so many bases of the forward strand, gathered from windows that come in any order."""

    def __init__(self, bins: int, lengths: list[int], width: int, reverse: bool) -> None:
        self.bins, self.lengths, self.reverse = bins, lengths, reverse
        self.found = [np.zeros((-(-length // bins), width), dtype=np.float32) for length in lengths]

    def add(self, windows: list[LongWindow], states: Tensor) -> None:
        """Count in the bases that each window is the first to hold; states (B, L, D)."""
        for window, of_window in zip(windows, states, strict=True):
            own = _numbers(of_window[window.first - window.start : window.end - window.start])
            start = window.first
            if self.reverse:
                own, start = own[::-1], self.lengths[window.row] - window.end
            number = np.arange(start, start + len(own)) // self.bins
            borders = np.flatnonzero(np.diff(number, prepend=-1))
            self.found[window.row][number[0] : number[-1] + 1] += np.add.reduceat(own, borders, axis=0)

    def values(self) -> list[NDArray[np.floating]]:
        """The rows of each sequence."""
        for length, found in zip(self.lengths, self.found, strict=True):
            ends = np.minimum(np.arange(1, len(found) + 1) * self.bins, length)
            found /= np.diff(ends, prepend=0)[:, None].astype(np.float32)
        return list(self.found)


def _numbers(states: Tensor) -> NDArray[np.floating]:
    values: NDArray[np.floating] = states.cpu().numpy()
    return values
