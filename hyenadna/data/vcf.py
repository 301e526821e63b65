"""VCF files as text: records keep their bytes, and nothing but INFO is ever changed.

Libraries for VCF refuse or rewrite much that occurs (undeclared FORMAT tags, symbolic alleles, odd numbers); a line
that is passed on as it came cannot be damaged. VCF's 1-based POS becomes a 0-based start here and nowhere else.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from hyenadna.data.alleles import Variant
from hyenadna.data.bgzf import indexed_lines
from hyenadna.data.fasta import FOREIGN
from hyenadna.data.intervals import Interval, listed
from hyenadna.data.opened import named, opened
from hyenadna.errors import InputError
from hyenadna.progress import notice

INFO_LINES = (
    "##INFO=<ID=HYENA_LLR,Number=A,Type=Float,Description="
    '"Log-likelihood of the haplotype with the allele minus that of the reference, in nats; '
    'positive: the allele is likelier; missing: not scored">',
    "##INFO=<ID=HYENA_LLR_MARKOV,Number=A,Type=Float,Description="
    '"As HYENA_LLR, from an interpolated Markov model of the genome instead of the language model">',
    "##INFO=<ID=HYENA_PCT,Number=A,Type=Float,Description="
    '"Percentile (0 to 100) of HYENA_LLR among all possible SNVs of the same trinucleotide change; '
    'missing for insertions and deletions">',
    "##INFO=<ID=HYENA_FLAG,Number=A,Type=String,Description="
    '"What to know of the allele, joined by |: REF_MISMATCH, NEAR_EDGE, HAS_N, INDEL, TOO_LONG, SKIPPED">',
)
"""What the INFO keys mean, for the header: each has one value an allele, '.' for none."""

_BOM = b"\xef\xbb\xbf"
_COLUMNS = [b"#CHROM", b"POS", b"ID", b"REF", b"ALT", b"QUAL", b"FILTER", b"INFO"]
_LONGEST_FIRST_LINE = 1 << 20
_OUR_KEYS = b"HYENA_"
_OUR_INFO = re.compile(rb'##INFO=<([^"]*,)?ID=HYENA_')
_OUR_LINES = (b"##hyenaModel=", b"##hyenaCommand=")
_FOREIGN = {b"BCF\x02": "BCF; convert it: bcftools view -Oz", b">": "a FASTA file", **FOREIGN}


class Record(NamedTuple):
    """A line of a VCF file, and what of it matters for scoring."""

    line: bytes
    """The whole line as it stands in the file, without its line end."""
    end: bytes
    """The line end: LF, CR LF, or nothing for a last line that lacks one. `line + end` is what the file holds."""
    contig: str
    start: int
    """POS - 1: counted from 0; -1 for POS 0, which stands for the telomere before the first base."""
    ref: str
    """As it stands in the file."""
    alts: tuple[str, ...]
    """As they stand in the file; ('.',) where there is none."""
    number: int
    """Number of the line in the file, from 1; 0 where an index was used and it is not known."""

    @property
    def place(self) -> str:
        """Contig and POS, for messages: '20:1,000,001'."""
        return f"{self.contig}:{self.start + 1:,}"

    def variant(self, alt: str, contig: str) -> Variant:
        """An alternative allele in upper case, on the contig as the genome calls it."""
        return Variant(contig, self.start, self.ref.upper(), alt.upper())


class Vcf(NamedTuple):
    """An open VCF file."""

    source: str
    """Its name for messages."""
    header: tuple[bytes, ...]
    """The lines up to and with #CHROM, with their line ends."""
    records: Iterator[Record]
    """Can be run through once, while the file is open."""


@contextmanager
def open_vcf(source: str, region: Interval | None = None, *, tell: bool = True) -> Iterator[Vcf]:
    """A VCF file, plain, gzip or BGZF, or standard input for '-'.

    Parameters
    ----------
    source : str
    region : Interval, optional
        Only the records whose POS lies in it, so that the parts of a file add up to the whole, each record once (a
        record that begins before the region and reaches into it is not in it; POS 0 counts as 1). Found by the index
        .tbi or .csi beside the file where there is one that fits and pysam is installed, else by reading all.
    tell : bool
        Whether a notice says that an index cannot be used: False for a file that was opened before.

    Raises
    ------
    InputError
        Also while records are read: no such file, truncated, damaged, no VCF, no #CHROM line; a record with fewer than
        8 columns, without a contig, or whose POS is no number. Names the file and the line.
    """
    with opened(source, "a VCF file") as file:
        header = _header(file, source)
        lines = None if region is None else _indexed(source, header, region, tell)
        if lines is None:
            lines = enumerate(file, len(header) + 1)
        columns = header[-1].count(b"\t") + 1
        # FORMAT without samples stands in the header of some files that have no such column
        wanted = columns if columns > 9 else 8
        records = (_record(line, number, wanted, source) for number, line in lines)
        yield Vcf(source, header, records if region is None else _within(records, region, source, header))


