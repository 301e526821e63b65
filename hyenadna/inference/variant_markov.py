"""The same log-likelihood ratios by an interpolated Markov model of the genome, for comparison."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import BaseSource
from hyenadna.inference.markov import MarkovModels

ORDER = 10
"""The highest order."""
MOST_BASES = 64_000_000
"""Most bases that a fold is counted on, on both strands."""


@dataclasses.dataclass(frozen=True)
class VariantMarkov:
    """Two models of one genome, each counted on every second block of it: a base is never scored by its own count."""

    models: tuple[MarkovModels, MarkovModels]

    def model_for(self, contig: str, position: int) -> MarkovModels:
        """The model whose counts hold nothing of the block in which a base lies."""
        raise NotImplementedError


def fitted(genome: BaseSource, fingerprint: str | None = None) -> VariantMarkov:
    """The models of a genome, counted, or read from the cache folder.

    Parameters
    ----------
    genome : BaseSource
    fingerprint : str, optional
        Names the genome in the cache: `Genome.fingerprint`. Without it nothing is kept.
    """
    raise NotImplementedError
