"""The variants that the benchmark asks about, with what is known of them, and the genomes that they lie in.

Read from a folder of public files: `variants/brca1_sge_findlay2018.tsv.gz`, the supplement of Findlay et al. 2018
(saturation genome editing of BRCA1) with CADD and phyloP; `variants/1000G_phase1_chr22_50.3Mb_b37.vcf.gz`, 1000 Genomes
phase 1; and `genomes/`, among them a stretch of GRCh38 chr17 around BRCA1, whose first base is chr17:42,425,000.
"""

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alleles import Variant, normalized
from hyenadna.data.fasta import read_records
from hyenadna.data.vcf import open_vcf
from hyenadna.errors import InputError

Floats = NDArray[np.float64]
BRCA1 = Path("variants/brca1_sge_findlay2018.tsv.gz")
BRCA1_GENOME = Path("genomes/human_GRCh38_chr17_42425000-43600000_BRCA1_1175kb.fa.gz")
BRCA1_FIRST = 42_425_000
"""GRCh38 position, counted from 1, of the first base of that file: 3,893 reference alleles say so, and its header."""
THOUSAND_GENOMES = Path("variants/1000G_phase1_chr22_50.3Mb_b37.vcf.gz")
CHR22 = Path("genomes/human_GRCh37_chr22_from_EPO_maf_Nmasked.fa.gz")
CHR20 = Path("genomes/human_GRCh37_chr20.fa.gz")
ECOLI = Path("genomes/ecoli_K12_MG1655.fa.gz")
LAMBDA = Path("genomes/lambda_virus.fa.gz")
SEVERITY = {"Nonsense": 3, "Canonical splice": 3, "Missense": 2, "Splice region": 2, "Synonymous": 1, "Intronic": 0,
            "5' UTR": 0}  # fmt: skip
"""Consequence classes by how harmful they are held to be before anything is measured."""
COMMON, RARE = 0.05, 0.005
"""Allele frequencies from which an allele counts as common, and up to which as rare; between them it is left out."""
CPG, TRANSITION, TRANSVERSION = MUTATIONS = ("CpG transition", "other transition", "transversion")
_TRANSITIONS = {"AG", "GA", "CT", "TC"}


