"""What scoring will take, before it is done."""

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from hyenadna.data.alleles import Variant
from hyenadna.data.intervals import Region
from hyenadna.data.reference_check import Genome
from hyenadna.data.vcf import why_not_scored
from hyenadna.inference.score_vcf import BATCH_RECORDS, Scorable, Scorer
from hyenadna.machine import peak_memory
from hyenadna.progress import duration, quantity

_SECONDS = 2.0
_FIRST = 32
_BASES = "ACGT"


def vcf_plan(source: Scorable, scorer: Scorer, *, before: int = 0) -> dict[str, Any]:
    """Score the first records of a VCF file for some seconds, and say what the whole would take.

    Parameters
    ----------
    source : Scorable
        Of a file, not yet read.
    scorer : Scorer
    before : int
        Variants that are scored before those of the file, for percentiles, if the cache has none.
    """
    assert source.survey is not None
    some = list[Variant]()
    for record in islice(source.records, BATCH_RECORDS):
        contig = source.names.get(record.contig)
        for alt in record.alts:
            if contig is not None and why_not_scored(record, alt) is None:
                some.append(record.variant(alt, contig))
    total = source.survey.variants
    counted = f"{source.survey.records:,} records, {total:,} of {source.survey.alleles:,} alleles can be scored"
    return source.survey._asdict() | _plan(scorer, some, total, counted, before)


def regions_plan(regions: Sequence[Region], scorer: Scorer, genome: Genome, *, before: int = 0) -> dict[str, Any]:
    """Score the first substitutions of regions for some seconds, and say what the whole would take."""
    total = 3 * sum(len(region.interval) for region in regions)
    some = list(islice(_substitutions(regions, genome), BATCH_RECORDS))
    counted = f"{len(regions):,} regions, at most {total:,} substitutions"
    return {"regions": len(regions), "variants": total} | _plan(scorer, some, total, counted, before)


def _substitutions(regions: Iterable[Region], genome: Genome) -> Iterable[Variant]:
    for contig, start, end in ((r.interval.contig, r.interval.start, r.interval.end) for r in regions):
        for at in range(start, end):
            if (base := genome.fetch(contig, at, at + 1)) in _BASES:
                yield from (Variant(contig, at, base, other) for other in _BASES if other != base)


def _plan(scorer: Scorer, some: Sequence[Variant], total: int, counted: str, before: int) -> dict[str, Any]:
    rate, memory = _rate(scorer, some), peak_memory()
    seconds, earlier = (total / rate, before / rate) if rate else (0.0, 0.0)
    percentiles = f", and {duration(earlier)} for percentiles if the cache has none of these" if before else ""
    text = (
        f"{counted}. At {quantity(rate)}variants/s: {duration(seconds)}{percentiles}; {quantity(memory)}B of memory so "
        "far. Nothing was written"
    )
    return {
        "variants_per_s": round(rate, 1), "seconds": round(seconds, 1), "seconds_percentiles": round(earlier, 1),
        "memory_bytes": memory, "text": text,
    }  # fmt: skip


def _rate(scorer: Scorer, some: Sequence[Variant]) -> float:
    """Variants a second, over a few, then more and more until it takes some seconds; 0 if there are none."""
    scorer.score(some[:1])  # the first takes longer than any other, and is not timed
    number = _FIRST
    while some:
        part = some[:number]
        start = time.perf_counter()
        scorer.score(part)
        seconds = time.perf_counter() - start
        if number >= len(some) or seconds > _SECONDS / 2:
            return len(part) / seconds
        number *= 4
    return 0.0
