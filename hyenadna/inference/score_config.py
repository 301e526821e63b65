"""What `hyena score` is told to do; each field's text is its help.

Nothing is imported here that a list of flags does not need.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import ClassVar, Literal

from hyenadna.data.intervals import Interval, parse_region
from hyenadna.errors import UsageError

Strand = Literal["both", "forward", "reverse"]
Format = Literal["vcf", "tsv"]
RefMismatch = Literal["flag", "skip", "error"]

_LEAST_WINDOW = 8
_OF_A_VCF = ("format", "region", "ref_mismatch", "state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Variants to score, the genome that they are of, and how.

    Raises
    ------
    UsageError              a value that its field does not allow, fields that exclude each other, or no genome
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    VERB: ClassVar = "score"
    """Of the command line."""
    ALTERNATIVES: ClassVar = (("data", "bed"),)
    """Fields of which only one is given; a flag for one drops the other of a file."""

    data: str | None = None
    """VCF file, plain, gzip or BGZF, or '-' for standard input."""
    fasta: Path | None = None
    """The genome that the variants are of: FASTA, plain or BGZF."""
    model: str = "starter"
    """Model folder, training run or hub id."""
    out: str = "-"
    """File to write, or '-' for stdout. A name in .gz is written in BGZF, and indexed where pysam is installed."""
    format: Format | None = None
    """VCF, or a table with a row an allele. Default: tsv if OUT ends in .tsv or .tsv.gz, else vcf."""
    window: int = 1024
    """W, bases of a window, a multiple of 4: at least W/2 are read before a variant, and W/4 after it are scored."""
    strand: Strand = "both"
    """Strand that is read; of both, the mean."""
    region: str | None = None
    """Only records whose POS lies in contig:first-last (1-based), so that parts of an array job add up to the whole. It
    is quick where the VCF has an index and pysam is installed."""
    ref_mismatch: RefMismatch = "flag"
    """What becomes of a record whose REF is not what the genome holds, and that has no score so: flag writes '.' and
    REF_MISMATCH, skip leaves the record out and counts it, error stops there."""
    percentiles: bool = True
    """HYENA_PCT, for which thousands of SNVs of the genome are scored first; the cache keeps them for later runs."""
    state: Path | None = None
    """Folder for what a stopped run goes on from. Default: .OUT.journal beside OUT, removed at the end."""
    bed: Path | None = None
    """Instead of a VCF: regions of which all substitutions are scored, as TSV, or HDF5 if OUT ends in .h5."""
    plot: Path | None = None
    """With --bed: PNG file for a logo and heat-map of the first region."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.bed is None):
            given = "both a VCF and --bed" if self.bed is not None else "nothing to score"
            raise UsageError(
                f"{given} was given; give a VCF (hyena score my.vcf.gz --fasta ref.fa -o scored.vcf.gz), or "
                "--bed my.bed for all substitutions of its regions"
            )
        if self.fasta is None:
            raise UsageError(
                f"--fasta is missing: it names the genome that {self.data or self.bed} is of, a FASTA file, plain or "
                "compressed by bgzip, of the same assembly"
            )
        if self.window < _LEAST_WINDOW or self.window % 4:
            raise UsageError(f"--window {self.window}: allowed are multiples of 4 from {_LEAST_WINDOW} on")
        if self.region is not None:
            parse_region(self.region)
        self._check_use()

    def _check_use(self) -> None:
        for name in _OF_A_VCF if self.bed is not None else ("plot",):
            if getattr(self, name) != getattr(type(self), name):
                flag = f"--{name.replace('_', '-')}"
                what = (
                    "is for a VCF; leave it out with --bed" if self.bed is not None else "is of --bed; give that, too"
                )
                raise UsageError(f"{flag} {getattr(self, name)} {what}")
        if self.data == "-" and self.state is not None:
            raise UsageError(
                f"--state {self.state}: standard input cannot be read again, so that nothing of it can be resumed; "
                "give a file, or leave out --state"
            )
        if self.data is not None and self.data.lower().endswith((".bed", ".bed.gz")):
            raise UsageError(f"{self.data} is a BED file by its name; --bed {self.data} scores its substitutions")
        if self.bed is None and self.out.lower().endswith(".bcf"):
            raise UsageError(
                f"-o {self.out}: BCF is not written; name a .vcf.gz, or pipe the output: ... | bcftools view -Ob"
            )

    @property
    def where(self) -> Interval | None:
        """The region whose records are scored; None for all."""
        return None if self.region is None else parse_region(self.region)

    @property
    def written_as(self) -> Format:
        """The format of the output."""
        if self.format is not None:
            return self.format
        return "tsv" if self.out.lower().endswith((".tsv", ".tsv.gz")) else "vcf"

    @property
    def compressed(self) -> bool:
        """Whether the output is BGZF."""
        return self.out.lower().endswith((".gz", ".bgz"))

    @property
    def command(self) -> str:
        """The command line that gives these numbers, on any machine: files by their names, without where results go."""
        words = ["hyena", self.VERB, *([] if self.data is None else [Path(self.data).name])]
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if field.name in ("data", "out", "state", "plot") or value == field.default:
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                words += [
                    flag,
                    self.model_name
                    if field.name == "model"
                    else Path(value).name
                    if isinstance(value, Path)
                    else str(value),
                ]
        return shlex.join(words)

    @property
    def model_name(self) -> str:
        """What the model is called in files: the name of its folder, or its hub id."""
        path = Path(self.model).expanduser()
        return path.resolve().name if path.exists() else self.model