class Sequences:
    """Whole contigs in memory as a source of bases: the files are gzip, which allows no random access.

    Parameters
    ----------
    path : Path
        FASTA, plain or compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.letters = {record.name: record.sequence & 0xDF for record in read_records(path)}
        self.lengths: Mapping[str, int] = {name: len(letters) for name, letters in self.letters.items()}

    def fetch(self, contig: str, start: int, end: int) -> str:
        """The bases from `start` up to `end` (0-based, half-open), in upper case."""
        return self.letters[contig][start:end].tobytes().decode("ascii")

    @property
    def only(self) -> str:
        """The name of the only contig."""
        (name,) = self.letters
        return name


class Brca1(NamedTuple):
    """The 3,893 substitutions of saturation genome editing; all columns in the order of `variants`."""

    variants: list[Variant]
    """On the forward strand of the chromosome; the gene is on the other one."""
    consequence: NDArray[np.str_]
    function_score: Floats
    """How well cells live that carry it: low is loss of function."""
    outcome: NDArray[np.str_]
    """LOF, INT or FUNC."""
    cadd: Floats
    phylop: Floats

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.array([variant.start for variant in self.variants])

    @property
    def severity(self) -> Floats:
        """The consequence class as a number."""
        return np.array([SEVERITY[name] for name in self.consequence], dtype=np.float64)

    def strata(self) -> dict[str, NDArray[np.bool_]]:
        """The rows of each part that is reported by itself."""
        harmful = np.isin(self.consequence, ("Nonsense", "Canonical splice"))
        return {
            "all": np.ones(len(harmful), dtype=bool),
            "missense": self.consequence == "Missense",
            "splice region": self.consequence == "Splice region",
            "all but nonsense and canonical splice": ~harmful,
        }


class Frequencies(NamedTuple):
    """Variants of a population; all columns in the order of `variants`."""

    variants: list[Variant]
    """As they stand in the file for SNVs; normalised for insertions and deletions."""
    frequency: Floats
    """Of the alternative allele in the sample."""
    ancestral: NDArray[np.str_]
    """'ref' or 'alt', whichever the ancestral allele is; 'unknown' where the file gives none, or a third one."""


def brca1(data: Path, genome: Sequences) -> Brca1:
    """The table, each reference allele checked against the genome.

    Raises
    ------
    InputError              a reference allele or a position is not that of the genome
    """
    with gzip.open(data / BRCA1, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    starts = [int(row["index0_in_slice"]) for row in rows]
    variants = [Variant(genome.only, start, row["ref"], row["alt"]) for start, row in zip(starts, rows, strict=True)]
    if any(int(row["pos_hg38"]) - start != BRCA1_FIRST for start, row in zip(starts, rows, strict=True)):
        raise InputError(f"{BRCA1}: positions do not fit a genome that begins at {BRCA1_FIRST:,}")
    check_references(variants, genome)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Brca1(
        variants,
        columns["consequence"],
        columns["function_score"].astype(np.float64),
        columns["func_class"],
        columns["CADD"].astype(np.float64),
        columns["phyloP"].astype(np.float64),
    )


def thousand_genomes(data: Path, genome: Sequences) -> tuple[Frequencies, Frequencies]:
    """The SNVs, and the insertions and deletions, that vary in the sample and lie where the genome is known."""
    snvs, indels = _Columns(), _Columns()
    with open_vcf(str(data / THOUSAND_GENOMES)) as vcf:
        for record in vcf.records:
            alt, ref = record.alts[0], record.ref
            info = dict(field.partition("=")[::2] for field in record.line.split(b"\t", 8)[7].decode().split(";"))
            variant = Variant(genome.only, record.start, ref, alt)
            known = genome.fetch(genome.only, record.start, record.start + len(ref)) == ref
            if len(record.alts) > 1 or not known or set(ref + alt) - set("ACGT"):
                continue
            count, chromosomes = int(info["AC"]), int(info["AN"])
            if not 0 < count < chromosomes:
                continue
            ancestral = {ref: "ref", alt: "alt"}.get(info.get("AA", "").upper(), "unknown")
            if len(ref) == len(alt) == 1:
                snvs.add(variant, count / chromosomes, ancestral)
            elif (spelt := normalized(variant, genome)) and not (spelt.ref and spelt.alt):
                indels.add(spelt, count / chromosomes, "unknown")
    return snvs.whole(), indels.whole()


class _Columns:
    def __init__(self) -> None:
        self.variants: list[Variant] = []
        self.frequency: list[float] = []
        self.ancestral: list[str] = []

    def add(self, variant: Variant, frequency: float, ancestral: str) -> None:
        self.variants.append(variant)
        self.frequency.append(frequency)
        self.ancestral.append(ancestral)

    def whole(self) -> Frequencies:
        return Frequencies(self.variants, np.array(self.frequency), np.array(self.ancestral))


def mutation(before: str, base: str, after: str, becomes: str) -> str:
    """The class of a substitution: a transition of a CpG on either strand, another transition, or a transversion.

    Examples
    --------
    >>> mutation("A", "C", "G", "T"), mutation("C", "G", "A", "A"), mutation("A", "C", "A", "T")
    ('CpG transition', 'CpG transition', 'other transition')
    """
    if base + becomes not in _TRANSITIONS:
        return TRANSVERSION
    return CPG if (base == "C" and after == "G") or (base == "G" and before == "C") else TRANSITION


def mutations(variants: Sequence[Variant], genome: Sequences, swapped: NDArray[np.bool_] | None = None) -> list[str]:
    """The class of each SNV; where `swapped`, of the change from the alternative to the reference allele."""
    classes = []
    for number, (contig, start, ref, alt) in enumerate(variants):
        before, _, after = genome.fetch(contig, start - 1, start + 2)
        base, becomes = (alt, ref) if swapped is not None and swapped[number] else (ref, alt)
        classes.append(mutation(before, base, after, becomes))
    return classes


def check_references(variants: Sequence[Variant], genome: Sequences) -> None:
    """
    Raises
    ------
    InputError              a reference allele is not what the genome holds
    """
    for contig, start, ref, _ in variants:
        found = genome.fetch(contig, start, start + len(ref))
        if found != ref:
            raise InputError(f"{contig}, base {start} from 0: the reference is {ref}, the genome holds {found}")
