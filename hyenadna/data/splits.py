"""Which parts of a genome train, which choose the checkpoint, and which are held out to the end."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hyenadna.data.intervals import Interval, Region, check_contig, merge, subtract
from hyenadna.data.packed import Pack, letter_counts
from hyenadna.errors import InputError, IntervalError

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
SHARES: dict[Part, float] = {"train": 0.85, "valid": 0.05, "test": 0.10}
"""Share of the usable bases that each part gets from `hashed_split`."""
_BLOCK = 1_000_000
_SMALL_GENOME = 50_000_000
_BLOCK_IN_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class Split:
    """Three disjoint sets of intervals of one genome. A window lies within one interval, so never in two parts."""

    train: tuple[Interval, ...]
    """What the weights are fitted to."""
    valid: tuple[Interval, ...]
    """What chooses the best checkpoint."""
    test: tuple[Interval, ...]
    """What is only evaluated on."""
    rule: str
    """How the parts were chosen, in words."""
    source: str
    """Name of the FASTA file."""
    sequence_sha256: str
    """The genome's checksum, as `Pack.sequence_sha256`."""
    lengths: dict[str, int]
    """Length of every contig of the genome in bases, used or not."""
    gc: dict[str, float | None]
    """Share of G and C among the A, C, G, T of each part; None for a part without any."""

    def part(self, name: Part) -> tuple[Interval, ...]:
        """The intervals of a part by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def bases(self, name: Part) -> int:
        """The number of bases in a part, N included."""
        return sum(map(len, self.part(name)))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers: each interval is [contig, start, end], 0-based and half-open."""
        value = dataclasses.asdict(self)
        parts = {name: [[i.contig, i.start, i.end] for i in self.part(name)] for name in PARTS}
        return value | parts | {"bases": {name: self.bases(name) for name in PARTS}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Split":
        """The split that `to_json` wrote.

        Raises
        ------
        InputError              something is missing or has another type
        """
        try:
            parts = {name: tuple(Interval(str(c), int(s), int(e)) for c, s, e in value[name]) for name in PARTS}
            return cls(
                **parts,
                rule=str(value["rule"]),
                source=str(value["source"]),
                sequence_sha256=str(value["sequence_sha256"]),
                lengths={str(name): int(length) for name, length in value["lengths"].items()},
                gc={str(name): None if share is None else float(share) for name, share in value["gc"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a stored split: {error!r}; make it again with hyena data split") from error


def splits_to_json(splits: Sequence[Split]) -> dict[str, Any]:
    """What a model folder stores as split.json: one split for each genome that the model was trained on."""
    return {"genomes": [split.to_json() for split in splits]}


def read_splits(path: Path) -> tuple[Split, ...]:
    """The splits of a split.json, one a genome.

    Raises
    ------
    InputError              the file cannot be read as such
    """
    try:
        return tuple(Split.from_json(value) for value in json.loads(path.read_text(encoding="utf-8"))["genomes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a stored split: {error!r}") from error


def matching_split(splits: Sequence[Split], pack: Pack) -> Split | None:
    """The split that is one of this genome: same contigs, same lengths, and the same bases if there is a choice."""
    known = [split for split in splits if split.lengths == pack.lengths]
    same = [split for split in known if split.sequence_sha256 == pack.sequence_sha256]
    return next(iter(same or known), None)


@dataclasses.dataclass(frozen=True)
class _Block:
    interval: Interval
    rank: bytes
    usable: int


def hashed_split(intervals: Sequence[Interval], pack: Pack, max_length: int) -> Split:
    """Blocks dealt to train (0.85), valid (0.05) and test (0.10) by a hash of contig name and block number.

    Blocks are 1 Mb, a fiftieth of a genome under 50 Mb, and never under four times `max_length`; they stretch to fill
    their interval evenly. Shares are of A, C, G, T; blocks that are mostly N or shorter than four windows always train.
    Neighbours of one part join; between parts `max_length` bases are left out, from train, or from valid beside test.

    Parameters
    ----------
    intervals : sequence of Interval
        What is used of the genome (`kept_contigs`); their order does not matter.
    pack : Pack
        The genome.
    max_length : int
        The longest window in bases.

    Raises
    ------
    InputError              the genome has no three blocks; says which `max_length` would do
    """
    intervals = merge(intervals)
    total = sum(map(len, intervals))
    size = max(_BLOCK if total >= _SMALL_GENOME else total // 50, _BLOCK_IN_WINDOWS * max_length)
    blocks = [block for interval in intervals for block in _blocks(interval, size, pack)]
    parts = _deal(blocks, _BLOCK_IN_WINDOWS * max_length)
    if parts is None:
        raise InputError(_too_few(intervals, blocks, pack, max_length))
    joined = {name: merge(block.interval for block in part) for name, part in parts.items()}
    joined["valid"] = _guard(joined["valid"], joined["test"], max_length)
    joined["train"] = _guard(joined["train"], joined["valid"] + joined["test"], max_length)
    rule = (
        f"blocks of {size} bases or a little more, ranked by a hash of contig name and block number: "
        f"test {SHARES['test']}, valid {SHARES['valid']}, train the rest; {max_length} bases between parts left out"
    )
    return _split(joined, rule, pack)


def contig_split(
    intervals: Sequence[Interval], valid_contigs: Collection[str], test_contigs: Collection[str], pack: Pack
) -> Split:
    """Whole contigs held out by name; all others train.

    Raises
    ------
    IntervalError           a name is in both sets or not among the contigs that are used, or a part is empty
    """
    used = {interval.contig: len(interval) for interval in intervals}
    for contig in (*valid_contigs, *test_contigs):
        check_contig(contig, used)
    if both := sorted(set(valid_contigs) & set(test_contigs)):
        raise IntervalError(f"{', '.join(both)} is given for both valid and test; a contig can serve one of them")
    parts: dict[Part, list[Interval]] = {"train": [], "valid": [], "test": []}
    for interval in merge(intervals):
        held_out: Part = "valid" if interval.contig in valid_contigs else "test"
        parts[held_out if interval.contig in {*valid_contigs, *test_contigs} else "train"].append(interval)
    rule = f"contigs: valid {', '.join(valid_contigs)}; test {', '.join(test_contigs)}; train the rest"
    return _split(parts, rule, pack)


def bed_split(regions: Iterable[Region], pack: Pack) -> Split:
    """The regions of a BED file whose names are train, valid and test; what no region covers is not used.

    Parameters
    ----------
    regions : iterable of Region
        As `read_bed` gives them.
    pack : Pack
        The genome.

    Raises
    ------
    IntervalError           another name, regions of different parts that overlap, or a part without regions
    """
    parts: dict[Part, list[Interval]] = {"train": [], "valid": [], "test": []}
    for interval, name, _ in regions:
        match name:
            case "train" | "valid" | "test":
                parts[name].append(interval)
            case _:
                raise IntervalError(f"{interval} has the name {name!r}; the fourth column must be train, valid or test")
    merged = {name: merge(part) for name, part in parts.items()}
    in_order = sorted((interval, name) for name, part in merged.items() for interval in part)
    for (before, other), (interval, name) in itertools.pairwise(in_order):
        if interval.contig == before.contig and interval.start < before.end:
            raise IntervalError(f"{interval} ({name}) overlaps {before} ({other}); the parts must be disjoint")
    return _split(merged, "regions of a BED file", pack)


def _blocks(interval: Interval, size: int, pack: Pack) -> list[_Block]:
    n = max(1, len(interval) // size)
    edges = [interval.start + len(interval) * i // n for i in range(n + 1)]
    blocks = []
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        block = Interval(interval.contig, start, end)
        # the interval's own start tells apart the pieces of one contig; no process-dependent hash()
        rank = hashlib.sha256(f"{interval.contig}\t{interval.start}\t{i}".encode()).digest()
        blocks.append(_Block(block, rank, int(letter_counts(pack.fetch(block))[:4].sum())))
    return blocks


def _deal(blocks: list[_Block], least: int) -> dict[Part, list[_Block]] | None:
    """Test and valid are filled by rank, each until the next block would take it further from its share."""
    total = sum(block.usable for block in blocks)
    fit = [block for block in blocks if len(block.interval) >= least and 2 * block.usable >= len(block.interval)]
    ranked = sorted(fit, key=lambda block: block.rank)
    if len(ranked) < 3:
        return None
    parts: dict[Part, list[_Block]] = {}
    held_out: tuple[tuple[Part, int], ...] = (("test", 2), ("valid", 1))
    for name, reserved in held_out:
        part, target = [ranked.pop(0)], SHARES[name] * total
        filled = part[0].usable
        while len(ranked) > reserved and abs(filled + ranked[0].usable - target) < abs(filled - target):
            part.append(ranked.pop(0))
            filled += part[-1].usable
        parts[name] = part
    dealt = {block.interval for part in parts.values() for block in part}
    return parts | {"train": [block for block in blocks if block.interval not in dealt]}


def _guard(intervals: list[Interval], others: list[Interval], width: int) -> list[Interval]:
    """What of `intervals` is at least `width` bases away from all `others`."""
    wide: dict[str, list[Interval]] = {}
    for other in others:
        wide.setdefault(other.contig, []).append(Interval(other.contig, other.start - width, other.end + width))
    return [piece for interval in intervals for piece in subtract(interval, wide.get(interval.contig, ()))]


def _too_few(intervals: list[Interval], blocks: list[_Block], pack: Pack, max_length: int) -> str:
    usable, bases = sum(block.usable for block in blocks), sum(map(len, intervals))
    if sum(len(block.interval) >= _BLOCK_IN_WINDOWS * max_length for block in blocks) >= 3:
        return (
            f"{pack.source} has {usable:,} A, C, G or T in {bases:,} bases, and fewer than three of its blocks are not "
            "mostly N; is it masked, or are the wrong contigs kept?"
        )
    low, high = 0, max_length
    while high - low > 1:  # the largest length with which three blocks fit
        middle = (low + high) // 2
        fits = sum(len(interval) // (_BLOCK_IN_WINDOWS * middle) for interval in intervals) >= 3
        low, high = (middle, high) if fits else (low, middle)
    return (
        f"{pack.source} is too small to hold out blocks for windows of {max_length:,} bases: a split needs three "
        f"blocks of four windows each, and {bases:,} bases in {len(intervals)} contigs allow a max length of {low:,}"
    )


def _split(parts: dict[Part, list[Interval]], rule: str, pack: Pack) -> Split:
    gc: dict[str, float | None] = {}
    for name in PARTS:
        if not parts[name]:
            raise IntervalError(
                f"no interval of {pack.source} is left for {name}; each of train, valid and test needs some"
            )
        counts = np.sum([letter_counts(pack.fetch(interval))[:4] for interval in parts[name]], axis=0)
        gc[name] = float((counts[1] + counts[2]) / counts.sum()) if counts.sum() else None
    return Split(
        train=tuple(parts["train"]),
        valid=tuple(parts["valid"]),
        test=tuple(parts["test"]),
        rule=rule,
        source=pack.source,
        sequence_sha256=pack.sequence_sha256,
        lengths=dict(pack.lengths),
        gc=gc,
    )
