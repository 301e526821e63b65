"""What was generated, against what it should look like.

Held-out sequence of the same lengths is the measure of everything: a model that writes DNA well writes what cannot be
told from it. Each number of the generated sequences therefore stands beside the same number of held-out windows, and of
samples of a Markov model, which know the words of the genome and nothing else.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.splits import read_splits
from hyenadna.errors import InputError
from hyenadna.inference.bootstrap import Bootstrap, Estimate
from hyenadna.inference.generation_reference import Reference
from hyenadna.inference.likelihood import likelihoods
from hyenadna.inference.longest_match import Match, longest_matches
from hyenadna.inference.sequence_statistics import SPECTRA, jensen_shannon, shares, spectra
from hyenadna.model.language_model import HyenaDNA

_YARDSTICKS = 8
"""Held-out samples of the generated sequences' size, whose distances from all held-out k-mers say what chance does."""
_EXPECTED_TIMES, _EXPECTED_BASES = 16, 4_000_000
"""The held-out k-mers are counted in so many times as many windows, or in about so many bases if these are fewer."""


class Written(Protocol):
    """A generated sequence, as `generate` gives it."""

    @property
    def sequence(self) -> str:
        """Its letters."""

    @property
    def nats(self) -> float:
        """Log-likelihood of the bases that were written, under the model itself, after whatever stood before them."""

    @property
    def scored(self) -> int:
        """How many bases that is of."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some sequences, and what can be said of them. Intervals are 95 % of a bootstrap over sequences."""

    name: str
    lengths: tuple[int, ...]
    """Of each sequence, in letters."""
    shares: dict[str, Estimate]
    """GC, repeats and complexity; see `sequence_statistics.shares`."""
    gc: tuple[float, ...]
    """Share of G and C of each sequence."""
    distances: dict[int, float] | None
    """By k: Jensen-Shannon divergence in bits between the k-mer spectra of this sample and of many held-out windows."""
    nats_per_base: Estimate
    """-ln p under the model, renormalised over A, C, G, T; of each sequence alone, from its second base on."""
    nats_of_each: tuple[float, ...]
    """The same of each sequence."""
    matches: tuple[Match, ...] | None
    """Of each sequence, its longest exact match in the training part."""


@dataclasses.dataclass(frozen=True)
class GenerationReport:
    """What `report` measured."""

    generated: Sample
    held_out: Sample | None
    """None without a reference, as all below but `as_written`."""
    markov: Sample | None
    yardstick: dict[int, tuple[float, float]] | None
    """By k: mean and largest distance of held-out samples of the same size from the many held-out windows."""
    as_written: Estimate
    """Nats per base when it was generated, thus behind its prompt and what was written before."""
    reference: dict[str, Any] | None
    """Where the held-out windows and the training part come from."""

    @property
    def beyond_held_out(self) -> tuple[int, ...] | None:
        """Numbers from 0 of the generated sequences whose match in the training part is longer than that of any
        held-out window, so that they may be remembered. Of sequences that are no different from held-out ones there is
        one on average, as the longest of all is as often among the ones as among the others.
        """
        if self.held_out is None or self.held_out.matches is None or self.generated.matches is None:
            return None
        longest = max(match.length for match in self.held_out.matches)
        return tuple(row for row, match in enumerate(self.generated.matches) if match.length > longest)

    def json(self) -> dict[str, Any]:
        """All numbers; NaN where something could not be measured."""
        return dataclasses.asdict(self) | {"beyond_held_out": self.beyond_held_out}


