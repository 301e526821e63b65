"""Whether a VCF file speaks of this genome: names and lengths of contigs, and the REF alleles."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.fasta import open_reference
from hyenadna.data.intervals import Interval, check_contig, listed
from hyenadna.data.opened import named
from hyenadna.data.vcf import Record, Vcf, contig_lengths
from hyenadna.errors import InputError, IntervalError
from hyenadna.files import Fingerprint
from hyenadna.progress import notice

_BEFORE, _AFTER = 1 << 13, 1 << 16
_FIRST_RECORDS = 10_000
_FIRST_BYTES = 1 << 28
_MOST_MISMATCHES = 0.1
_FEWEST_MISMATCHES = 3  # one or two wrong records of a short file say nothing of the build
_ANOTHER_BUILD = "the genome build is probably another: give the FASTA file that the variants were called on"
_MITOCHONDRION = frozenset(("M", "MT", "chrM", "chrMT"))


class Genome:
    """A FASTA file for random access: the `BaseSource` of real genomes. Not safe to share between processes.

    The stretch around the last place is kept in memory, so that variants in the order of the genome cost few reads.

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
    """Length of every contig in bases, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._fasta = open_reference(self.path).faidx
        self.lengths = {name: int(line.rlen) for name, line in self._fasta.index.items()}
        self._kept, self._bases = Interval("", 0, 0), ""

    def fetch(self, contig: str, start: int, end: int) -> str:
        """The bases from `start` up to `end` (0-based, half-open), in upper case, U as T.

        Raises
        ------
        IntervalError           there is no such contig, or the stretch is not within it
        """
        kept = self._kept
        if not (contig == kept.contig and kept.start <= start <= end <= kept.end):
            kept = self._read(contig, start, end)
        return self._bases[start - kept.start : end - kept.start]

    def _read(self, contig: str, start: int, end: int) -> Interval:
        check_contig(contig, self.lengths)
        if not 0 <= start <= end <= self.lengths[contig]:
            interval = Interval(contig, start, end)
            raise IntervalError(f"{interval} is not within {contig}, which has {self.lengths[contig]:,} bases")
        # the windows of the next variants begin before and end after this one
        kept = Interval(contig, max(0, start - _BEFORE), min(self.lengths[contig], max(end, start + _AFTER)))
        bases = self._fasta.fetch(contig, kept.start + 1, kept.end).seq
        self._kept, self._bases = kept, bases.upper().replace("U", "T")
        return kept

    @cached_property
    def fingerprint(self) -> str:
        """Names the genome in caches: hexadecimal, the same for a copy of the file at another place and time.

        It covers names and lengths of the contigs in their order, the size of the file, and its first and last 64 KiB;
        bases that are changed in the middle of a file that keeps its size go unnoticed. A file and its BGZF differ.
        """
        file = Fingerprint.of(self.path)
        covered = [list(self.lengths.items()), file.size, file.head_tail_sha256]
        return hashlib.sha256(json.dumps(covered).encode()).hexdigest()


Verdict = Literal["match", "mismatch", "unknown", "outside"]
"""REF against the genome: equal; different; equal but for letters other than A, C, G and T; off the contig's ends."""


def reference_verdict(variant: Variant, genome: BaseSource) -> Verdict:
    """Whether the variant's `ref` is what the genome holds at its place.

    Bases that the genome does not tell (N and other ambiguity codes, as in masked assemblies) contradict nothing.
    """
    start, end = variant.start, variant.start + len(variant.ref)
    if not 0 <= start <= end <= genome.lengths.get(variant.contig, -1):
        return "outside"
    found = genome.fetch(variant.contig, start, end)
    if found == variant.ref:
        return "unknown" if found.strip("ACGT") else "match"
    differing = (a + b for a, b in zip(variant.ref, found, strict=True) if a != b)
    return "mismatch" if any(not pair.strip("ACGT") for pair in differing) else "unknown"


class ContigNames:
    """What the genome calls the contigs of a VCF file; decided when a name is first asked for.

    The same name; else with or without 'chr', after a notice. M, MT, chrM and chrMT only if the lengths are equal,
    because assemblies differ in the mitochondrion: under another name never without a ##contig line that gives it.
    """

    missing: dict[str, str]
    """The names asked for that the genome does not have, with the reason."""

    def __init__(self, vcf_lengths: Mapping[str, int | None], genome_lengths: Mapping[str, int]) -> None:
        self._vcf, self._genome = vcf_lengths, genome_lengths
        self._names: dict[str, str | None] = {}
        self._told = False
        self.missing = {}

    def get(self, name: str) -> str | None:
        """The genome's name of a contig of the VCF file; None if it has no such contig."""
        if name not in self._names:
            found, reason = self.match(name)
            self._names[name] = found
            if found is None:
                self.missing[name] = reason
            elif found != name and not self._told:
                self._told = True
                notice(f"the contig {name} of the VCF is {found} in the FASTA; others are matched in the same way")
        return self._names[name]

    def match(self, name: str) -> tuple[str | None, str]:
        """As `get`, without notices or entries in `missing`; with the reason if there is none."""
        if name in _MITOCHONDRION:
            return self._mitochondrion(name)
        other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
        found = next((candidate for candidate in (name, other) if candidate in self._genome), None)
        return found, "" if found else "not in the FASTA"

    def _mitochondrion(self, name: str) -> tuple[str | None, str]:
        length = self._vcf.get(name)
        if name in self._genome and length in (None, self._genome[name]):
            return name, ""
        others = {other: self._genome[other] for other in sorted(_MITOCHONDRION & self._genome.keys())}
        if not others:
            return None, "not in the FASTA"
        equal = next((other for other, its_length in others.items() if its_length == length), None)
        told = " and ".join(f"{other} of {its_length:,} bases" for other, its_length in others.items())
        given = "no length in the VCF's header" if length is None else f"{length:,} bases in the VCF's header"
        return equal, "" if equal else f"{given}, the FASTA has {told}"

    def report_missing(self) -> None:
        """Print one notice that names the contigs asked for that the genome does not have, if there are any."""
        if self.missing:
            reasons = [name if why == "not in the FASTA" else f"{name} ({why})" for name, why in self.missing.items()]
            notice(f"contigs of the VCF that the FASTA does not have, their records are not scored: {listed(reasons)}")


