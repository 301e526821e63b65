"""Which column of a table is what: named by the user, known by its name, or by what it holds."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from hyenadna.data.splits import PARTS, Part
from hyenadna.data.table_file import Table
from hyenadna.errors import InputError, UsageError

PART_NAMES: dict[str, Part] = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What people call the parts, in lower case."""
_SEQUENCE = ("sequence", "seq", "dna", "dna_sequence", "sequences", "nucleotides", "rna", "text")
_LABEL = ("label", "labels", "class", "classes", "target", "targets", "y", "category")
_ID = ("id", "ids", "name", "seq_id", "sequence_id", "seqid", "identifier", "accession")
_SPLIT = ("split", "part", "set", "partition")
_GROUP = re.compile(r"(chr|chrom|chromosome|contig|group|seqnames?)(_(hg|grch|mm|grcm|t2t|chm|b)\w*)?")
_DNA = re.compile("[ACGTUN]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; None is one that the table does not have, or that nobody asked for."""

    sequence: str | None = None
    label: str | None = None
    id: str | None = None
    split: str | None = None
    group: str | None = None

    def text(self, table: Table) -> str:
        """What was found, in words."""
        said = {
            "sequences": self.sequence, "labels": self.label, "ids": self.id, "parts": self.split, "groups": self.group,
        }  # fmt: skip
        used = [f"{what} in column {name!r}" for what, name in said.items() if name is not None]
        idle = [name for name in table.columns if name not in said.values()]
        return ", ".join(used) + (f"; not used: {', '.join(idle)}" if idle else "")


def sequence_column(table: Table, given: str | None) -> str:
    """The column that holds the sequences: `given`, or one of a known name, or the only one that holds DNA.

    Raises
    ------
    UsageError              there is no column `given`
    InputError              no column, or more than one, could be it
    """
    if given is not None:
        return chosen(table, given, "--seq-col")
    dna = [name for at, name in enumerate(table.columns) if _all(table, at, lambda value: bool(_DNA.fullmatch(value)))]
    named = known(table, _SEQUENCE)
    if named or len(dna) == 1:
        return next((name for name in named if name in dna), named[0]) if named else dna[0]
    raise InputError(
        f"{table.source}: which column holds the sequences? It has {', '.join(table.columns)}, and "
        f"{'more than one of them holds' if dna else 'none of them holds'} DNA alone; name it by --seq-col"
    )


def label_column(table: Table, given: str | None, others: Sequence[str | None]) -> str:
    """The column that holds the labels: `given`, or one of a known name, or the only one that is not among `others`.

    Raises
    ------
    UsageError              there is no column `given`
    InputError              no column, or more than one, could be it
    """
    if given is not None:
        return chosen(table, given, "--label-col")
    left = [name for name in table.columns if name not in others]
    named = [name for name in known(table, _LABEL) if name in left]
    if named or len(left) == 1:
        return named[0] if named else left[0]
    raise InputError(
        f"{table.source}: which column holds the labels? It has {', '.join(table.columns)}, "
        f"{'and more than one could be it' if left else 'and none is left'}; name it by --label-col"
    )


def id_column(table: Table, given: str | None) -> str | None:
    """The column of names: `given`, or one of a known name."""
    return chosen(table, given, "--id-col") if given is not None else next(iter(known(table, _ID)), None)


def split_column(table: Table, given: str | None) -> str | None:
    """The column that says train, valid or test: `given`, or one of a known name that holds nothing else."""
    if given is not None:
        return chosen(table, given, "--split-col")
    for name in known(table, _SPLIT):
        if _all(table, table.columns.index(name), lambda value: value.lower() in PART_NAMES):
            return name
    return None


def group_column(table: Table, given: str | None) -> str | None:
    """The column of what must not be torn apart: `given`, or one named like a chromosome or 'group'."""
    if given is not None:
        return chosen(table, given, "--group-col")
    return next((name for name in table.columns if _GROUP.fullmatch(name.lower())), None)


def part_of(value: str, place: str) -> Part:
    """The part that a value of a split column stands for; InputError if none."""
    if value.lower() not in PART_NAMES:
        raise InputError(
            f"{place} belongs to the part {value!r}; allowed are {', '.join(PARTS)} "
            f"(also {', '.join(name for name in PART_NAMES if name not in PARTS)})"
        )
    return PART_NAMES[value.lower()]


def known(table: Table, names: Sequence[str]) -> list[str]:
    """The columns that have one of these names in any case, in the order of `names`."""
    return [column for name in names for column in table.columns if column.lower() == name]


def chosen(table: Table, given: str, flag: str) -> str:
    """The column that the user named; UsageError if there is none."""
    if given not in table.columns:
        raise UsageError(f"{flag} {given}: {table.source} has no such column; it has {', '.join(table.columns)}")
    return given


def _all(table: Table, at: int, holds: Callable[[str], bool]) -> bool:
    """Whether the first rows that have a value there hold what is asked, and there is one."""
    values = [value for row in table.head if (value := row[at].strip())]
    return bool(values) and all(map(holds, values))
