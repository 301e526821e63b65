"""Scores of variants: ln p(alternative haplotype) - ln p(reference haplotype), in nats."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.inference.likelihood import Strand
from hyenadna.inference.variant_background import Background
from hyenadna.inference.variant_markov import VariantMarkov
from hyenadna.model.language_model import HyenaDNA

Flag = Literal["REF_MISMATCH", "NEAR_EDGE", "HAS_N", "INDEL", "TOO_LONG", "SKIPPED"]


class VariantScore(NamedTuple):
    """What is said of one variant; NaN is what is not known or not asked for."""

    llr: float
    """ln p(alternative haplotype) - ln p(reference haplotype), nats; of both strands the mean."""
    markov: float
    """The same by the Markov model."""
    percentile: float
    """Of the LLR among those of all SNVs of the same trinucleotide change, 0 to 100; NaN if it is no SNV."""
    flags: tuple[Flag, ...]
    """REF_MISMATCH: `ref` is not what the genome holds; scored all the same, with `ref` in the genome's place.
    NEAR_EDGE: the contig's end took some of the context or of the bases after the variant, on a strand that is read.
    HAS_N: the window, up to the last scored base, holds a letter other than A, C, G, T.
    INDEL: the normalised alleles differ in length. TOO_LONG: one is longer than W / 4; not scored.
    SKIPPED: not scored, as the alleles are equal or hold other letters, or lie off the contig, or there is no such.
    """


class VariantScorer:
    """Scores variants by one model on one genome.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    genome : BaseSource
    window : int
        W: a multiple of 4, at least 8, at most the model's context.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read; of both, the mean.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.
    batch_tokens : int, optional
        About how many tokens are read at once; changes speed and memory, and scores by rounding alone.
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
        self.model, self.genome, self.window, self.strand, self.dtype = model, genome, window, strand, dtype
        self.batch_tokens, self.markov, self.background = batch_tokens, markov, background

    def score(self, variants: Sequence[Variant]) -> list[VariantScore]:
        """The score of each variant, in their order.

        Raises
        ------
        NotFiniteError          the model gives something that is not a number
        """
        raise NotImplementedError

    def saturation(self, contig: str, start: int, end: int) -> NDArray[np.float64]:
        """The LLR of every substitution of a region, (end - start, 4): the numbers that `score` gives.

        For A, C, G, T on the forward strand; 0 for the reference's own base, NaN where that is not A, C, G or T.

        Raises
        ------
        IntervalError           there is no such contig, or the region is empty or not within it
        """
        raise NotImplementedError
