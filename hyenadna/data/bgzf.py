"""BGZF: gzip in blocks, for random access. Written so that the file's bytes depend on its text alone, then indexed."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO


class BlockWriter:
    """Writes BGZF in blocks of 65,280 bytes of text, however the text is cut into calls of `write`.

    So the same text always gives the same file: a run that was killed needs no compressed file to go on with. It keeps
    its text (or what makes it) and writes the BGZF file anew, about 50 MB of text a second.

    Parameters
    ----------
    file : binary file          open for writing; it stays open
    """

    def __init__(self, file: IO[bytes]) -> None:
        raise NotImplementedError

    def write(self, text: bytes) -> None:
        """Add text; whole blocks are written at once."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left and the empty block that marks the end of a whole file."""
        raise NotImplementedError


def index_vcf(path: Path, lengths: Mapping[str, int]) -> Path | None:
    """Index a sorted VCF file in BGZF: .tbi, or .csi if a contig is longer than 512 Mb; an older index is removed.

    Parameters
    ----------
    path : Path
    lengths : mapping of str to int
        Of the contigs, from the VCF's header or the genome.

    Returns
    -------
    Path or None
        The index. None, after a notice that says why, if pysam is not installed or the records are not sorted.
    """
    raise NotImplementedError