class Checked(NamedTuple):
    """A VCF file that speaks of the genome, as far as its header and its first records tell."""

    names: ContigNames
    records: Iterator[Record]
    """All records of the file: those that were looked at, too."""
    matches: int
    """Of the first records, how many have the REF that the genome holds."""
    mismatches: int
    """How many have another, or lie off the ends of their contig."""
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
        the REFs, and at least 3, are not what the genome holds.
    """
    lengths = contig_lengths(vcf.header)
    names = ContigNames(lengths, genome.lengths)
    _check_lengths(lengths, names, vcf, genome)
    first = _first(vcf.records)
    contigs = {**lengths, **dict.fromkeys(record.contig for record in first)}
    if contigs and not any(names.match(name)[0] for name in contigs):
        raise InputError(
            f"no contig of {named(vcf.source)} is in {genome.path.name}: the VCF has {listed(list(contigs))}, the "
            f"FASTA has {listed(list(genome.lengths))}; give the FASTA that the variants were called on, "
            "or rename the VCF's contigs: bcftools annotate --rename-chrs"
        )
    counts = _check_alleles(first, names, vcf, genome)
    return Checked(names, chain(first, vcf.records), counts["match"], counts["mismatch"], counts["unknown"])


def _first(records: Iterator[Record]) -> list[Record]:
    first: list[Record] = []
    size = 0
    while len(first) < _FIRST_RECORDS and size < _FIRST_BYTES and (record := next(records, None)):
        first.append(record)
        size += len(record.line)
    return first


def _check_lengths(lengths: Mapping[str, int | None], names: ContigNames, vcf: Vcf, genome: Genome) -> None:
    for name, length in lengths.items():
        found, _ = names.match(name)
        if found is not None and length is not None and length != genome.lengths[found]:
            raise InputError(
                f"{name} has {length:,} bases by the header of {named(vcf.source)}, but {found} has "
                f"{genome.lengths[found]:,} in {genome.path.name}; {_ANOTHER_BUILD}; if it is not, "
                "because the header is wrong, as PLINK's can be, or the FASTA holds only the beginning of the contig, "
                "correct the length in the header: bcftools reheader"
            )


def _check_alleles(first: Sequence[Record], names: ContigNames, vcf: Vcf, genome: Genome) -> Counter[str]:
    """How many REFs of the records got which verdict; those off the ends of a contig are mismatches."""
    counts, example = Counter[str](), ""
    for record in first:
        contig = names.match(record.contig)[0]
        if contig is None or record.start < 0:  # the telomere, which has no base
            continue
        variant = record.variant("", contig)
        verdict = reference_verdict(variant, genome)
        counts["mismatch" if verdict == "outside" else verdict] += 1
        if verdict in ("mismatch", "outside") and not example:
            example = _told(record, variant, verdict, genome)
    compared = counts["match"] + counts["mismatch"]
    told = f"{counts['mismatch']:,} of the first {compared:,} REF alleles of {named(vcf.source)} are not what "
    told += f"{genome.path.name} holds ({example})"
    many = counts["mismatch"] > _MOST_MISMATCHES * compared
    if many and counts["mismatch"] >= _FEWEST_MISMATCHES:
        raise InputError(f"{told}; {_ANOTHER_BUILD}")
    if counts["mismatch"]:
        notice(f"{told}; too few to tell, but the genome build may be another" if many else told)
    if first and not compared:
        notice(f"none of the first {len(first):,} REF alleles could be compared with {genome.path.name}")
    return counts


def _told(record: Record, variant: Variant, verdict: Verdict, genome: Genome) -> str:
    contig, start, ref, _ = variant
    if verdict == "outside":
        return f"{record.place} is off the end of {contig}, which has {genome.lengths[contig]:,} bases"
    found = genome.fetch(contig, start, start + len(ref))
    if len(ref) > 20:
        pairs = enumerate(zip(ref, found, strict=True))
        at = next(n for n, (given, held) in pairs if given != held and not (given + held).strip("ACGT"))
        return f"{record.place} has {ref[at]} at base {at + 1} of its REF, the FASTA {found[at]}"
    return f"{record.place} has REF {ref}, the FASTA {found}"
