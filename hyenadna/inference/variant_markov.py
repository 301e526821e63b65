"""The log-likelihood ratios of variants by an interpolated Markov model of the genome: what sequence composition says.

A model that has counted the reference base of a variant prefers it for that alone. So the genome is cut into blocks,
which the ranks of a hash assign to two folds by turns, a model is counted on each fold, and a variant is scored by the
model of the other fold than that in which it starts. Of each block the bases at its ends are not counted, a tenth of
them and at most 1,000, so that what a variant changes, or has after it, across a border is not counted either.

Both haplotypes, the scored bases and the strands are those of the language model; the context of their first base is
what stands to the left of it, further than the window if need be. For the models see `hyenadna.inference.markov`. The
 highest order is 10, and less in a small genome: a fold has no fewer bases than contexts. A genome of a single block
leaves the other fold without a count, and so with probabilities of 1/4.
"""

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.errors import InputError, WriteError
from hyenadna.files import atomic_write, cache_folder
from hyenadna.inference.markov import (
    CODE_OF_BYTE,
    DEFAULT_PRIOR_WEIGHT,
    NO_BASE,
    MarkovModels,
    best_prior_weight,
    count_both_strands,
)
from hyenadna.inference.variant_windows import Place, haplotypes
from hyenadna.progress import notice, progress

ORDER = 10
"""The highest order."""
MOST_BASES = 64_000_000
"""Most bases that a fold is counted on, evenly spread; they count on both strands."""

_VERSION = 1
_MOST_BLOCK, _LEAST_BLOCK, _BLOCKS = 1_000_000, 500, 200
_GUARD = 1_000
_VALIDATION_BLOCK = 16
"""One block in so many chooses the prior weight and is not counted."""
_VALIDATION_BASES = 200_000
_TOGETHER = 128


