"""Train, valid and test out of labelled rows: nothing that belongs together is torn apart, and labels are balanced.

What belongs together is a group that the data name (contig, gene, patient) or a cluster of duplicates
(`hyenadna.data.duplicates`). Each goes to one part as a whole, the larger ones first, to the part that then lacks the
least of its share of each class:

    minimise the sum over parts p and classes c of (have[p, c] - share[p] total[c])^2 / (share[p] total[c])

with all rows as one class more, labels of multilabel rows as classes, and fifths of the values of a regression. This
is iterative stratification (Sechidis et al. 2011) on whole groups. The order is random in that sizes are multiplied by
1 to 4, drawn from a hash of the seed and of what is in the group: the order of the rows plays no part.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.duplicates import clusters
from hyenadna.data.label_kinds import Kind, kind_of, names_of, values_of
from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.splits import PARTS, Part
from hyenadna.errors import InputError, UsageError

By = Literal["auto", "group", "cluster", "row"]
FEWEST_GROUPS = 5
"""Groups that `auto` asks for before it splits by them."""
LARGEST_GROUP = 0.5
"""Share of the rows that one group may have for `auto` to split by groups."""
_QUANTILES = 5


def carve(
    data: LabelledSequences,
    *,
    by: By = "auto",
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    kind: Kind | None = None,
) -> LabelledSequences:
    """The same rows with train, valid and test parts, and in `rule` how they came about.

    Parts that the data give stay as they are: what is missing is carved out of the train rows alone.

    Parameters
    ----------
    data : LabelledSequences
        Labels may be missing altogether; then only sizes are balanced.
    by : str
        group: whole groups of the data; cluster: whole clusters of duplicates; row: any row by itself; auto: groups if
        there are at least five and none has over half of the rows, else clusters.
    valid, test : float
        Shares of the rows that are dealt out; 0 for no such part.
    seed : int
        Another seed gives another split; the same one the same, in whatever order the rows stand.
    kind : optional
        What the labels are; by default what they look like (`kind_of`).

    Raises
    ------
    InputError              fewer rows or groups than parts; one class only; a class with a single row; a class of which
                            nothing is left to train on; given parts without train
    UsageError              shares that leave nothing to train on; `by="group"` for data without groups
    """
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise UsageError(f"shares of {valid:g} for valid and {test:g} for test; both from 0, together under 1")
    given: Counter[Part] = Counter(data.parts or ())
    wanted: dict[Part, float] = {"valid": valid, "test": test}
    shares = {part: share for part, share in wanted.items() if share and not given[part]}
    if given and not given["train"]:
        raise InputError(f"{data.source}: no row is in train; one part must be")
    if not shares:
        return data
    rows = np.array([row for row in range(len(data)) if not given or data.parts[row] == "train"])  # type: ignore[index]
    dealt = data.take(rows)
    shares = {"train": 1 - sum(shares.values()), **shares}
    units = _units(dealt, by, seed)
    columns = _columns(dealt, kind, tested="test" in shares)
    numbers = _deal(units, columns.table, list(shares.values()), seed)
    names = list(shares)
    parts: list[Part] = list(data.parts) if data.parts else ["train"] * len(data)
    for row, number in zip(rows, numbers, strict=True):
        parts[row] = names[number]
    _check_train(dealt, columns, numbers)
    kept = [f"{part} as given ({given[part]:,} rows)" for part in PARTS if given[part] and part != "train"]
    made = f"{', '.join(shares)} by {units.words}{columns.words}, seed {seed}"
    sizes = ", ".join(f"{part} {parts.count(part):,}" for part in PARTS if part in parts)
    lacking = _lacking(columns, numbers, names)
    rule = f"{'; '.join([*kept, made])}: {sizes} rows{lacking}"
    return dataclasses.replace(data, parts=tuple(parts), rule=rule)


def folds(
    data: LabelledSequences,
    n: int,
    *,
    by: By = "auto",
    valid: float = 0.1,
    seed: int = 0,
    kind: Kind | None = None,
) -> list[LabelledSequences]:
    """The data n times, each row in test exactly once; parts that the data give are set aside.

    Parameters
    ----------
    n : int
        Folds, from 2.
    valid : float
        Share of the rows outside of the test fold that chooses the best checkpoint.
    data, by, seed, kind
        As for `carve`.

    Raises
    ------
    InputError, UsageError  as for `carve`; fewer groups than folds; n below 2
    """
    if n < 2 or not 0 <= valid < 1:
        raise UsageError(f"{n} folds with a share of {valid:g} for valid; give at least 2 folds and a share under 1")
    units = _units(data, by, seed)
    columns = _columns(data, kind, tested=True)
    fold_of = _deal(units, columns.table, [1 / n] * n, seed)
    made = []
    for fold in range(n):
        rest = np.flatnonzero(fold_of != fold)
        numbers = np.full(len(data), 2)
        if valid:
            numbers[rest] = _deal(units.take(rest), columns.table[rest], [1 - valid, valid], seed + fold)
        else:
            numbers[rest] = 0
        _check_train(data, columns, numbers)
        parts = tuple(PARTS[number] for number in numbers)
        sizes = ", ".join(f"{part} {parts.count(part):,}" for part in PARTS if part in parts)
        rule = f"fold {fold + 1} of {n} by {units.words}{columns.words}, seed {seed}: {sizes} rows"
        made.append(dataclasses.replace(data, parts=parts, rule=rule + _lacking(columns, numbers, PARTS)))
    return made


class _Units(NamedTuple):
    """What goes to one part as a whole."""

    numbers: NDArray[np.int64]
    """(n,): the unit of each row, from 0."""
    names: list[str]
    """What identifies each unit in whatever order the rows stand."""
    words: str
    """What the units are."""

    def take(self, rows: NDArray[np.intp]) -> "_Units":
        used, numbers = np.unique(self.numbers[rows], return_inverse=True)
        return _Units(numbers, [self.names[unit] for unit in used], self.words)


def _units(data: LabelledSequences, by: By, seed: int) -> _Units:
    reason = ""
    if by == "auto":
        by, reason = _chosen(data)
    match by:
        case "group":
            if data.groups is None:
                raise UsageError(f"{data.source} has no groups; name their column (--group-col), or split by cluster")
            names = sorted(set(data.groups))
            number_of = {name: number for number, name in enumerate(names)}
            numbers = np.array([number_of[group] for group in data.groups], dtype=np.int64)
            noun = "whole groups"
        case "cluster":
            numbers = clusters(data.sequences)
            firsts: dict[int, str] = {}
            for number, sequence in zip(numbers.tolist(), data.sequences, strict=True):
                strandless = min(sequence, reverse_complement(sequence))
                firsts[number] = min(firsts.get(number, strandless), strandless)
            names = [firsts[number] for number in range(len(firsts))]
            noun = "whole clusters of exact, reverse-complement and near duplicates"
        case _:
            numbers = np.arange(len(data))
            seen: Counter[tuple[str, str]] = Counter()
            names = []
            for row, sequence in enumerate(data.sequences):
                content = (sequence, data.labels[row] if data.labels else "")
                names.append("\t".join((*content, str(seen[content]))))
                seen[content] += 1
            noun = "single rows, duplicates or not"
    largest = int(np.bincount(numbers).max(initial=0))
    many = f"{len(names):,} {noun}" + (f", the largest of {largest:,} rows" if by != "row" else "")
    return _Units(numbers, names, many + reason)


def _chosen(data: LabelledSequences) -> tuple[By, str]:
    if data.groups is None:
        return "cluster", ""
    sizes = Counter(data.groups)
    if len(sizes) < FEWEST_GROUPS:
        return "cluster", f" (the {len(sizes)} groups of the data are too few to split by)"
    group, rows = sizes.most_common(1)[0]
    if rows > LARGEST_GROUP * len(data):
        return "cluster", f" (group {group!r} has {rows / len(data):.0%} of the rows, too many to split by groups)"
    return "group", ""


class _Columns(NamedTuple):
    """What is balanced between the parts."""

    table: NDArray[np.float64]
    """(n, classes + 1): ones where the row is of the class; the last column is all ones."""
    names: tuple[str, ...]
    """The classes; empty where they are no names of labels."""
    words: str


def _columns(data: LabelledSequences, kind: Kind | None, *, tested: bool) -> _Columns:
    every = np.ones((len(data), 1))
    labels = data.labels
    if labels is None:
        return _Columns(every, (), "")
    kind = kind or kind_of(labels)
    if kind == "nucleotide":
        return _Columns(every, (), "")
    if kind == "regression":
        numbers = values_of(labels)
        edges = np.quantile(numbers, np.arange(1, _QUANTILES) / _QUANTILES)
        of_row = [[int(fifth)] for fifth in np.searchsorted(edges, numbers)]
        return _Columns(_table(of_row, _QUANTILES), (), ", stratified by fifths of the values")
    named = names_of(labels, kind)
    names = tuple(sorted({name for row in named for name in row}))
    if kind != "multilabel":
        _check_classes(data.source, labels, names, tested)
    number_of = {name: number for number, name in enumerate(names)}
    words = ", stratified by label" if kind == "multilabel" else ", stratified by class"
    return _Columns(_table([[number_of[name] for name in row] for row in named], len(names)), names, words)


def _table(of_row: Sequence[Sequence[int]], width: int) -> NDArray[np.float64]:
    table = np.zeros((len(of_row), width + 1))
    for row, present in enumerate(of_row):
        table[row, present] = 1
    table[:, -1] = 1
    return table


def _check_classes(source: str, labels: Sequence[str], names: Sequence[str], tested: bool) -> None:
    if "" in names:
        missing = [row + 1 for row, label in enumerate(labels) if not label]
        raise InputError(f"{len(missing)} rows have no label, the first is row {missing[0]}; fill them in or drop them")
    if len(names) < 2:
        raise InputError(f"{source}: there is one class only, {', '.join(map(repr, names))}; a classifier needs two")
    single = [name for name, rows in sorted(Counter(labels).items()) if rows == 1]
    if tested and single:
        raise InputError(
            f"{source}: {len(single)} classes have a single row, the first is {single[0]!r}; it cannot both train and "
            "test: add rows of it, or drop it"
        )


def _deal(units: _Units, table: NDArray[np.float64], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Number of the part of each row: (n,)."""
    n, parts = len(units.names), len(shares)
    if n < parts:
        raise InputError(f"{units.words} cannot be dealt to {parts} parts; give more data, or split another way")
    contents = np.zeros((n, table.shape[1]))
    np.add.at(contents, units.numbers, table)
    drawn = [hashlib.blake2b(f"{seed}\t{name}".encode(), digest_size=7).digest() for name in units.names]
    draws = np.array([int.from_bytes(draw, "big") for draw in drawn]) / 2.0**56
    target = np.outer(shares, table.sum(axis=0))
    have = np.zeros_like(target)
    weight = 1 / np.maximum(target, 1e-9)
    part_of = np.zeros(n, dtype=np.int64)
    empty = set(range(parts))
    for left, unit in zip(range(n, 0, -1), np.argsort(-contents[:, -1] * 4**draws), strict=True):
        content = contents[unit]
        cost = (content * (2 * (have - target) + content) * weight).sum(axis=1)
        if left <= len(empty):  # the last ones go where there is nothing yet
            cost[[part for part in range(parts) if part not in empty]] = np.inf
        part = int(cost.argmin())
        have[part] += content
        part_of[unit] = part
        empty.discard(part)
    return part_of[units.numbers]


def _check_train(data: LabelledSequences, columns: _Columns, numbers: NDArray[np.int64]) -> None:
    present = columns.table[numbers == 0].any(axis=0)
    for name, trained in zip(columns.names, present, strict=False):
        if not trained:
            raise InputError(
                f"{data.source}: no row of class {name!r} is left to train on; its rows lie in too few groups or "
                "clusters: add rows of it, or split by row"
            )


def _lacking(columns: _Columns, numbers: NDArray[np.int64], parts: Sequence[Any]) -> str:
    """Warning of classes of which a part has no row."""
    words = ""
    for number, part in enumerate(parts):
        rows = columns.table[numbers == number]
        absent = [name for name, some in zip(columns.names, rows.any(axis=0), strict=False) if not some]
        if absent and len(rows):
            words += f"; {part} has no row of {', '.join(map(repr, absent[:5]))}"
    return words
