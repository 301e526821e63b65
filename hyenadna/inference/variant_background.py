"""What the log-likelihood ratios of all possible SNVs are like, by trinucleotide change: percentiles of HYENA_PCT.

A ratio is for the most part mutability, which the base before and the base after tell much of. So an SNV is compared
with others of the same trinucleotide change, of which there are 64 x 3; where both strands are averaged, a change and
its reverse complement are one. They lie evenly spread over sequence that the model was not trained on, where that is
known, and are scored by the same model, window, strand and dtype.

A percentile of n ratios is known to about 50 / sqrt(n) points in the middle: 6 of 64.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hyenadna.data.alleles import BaseSource, Variant
from hyenadna.data.alphabet import BASES
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.splits import read_splits
from hyenadna.errors import InputError, WriteError
from hyenadna.files import cache_folder, write_json
from hyenadna.inference.trinucleotides import LEAST, Background, folded_change, trinucleotide_change
from hyenadna.inference.variant_scores import VariantScorer
from hyenadna.progress import notice, progress

PER_CLASS = 64
"""SNVs of each trinucleotide change that are scored, where there are so many."""

_VERSION = 1
_PER_STRETCH = 4
"""Most SNVs of one change from one stretch of W / 4 bases, so that they are of many places."""
_MOST_STRETCHES = 2048
_TOGETHER = 1024
_GOLDEN = (math.sqrt(5) - 1) / 2


def held_out(split: Path, lengths: Mapping[str, int]) -> tuple[Interval, ...] | None:
    """The test part of the split.json in a model's folder, if one of its genomes is this: same contigs, same lengths.

    Parameters
    ----------
    split : Path
        It need not exist.
    lengths : mapping of str to int
        Of the genome's contigs.

    Raises
    ------
    InputError              the file is there, and cannot be read as splits
    """
    if not split.exists():
        return None
    return next((known.test for known in read_splits(split) if known.lengths == dict(lengths)), None)


def background_of(
    scorer: VariantScorer, intervals: Sequence[Interval] | None = None, *, fingerprint: str | None = None
) -> Background:
    """The background of a scorer: of its model, genome, window, strand and dtype.

    The model reads 4 million tokens at W = 1,024, unless it is in the cache folder.

    Parameters
    ----------
    scorer : VariantScorer
        It is left as it is; `scorer.background = background_of(scorer, ...)` makes it give percentiles.
    intervals : sequence of Interval, optional
        Where the SNVs lie: `held_out`. Default: the whole genome, but for copies and unplaced pieces.
    fingerprint : str, optional
        Names the genome in the cache: `Genome.fingerprint`. Without it nothing is kept.
    """
    where = "the whole genome" if intervals is None else "held-out sequence"
    if intervals is None:
        try:
            intervals = kept_contigs(scorer.genome.lengths, None).intervals
        except InputError:  # copies and unplaced pieces alone
            intervals = [Interval(name, 0, length) for name, length in scorer.genome.lengths.items()]
    path, about = None, {}
    if fingerprint is not None:
        about = _about(scorer, intervals, fingerprint)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        path = cache_folder() / "variant-background" / f"{key}.json"
    background = None if path is None else _stored(path, about)
    if background is None:
        background = _measured(scorer, intervals, where)
        if path is not None:
            _store(path, about, background)
    return background


def _measured(scorer: VariantScorer, intervals: Sequence[Interval], where: str) -> Background:
    folded = scorer.strand == "both"
    variants = list(_spread(scorer.genome, intervals, scorer.window // 4, folded))
    notice(
        f"{len(variants):,} SNVs of {where} are scored for percentiles first, which the cache keeps for this model and "
        "genome; --no-percentiles leaves them out"
    )
    ratios: dict[str, list[float]] = defaultdict(list)
    with progress("scoring SNVs for percentiles", len(variants), "SNVs") as job:
        for first in range(0, len(variants), _TOGETHER):
            part = variants[first : first + _TOGETHER]
            scores = scorer.score([variant for variant, _ in part])
            for (_, change), score in zip(part, scores, strict=True):
                if not math.isnan(score.llr):
                    ratios[change].append(score.llr)
            job.advance(len(part))
    counts = sorted(map(len, ratios.values()))
    few = sum(count < LEAST for count in counts) + (96 if folded else 192) - len(counts)
    text = f"{sum(counts):,} SNVs of {where}, up to {counts[-1] if counts else 0} of each trinucleotide change"
    text += f"; {few} changes with fewer than {LEAST} have no percentile" if few else ""
    return Background({change: np.sort(values) for change, values in sorted(ratios.items())}, folded, text)


def _spread(
    genome: BaseSource, intervals: Sequence[Interval], quarter: int, folded: bool
) -> Iterator[tuple[Variant, str]]:
    """SNVs and their changes, until `PER_CLASS` of every change are there.

    They come stretch by stretch. A stretch is what one window scores, so that its SNVs share the reading of it.
    """
    firsts = [-(-interval.start // quarter) for interval in intervals]
    counts = [max(0, interval.end // quarter - first) for interval, first in zip(intervals, firsts, strict=True)]
    before = np.cumsum([0, *counts])
    taken: Counter[str] = Counter()
    for order, number in enumerate(_golden(int(before[-1]))):
        at = int(np.searchsorted(before, number, "right")) - 1
        start = (firsts[at] + number - int(before[at])) * quarter
        here: Counter[str] = Counter()
        # not always from its beginning, or the first positions of stretches would be preferred
        for i in range(quarter):
            position = start + (i + 97 * order) % quarter
            for variant, change in _substitutions(genome, intervals[at].contig, position, folded):
                if taken[change] < PER_CLASS and here[change] < _PER_STRETCH:
                    taken[change] += 1
                    here[change] += 1
                    yield variant, change
        if len(taken) == (96 if folded else 192) and min(taken.values()) == PER_CLASS:
            return


def _substitutions(genome: BaseSource, contig: str, position: int, folded: bool) -> Iterator[tuple[Variant, str]]:
    own = genome.fetch(contig, position, position + 1)
    for base in BASES:
        variant = Variant(contig, position, own, base)
        change = trinucleotide_change(variant, genome) if base != own else None
        if change is not None:
            yield variant, folded_change(change) if folded else change


def _golden(n: int) -> Iterator[int]:
    """Numbers below n, each once, at most `_MOST_STRETCHES`, of which any first few are evenly spread."""
    seen: set[int] = set()
    for i in range(8 * min(n, _MOST_STRETCHES)):
        number = int((i + 0.5) * _GOLDEN % 1 * n)
        if number not in seen and len(seen) < _MOST_STRETCHES:
            seen.add(number)
            yield number


def _about(scorer: VariantScorer, intervals: Sequence[Interval], fingerprint: str) -> dict[str, Any]:
    """All that a background depends on."""
    from hyenadna.model.weights import base_sha256

    model = scorer.model
    return {
        "version": [_VERSION, PER_CLASS, _PER_STRETCH, _MOST_STRETCHES],
        "weights": base_sha256(model.state_dict()),
        "config": repr(model.config),
        "genome": fingerprint,
        "intervals": hashlib.sha256(repr(list(intervals)).encode()).hexdigest(),
        "window": scorer.window,
        "strand": scorer.strand,
        "dtype": str(scorer.dtype),
    }


def _store(path: Path, about: Mapping[str, Any], background: Background) -> None:
    ratios = {change: values.tolist() for change, values in background.ratios.items()}
    try:
        write_json(path, {"about": about, "where": background.where, "folded": background.folded, "ratios": ratios})
    except WriteError as error:
        notice(f"the percentiles of SNVs are not kept for the next time: {error}")


def _stored(path: Path, about: Mapping[str, Any]) -> Background | None:
    """What an earlier run has measured; None if there is nothing, or nothing whole."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["about"] == about:
            ratios = {change: np.array(values, dtype=np.float64) for change, values in stored["ratios"].items()}
            return Background(ratios, bool(stored["folded"]), str(stored["where"]))
    return None