def report(
    sequences: Sequence[Written],
    *,
    model: HyenaDNA,
    reference: Path | None,
    model_folder: Path | None = None,
    seed: int = 0,
    batch_tokens: int = 1 << 13,
    dtype: torch.dtype = torch.float32,
) -> GenerationReport:
    """Measure what was generated.

    Parameters
    ----------
    sequences : sequence of Written
        At least one, of at least one letter each.
    model : HyenaDNA
        That wrote them, in eval mode.
    reference : Path, optional
        A FASTA file or a pack. Without one there is nothing to compare with, and only the generated sequences are
        described.
    model_folder : Path, optional
        Its split.json says what of the reference the model was trained on and what is held out, as for `hyena
        evaluate`; a genome that it does not know is split anew.
    seed : int
        Of the places of held-out windows and of the Markov samples.
    batch_tokens, dtype
        As `likelihoods` takes them.

    Raises
    ------
    InputError              nothing was generated; the reference is no FASTA file, or has no window of these lengths
    """
    letters = [written.sequence for written in sequences]
    if not letters or not all(letters):
        raise InputError(
            f"a report was asked for on {len(letters)} sequences, {letters.count('')} of them empty; it takes at least "
            "one, of at least one letter each"
        )
    counts = np.array([(written.scored, -written.nats) for written in sequences], dtype=np.float64)
    as_written = _ratio(counts[:, 1], counts[:, 0])
    measure = _Measure(model, batch_tokens, dtype)
    if reference is None:
        return GenerationReport(measure.sample("generated", letters), None, None, None, as_written, None)
    genome = reference_of(reference, model_folder, max(map(len, letters)))
    return _compared(letters, genome, measure, as_written, seed)


def reference_of(path: Path, model_folder: Path | None, longest: int) -> Reference:
    """What sequences of up to `longest` bases are compared with; arguments and errors as `report` has them."""
    stored = None if model_folder is None else model_folder / "split.json"
    splits = () if stored is None or not stored.exists() else read_splits(stored)
    return Reference.of(Path(path), splits, longest)


def _compared(
    letters: list[str], genome: Reference, measure: "_Measure", as_written: Estimate, seed: int
) -> GenerationReport:
    random = np.random.default_rng(seed)
    lengths = [len(sequence) for sequence in letters]
    times = max(1, min(_EXPECTED_TIMES, _EXPECTED_BASES // sum(lengths)))
    expected = spectra(genome.windows(lengths * times, random))
    samples = [genome.windows(lengths, random) for _ in range(_YARDSTICKS)]
    by_chance = [_distances(spectra(sample), expected) for sample in samples]
    by_k = {k: [found[k] for found in by_chance] for k in SPECTRA}
    held_out, markov = samples[0], genome.markov_samples(lengths, random)
    matches = longest_matches([*letters, *held_out], genome.pack, genome.train)
    return GenerationReport(
        generated=measure.sample("generated", letters, expected, matches[: len(letters)]),
        held_out=measure.sample("held-out", held_out, expected, matches[len(letters) :]),
        markov=measure.sample("Markov, order 6", markov, expected),
        yardstick={k: (float(np.mean(distances)), max(distances)) for k, distances in by_k.items()},
        as_written=as_written,
        reference={
            "genome": genome.pack.source,
            "sequence_sha256": genome.pack.sequence_sha256,
            "split": genome.split,
            "train_bases": sum(map(len, genome.train)),
            "held_out_bases": sum(map(len, genome.held_out)),
            "seed": seed,
        },
    )


@dataclasses.dataclass(frozen=True)
class _Measure:
    model: HyenaDNA
    batch_tokens: int
    dtype: torch.dtype

    def sample(
        self,
        name: str,
        sequences: list[str],
        expected: dict[int, NDArray[np.int64]] | None = None,
        matches: Sequence[Match] | None = None,
    ) -> Sample:
        found = shares(sequences)
        with np.errstate(invalid="ignore"):
            gc = found[0].part / found[0].whole
        scores = likelihoods(self.model, sequences, batch_tokens=self.batch_tokens, dtype=self.dtype)
        nats, scored = np.array([(-score.nats, score.scored) for score in scores]).T
        return Sample(
            name=name,
            lengths=tuple(map(len, sequences)),
            shares={share.name: _ratio(share.part, share.whole) for share in found},
            gc=tuple(gc.tolist()),
            distances=None if expected is None else _distances(spectra(sequences), expected),
            nats_per_base=_ratio(nats, scored),
            nats_of_each=tuple(n / s if s else math.nan for n, s in zip(nats.tolist(), scored.tolist(), strict=True)),
            matches=None if matches is None else tuple(matches),
        )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Estimate:
    bootstrap = Bootstrap.of(np.stack((whole, part), axis=1))
    return bootstrap.estimate(lambda sums: np.asarray(sums[:, 1] / sums[:, 0], dtype=np.float64))


def _distances(a: dict[int, NDArray[np.int64]], b: dict[int, NDArray[np.int64]]) -> dict[int, float]:
    return {k: jensen_shannon(a[k], b[k]) for k in SPECTRA}