def _header(file: IO[bytes], source: str) -> tuple[bytes, ...]:
    first = file.readline(_LONGEST_FIRST_LINE)
    if not first:
        raise InputError(f"{named(source)} is empty; give a VCF file, plain, gzip or BGZF")
    if not first.removeprefix(_BOM).startswith(b"#"):
        looks = next((text for magic, text in _FOREIGN.items() if first.startswith(magic)), "")
        raise InputError(
            f"{named(source)} has no VCF header: its first line begins with {repr(first[:12])[1:]}"
            + (f" (it looks like {looks})" if looks else "")
            + "; a VCF file begins with ##fileformat=VCF and has a line #CHROM before its records"
        )
    header, line = [], first
    while line.removeprefix(_BOM).startswith(b"##"):
        header.append(line)
        line = file.readline()
    if line.removeprefix(_BOM).rstrip(b"\r\n").split(b"\t")[:8] != _COLUMNS:
        what = f"is {repr(line[:40])[1:]}" if line else "is missing: the file ends there"
        raise InputError(
            f"{named(source)}, line {len(header) + 1} {what}; after the lines with ## must come "
            "#CHROM, POS, ID, REF, ALT, QUAL, FILTER and INFO, separated by tabs"
        )
    return (*header, line)


def _record(line: bytes, number: int, columns: int, source: str) -> Record:
    end = b"\r\n" if line.endswith(b"\r\n") else b"\n" if line.endswith(b"\n") else b""
    line = line[: len(line) - len(end)]
    fields = line.split(b"\t", 8)
    if len(fields) < columns and line.count(b"\t") + 1 < columns:
        raise InputError(_place(source, number, fields) + _short_line(line, columns))
    contig, position, _, ref, alts, *_ = fields
    if not contig:
        raise InputError(_place(source, number, fields) + "has no contig in its first column; complete or remove it")
    if not (position.isdigit() and len(position) < 19):
        raise InputError(
            _place(source, number, fields)
            + f"has POS {repr(position[:40])[1:]}; a position is a whole number from 0 on"
        )
    return Record(line, end, _text(contig), int(position) - 1, _text(ref), tuple(_text(alts).split(",")), number)


def _text(field: bytes) -> str:
    # other bytes than UTF-8 make a contig that no genome has or an allele that is not scored, not a failure
    return field.decode("utf-8", "surrogateescape")


def _place(source: str, number: int, fields: Sequence[bytes]) -> str:
    line = f"line {number:,}" if number else f"the record at {b':'.join(fields[:2]).decode('utf-8', 'replace')[:80]}"
    return f"{named(source)}, {line} "


def _short_line(line: bytes, columns: int) -> str:
    if line.startswith(b"#"):
        return "begins with #, below the line #CHROM; join files with bcftools concat, which keeps one header"
    if not line.strip():
        return "is blank; remove it"
    return (
        f"has {line.count(b'	') + 1} columns of {columns}, separated by tabs: {repr(line[:40])[1:]}; "
        "is the file cut off, or are its columns separated by spaces?"
    )


def _indexed(source: str, header: Sequence[bytes], region: Interval, tell: bool) -> Iterator[tuple[int, bytes]] | None:
    """The numbered lines that an index leads to, more than those of the region; None if there is no use of an index."""
    if source == "-" or header[-1].endswith(b"\r\n"):  # htslib drops the CR
        return None
    lines = indexed_lines(Path(source), region, tell=tell)
    return None if lines is None else ((0, line) for line in lines)


