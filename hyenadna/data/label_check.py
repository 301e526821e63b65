"""What a person should know of labelled data before a number measured on it is believed.

Copies of test rows in train, labels that contradict each other, classes that are rare, and what alone gives the class
away (`hyenadna.data.giveaways`).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.duplicates import clusters, duplicated
from hyenadna.data.giveaways import TOGETHER, Alone, giveaways, shuffled
from hyenadna.data.label_kinds import Kind, kind_of, names_of, values_of
from hyenadna.data.label_split import carve
from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.splits import PARTS, Part
from hyenadna.errors import InputError

TELLING = 0.7
"""AUROC from which a property alone is said to tell the class; 0.5 is chance."""
TELLING_MUCH = 0.85
"""AUROC from which it is said to tell nearly everything."""
TELLING_RANK = 0.35
"""The same for a regression, as Spearman's correlation: where its halves would have an AUROC of about 0.7."""
_FEWEST_TESTED = 385
_RARE = 0.05
_FEWEST_OF_A_CLASS = 10
_N_SHARE = 0.05
_SHUFFLED = 0.05
_MORE = 0.02
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Copies:
    """Rows of one part that another part, which comes before it in training, holds already."""

    part: Part
    """The part whose rows are counted."""
    within: Part
    """The part that holds them too."""
    rows: int
    """Rows of `part`."""
    exact: int
    """Rows whose very sequence is in the other part."""
    reverse_complement: int
    """Rows whose reverse complement is, and not they themselves."""
    near: int
    """Rows of which only a near duplicate is (`hyenadna.data.duplicates`)."""

    def words(self) -> list[str]:
        """One warning, or none."""
        same = self.exact + self.reverse_complement
        if not same + self.near:
            return []
        return [
            f"of {self.rows:,} {self.part} sequences {same:,} are in {self.within} too ({self.reverse_complement:,} as "
            f"reverse complement), {self.near:,} are near duplicates: {(same + self.near) / self.rows:.1%} in all"
        ]


