"""Labelled sequences in memory: what every reader of tables gives and what fine-tuning takes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.splits import Part
from hyenadna.errors import InputError


@dataclasses.dataclass(frozen=True)
class LabelledSequences:
    """Sequences and what is known of each, in the order in which they stand in their file.

    Raises
    ------
    InputError              columns of different lengths
    """

    ids: tuple[str, ...]
    """Name of each sequence; its row number from 1 where the file has no names."""
    sequences: tuple[str, ...]
    """Nucleotides in upper case, at least one each."""
    labels: tuple[str, ...] | None = None
    """Label of each sequence as it stands in the file; `hyenadna.finetune.task` reads it. None: unlabelled data."""
    parts: tuple[Part, ...] | None = None
    """Train, valid or test, where the data say it."""
    groups: tuple[str, ...] | None = None
    """What must not be torn apart by a split: contig, gene, patient. None: unknown."""
    source: str = ""
    """Where the data come from, in words."""
    rule: str = ""
    """How the parts were made, in words, where we made them (`hyenadna.data.label_split`)."""

    def __post_init__(self) -> None:
        for name in ("sequences", "labels", "parts", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.ids):
                raise InputError(f"{self.source}: {len(self.ids)} ids but {len(column)} {name}; each row needs one")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each sequence in bases."""
        return np.array([len(sequence) for sequence in self.sequences], dtype=np.int64)

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> "LabelledSequences":
        """The rows with these numbers, in this order."""
        columns = ("ids", "sequences", "labels", "parts", "groups")
        taken = {
            name: None if getattr(self, name) is None else tuple(getattr(self, name)[row] for row in rows)
            for name in columns
        }
        return dataclasses.replace(self, **taken)  # type: ignore[arg-type]

    def part(self, name: Part) -> "LabelledSequences":
        """The rows of a part; none if the data do not say to which part rows belong."""
        return self.take([row for row, part in enumerate(self.parts or ()) if part == name])