def _within(records: Iterable[Record], region: Interval, source: str, header: Sequence[bytes]) -> Iterator[Record]:
    found = False
    for record in records:
        if record.contig == region.contig and region.start <= max(record.start, 0) < region.end:
            found = True
            yield record
    if not found:
        contigs = list(contig_lengths(header))
        others = f"; its header has the contigs {listed(contigs)}" if contigs and region.contig not in contigs else ""
        notice(f"{named(source)} has no record in {region}{others}")


def why_not_scored(record: Record, alt: str) -> str | None:
    """Why an allele of a record has no score by its spelling alone, in a few words; None if it has one.

    The reasons: missing ('.' or ''), '*', symbolic (<DEL>, <NON_REF>, <*>), a breakend, letters other than A, C, G and
    T in either allele, or equal to REF. Lower case is as good as upper case.

    Examples
    --------
    >>> record = Record(b"", b"", "20", 99, "A", ("<NON_REF>", "c"), 1)
    >>> [why_not_scored(record, alt) for alt in record.alts]
    ['symbolic', None]
    """
    if alt in ("", "."):
        return "no alternative allele"
    if alt == "*":
        return "deleted by another variant"
    if alt.startswith("<"):
        return "symbolic"
    if any(letter in alt for letter in "[]."):
        return "breakend"
    for name, allele in (("REF", record.ref), ("ALT", alt)):
        if not allele or allele.upper().strip("ACGT"):
            return f"{name} is not of A, C, G and T alone"
    return "ALT equals REF" if alt.upper() == record.ref.upper() else None


def annotated(line: bytes, values: Mapping[str, str]) -> bytes:
    r"""A record's line with `values` (key to text) in INFO in their order, and nothing else changed.

    An INFO of '.' is replaced; otherwise the values are appended, and those with keys of ours that stood there removed.

    Examples
    --------
    >>> annotated(b"20\t100\t.\tA\tC\t.\t.\tDP=3;HYENA_LLR=1", {"HYENA_LLR": "-0.5"})
    b'20\t100\t.\tA\tC\t.\t.\tDP=3;HYENA_LLR=-0.5'
    """
    fields = line.split(b"\t", 8)
    entries = fields[7].split(b";")
    kept = [entry for entry in entries if not entry.startswith(_OUR_KEYS)]
    ours = ";".join(f"{key}={value}" for key, value in values.items()).encode()
    info = b";".join(kept)
    if ours and info in (b"", b"."):
        info = ours
    elif ours:
        info += ours if info.endswith(b";") else b";" + ours
    fields[7] = info if info or len(kept) == len(entries) else b"."
    return b"\t".join(fields)


def annotated_header(
    header: Sequence[bytes], info_lines: Sequence[str], model_line: str, command_line: str
) -> list[bytes]:
    """The header with our lines before #CHROM in the place of those that an earlier run left.

    The lines are given whole ('##hyenaModel=...'), without line ends, which become those of the #CHROM line; line ends
    within them, as in a quoted argument of the command, become blanks.
    """
    *before, columns = header
    kept = [line for line in before if not (_OUR_INFO.match(line) or line.startswith(_OUR_LINES))]
    end = b"\r\n" if columns.endswith(b"\r\n") else b"\n"
    ours = [
        " ".join(line.splitlines()).encode("utf-8", "surrogateescape") + end
        for line in (*info_lines, model_line, command_line)
    ]
    return [*kept, *ours, columns]


def has_annotations(header: Sequence[bytes]) -> bool:
    """Whether an earlier run left INFO keys of ours, which the next replaces."""
    return any(_OUR_INFO.match(line) for line in header)


def contig_lengths(header: Sequence[bytes]) -> dict[str, int | None]:
    """The contigs of the ##contig lines with their lengths, None where a line gives none, or 0.

    Examples
    --------
    >>> contig_lengths([b"##contig=<ID=20,length=63025520>", b"##contig=<ID=MT>"])
    {'20': 63025520, 'MT': None}
    """
    lengths: dict[str, int | None] = {}
    for line in header:
        if line.startswith(b"##contig=<"):
            fields = re.sub(rb'"[^"]*"', b"", line.removeprefix(b"##contig=<"))  # a description may say length=
            name = re.search(rb"(?:^|,)ID=([^,>\r\n]+)", fields)
            length = re.search(rb"(?:^|,)length=([0-9]{1,18})\b", fields)
            if name:
                lengths[_text(name[1])] = (int(length[1]) or None) if length else None
    return lengths