@dataclasses.dataclass(frozen=True)
class LabelCheck:
    """What `check` found."""

    source: str
    """Where the data come from."""
    kind: Kind
    """What the labels are."""
    rule: str
    """How the parts were made; empty where the data give them."""
    rows: dict[Part, int]
    """Rows of each part."""
    classes: dict[Part, dict[str, float]]
    """Rows of each class or label in each part; for a regression the mean, standard deviation, least and largest."""
    lengths: dict[str, tuple[int, float, int]]
    """Least, median and largest length in bases, of the rows of each class, or of all rows."""
    n_share: float
    """Share of bases other than A, C, G, T."""
    repeated: int
    """Rows beyond the first of their sequence, over all parts."""
    repeated_reverse: int
    """Different sequences that are the reverse complement of one before them."""
    clustered: int
    """Rows that share a cluster with another sequence or copy, over all parts."""
    largest_cluster: int
    """Rows of the largest cluster."""
    conflicting: int
    """Rows whose sequence, on either strand, also stands with another label; 0 for a regression."""
    shuffled: int
    """Rows with exactly the dinucleotides of a row with another label: one was made by shuffling the other."""
    copies: tuple[Copies, ...]
    """Duplicates across parts: of test in train, valid in train, test in valid."""
    majority: float | None
    """Share of test rows in the most frequent class of train: what guessing gets right."""
    alone: tuple[Alone, ...]
    """What single properties predict."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be known before a result on these data is believed, the gravest first."""
        tested: list[str] = []
        others: list[str] = []
        for found in self.copies:
            (tested if (found.part, found.within) == ("test", "train") else others).extend(found.words())
        return (*tested, *self._of_alone(), *self._of_labels(), *self._of_sizes(), *others)

    def _of_alone(self) -> list[str]:
        said = []
        for found in sorted(self._telling(), key=lambda alone: -alone.value):
            if self.kind == "regression":
                said.append(f"{found.feature} alone tells of the value: Spearman's correlation {found.value:.2f}")
                continue
            how = "gives the class away" if found.value >= TELLING_MUCH else "tells much of the class"
            guess = "" if self.majority is None else f" (the most frequent class: {self.majority:.3f})"
            right = "" if found.accuracy is None else f", accuracy {found.accuracy:.3f}{guess}"
            said.append(f"{found.feature} alone {how}: AUROC {found.value:.3f}{right}")
        return said

    def _telling(self) -> list[Alone]:
        """The properties that tell much; of GC and CpG both together only where they tell more than each."""
        limit = TELLING_RANK if self.kind == "regression" else TELLING
        telling = {found.feature: found for found in self.alone if found.value >= limit}
        single = [telling[name] for name in ("GC", "CpG") if name in telling]
        both = telling.get(TOGETHER)
        if both and all(both.value >= found.value + _MORE for found in single):
            single = [both]
        return single + [telling[name] for name in ("length",) if name in telling]

    def _of_labels(self) -> list[str]:
        said = []
        if self.conflicting:
            said.append(f"{self.conflicting:,} rows have a sequence that also stands with another label")
        if self.shuffled >= _SHUFFLED * sum(self.rows.values()):
            said.append(
                f"{self.shuffled:,} rows have exactly the dinucleotides of a row with another label: they seem to be "
                "shuffled from one another, and a model may learn to tell real from shuffled DNA and no more"
            )
        if self.kind == "regression":
            return said
        train = self.classes.get("train", {})
        for name, rows in train.items():
            share = rows / self.rows["train"]
            # of many classes each has a small share: there, half of an even one is rare
            if rows < _FEWEST_OF_A_CLASS or share < min(_RARE, 0.5 / len(train)):
                said.append(f"{name!r} is rare: {int(rows):,} train rows ({share:.1%})")
        for part, classes in self.classes.items():
            absent = [name for name in train if not classes.get(name)]
            if part != "train" and self.rows[part] and absent:
                said.append(f"{part} has no row of {_some(absent)}")
            unseen = [name for name in classes if name not in train]
            if unseen:
                said.append(f"{part} has labels that train has not: {_some(unseen)}")
        return said

    def _of_sizes(self) -> list[str]:
        said = []
        tested = self.rows.get("test", 0)
        if 0 < tested < _FEWEST_TESTED:
            width = 98 / math.sqrt(tested)
            said.append(f"{tested} test rows are few: an accuracy measured on them is known to ± {width:.0f} points")
        if self.n_share > _N_SHARE:
            said.append(f"{self.n_share:.1%} of the bases are not A, C, G or T")
        return said

    def text(self) -> str:
        """What a person reads: the warnings first, then the numbers they come from."""
        total = sum(self.rows.values())
        least, median, most = self.lengths["all"]
        lines = [
            f"{self.source or 'data'}: {total:,} rows, {self.kind}; {least:,} to {most:,} bases, median {median:,.0f}; "
            f"{self.n_share:.2%} not A, C, G or T"
        ]
        lines += [f"beware    {warning}" for warning in self.warnings[:_SHOWN]]
        if len(self.warnings) > _SHOWN:
            lines.append(f"          and {len(self.warnings) - _SHOWN} more (--json has all)")
        if self.rule:
            lines.append(f"split     {self.rule}")
        lines += [f"{part:10}{self._balance(part)}" for part in PARTS if self.rows.get(part)]
        if len(self.lengths) > 2 and least < most:
            each = [f"{name} {a:,}/{b:,.0f}/{c:,}" for name, (a, b, c) in self.lengths.items() if name != "all"]
            lines.append(f"lengths   least/median/largest: {_first(each)}")
        lines.append(
            f"copies    rows that repeat: {self.repeated:,}; on the other strand: {self.repeated_reverse:,}; "
            f"in clusters: {self.clustered / total:.1%}, the largest of {self.largest_cluster:,}"
        )
        each = [
            f"{found.part} in {found.within} {found.exact:,}, {found.reverse_complement:,}, {found.near:,}"
            for found in self.copies
        ]
        lines.append(f"          exact, reverse-complement and near ones of {'; '.join(each)}")
        if self.alone:
            measure = "Spearman's correlation" if self.kind == "regression" else "AUROC"
            each = [
                f"{found.feature} " + ("not measurable" if math.isnan(found.value) else f"{found.value:.3f}")
                for found in self.alone
            ]
            lines.append(f"alone     {measure} on test: {', '.join(each)}")
        return "\n".join(lines)

    def _balance(self, part: Part) -> str:
        classes = self.classes[part]
        if self.kind == "regression":
            return f"{self.rows[part]:,} rows: " + ", ".join(f"{name} {value:.4g}" for name, value in classes.items())
        total = sum(classes.values()) if self.kind == "nucleotide" else self.rows[part]
        each = [f"{name} {count:,.0f} ({count / max(total, 1):.1%})" for name, count in classes.items()]
        return f"{self.rows[part]:,} rows: {_first(each)}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for programs, with the warnings; null where something could not be measured."""
        value = dataclasses.asdict(self)
        for found in value["alone"]:
            found["value"] = None if math.isnan(found["value"]) else found["value"]
        return value | {"warnings": list(self.warnings), "measure": _measure(self.kind)}


