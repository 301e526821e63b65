"""A VCF file in, the same with scores out: in batches, of which each is kept on the disk once it is scored.

Batches are cut by the records alone, so that a run that was stopped computes the very batches that it would have
computed, and the output has the same bytes. Memory: a batch, whatever the size of the file.
"""

import glob
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hyenadna.data.alleles import Variant
from hyenadna.data.bgzf import BlockWriter, index_vcf
from hyenadna.data.reference_check import ContigNames, Genome, checked
from hyenadna.data.vcf import Record, Vcf, contig_lengths, open_vcf, why_not_scored
from hyenadna.errors import InputError, Interrupted, UsageError, WriteError
from hyenadna.files import atomic_write, lock
from hyenadna.inference.score_config import RefMismatch, ScoreConfig
from hyenadna.inference.score_journal import Journal, Values, journal
from hyenadna.inference.score_lines import Lines, lines_of, not_scored, texts
from hyenadna.progress import Job, progress

if TYPE_CHECKING:
    from hyenadna.inference.variant_scores import VariantScore

BATCH_RECORDS = 512
"""Records of a batch, at most."""
BATCH_BYTES = 1 << 25
"""A batch ends with the record by which its lines reach so many bytes, as those of many samples do."""
Write = Callable[[bytes], object]


class Scorer(Protocol):
    """What scores variants, as `VariantScorer` does."""

    def score(self, variants: Sequence[Variant]) -> "list[VariantScore]":
        """The scores of variants, in their order."""


class Survey(NamedTuple):
    """What a VCF file holds."""

    records: int
    alleles: int
    """Alternative alleles, a missing one counted as one."""
    variants: int
    """Of these, how many can be scored by their spelling."""


class Scorable(NamedTuple):
    """An open VCF file that speaks of the genome."""

    vcf: Vcf
    records: Iterator[Record]
    names: ContigNames
    survey: Survey | None
    """None for standard input, which can be read but once."""


class Scored(NamedTuple):
    """What a job came to."""

    records: int
    """Read."""
    left_out: int
    """Of these, not written: their REF is not in the genome."""
    alleles: int
    """Alternative alleles, a missing one counted as one."""
    scored: int
    """Of these, how many have a score."""
    earlier: int
    """Records whose scores an earlier run of the same job had kept."""
    flags: dict[str, int]
    """Alleles with each flag."""


@contextmanager
def scorable(config: ScoreConfig, genome: Genome) -> Iterator[Scorable]:
    """The VCF file of a job, compared with the genome; a file is read to its end once, which finds what is wrong in it.

    Raises
    ------
    InputError              no VCF, truncated, or of another genome; as `open_vcf` and `checked`
    """
    assert config.data is not None
    if config.data == "-":
        with open_vcf(config.data, config.where) as vcf:
            speaks = checked(vcf, genome)
            yield Scorable(vcf, speaks.records, speaks.names, None)
        return
    with open_vcf(config.data, config.where) as vcf:
        speaks = checked(vcf, genome)
        survey = _survey(speaks.records)
        if not survey.records:
            yield Scorable(vcf, iter(()), speaks.names, survey)
            return
    with open_vcf(config.data, config.where, tell=False) as vcf:
        yield Scorable(vcf, vcf.records, speaks.names, survey)


def _survey(records: Iterable[Record]) -> Survey:
    number = alleles = variants = 0
    for record in records:
        number, alleles = number + 1, alleles + len(record.alts)
        variants += sum(why_not_scored(record, alt) is None for alt in record.alts)
    return Survey(number, alleles, variants)


