"""Stretches of contigs: BED files, set operations, and which contigs of an assembly are worth training on."""

import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hyenadna.errors import InputError, IntervalError, UsageError

MAX_POSITION = (1 << 31) - 1
"""The last base that BCF and the indexes of htslib can name, counted from 1."""


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Interval:
    """A stretch of a contig, 0-based and half-open; `str()` writes it 1-based and inclusive, as genome browsers do.

    Examples
    --------
    >>> str(Interval("20", 1_000_000, 1_001_024))
    '20:1,000,001-1,001,024'
    """

    contig: str
    """Name of the contig."""
    start: int
    """First base, counted from 0."""
    end: int
    """One past the last base."""

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start + 1:,}-{self.end:,}"


class Region(NamedTuple):
    """A line of a BED file."""

    interval: Interval
    name: str
    """The fourth column, '' where the file has none."""
    strand: str = ""
    """The sixth column, '' where the file has none."""


class Contigs(NamedTuple):
    """The part of an assembly that is used."""

    intervals: tuple[Interval, ...]
    """What is kept, in the order of the file."""
    left_out: dict[str, str]
    """The reason for every contig, or stretch of one, that is not kept."""


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same bases as sorted intervals of which no two overlap or touch."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        last = merged[-1] if merged else None
        if last is not None and last.contig == interval.contig and interval.start <= last.end:
            merged[-1] = Interval(last.contig, last.start, max(last.end, interval.end))
        else:
            merged.append(interval)
    return merged


def subtract(interval: Interval, holes: Iterable[Interval]) -> list[Interval]:
    """What remains of `interval` without `holes`, from left to right."""
    remaining, start = [], interval.start
    for hole in merge(hole for hole in holes if hole.contig == interval.contig):
        if start < min(hole.start, interval.end):
            remaining.append(Interval(interval.contig, start, min(hole.start, interval.end)))
        start = max(start, hole.end)
    if start < interval.end:
        remaining.append(Interval(interval.contig, start, interval.end))
    return remaining


def parse_region(text: str) -> Interval:
    """The stretch that 'contig:first-last' names, 1-based and inclusive as `str(Interval)` writes it.

    A contig alone is all of it: up to the largest number that an index can hold, because its length is not known here.

    Raises
    ------
    UsageError              the text is neither of the two, or the last base comes before the first

    Examples
    --------
    >>> parse_region("20:1,000,001-1,001,024")
    Interval(contig='20', start=1000000, end=1001024)
    """
    form = "a region is contig:first-last, counted from 1 with the last base included, or a contig alone"
    if not (match := re.fullmatch(r"([^\s:]+)|(\S+):([0-9][0-9,]{0,18})-([0-9][0-9,]{0,18})", text)):
        raise UsageError(f"{text!r} is no region; {form}: 20:1,000,001-1,001,024")
    whole, contig, *numbers = match.groups()
    first, last = (1, MAX_POSITION) if whole else (int(number.replace(",", "")) for number in numbers)
    if not 1 <= first <= last:
        raise UsageError(f"{text!r} begins at {first} and ends at {last}; {form}")
    return Interval(whole or contig, first - 1, last)


def read_bed(path: Path, lengths: Mapping[str, int]) -> list[Region]:
    """The regions of a BED file, plain or gzip, in its order.

    Parameters
    ----------
    path : Path
        At least three columns: contig, start, end (0-based, half-open); the fourth is the name.
    lengths : mapping of str to int
        The contigs of the genome that the file speaks of.

    Raises
    ------
    IntervalError
        The file cannot be read, is no BED, has no region, or a region is empty, on no contig or off its end.
    """
    return list(parse_bed(_lines(Path(path)), str(path), lengths))


def parse_bed(lines: Iterable[tuple[int, str]], source: str, lengths: Mapping[str, int]) -> Iterator[Region]:
    """The regions of the numbered lines of a BED file, one after another; the rest is as in `read_bed`."""
    empty = True
    for number, line in lines:
        columns = line.split("\t") if "\t" in line else line.split()
        if not columns or line.startswith(("#", "track", "browser")):
            continue
        empty = False
        yield _region(columns, f"{source}:{number}", lengths)
    if empty:
        raise IntervalError(f"{source} holds no region; a BED line is contig, start and end, separated by tabs")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            gzipped = file.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(file) if gzipped else file as stream:
                for number, line in enumerate(stream, 1):
                    yield number, line.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise IntervalError(f"{path} is no text; give a BED file, plain or gzip") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise IntervalError(f"{path} cannot be read: {reason}; give a BED file, plain or gzip") from error


def _region(columns: list[str], place: str, lengths: Mapping[str, int]) -> Region:
    try:
        contig, start, end = columns[0], _position(columns[1]), _position(columns[2])
    except (IndexError, ValueError) as error:
        raise IntervalError(
            f"{place} is no BED line: {' '.join(columns)[:80]!r}; it must be contig, start and end, separated by tabs"
        ) from error
    if contig not in lengths:
        raise IntervalError(f"{place} names the contig {contig!r}, unknown to the genome; {_hint(contig, lengths)}")
    if not 0 <= start < end:
        raise IntervalError(
            f"{place} runs from {start} to {end}; a start is at least 0 and less than its end (0-based, half-open)"
        )
    if end > lengths[contig]:
        raise IntervalError(
            f"{place} ends at {end}, past the {lengths[contig]} bases of {contig}: is the BED on another assembly?"
        )
    return Region(Interval(contig, start, end), *(columns[at] if len(columns) > at else "" for at in (3, 5)))