def check(data: LabelledSequences, *, kind: Kind | None = None) -> LabelCheck:
    """Look at labelled data; where they give no train or no test part, at the split that `carve` makes of them.

    Parameters
    ----------
    data : LabelledSequences
        With labels.
    kind : optional
        What the labels are; by default what they look like (`kind_of`).

    Raises
    ------
    InputError              no labels; what `carve` cannot split
    """
    if data.labels is None:
        raise InputError(f"{data.source} has no labels; name their column by --label-col, or give them by --labels")
    kind = kind or kind_of(data.labels)
    if not {"train", "test"} <= set(data.parts or ()):
        data = carve(data, kind=kind)
    parts = {part: data.part(part) for part in PARTS}
    parts = {part: rows for part, rows in parts.items() if len(rows)}
    distinct = set(data.sequences)
    strandless = {min(sequence, reverse_complement(sequence)) for sequence in distinct}
    sizes = np.bincount(clusters(data.sequences))
    majority, alone = giveaways(data, kind)
    between: list[tuple[Part, Part]] = [("test", "train"), ("valid", "train"), ("test", "valid")]
    return LabelCheck(
        source=data.source,
        kind=kind,
        rule=data.rule,
        rows={part: len(rows) for part, rows in parts.items()},
        classes={part: _classes(rows, kind) for part, rows in parts.items()},
        lengths=_lengths(data, kind),
        n_share=_n_share(data.sequences),
        repeated=len(data) - len(distinct),
        repeated_reverse=len(distinct) - len(strandless),
        clustered=int(sizes[sizes > 1].sum()),
        largest_cluster=int(sizes.max(initial=0)),
        conflicting=_conflicting(data, kind),
        shuffled=shuffled(data, kind),
        copies=tuple(_copies(parts, *pair) for pair in between if parts.keys() >= set(pair)),
        majority=majority,
        alone=alone,
    )


def _copies(parts: dict[Part, LabelledSequences], part: Part, within: Part) -> Copies:
    found = duplicated(parts[within].sequences, parts[part].sequences)
    exact, other, near = (int(rows.sum()) for rows in found)
    return Copies(part, within, len(parts[part]), exact, other, near)


def _classes(data: LabelledSequences, kind: Kind) -> dict[str, float]:
    if kind == "regression":
        values = values_of(data.labels or ())
        found = {"mean": values.mean(), "deviation": values.std(), "least": values.min(), "largest": values.max()}
        return {name: float(value) for name, value in found.items()}
    counted = Counter(name for row in names_of(data.labels or (), kind) for name in row)
    return {name: float(counted[name]) for name in sorted(counted)}


def _lengths(data: LabelledSequences, kind: Kind) -> dict[str, tuple[int, float, int]]:
    of_class: dict[str, list[int]] = {"all": data.lengths.tolist()}
    if kind not in ("nucleotide", "regression"):
        for length, names in zip(data.lengths.tolist(), names_of(data.labels or (), kind), strict=True):
            for name in names:
                of_class.setdefault(f"{name}", []).append(length)
    return {name: (min(of), float(np.median(of)), max(of)) for name, of in sorted(of_class.items())}


def _n_share(sequences: Sequence[str]) -> float:
    known = sum(sequence.count(base) for sequence in sequences for base in "ACGT")
    return 1 - known / max(1, sum(map(len, sequences)))


def _conflicting(data: LabelledSequences, kind: Kind) -> int:
    if kind in ("regression", "nucleotide"):
        return 0
    strandless = [min(sequence, reverse_complement(sequence)) for sequence in data.sequences]
    seen: dict[str, set[tuple[str, ...]]] = {}
    labels = [tuple(names) for names in names_of(data.labels or (), kind)]
    for sequence, label in zip(strandless, labels, strict=True):
        seen.setdefault(sequence, set()).add(label)
    return sum(len(seen[sequence]) > 1 for sequence in strandless)


def _measure(kind: Kind) -> str:
    return "spearman" if kind == "regression" else "auroc"


def _some(names: Sequence[str]) -> str:
    return _first([repr(name) for name in names])


def _first(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")