@dataclasses.dataclass(frozen=True)
class VariantMarkov:
    """Two models of one genome, each counted on every second block of it."""

    models: tuple[MarkovModels, MarkovModels]
    """Counted on the blocks of fold 0, and on those of fold 1."""
    block: int
    """Bases of a block."""
    folds: Mapping[str, NDArray[np.int64]]
    """Of each contig, the fold of each of its blocks."""

    def model_for(self, contig: str, position: int) -> MarkovModels:
        """The model that has counted nothing of the block in which a base lies."""
        folds = self.folds[contig]
        return self.models[1 - int(folds[min(position // self.block, len(folds) - 1)])]

    def ratios(self, pairs: Sequence[tuple[Variant, Place]], genome: BaseSource) -> NDArray[np.float64]:
        """The ratio ln p(alternative) - ln p(reference) of each variant at its place, in nats; NaN if none is scored.

        Parameters
        ----------
        pairs : sequence of (Variant, Place)
            As `hyenadna.inference.variant_windows.place` gives them.
        genome : BaseSource
            That of the folds.

        Returns
        -------
        float64 array (n,)
        """
        found = np.full(len(pairs), math.nan)
        for model in self.models:
            ours = [n for n, (variant, _) in enumerate(pairs) if self.model_for(variant.contig, variant.start) is model]
            for first in range(0, len(ours), _TOGETHER):
                numbers = ours[first : first + _TOGETHER]
                found[numbers] = _ratios(model, [pairs[number] for number in numbers], genome)
        return found


def fitted(genome: BaseSource, fingerprint: str | None = None) -> VariantMarkov:
    """The models of a genome: counted, or read from the cache folder. 4 seconds for 60 Mb, at most 8.

    Parameters
    ----------
    genome : BaseSource
    fingerprint : str, optional
        Names the genome in the cache: `Genome.fingerprint`. Without it nothing is kept.
    """
    blocks = _Blocks.of(genome.lengths)
    path = None if fingerprint is None else cache_folder() / "variant-markov" / f"{_key(fingerprint)}.npz"
    models = None if path is None else _stored(path)
    if models is None:
        models = _counted(genome, blocks)
        if path is not None:
            _store(path, models)
    return VariantMarkov(models, blocks.size, blocks.folds)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    size: int
    folds: dict[str, NDArray[np.int64]]
    counted: tuple[list[Interval], list[Interval]]
    """Of each fold the blocks that may be counted, without their ends."""

    @classmethod
    def of(cls, lengths: Mapping[str, int]) -> "_Blocks":
        size = min(_MOST_BLOCK, max(_LEAST_BLOCK, sum(lengths.values()) // _BLOCKS))
        blocks = [
            Interval(contig, start, min(start + size, length))
            for contig, length in lengths.items()
            for start in range(0, length, size)
        ]
        folds = {contig: np.zeros(-(-length // size), dtype=np.int64) for contig, length in lengths.items()}
        # by rank rather than by the hash itself, so that a small genome is shared evenly too
        for rank, block in enumerate(sorted(blocks, key=_hashed)):
            folds[block.contig][block.start // size] = rank % 2
        try:
            used = {interval.contig for interval in kept_contigs(lengths, None).intervals}
        except InputError:  # copies and unplaced pieces alone
            used = set(lengths)
        counted: tuple[list[Interval], list[Interval]] = ([], [])
        guard = min(_GUARD, size // 10)
        for block in blocks:
            if block.contig in used and len(block) > 2 * guard:
                inner = Interval(block.contig, block.start + guard, block.end - guard)
                counted[folds[block.contig][block.start // size]].append(inner)
        return cls(size, folds, (_evenly(counted[0]), _evenly(counted[1])))


def _hashed(block: Interval) -> bytes:
    return hashlib.sha256(f"{block.contig}\t{block.start}".encode()).digest()


def _evenly(blocks: list[Interval]) -> list[Interval]:
    return blocks[:: -(-sum(map(len, blocks)) // MOST_BASES) or 1]


def _counted(genome: BaseSource, blocks: _Blocks) -> tuple[MarkovModels, MarkovModels]:
    bases = [sum(map(len, fold)) for fold in blocks.counted]
    order = min(ORDER, int(math.log(max(1, *bases), 4)))
    with progress("counting Markov models for variants", sum(bases)) as job:

        def letters(intervals: Sequence[Interval]) -> Iterator[NDArray[np.uint8]]:
            for interval in intervals:
                yield _fetched(genome, interval)
                job.advance(len(interval))

        def model(fold: list[Interval]) -> MarkovModels:
            valid = fold[_VALIDATION_BLOCK // 2 :: _VALIDATION_BLOCK] if len(fold) >= _VALIDATION_BLOCK else []
            each = _VALIDATION_BASES // max(1, len(valid))
            counts = count_both_strands(letters([block for block in fold if block not in valid]), order)
            models = MarkovModels(counts)
            short = [Interval(block.contig, block.start, min(block.end, block.start + each)) for block in valid]
            weight = best_prior_weight(models, [_fetched(genome, interval) for interval in short])
            return dataclasses.replace(models, prior_weight=weight or DEFAULT_PRIOR_WEIGHT)

        return model(blocks.counted[0]), model(blocks.counted[1])


def _fetched(genome: BaseSource, interval: Interval) -> NDArray[np.uint8]:
    return np.frombuffer(genome.fetch(interval.contig, interval.start, interval.end).encode(), dtype=np.uint8)


def _ratios(model: MarkovModels, pairs: Sequence[tuple[Variant, Place]], genome: BaseSource) -> NDArray[np.float64]:
    """Of some variants, in one pass over the counts."""
    separator = np.frombuffer(b"N", dtype=np.uint8)  # no context crosses it
    pieces: list[NDArray[np.uint8]] = []
    scored: list[list[slice]] = []
    length = 0
    for variant, at in pairs:
        # behind a change of equal length the contexts are soon the same, and so is what they add
        n = at.scored
        if len(variant.ref) == len(variant.alt):
            n = min(n, len(variant.ref) + model.order)
        both = []
        for letters in haplotypes(variant, at, genome, look_back=model.order):
            first = len(letters) - at.scored
            kept = letters[max(0, first - model.order) : first + n]
            both.append(slice(length + len(kept) - n + (at.offset == 0), length + len(kept)))
            pieces += [kept, separator]
            length += len(kept) + 1
        scored.append(both)
    nats = -math.log(2) * model.bits(np.concatenate(pieces))[-1]
    known = CODE_OF_BYTE[np.concatenate(pieces)] != NO_BASE
    found = np.full(len(pairs), math.nan)
    for number, (reference, alternative) in enumerate(scored):
        both_known = known[reference] & known[alternative]
        if both_known.any():
            found[number] = (nats[alternative] - nats[reference])[both_known].sum()
    return found


def _key(fingerprint: str) -> str:
    settings = f"{_VERSION} {fingerprint} {ORDER} {MOST_BASES} {_MOST_BLOCK} {_LEAST_BLOCK} {_BLOCKS} {_GUARD}"
    return hashlib.sha256(f"{settings} {_VALIDATION_BLOCK} {_VALIDATION_BASES}".encode()).hexdigest()[:32]


def _store(path: Path, models: tuple[MarkovModels, MarkovModels]) -> None:
    arrays: dict[str, Any] = {
        f"{fold}-{k}": counts for fold, model in enumerate(models) for k, counts in enumerate(model.counts)
    }
    weights = np.array([model.prior_weight for model in models])
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, weights=weights, **arrays)
    except WriteError as error:
        notice(f"the Markov models are not kept for the next time: {error}")


def _stored(path: Path) -> tuple[MarkovModels, MarkovModels] | None:
    """What an earlier run has counted; None if there is nothing, or nothing whole."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as file:
        orders = (len(file.files) - 1) // 2
        models = [
            MarkovModels(tuple(file[f"{fold}-{k}"] for k in range(orders)), float(file["weights"][fold]))
            for fold in range(2)
        ]
        return models[0], models[1]
    return None
