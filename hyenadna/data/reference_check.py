"""Whether a VCF file speaks of this genome: names and lengths of contigs, and the REF alleles."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from hyenadna.data.alleles import Variant
from hyenadna.data.vcf import Record, Vcf


class Genome:
    """A FASTA file for random access: the `BaseSource` of real genomes. Not safe to share between processes.

    The last stretch that was read is kept, so that variants in the order of the genome cost few reads.

    Parameters
    ----------
    path : Path
        Plain or BGZF; indexed at first use.

    Raises
    ------
    FastaError, StaleIndexError             as `hyenadna.data.fasta.open_reference`
    """

    path: Path
    lengths: dict[str, int]

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def fetch(self, contig: str, start: int, end: int) -> str:
        """The bases from `start` up to `end` (0-based, half-open), in upper case.

        Raises
        ------
        IntervalError           there is no such contig, or the stretch is not within it
        """
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """Names the genome in caches: hexadecimal, the same for a copy of the file at another place and time.

        It covers names and lengths of the contigs in their order, the size of the file, and its first and last 64 KiB;
        bases that are changed in the middle of a file that keeps its size go unnoticed.
        """
        raise NotImplementedError


Verdict = Literal["match", "mismatch", "unknown", "outside"]
"""REF against the genome: equal; different; an N or another ambiguity code stands there; off the contig's ends."""


def reference_verdict(variant: Variant, genome: Genome) -> Verdict:
    """Whether the variant's `ref` is what the genome holds at its place."""
    raise NotImplementedError


class ContigNames:
    """What the genome calls the contigs of a VCF file; decided when a name is first asked for.

    The same name; else with or without 'chr', after a notice; M, MT, chrM and chrMT only if the lengths are equal,
    because assemblies differ in the mitochondrion, and so never without a length in the header.
    """

    missing: dict[str, str]
    """The names asked for that the genome does not have, with the reason."""

    def __init__(self, vcf_lengths: Mapping[str, int | None], genome_lengths: Mapping[str, int]) -> None:
        raise NotImplementedError

    def get(self, name: str) -> str | None:
        """The genome's name of a contig of the VCF file; None if it has no such contig."""
        raise NotImplementedError


class Checked(NamedTuple):
    """A VCF file that speaks of the genome, as far as its header and its first records tell."""

    names: ContigNames
    records: Iterator[Record]
    """All records of the file: those that were looked at, too."""
    matches: int
    """Of the first records, how many have the REF that the genome holds."""
    mismatches: int
    unknown: int
    """How many lie where the genome has N, or have a REF with other letters than A, C, G and T."""


def checked(vcf: Vcf, genome: Genome) -> Checked:
    """The records of a VCF file, after its contigs and the first 10,000 REFs were compared with the genome.

    The first records are kept in memory for this, as standard input cannot be read twice: 10,000, or fewer where their
    lines are longer than 256 MiB together.

    Raises
    ------
    InputError
        A contig of the header has another length than in the genome; no contig is in the genome; more than a tenth of
        the REFs are not what the genome holds.
    """
    raise NotImplementedError
