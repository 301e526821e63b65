"""How scored records are written: VCF with keys of ours in INFO, or a table with a row an allele."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from hyenadna.data.vcf import INFO_LINES, Record, Vcf, annotated, annotated_header, has_annotations
from hyenadna.inference.line_file import table_header
from hyenadna.inference.score_config import Format
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.inference.variant_scores import VariantScore

KEYS = ("HYENA_LLR", "HYENA_LLR_MARKOV", "HYENA_PCT", "HYENA_FLAG")
"""INFO keys, in the order in which `texts` says the values of an allele."""
COLUMNS = ("contig", "pos", "id", "ref", "alt", "llr", "llr_markov", "percentile", "flag")
"""Of the table; pos is 1-based, as in the VCF."""
_PCT = "HYENA_PCT"
_NONE = "."


def texts(score: "VariantScore") -> list[str]:
    """What is printed of an allele, in the order of `KEYS`; flags joined by '|'."""
    numbers = ((score.llr, 4), (score.markov, 4), (score.percentile, 1))
    return [*(_number(value, decimals) for value, decimals in numbers), "|".join(score.flags) or _NONE]


def not_scored(flag: str) -> list[str]:
    """The same of an allele that has no score."""
    return [_NONE, _NONE, _NONE, flag]


def _number(value: float, decimals: int) -> str:
    # the sum takes the sign off a zero
    return _NONE if math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


class Lines(Protocol):
    """What the output is made of."""

    def header(self) -> bytes:
        """All that comes before the records."""

    def record(self, record: Record, values: Sequence[Sequence[str]]) -> bytes:
        """A record, with the texts of each of its alleles."""


def lines_of(
    form: Format, vcf: Vcf, about: Mapping[str, str | int], command: str, *, percentiles: bool = True
) -> Lines:
    """What is written of a VCF file.

    Parameters
    ----------
    form : {'vcf', 'tsv'}
    vcf : Vcf
        For its header.
    about : mapping
        What the numbers come from; 'model' is the model's name.
    command : str
        The command line.
    percentiles : bool
        Whether there are any: VCF has no HYENA_PCT otherwise.
    """
    return TsvLines(about, command) if form == "tsv" else VcfLines(vcf, about, command, percentiles)


class VcfLines:
    """The lines as they came, with our keys in INFO; a key has one value an allele."""

    def __init__(self, vcf: Vcf, about: Mapping[str, str | int], command: str, percentiles: bool) -> None:
        self.vcf, self.about, self.command = vcf, about, command
        self.dropped = () if percentiles else (_PCT,)

    def header(self) -> bytes:
        """The header as it came, with our lines in it."""
        if has_annotations(self.vcf.header):
            notice(f"{self.vcf.source} has been scored before: its HYENA_ keys are replaced")
        info = [line for line in INFO_LINES if not any(f"<ID={key}," in line for key in self.dropped)]
        return b"".join(
            annotated_header(self.vcf.header, info, model_line(self.about), f"##hyenaCommand={self.command}")
        )

    def record(self, record: Record, values: Sequence[Sequence[str]]) -> bytes:
        """The line with our keys, and its line end."""
        columns = zip(KEYS, zip(*values, strict=True), strict=True)
        return (
            annotated(record.line, {key: ",".join(some) for key, some in columns if key not in self.dropped})
            + record.end
        )


class TsvLines:
    """A line of provenance, the names of the columns, and a row an allele; an allele of no record is not lost."""

    def __init__(self, about: Mapping[str, str | int], command: str) -> None:
        self.about = dict(about) | {"command": command}

    def header(self) -> bytes:
        """Where the numbers come from, and what the columns are."""
        return table_header(self.about, COLUMNS).encode()

    def record(self, record: Record, values: Sequence[Sequence[str]]) -> bytes:
        """The rows of a record."""
        contig, position, name = record.line.split(b"\t", 3)[:3]
        rows = (f"{record.ref}\t{alt}\t" + "\t".join(some) for alt, some in zip(record.alts, values, strict=True))
        # what is not UTF-8 passes through as it is
        return b"".join(
            b"\t".join((contig, position, name, row.encode("utf-8", "surrogateescape"))) + b"\n" for row in rows
        )


def model_line(about: Mapping[str, str | int]) -> str:
    """The header line that says by what the scores were made.

    Examples
    --------
    >>> model_line({"model": "my run", "window": 1024, "performance": "not measured"})
    '##hyenaModel=<ID=my_run,window=1024,performance="not measured">'
    """
    name = re.sub(r"[^\w./-]", "_", str(about["model"]))
    rest = (f"{key}={_meta(value)}" for key, value in about.items() if key != "model")
    return f"##hyenaModel=<{','.join([f'ID={name}', *rest])}>"


def _meta(value: str | int) -> str:
    text = " ".join(str(value).split())
    if re.fullmatch(r"[\w.+-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
