"""Tasks to learn in context: labelled rows, and synthetic ones in which every prompt has a labelling of its own.

motif   each class of a prompt has a random motif of its own, planted in random sequences
bits    strings of eight bits, written in two random nucleotides, and a random program that says 0 or 1 of a string
word    every word of so many bases has a random label: what was not seen cannot be known
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.bit_programs import ALL, ANSWERS, BITS, LONGEST_PROGRAM, program
from hyenadna.data.tokenizer import A
from hyenadna.errors import UsageError


class Drawn(NamedTuple):
    """Examples of one labelling, in random order."""

    sequences: tuple[NDArray[np.uint8], ...]
    """Tokens."""
    labels: NDArray[np.int64]
    """(n,): from 0; drawn one by one, so that counting the labels so far says nothing of the next."""


class InContextTask(Protocol):
    """Where the examples of a prompt come from."""

    name: str
    classes: int
    longest: int
    """Bases of the longest sequence."""

    def draw(self, n: int, random: np.random.Generator) -> Drawn:
        """N examples of one labelling; the generator alone decides."""


class RowsTask:
    """Labelled rows: every prompt has the one labelling that they have, and no row twice.

    Parameters
    ----------
    name : str
    sequences : sequence of uint8 arrays
        Tokens.
    labels : int64 array (n,)
        Class of each, from 0.
    classes : int
    """

    def __init__(
        self, name: str, sequences: Sequence[NDArray[np.uint8]], labels: NDArray[np.int64], classes: int
    ) -> None:
        self.name, self.classes, self.longest = name, classes, max(map(len, sequences), default=0)
        self._sequences = sequences
        self._rows = [np.flatnonzero(labels == label) for label in range(classes)]

    @property
    def fewest(self) -> tuple[int, int]:
        """The class with the fewest rows, and how many it has."""
        label = min(range(self.classes), key=lambda label: len(self._rows[label]))
        return label, len(self._rows[label])

    def draw(self, n: int, random: np.random.Generator) -> Drawn:
        """As `InContextTask` says; a class of which no row is left comes no more.

        Raises
        ------
        UsageError              there are not so many rows
        """
        if n > sum(map(len, self._rows)):
            raise UsageError(f"{n} examples were asked for; {self.name} has {sum(map(len, self._rows))} rows")
        left = [random.choice(rows, min(n, len(rows)), replace=False).tolist() for rows in self._rows]
        labels, chosen = np.empty(n, np.int64), []
        for place in range(n):
            labels[place] = random.choice([label for label in range(self.classes) if left[label]])
            chosen.append(left[labels[place]].pop())
        return Drawn(tuple(self._sequences[row] for row in chosen), labels)


class MotifTask:
    """Random sequences of `length` bases, each with the motif of its class in it, at a random place if there are more.

    The motifs of a prompt are all different. Each base of a motif is another one with the probability `substituted`, as
    in nature, so that one example tells less of the motif than many do.

    Raises
    ------
    UsageError              a motif that is longer than the sequence, more classes than there are motifs, or no
                            probability
    """

    def __init__(self, *, classes: int = 2, motif: int = 6, length: int = 6, substituted: float = 0.3) -> None:
        if not 1 <= motif <= length or not 2 <= classes <= 4**motif or not 0 <= substituted <= 1:
            raise UsageError(
                f"{classes} motifs of {motif} bases in {length}, {substituted:g} of them substituted: a motif has 1 "
                "base to as many as its sequence, there must be 2 classes or more, a motif for each, and a share from "
                "0 to 1"
            )
        self.name, self.classes, self.longest = "synthetic/motif", classes, length
        self.motif, self.substituted = motif, substituted

    def draw(self, n: int, random: np.random.Generator) -> Drawn:
        """As `InContextTask` says."""
        words = random.choice(4**self.motif, self.classes, replace=False)
        motifs = words[:, None] // 4 ** np.arange(self.motif) % 4  # (classes, motif)
        labels = random.integers(self.classes, size=n)
        substitutes = random.integers(1, 4, size=(n, self.motif)) * (random.random((n, self.motif)) < self.substituted)
        bases = random.integers(4, size=(n, self.longest))
        places = random.integers(self.longest - self.motif + 1, size=n)[:, None] + np.arange(self.motif)
        bases[np.arange(n)[:, None], places] = (motifs[labels] + substitutes) % 4
        return Drawn(tuple((A + bases).astype(np.uint8)), labels)


class WordTask:
    """Words of `length` bases, half of which mean one class and half the other; each may occur again."""

    def __init__(self, *, length: int = 2) -> None:
        if length < 1:
            raise UsageError(f"words have {length} bases; allowed is 1 and more")
        self.name, self.classes, self.longest = "synthetic/word", 2, length

    def draw(self, n: int, random: np.random.Generator) -> Drawn:
        """As `InContextTask` says."""
        meaning = random.permutation(4**self.longest) % 2
        words = random.integers(4**self.longest, size=n)
        bases = words[:, None] // 4 ** np.arange(self.longest) % 4
        return Drawn(tuple((A + bases).astype(np.uint8)), meaning[words])


class BitsTask:
    """Strings of eight bits and a random `program`; the two bases that stand for 0 and 1 are the prompt's own.

    There are few programs, so that training meets them all: which there are can be learnt by heart, but which one of
    them a prompt has, and so any label, only its examples tell.

    Parameters
    ----------
    primitives, answers
        Of the programs, as `program` takes them.
    """

    def __init__(self, *, primitives: int = LONGEST_PROGRAM, answers: Sequence[str] = tuple(ANSWERS)) -> None:
        self.name, self.classes, self.longest = "synthetic/bits", 2, BITS
        self.primitives, self.answers = primitives, answers

    def draw(self, n: int, random: np.random.Generator) -> Drawn:
        """As `InContextTask` says."""
        answers = program(random, self.primitives, self.answers)[1]
        digits = random.permutation(4)[:2]
        labels = random.integers(2, size=n)
        strings = np.empty(n, np.int64)
        for label in (0, 1):
            fitting, rows = np.flatnonzero(answers == label), np.flatnonzero(labels == label)
            strings[rows] = random.choice(fitting, len(rows))
        return Drawn(tuple((A + digits[ALL[strings].astype(np.int64)]).astype(np.uint8)), labels)


SYNTHETIC: dict[str, Callable[[], InContextTask]] = {
    "synthetic/motif": MotifTask,
    "synthetic/bits": BitsTask,
    "synthetic/word": WordTask,
}
"""By what they are called where a table could be named; with their defaults."""
