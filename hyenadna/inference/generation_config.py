"""What `hyena generate` is told to do, how bases are chosen among it and what they keep to.

Each field's text is its help. Nothing is imported here that a list of flags does not need.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from hyenadna.errors import UsageError

Mapping = Literal["linear", "exponential", "inverse-sigmoid"]
Motifs = tuple[str, ...]
BASES_OF = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""Which bases a code of IUPAC stands for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a base is chosen from the model's distribution; by default it is drawn from just that.

    Raises
    ------
    UsageError              a value that its field does not allow, or two that exclude each other
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    temperature: float = 1.0
    """Divides log-probabilities: under 1 likely bases become likelier, and 0 is greedy, always the likeliest base."""
    top_k: int = 4
    """Only the so many likeliest bases."""
    top_p: float = 1.0
    """Only the likeliest bases that together have this probability."""
    typical_p: float = 1.0
    """Only the bases whose surprisal is nearest to the entropy, that together have this probability; from about 0.8 on
    mostly those of --top-p, unless --typical-kmer judges several together."""
    typical_kmer: int = 1
    """Bases, 1 to 4, that are judged and drawn together by --typical-p: all 4^k blocks are evaluated."""
    repetition_penalty: float = 0.0
    """Nats taken from a base for each time that the k-mer which it would complete was written before."""
    repetition_kmer: int = 12
    """Bases of the k-mers that --repetition-penalty counts, 2 to 31; those of the prompt count as well."""
    dynamic: Literal["entropy", "diversity"] | None = None
    """Temperature by the context: by its next-base entropy over ln 4 or the score of a diversity head, both 0 to 1."""
    mapping: Mapping = "linear"
    """From that number to the temperature."""
    min_temperature: float = 0.5
    """Lowest dynamic temperature."""
    max_temperature: float = 1.3
    """Highest dynamic temperature."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("temperature", 0, 100), ("top_k", 1, 4), ("top_p", 1e-6, 1), ("typical_p", 1e-6, 1),
            ("typical_kmer", 1, 4), ("repetition_penalty", 0, 100), ("repetition_kmer", 2, 31),
            ("min_temperature", 0.01, 100), ("max_temperature", 0.01, 100),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed are {least:g} to {most:g}")
        if self.min_temperature > self.max_temperature:
            raise UsageError(
                f"min_temperature {self.min_temperature:g} is above max_temperature {self.max_temperature:g}; "
                "exchange them"
            )
        if self.dynamic is not None and self.temperature != 1:
            raise UsageError(
                f"temperature {self.temperature:g} is fixed and dynamic {self.dynamic!r} is not; leave out one of them"
            )
        if self.typical_kmer > 1 and self.typical_p == 1:
            raise UsageError(
                f"typical_kmer {self.typical_kmer} does nothing while typical_p is 1; give a typical_p like 0.9"
            )
        _check_use(self, "dynamic", "mapping", "min_temperature", "max_temperature")
        _check_use(self, "repetition_penalty", "repetition_kmer")

    @property
    def method(self) -> str:
        """What differs from the defaults, in one word for a FASTA header: 'ancestral' if nothing does."""
        if self.temperature == 0:
            return "greedy"
        changed = [
            f"{field.name}:{getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ",".join(changed) or "ancestral"


def _check_use(config: object, what: str, *details: str) -> None:
    """Raise UsageError if a detail is set of what is not asked for at all."""
    for detail in details:
        if not getattr(config, what) and getattr(config, detail) != getattr(type(config), detail):
            raise UsageError(f"{detail} {getattr(config, detail)} does nothing without {what}; give that, too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraints:
    """What every generated sequence keeps to.

    Raises
    ------
    UsageError              a motif that is empty or not of IUPAC codes, or a band that is none
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    require: Motifs = ()
    """Motifs of IUPAC codes that must appear, each at least once; one that begins in the prompt counts."""
    forbid: Motifs = ()
    """Motifs of IUPAC codes that must not appear, not even begun in the prompt."""
    gc: tuple[float, float] | None = None
    """Least and greatest share of G and C."""
    both_strands: bool = False
    """Whether a motif appears on either strand rather than on the one that is written."""

    def __post_init__(self) -> None:
        for what, motifs in (("require", self.require), ("forbid", self.forbid)):
            check_motifs(what, motifs)
        if self.gc is not None and not 0 <= self.gc[0] <= self.gc[1] <= 1:
            raise UsageError(f"gc is {self.gc[0]:g} to {self.gc[1]:g}; allowed are 0 to 1, the lower one first")


def check_motifs(what: str, motifs: Motifs) -> None:
    """Raise UsageError unless each motif is of IUPAC codes, at least one; and for one string, whose letters these were.

    Examples
    --------
    >>> check_motifs("require", ("GAATTC", "CCNNGG"))
    """
    if isinstance(motifs, str):
        raise UsageError(f"{what} is {motifs!r}; give a tuple of motifs: ({motifs!r},)")
    for motif in motifs:
        _check_motif(what, motif)


def _check_motif(what: str, motif: str) -> None:
    wrong = next((letter for letter in motif.upper() if letter not in BASES_OF), None)
    if not motif or wrong is not None:
        found = "it is empty" if wrong is None else f"{wrong!r} is no such code"
        raise UsageError(f"{what} {motif!r}: a motif is made of IUPAC codes ({''.join(BASES_OF)}); {found}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(Decoding, Constraints):
    """Sequences to write, how bases are chosen, and what they keep to.

    Raises
    ------
    UsageError              a value outside of what the field allows, or two fields that contradict each other
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    model: str = "starter"
    """Model folder, training run or hub id."""
    out: str = "-"
    """FASTA file to write, or '-' for stdout."""
    prompt: str = ""
    """What is gone on with: a sequence, or a file of sequences (FASTA or table), or '-'. Default: nothing."""
    length: int = 200
    """Bases to write, at most."""
    count: int = 1
    """Sequences to write, for each prompt."""
    stop: Motifs = ()
    """Motifs of IUPAC codes that end a sequence, where it keeps to its constraints by then."""
    seed: int = 0
    """Decides every draw, with the prompt and the number of the sequence behind it."""
    side_by_side: int = 16
    """Sequences written at the same time; changes speed and memory, and results by rounding only."""
    diversity_head: Path | None = None
    """Of hyena finetune --objective diversity: the head that --dynamic diversity goes by."""
    cache_tokens: int | None = None
    """Tokens that a softmax layer keeps, in the mean over the layers (PyramidKV). Default: all."""
    cache_window: int = 32
    """Of these, last ones that are always kept."""
    cache_schedule: Literal["arithmetic", "uniform"] = "arithmetic"
    """Less in each softmax layer than in the one before, or the same in all."""
    cache_bits: Literal[8, 4, 2] | None = None
    """Of each number that is kept before the window. Default: as computed."""
    report: Path | None = None
    """Folder for a report on what was written: tables, plots and generation.json."""
    reference: Path | None = None
    """FASTA file or pack whose held-out part the report compares with."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        Constraints.__post_init__(self)
        for name in ("length", "count", "side_by_side", "cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; allowed is at least 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; allowed is at least 0")
        if (self.dynamic == "diversity") != (self.diversity_head is not None):
            raise UsageError(
                f"dynamic is {self.dynamic!r} and diversity_head {self.diversity_head}; a head and dynamic 'diversity' "
                "need each other: give both or none"
            )
        _check_use(self, "cache_tokens", "cache_window", "cache_schedule", "cache_bits")
        if self.both_strands and not (self.require or self.forbid):
            raise UsageError("both_strands does nothing without require or forbid; give a motif, or leave it out")
        if self.reference is not None and self.report is None:
            raise UsageError(f"reference {self.reference} is for the report; name its folder by --report")

    @property
    def decoding(self) -> Decoding:
        """How bases are chosen."""
        return Decoding(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)})

    @property
    def constraints(self) -> Constraints:
        """What is kept to."""
        return Constraints(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Constraints)})