def _position(text: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):  # int() also takes 1_000 and the digits of other scripts
        raise ValueError(text)
    return int(text)


def check_contig(contig: str, lengths: Mapping[str, int]) -> None:
    """Raise IntervalError with a hint if there is no such contig."""
    if contig not in lengths:
        raise IntervalError(f"there is no contig {contig!r} in the genome; {_hint(contig, lengths)}")


def _hint(contig: str, lengths: Mapping[str, int]) -> str:
    bare = contig.removeprefix("chr")
    for other in (bare, f"chr{bare}", {"M": "MT", "MT": "chrM"}.get(bare, bare)):
        if other in lengths:
            return f"it calls that one {other!r}: rename one of the two"
    return f"it has {listed(list(lengths))}"


def listed(names: Sequence[str]) -> str:
    """The first eight names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


_LEFT_OUT = {
    r".+_alt|.+_hap\d+|CHR_HSCHR.+|HSCHR.+": "alternate locus",
    r".+_fix|CHR_HG.+|HG\d+_.*PATCH|.+_PATCH": "fix patch",
    r".+_random": "unplaced on its chromosome",
    r"hs37d5|hs38d1|.+_decoy": "decoy",
    r"chrUn.*|(GL|KI|KN|KQ|KV|KZ|ML|MU|JH)\d{6}(\.\d+|v\d+)?|N[TW]_\d+(\.\d+)?": "unplaced",
    r"HLA[-*].+": "HLA allele",
    r"chrEBV|EBV|NC_007605(\.\d+)?|AJ507799(\.\d+)?": "Epstein-Barr virus",
}
"""What UCSC, Ensembl, NCBI and the 1000 Genomes project call all that copies or does not belong to the chromosomes."""

_PSEUDO_AUTOSOMAL = {
    59_373_566: ((10_000, 2_649_520), (59_034_049, 59_363_566)),  # GRCh37
    57_227_415: ((10_000, 2_781_479), (56_887_902, 57_217_415)),  # GRCh38
    62_460_029: ((0, 2_458_320), (62_122_809, 62_460_029)),  # T2T-CHM13v2.0
}
"""By the length of human Y: its stretches that copy X, 0-based and half-open (UCSC and CHM13 project tables)."""


def kept_contigs(lengths: Mapping[str, int], pattern: str | None) -> Contigs:
    """What of an assembly is trained and evaluated on, and why the rest is not.

    Parameters
    ----------
    lengths : mapping of str to int
        Length of every contig in bases.
    pattern : str or None
        None leaves out alternate, fix, random, unplaced, decoy and HLA contigs, the Epstein-Barr virus and the
        pseudo-autosomal copy on Y; 'all' keeps everything; another string is a regular expression that the whole name
        of a kept contig matches (the pseudo-autosomal copy on Y is left out then, too).

    Raises
    ------
    InputError              nothing would remain
    UsageError              the pattern is no regular expression, or matches no contig

    Examples
    --------
    >>> kept_contigs({"chr1": 1000, "chrEBV": 20}, None).left_out
    {'chrEBV': 'Epstein-Barr virus'}
    """
    if pattern == "all":
        return Contigs(tuple(Interval(name, 0, length) for name, length in lengths.items()), {})
    left_out = _left_out(lengths, pattern)
    intervals: list[Interval] = []
    for name in [name for name in lengths if name not in left_out]:
        copies = [Interval(name, *span) for span in _PSEUDO_AUTOSOMAL.get(lengths[name], ())]
        intervals += subtract(Interval(name, 0, lengths[name]), copies)
        left_out |= {str(copy): "pseudo-autosomal copy of X" for copy in copies}
    if not intervals and pattern is not None:
        raise UsageError(f"--contigs {pattern!r} matches no contig; {_hint('', lengths)}")
    if not intervals:
        name, reason = next(iter(left_out.items()))
        raise InputError(
            f"no contig remains: all {len(lengths)} look like copies or unplaced pieces ({name}: {reason}); "
            "--contigs all keeps them, or give --contigs a regular expression"
        )
    return Contigs(tuple(intervals), left_out)


def _left_out(lengths: Mapping[str, int], pattern: str | None) -> dict[str, str]:
    if pattern is None:
        return {name: reason for name in lengths if (reason := _reason(name))}
    try:
        kept = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--contigs {pattern!r} is no regular expression: {error}; 'all' keeps all contigs") from error
    return {name: f"does not match --contigs {pattern!r}" for name in lengths if not kept.fullmatch(name)}


def _reason(name: str) -> str:
    return next((reason for expression, reason in _LEFT_OUT.items() if re.fullmatch(expression, name)), "")
