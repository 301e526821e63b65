"""Scores of variants: what a model finds of the alternative haplotype, against the reference haplotype.

    llr = ln p(alternative haplotype) - ln p(reference haplotype), nats

over the scored bases of both (`hyenadna.inference.variant_windows` says which): positive where the model finds the
alternative likelier. Probabilities are renormalised over A, C, G, T, and a base is scored where both haplotypes have
one of these. Of two strands the mean is taken; where one of them has nothing to score, at a contig's end, the other
alone.

Alleles are trimmed and left-normalised first, so that all spellings of one change score alike. A score depends on
assembly, variant, W, strand and model alone: `hyenadna.inference.variant_readings` says to which rounding.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant, normalized, trimmed
from hyenadna.data.alphabet import BASES
from hyenadna.data.intervals import check_contig
from hyenadna.data.reference_check import reference_verdict
from hyenadna.data.tokenizer import encode
from hyenadna.errors import IntervalError
from hyenadna.inference.likelihood import Strand, context_of, is_base
from hyenadna.inference.trinucleotides import Background, trinucleotide_change
from hyenadna.inference.variant_markov import VariantMarkov
from hyenadna.inference.variant_readings import Reading, ratios
from hyenadna.inference.variant_windows import (
    Place,
    Sign,
    check_window,
    haplotypes,
    longest_allele,
    place,
    window_letters,
)
from hyenadna.model.language_model import HyenaDNA

Flag = Literal["REF_MISMATCH", "NEAR_EDGE", "HAS_N", "INDEL", "TOO_LONG", "SKIPPED"]

_SIGNS: dict[Strand, tuple[Sign, ...]] = {"forward": ("+",), "reverse": ("-",), "both": ("+", "-")}
_NOT_SCORED: set[Flag] = {"REF_MISMATCH", "TOO_LONG", "SKIPPED"}
_SATURATED = 4096
"""Positions whose substitutions are scored together, about."""


class VariantScore(NamedTuple):
    """What is said of one variant; NaN is what is not known or not asked for."""

    llr: float
    """ln p(alternative haplotype) - ln p(reference haplotype), nats; of both strands the mean."""
    markov: float
    """The same by the Markov model."""
    percentile: float
    """Of the LLR among those of other SNVs of the same trinucleotide change, 0 to 100; NaN if it is no SNV."""
    flags: tuple[Flag, ...]
    """Any of these, in this order:

    REF_MISMATCH: `ref` is not what the genome holds, or leaves its contig; not scored.
    NEAR_EDGE: the contig's end took context, or some of the bases after the variant, on a strand that is read.
    HAS_N: a haplotype holds a letter other than A, C, G, T in its window, up to the last scored base; or the genome
        has one where `ref` has a base, which is then taken at its word.
    INDEL: the normalised alleles differ in length.
    TOO_LONG: one of them is longer than W / 4; not scored.
    SKIPPED: not scored, as the alleles are equal or hold other letters than A, C, G, T, or there is no such contig.
    """


class VariantScorer:
    """Scores variants by one model on one genome.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    genome : BaseSource
        Upper case.
    window : int
        W: a multiple of 4, at least 8, at most the model's context.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read; of both, the mean.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.
    batch_tokens : int, optional
        About how many tokens are read at once; changes speed and memory, and scores by rounding alone (1e-5 nats).
    markov : VariantMarkov, optional
        For `VariantScore.markov`.
    background : Background, optional
        For `VariantScore.percentile`; may be set later.

    Raises
    ------
    UsageError              a window that is not allowed
    """

    def __init__(
        self,
        model: HyenaDNA,
        genome: BaseSource,
        *,
        window: int = 1024,
        strand: Strand = "both",
        dtype: torch.dtype = torch.float32,
        batch_tokens: int | None = None,
        markov: VariantMarkov | None = None,
        background: Background | None = None,
    ) -> None:
        check_window(window, context_of(model))
        self.model, self.genome, self.window, self.strand, self.dtype = model, genome, window, strand, dtype
        self.batch_tokens, self.markov, self.background = batch_tokens, markov, background

    def score(self, variants: Sequence[Variant]) -> list[VariantScore]:
        """The score of each variant, in their order; one that is there twice is read once.

        Raises
        ------
        NotFiniteError          the model gives something that is not a number
        """
        checked = [self._checked(variant) for variant in variants]
        read = list(dict.fromkeys(change for change, flags in checked if not _NOT_SCORED & set(flags)))
        found = dict(zip(read, self._read(read), strict=True))
        scores = []
        for change, flags in checked:
            nothing: tuple[float, float, tuple[Flag, ...]] = (math.nan, math.nan, ())
            llr, markov, more = nothing if _NOT_SCORED & set(flags) else found[change]
            in_order = tuple(flag for flag in get_args(Flag) if flag in (*flags, *more))
            scores.append(VariantScore(llr, markov, self._percentile(change, llr), in_order))
        return scores

    def saturation(self, contig: str, start: int, end: int) -> NDArray[np.float64]:
        """The LLR of every substitution of a region, (end - start, 4): the numbers that `score` gives.

        For A, C, G, T on the forward strand; 0 for the reference's own base, NaN where that is not A, C, G or T.

        Raises
        ------
        IntervalError           there is no such contig, or the region is empty or not within it
        NotFiniteError          the model gives something that is not a number
        """
        check_contig(contig, self.genome.lengths)
        if not 0 <= start < end <= self.genome.lengths[contig]:
            raise IntervalError(
                f"the region {contig}:{start:,}-{end:,} (0-based, half-open) is empty or leaves its contig, which has "
                f"{self.genome.lengths[contig]:,} bases"
            )
        found = np.full((end - start, 4), math.nan)
        # cut where the windows change, so that none is read twice
        quarter = self.window // 4
        size = quarter * max(1, _SATURATED // quarter)
        for first in range(start // size * size, end, size):
            begin = max(start, first)
            letters = self.genome.fetch(contig, begin, min(end, first + size))
            own = [(begin + i, letter) for i, letter in enumerate(letters) if letter in BASES]
            variants = [Variant(contig, at, letter, base) for at, letter in own for base in BASES if base != letter]
            for at, letter in own:
                found[at - start, BASES.index(letter)] = 0.0
            for variant, score in zip(variants, self.score(variants), strict=True):
                found[variant.start - start, BASES.index(variant.alt)] = score.llr
        return found

    def _checked(self, variant: Variant) -> tuple[Variant, tuple[Flag, ...]]:
        """A variant as it is scored, and what is said of it before it is read."""
        if variant.contig not in self.genome.lengths:
            return variant, ("SKIPPED",)
        if reference_verdict(variant, self.genome) in ("mismatch", "outside"):
            return variant, ("REF_MISMATCH",)
        change = trimmed(variant)
        if change.ref == change.alt or set(change.ref + change.alt) - set(BASES):
            return change, ("SKIPPED",)
        # an N of the genome contradicts no base, which is then taken at its word
        end = variant.start + len(variant.ref)
        held = self.genome.fetch(variant.contig, variant.start, end) == variant.ref
        flags: list[Flag] = [] if held else ["HAS_N"]
        if len(change.ref) != len(change.alt):
            flags.append("INDEL")
        if max(len(change.ref), len(change.alt)) > longest_allele(self.window):
            return change, (*flags, "TOO_LONG")
        # where the genome holds something else there is nothing along which it could be moved
        return normalized(change, self.genome) if held else change, tuple(flags)

    def _read(self, changes: Sequence[Variant]) -> list[tuple[float, float, tuple[Flag, ...]]]:
        """LLR, that of the Markov model, and flags of normalised variants."""
        windows: dict[Place, NDArray[np.uint8]] = {}
        readings, owners, flags = [], [], [set[Flag]() for _ in changes]
        for number, change in enumerate(changes):
            for sign in _SIGNS[self.strand]:
                at = place(change, sign, self.window, self.genome.lengths[change.contig])
                reading, only_bases = self._reading(change, at, windows)
                flags[number] |= {"NEAR_EDGE"} if at.near_edge else set()
                flags[number] |= set() if only_bases else {"HAS_N"}
                readings.append(reading)
                owners.append(number)
        places = [(changes[number], reading.place) for number, reading in zip(owners, readings, strict=True)]
        llr = ratios(self.model, readings, self.window, dtype=self.dtype, batch_tokens=self.batch_tokens)
        markov = self.markov.ratios(places, self.genome) if self.markov is not None else np.full(len(llr), math.nan)
        # a strand that has nothing to score at a contig's end leaves the other alone
        both = (_means(values, np.array(owners, dtype=np.int64), len(changes)) for values in (llr, markov))
        return list(zip(*both, map(tuple, flags), strict=True))

    def _reading(self, change: Variant, at: Place, windows: dict[Place, NDArray[np.uint8]]) -> tuple[Reading, bool]:
        """The haplotypes of one strand as tokens, and whether they hold A, C, G, T alone."""
        n_token = self.model.config.n_token
        reference, alternative = haplotypes(change, at, self.genome)
        key = at.window
        if key not in windows:
            windows[key] = encode(window_letters(at, self.window, self.genome), n_token)
        tokens, other = encode(reference, n_token), encode(alternative, n_token)
        only_bases = bool(is_base(tokens).all() and is_base(other).all())
        shared = windows[key]
        return Reading(at, shared if np.array_equal(shared[: len(tokens)], tokens) else tokens, other), only_bases

    def _percentile(self, change: Variant, llr: float) -> float:
        if self.background is None or math.isnan(llr):
            return math.nan
        kind = trinucleotide_change(change, self.genome)
        return math.nan if kind is None else self.background.percentile(kind, llr)


def _means(values: NDArray[np.float64], owners: NDArray[np.int64], n: int) -> list[float]:
    """Of each owner the mean of its numbers that are known; NaN where none is."""
    known = ~np.isnan(values)
    counts = np.bincount(owners[known], minlength=n)
    sums = np.bincount(owners[known], values[known], minlength=n)
    means: list[float] = np.divide(sums, counts, out=np.full(n, math.nan), where=counts > 0).tolist()
    return means
