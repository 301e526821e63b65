"""Open reading frames of a bacterial genome by their letters alone: a proxy for genes, where no annotation is at hand.

From the first ATG behind a stop codon to the next stop codon of the same frame, both included, at least 900 bases. In
random sequence 300 codons hold no stop once in two million times, (61 / 64)^300, but genes keep frames of their other
strand open: of those that overlap, the longest is kept. GTG and TTG, where some genes begin, are not taken as starts,
which shortens those genes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import COMPLEMENT

LEAST = 900
_CODE = np.full(256, -1000, dtype=np.int64)
_CODE[np.frombuffer(b"ACGT", dtype=np.uint8)] = range(4)


class ReadingFrame(NamedTuple):
    """A stretch of a contig, 0-based half-open on the forward strand, that is read on `strand`."""

    start: int
    end: int
    strand: str

    def letters(self, contig: NDArray[np.uint8], before: int) -> NDArray[np.uint8] | None:
        """In reading direction, after `before` bases of what stands before it; None where the contig begins later."""
        if self.strand == "+":
            return contig[self.start - before : self.end] if self.start >= before else None
        if self.end + before > len(contig):
            return None
        return COMPLEMENT[contig[self.start : self.end + before][::-1]]


def reading_frames(contig: NDArray[np.uint8], least: int = LEAST) -> list[ReadingFrame]:
    """The longest ones first chosen, none overlapping another, in the order of their starts."""
    L = len(contig)
    found = [ReadingFrame(start, end, "+") for start, end in _open(contig, least)]
    found += [ReadingFrame(L - end, L - start, "-") for start, end in _open(COMPLEMENT[contig[::-1]], least)]
    occupied, kept = np.zeros(L, dtype=bool), []
    for frame in sorted(found, key=lambda frame: (frame.start - frame.end, frame)):
        if not occupied[frame.start : frame.end].any():
            occupied[frame.start : frame.end] = True
            kept.append(frame)
    return sorted(kept)


def _open(strand: NDArray[np.uint8], least: int) -> list[tuple[int, int]]:
    """From the first ATG behind a stop codon to the next stop codon of its frame, in all three frames."""
    code = _CODE[strand]
    codon = 16 * code[:-2] + 4 * code[1:-1] + code[2:]
    is_stop = np.isin(codon, (48, 50, 56))  # TAA, TAG, TGA
    is_start = codon == 14  # ATG
    found = []
    for frame in range(3):
        stops = frame + 3 * np.flatnonzero(is_stop[frame::3])
        starts = frame + 3 * np.flatnonzero(is_start[frame::3])
        first = np.searchsorted(starts, np.concatenate(([-1], stops[:-1])), side="right")
        begins = np.append(starts, len(strand))[first]
        found += [(int(a), int(b) + 3) for a, b in zip(begins, stops, strict=True) if b + 3 - a >= least]
    return found
