"""VCF files as text: records keep their bytes, and nothing but INFO is ever changed.

Libraries for VCF refuse or rewrite much that occurs (undeclared FORMAT tags, symbolic alleles, odd numbers); a line that
is passed on as it came cannot be damaged. VCF's 1-based POS becomes a 0-based start here and nowhere else.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hyenadna.data.alleles import Variant
from hyenadna.data.intervals import Interval

KEY_PREFIX = "HYENA_"
"""All INFO keys that begin so are ours, and replaced when a file is annotated again."""
INFO_LINES = (
    '##INFO=<ID=HYENA_LLR,Number=A,Type=Float,Description="">',
    '##INFO=<ID=HYENA_LLR_MARKOV,Number=A,Type=Float,Description="">',
    '##INFO=<ID=HYENA_PCT,Number=A,Type=Float,Description="">',
    '##INFO=<ID=HYENA_FLAG,Number=A,Type=String,Description="">',
)
"""What the INFO keys mean, for the header: each has one value an allele, '.' for none."""


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
        raise NotImplementedError

    def variant(self, alt: str, contig: str) -> Variant:
        """An alternative allele in upper case, on the contig as the genome calls it."""
        raise NotImplementedError


class Vcf(NamedTuple):
    """An open VCF file."""

    source: str
    """Its name for messages."""
    header: tuple[bytes, ...]
    """The lines up to and with #CHROM, with their line ends."""
    records: Iterator[Record]
    """Can be run through once, while the file is open."""


@contextmanager
def open_vcf(source: str, region: Interval | None = None) -> Iterator[Vcf]:
    """A VCF file, plain, gzip or BGZF, or standard input for '-'.

    Parameters
    ----------
    source : str
    region : Interval, optional
        Only the records whose POS lies in it, so that the parts of a file add up to the whole, each record once (a
        record that begins before the region and reaches into it is not in it; POS 0 counts as 1). Found by the index
        .tbi or .csi beside the file where there is one that fits and pysam is installed, else by reading all.

    Raises
    ------
    InputError
        Also while records are read: no such file, truncated, damaged, no VCF, no #CHROM line; a record with fewer than
        8 columns, without a contig, or whose POS is no number. Names the file and the line.
    """
    raise NotImplementedError
    yield


def why_not_scored(record: Record, alt: str) -> str | None:
    """Why an allele of a record has no score by its spelling alone, in a few words; None if it has one.

    The reasons: '*', symbolic (<DEL>, <NON_REF>, <*>), a breakend, missing ('.' or ''), equal to REF, or letters other
    than A, C, G and T in either allele. Lower case is as good as upper case.
    """
    raise NotImplementedError


def annotated(line: bytes, values: Mapping[str, str]) -> bytes:
    """A record's line with `values` (key to text) in INFO in their order, and nothing else changed.

    An INFO of '.' is replaced; otherwise the values are appended, and those with keys of ours that stood there removed.
    """
    raise NotImplementedError


def annotated_header(
    header: Sequence[bytes], info_lines: Sequence[str], model_line: str, command_line: str
) -> list[bytes]:
    """The header with our lines before #CHROM in the place of those that an earlier run left.

    The lines are given whole ('##hyenaModel=...'), without line ends, which become those of the #CHROM line.
    """
    raise NotImplementedError


def has_annotations(header: Sequence[bytes]) -> bool:
    """Whether an earlier run left INFO keys of ours, which the next replaces."""
    raise NotImplementedError


def contig_lengths(header: Sequence[bytes]) -> dict[str, int | None]:
    """The contigs of the ##contig lines with their lengths, None where a line gives none."""
    raise NotImplementedError
