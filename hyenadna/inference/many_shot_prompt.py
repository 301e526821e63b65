"""Prompts of labelled examples, made of tokens alone: sequence, separator, label, separator, ... query, separator.

This is the layout of Nguyen et al. 2023 (in-context learning), whose labels are nucleotides. Theirs departs from it in
one thing: their sequences are padded to one length, and here nothing is, so that lengths may differ.

A frozen model can be asked only in tokens that were its input in training. SEP was not: pretraining ends each record
with it, so that it is a target and never an input, in our models and in the published ones. So the layout that
`Layout.suited` gives separates by nucleotides, or for the published weights by the PAD that they saw in the place of N.
The published layout is for models that are tuned on such prompts.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import SEP, encode
from hyenadna.errors import InputError, UsageError

SEPARATOR = "CTAG"
"""Between sequences and labels: a palindrome, so that both strands read it alike, and rarer than one word in 256 in
all of E. coli, yeast and human chr22 (0.05, 0.57 and 0.65 of that share), so that it seldom stands within a sequence. A
word that is rarer in one of them, CGCG in human, is commoner than others elsewhere, and stands for CpG islands."""
_LETTERS = "ATCG"
"""In the order in which classes take them: A and T are as frequent as each other in a genome read on both strands,
and so are C and G, so that neither of two classes is likelier before anything was read."""
_PUBLISHED_WORDS = {2: ("A", "N"), 3: ("A", "G", "N")}


class Example(NamedTuple):
    """A sequence of a prompt, and what the prompt says of it."""

    tokens: NDArray[np.uint8]
    """(L,)"""
    label: int | None
    """The number of its class; None shows the sequence alone."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One order of examples, and the queries that are asked behind any number of them."""

    examples: tuple[Example, ...]
    """A prompt of n examples is made of the first n."""
    queries: tuple[NDArray[np.uint8], ...]
    """Tokens of each query."""
    answers: NDArray[np.int64]
    """(Q,): the class that is the right answer to each."""


