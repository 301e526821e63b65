"""Which experts of a model are on where: by the last bases that it read, and by annotation.

A token belongs to the k-mer that ends with it, in reading direction, and to either side of each annotation. As in
`evaluate`, both strands are read in half overlapping windows, and the second half of each is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna import plots
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.data.tokenizer import PAD, encode
from hyenadna.errors import SequenceTooLong, UsageError
from hyenadna.inference.block_sums import SOFT_MASKED, edges_of, inside, is_lower_case
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.inference.windows import Window, WindowPlan
from hyenadna.model.experts import expert_layers, gates_of
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import progress

LONGEST_KMER = 8


class ExpertUsage(NamedTuple):
    """How many tokens of each class switch on each expert."""

    classes: tuple[tuple[str, str], ...]
    """Kind and name of each: ('all', 'all'), then ('k-mer', 'ACG') ..., then ('region', 'exons') and its complement."""
    tokens: NDArray[np.int64]
    """(classes,)"""
    on: NDArray[np.int64]
    """(layers, classes, E): tokens for which the expert is on."""
    without: NDArray[np.int64]
    """(layers, classes): tokens for which none is."""

    def table(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Header, and a row for each layer and each class that has tokens: shares of its tokens."""
        E = self.on.shape[-1]
        names = ("layer", "kind", "class", "tokens", "without_expert", "experts_on")
        rows = [
            (layer + 1, kind, name, int(n), *(np.array([self.without[layer, i], self.on[layer, i].sum()]) / n).tolist(),
             *(self.on[layer, i] / n).tolist())
            for layer in range(len(self.on))
            for i, ((kind, name), n) in enumerate(zip(self.classes, self.tokens, strict=True))
            if n
        ]  # fmt: skip
        return (*names, *(f"expert_{e + 1}" for e in range(E))), rows

    def write(self, path: Path) -> None:
        """The table as TSV.

        Raises
        ------
        WriteError              the disk is full or the folder read-only
        """
        plots.write_tsv(path, *self.table())


def expert_usage(
    model: HyenaDNA,
    pack: Pack,
    intervals: Sequence[Interval],
    *,
    length: int,
    k: int = 3,
    regions: Mapping[str, Sequence[Interval]] | None = None,
    max_bases: int | None = None,
    batch_tokens: int = 1 << 15,
) -> ExpertUsage:
    """Which experts are on after each k-mer, and inside and outside of each annotation and of soft-masked bases.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    pack : Pack
        The genome.
    intervals : Interval, ...
        What to read.
    length : int
        Bases of a window, L.
    k : int
        Of the k-mers, the token itself being the last base; those with other letters than A, C, G, T do not count.
    regions : dict, optional
        Named intervals.
    max_bases : int, optional
        About how many tokens of each strand to count, in evenly spread windows; default all.
    batch_tokens : int
        Tokens of a batch, at least one window.

    Raises
    ------
    UsageError              the model has no experts, or k is not 1 to 8 or does not fit into half a window
    SequenceTooLong         `length` is more than the model takes
    IntervalError           no interval is longer than half a window
    """
    layers, plan = expert_layers(model), WindowPlan(intervals, length, max_bases)
    if not layers:
        raise UsageError("the model has no experts; those pretrained with --feed-forward remoe have")
    if length > model.config.filter_length:
        raise SequenceTooLong(f"windows of {length:,} bases; this model takes up to {model.config.filter_length:,}")
    if not 1 <= k <= min(LONGEST_KMER, plan.context):
        raise UsageError(f"k-mers of {k} were asked for; allowed are 1 to {min(LONGEST_KMER, plan.context)}")
    names = [*(regions or {}), SOFT_MASKED]
    classes = (("all", "all"), *(("k-mer", name) for name in kmers(k)))
    classes += tuple(("region", name) for region in names for name in (region, f"not {region}"))
    edges = [edges_of(found) for found in (regions or {}).values()]
    sums = torch.zeros(len(classes), 1 + len(layers) * (1 + model.config.experts), dtype=torch.int64)
    with torch.inference_mode(), progress("reading gates", len(plan) * length) as job:
        for windows in _batches(plan, batch_tokens):
            letters = [window.letters(pack) for window in windows]
            counted = np.concatenate([np.arange(len(read)) >= plan.context for read in letters])
            gates = _gates(model, letters)[:, torch.from_numpy(counted)] > 0  # (layers, n, E)
            of_token = torch.cat([~gates.any(dim=-1, keepdim=True), gates], dim=-1).transpose(0, 1).flatten(1).long()
            rows = torch.cat([torch.ones(len(of_token), 1, dtype=torch.int64), of_token], dim=1)
            for found in _classes_of(windows, letters, k, edges):
                chosen = found[counted]
                known = torch.from_numpy(chosen >= 0)
                sums.index_add_(0, torch.from_numpy(chosen)[known], rows[known])
            job.advance(len(windows) * length)
    by_layer = sums[:, 1:].view(len(classes), len(layers), -1).transpose(0, 1).numpy()
    return ExpertUsage(classes, sums[:, 0].numpy(), by_layer[..., 1:], by_layer[..., 0])


def kmers(k: int) -> list[str]:
    """All of them in the order of their numbers, A before C before G before T.

    Examples
    --------
    >>> kmers(2)[:5]
    ['AA', 'AC', 'AG', 'AT', 'CA']
    """
    return ["".join("ACGT"[number >> 2 * place & 3] for place in reversed(range(k))) for number in range(4**k)]


def kmer_numbers(letters: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Of each letter (n,) in ASCII, the number of the k-mer that ends with it; -1 where that is not k bases."""
    codes = CODE_OF_BYTE[letters].astype(np.int64)
    numbers, whole = np.zeros(len(codes), dtype=np.int64), np.arange(len(codes)) >= k - 1
    for before in range(min(k, len(codes))):
        earlier = codes[: len(codes) - before]
        numbers[before:] += (earlier & 3) << 2 * before
        whole[before:] &= earlier != NO_BASE
    return np.where(whole, numbers, -1)


def _batches(plan: WindowPlan, batch_tokens: int) -> Iterator[list[Window]]:
    at_once, windows = max(1, batch_tokens // plan.length), list(plan)
    yield from (windows[first : first + at_once] for first in range(0, len(windows), at_once))


def _gates(model: HyenaDNA, letters: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """(layers, tokens of all windows, E), on the CPU."""
    lengths = torch.tensor([len(read) for read in letters])
    there = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.full(there.shape, PAD)
    tokens[there] = torch.from_numpy(encode(np.concatenate(letters), model.config.n_token)).long()
    with gates_of(model) as gates:
        model(tokens.to(model.device))
    return gates.all().cpu()[:, there.flatten()]


def _classes_of(
    windows: Sequence[Window], letters: Sequence[NDArray[np.uint8]], k: int, edges: Sequence[Mapping[str, Any]]
) -> Iterator[NDArray[np.int64]]:
    """Of each base of the windows its class, of one kind of classes after the other; -1 for none."""
    numbers = np.concatenate([kmer_numbers(read, k) for read in letters])
    yield np.zeros(len(numbers), dtype=np.int64)
    yield np.where(numbers < 0, -1, 1 + numbers)
    places = [window.places() for window in windows]
    sides = [inside(edge, windows, places) for edge in edges] + [is_lower_case(np.concatenate(letters))]
    for number, side in enumerate(sides):
        yield np.where(side, 0, 1) + 1 + 4**k + 2 * number