def score_vcf(
    config: ScoreConfig,
    source: Scorable,
    scorer: Scorer,
    genome: Genome,
    about: Mapping[str, str | int],
    job: Mapping[str, str | int | None],
    *,
    overwrite: bool = False,
) -> Scored:
    """Score a VCF file into another, or into a table.

    Parameters
    ----------
    config : ScoreConfig
    source : Scorable
        Of `scorable`, not yet read.
    scorer : Scorer
    genome : BaseSource
        The scorer's.
    about : mapping
        What the numbers come from, for the header.
    job : mapping
        All that decides them, the input included: what a stopped run had kept is taken up if this is the same.
    overwrite : bool
        Replace OUT, and what a stopped run of another job had kept.

    Raises
    ------
    InputError              a REF that the genome does not hold, where that is an error; a stopped run's input differed
    UsageError              OUT is being written by another process, or a stopped run was of another job
    WriteError              the disk is full
    Interrupted             by a signal; says what is kept
    """
    lines = lines_of(config.written_as, source.vcf, about, config.command, percentiles=config.percentiles)
    with _alone(config), _journal(config, job, overwrite) as kept:
        try:
            with _sink(config) as write:
                write(lines.header())
                scored = _written(config, source, scorer, genome, lines, write, kept)
            if kept is not None:
                kept.done = True
        except Interrupted as error:
            if kept is None:
                raise
            said = f"interrupted; the scores of {kept.records:,} records are kept: the same command goes on from there"
            raise Interrupted(error.exit_code - 128, said) from error
    if config.out != "-" and config.compressed and config.written_as == "vcf":
        known = {name: length for name, length in contig_lengths(source.vcf.header).items() if length}
        index_vcf(Path(config.out), {**genome.lengths, **known})
    return scored


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records of a stream, some at a time, in order."""
    batch, held = list[Record](), 0
    for record in records:
        batch.append(record)
        held += len(record.line)
        if len(batch) == BATCH_RECORDS or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def batch_values(
    batch: Sequence[Record], scorer: Scorer, genome: Genome, names: ContigNames, ref_mismatch: RefMismatch = "flag"
) -> Values:
    """What is printed of each allele of each record.

    Raises
    ------
    InputError              a REF that the genome does not hold, where `ref_mismatch` is 'error'
    """
    values: Values = []
    variants, cells = list[Variant](), list[tuple[int, int]]()
    for row, record in enumerate(batch):
        contig = names.get(record.contig)
        values.append([])
        for column, alt in enumerate(record.alts):
            values[-1].append(not_scored("SKIPPED"))
            if contig is None or why_not_scored(record, alt) is not None:
                continue
            variants.append(record.variant(alt, contig))
            cells.append((row, column))
    scores = scorer.score(variants) if variants else []
    for (row, column), variant, score in zip(cells, variants, scores, strict=True):
        if ref_mismatch == "error" and "REF_MISMATCH" in score.flags:
            raise _mismatch(batch[row], variant, genome)
        values[row][column] = texts(score)
    return values


def _mismatch(record: Record, variant: Variant, genome: Genome) -> InputError:
    length = genome.lengths[variant.contig]
    start, end = max(0, variant.start), min(variant.start + len(variant.ref), length)
    found = genome.fetch(variant.contig, start, end) if start < end else ""
    holds = f"holds {found[:40]!r} there" if found else f"has {length:,} bases in {variant.contig}"
    where = f"line {record.number}, {record.place}" if record.number else record.place
    return InputError(
        f"{where}: REF is {record.ref[:40]!r}, but the genome {holds}; is the VCF on another assembly? --ref-mismatch "
        "flag marks such records, and skip leaves them out"
    )


def _written(
    config: ScoreConfig,
    source: Scorable,
    scorer: Scorer,
    genome: Genome,
    lines: Lines,
    write: Write,
    kept: Journal | None,
) -> Scored:
    """Score batch after batch, or take what was kept of it, and write it."""
    tally, flags = Counter[str](), Counter[str]()
    with ExitStack() as stack:
        job: Job | None = None
        for batch in batches(source.records):
            checksum = _checksum(batch)
            values = None if kept is None else kept.take(checksum, len(batch))
            if values is None:
                # now, so that the rate is not that of what an earlier run had done
                total = 0 if source.survey is None else source.survey.variants
                job = job or stack.enter_context(progress("scoring", total, "variants", tally["scored"]))
                values = batch_values(batch, scorer, genome, source.names, config.ref_mismatch)
                if kept is not None:
                    kept.append(checksum, values)
                job.advance(_scores(values))
            else:
                tally["earlier"] += len(batch)
            text, left_out = _text(batch, values, lines, config.ref_mismatch)
            write(text)
            tally += Counter(
                records=len(batch), left_out=left_out, alleles=sum(map(len, values)), scored=_scores(values)
            )
            flags.update(flag for rows in values for *_, some in rows for flag in some.split("|") if flag != ".")
    said = (tally[name] for name in ("records", "left_out", "alleles", "scored", "earlier"))
    records, left_out, alleles, scored, earlier = said
    return Scored(records, left_out, alleles, scored, earlier, dict(sorted(flags.items())))


def _text(batch: Sequence[Record], values: Values, lines: Lines, ref_mismatch: RefMismatch) -> tuple[bytes, int]:
    """The lines of a batch, and how many records were left out."""
    there = [
        (record, rows)
        for record, rows in zip(batch, values, strict=True)
        if ref_mismatch != "skip" or not_scored("REF_MISMATCH") not in rows
    ]
    return b"".join(lines.record(record, rows) for record, rows in there), len(batch) - len(there)


def _scores(values: Values) -> int:
    return sum(llr != "." for rows in values for llr, *_ in rows)


def _checksum(batch: Sequence[Record]) -> int:
    checksum = 0
    for record in batch:
        checksum = zlib.crc32(record.line, checksum)
    return checksum


@contextmanager
def _sink(config: ScoreConfig) -> Iterator[Write]:
    """What takes the output: stdout, as it comes; or a file, that takes its name when it is whole."""
    if config.out == "-":
        yield _to_stdout
        return
    with atomic_write(Path(config.out)) as temporary, temporary.open("wb") as file:
        if not config.compressed:
            yield file.write
            return
        writer = BlockWriter(file)
        yield writer.write
        writer.close()


def _to_stdout(text: bytes) -> None:
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"the scores could not be written to stdout: {error.strerror or error}") from error


@contextmanager
def _alone(config: ScoreConfig) -> Iterator[None]:
    """Be the only process that writes OUT, and remove what one that was killed left of it."""
    if config.out == "-":
        yield
        return
    out = Path(config.out)
    lock_file = out.with_name(f".{out.name}.lock")
    with lock(lock_file, UsageError(f"-o {out} is being written by another process; wait for it, or name another")):
        try:
            for left_behind in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
                left_behind.unlink(missing_ok=True)
            yield
        finally:
            lock_file.unlink(missing_ok=True)


@contextmanager
def _journal(config: ScoreConfig, job: Mapping[str, str | int | None], overwrite: bool) -> Iterator[Journal | None]:
    folder = state_folder(config)
    opened = (
        nullcontext(None)
        if folder is None
        else journal(folder, job, keep_folder=config.state is not None, overwrite=overwrite)
    )
    with opened as kept:
        yield kept


def state_folder(config: ScoreConfig) -> Path | None:
    """Where finished batches are kept; None for what cannot be resumed: standard input, or stdout without --state."""
    if config.state is not None:
        return config.state
    if config.data == "-" or config.out == "-":
        return None
    out = Path(config.out)
    return out.with_name(f".{out.name}.journal")