class Prompt(NamedTuple):
    """Tokens to read, and where in them labels stand."""

    tokens: NDArray[np.uint8]
    """(L,)"""
    label_positions: NDArray[np.int64]
    """Of the first token of each label, ascending; with a query the last is L, where its label would go on."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What separates sequences and labels, and the word of each class.

    Raises
    ------
    UsageError              fewer than two words, equal ones, ones of different lengths, or what is no word of A, C, G,
                            T and N

    Examples
    --------
    >>> Layout(("A", "T"), "CTAG").label_tokens.tolist()
    [[7], [10]]
    """

    label_words: tuple[str, ...]
    """The word of each class, all of one length."""
    separator: str | None = "sep"
    """A word of nucleotides, 'sep' for the token [SEP], None for nothing."""
    n_token: Literal["n", "pad"] = "n"
    """As the model's configuration has it: what an N of the words is."""

    def __post_init__(self) -> None:
        words = self.label_words
        for word in (*words, *([self.separator] if self.separator not in (None, "sep") else [])):
            if not word or set(word) - set("ACGTN"):
                raise UsageError(
                    f"{word!r} is no word of the prompt: labels and separator are words of A, C, G, T and N in upper "
                    "case; the separator may be 'sep' too"
                )
        if len(words) < 2 or len(set(words)) < len(words) or len(set(map(len, words))) > 1:
            raise UsageError(
                f"the label words are {', '.join(words) or 'none'}; there must be one a class, two or more, all "
                "different and all of one length"
            )

    @classmethod
    def suited(cls, classes: int, n_token: Literal["n", "pad"] = "n") -> "Layout":
        """The layout for a frozen model: words of `_LETTERS`, as short as the classes allow, and a separator it knows.

        Parameters
        ----------
        classes : int
            2 or more.
        n_token : {'n', 'pad'}
            Of the model's configuration; 'pad' tells the published weights, to which PAD is what N is to others.
        """
        width = max(1, math.ceil(math.log(classes, len(_LETTERS)) - 1e-9))
        words = itertools.islice(itertools.product(_LETTERS, repeat=width), classes)
        return cls(tuple("".join(word) for word in words), "N" if n_token == "pad" else SEPARATOR, n_token)

    @classmethod
    def published(cls, classes: int) -> "Layout":
        """[SEP] and the words A, N or A, G, N, as Nguyen et al. 2023 have them; there N is always its own token.

        Raises
        ------
        UsageError              neither two nor three classes
        """
        if classes not in _PUBLISHED_WORDS:
            raise UsageError(
                f"the published layout has words for 2 or 3 classes; the data have {classes}: take --layout suited"
            )
        return cls(_PUBLISHED_WORDS[classes], "sep", "n")

    @property
    def classes(self) -> int:
        """C, how many words there are."""
        return len(self.label_words)

    @property
    def width(self) -> int:
        """W, the tokens of a label word."""
        return len(self.label_words[0])

    @property
    def separator_tokens(self) -> NDArray[np.uint8]:
        """uint8 (S,)."""
        if self.separator == "sep":
            return np.array([SEP], dtype=np.uint8)
        return encode(self.separator or "", self.n_token)

    @property
    def label_tokens(self) -> NDArray[np.uint8]:
        """uint8 (C, W): the tokens of each class's word."""
        return np.stack([encode(word, self.n_token) for word in self.label_words])

    @property
    def never_an_input(self) -> str:
        """Which tokens of the layout no frozen model knows as input, and why; empty where there is none."""
        words = "".join(self.label_words)
        told = []
        if self.separator == "sep":
            told.append("[SEP] ends the records of pretraining and so was only ever predicted, never read")
        if self.n_token == "n" and "N" in words + (self.separator or ""):
            told.append("N is never predicted in pretraining, and is read only where the genome has unknown bases")
        return "; ".join(told)

    def example(self, example: Example) -> NDArray[np.uint8]:
        """Tokens of one example: sequence, separator, and the label with a separator behind it if there is a label."""
        between = self.separator_tokens
        if example.label is None:
            return np.concatenate([example.tokens, between])
        return np.concatenate([example.tokens, between, self.label_tokens[example.label], between])

    def query(self, tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Tokens of a query, behind which its label would go on: sequence and separator."""
        return np.concatenate([tokens, self.separator_tokens])


def prompt(examples: Sequence[Example], query: NDArray[np.uint8] | None, layout: Layout) -> Prompt:
    """The tokens of examples and of a query, and where labels stand in them.

    Parameters
    ----------
    examples : sequence of Example
        In the order of the prompt; pairs of tokens and label do as well.
    query : uint8 array (L,), or None
        Tokens of a sequence whose label is asked for; None for a prompt of examples alone.
    layout : Layout

    Raises
    ------
    InputError              neither an example nor a query
    UsageError              a label that the layout has no word for

    Examples
    --------
    >>> found = prompt([(encode("ACC"), 1)], encode("GG"), Layout(("A", "T"), "sep"))
    >>> found.tokens.tolist(), found.label_positions.tolist()
    ([7, 8, 8, 1, 10, 1, 9, 9, 1], [4, 9])
    """
    pieces, positions, length = [], [], 0
    for example in itertools.starmap(Example, examples):
        if example.label is not None:
            if not 0 <= example.label < layout.classes:
                raise UsageError(f"an example has label {example.label}; the layout has words for {layout.classes}")
            positions.append(length + len(example.tokens) + len(layout.separator_tokens))
        pieces.append(layout.example(example))
        length += len(pieces[-1])
    if query is not None:
        pieces.append(layout.query(query))
        positions.append(length + len(pieces[-1]))
    if not pieces:
        raise InputError("a prompt needs an example or a query")
    return Prompt(np.concatenate(pieces), np.array(positions, dtype=np.int64))
