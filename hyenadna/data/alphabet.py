"""The letters of DNA: complements, and what a FASTA file may hold."""

import numpy as np
from numpy.typing import NDArray

BASES = "ACGT"
IUPAC = "ACGTURYSWKMBDHVN"
"""The nucleotide codes of IUPAC; U is read as T, every code that stands for several bases as N."""

_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVNacgturyswkmbdhvn", b"TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn")
COMPLEMENT: NDArray[np.uint8] = np.frombuffer(_COMPLEMENT, dtype=np.uint8)
"""uint8 (256,): the complement of every ASCII byte, case kept."""


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction; case and IUPAC codes are kept.

    Examples
    --------
    >>> reverse_complement("AACGtN")
    'NaCGTT'
    """
    return sequence.translate({code: _COMPLEMENT[code] for code in range(256)})[::-1]
