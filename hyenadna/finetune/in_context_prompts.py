"""Prompts to be tuned and measured on: drawn from tasks, with the tokens of their labels as targets."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.in_context_tasks import Drawn, InContextTask
from hyenadna.data.tokenizer import IGNORE
from hyenadna.finetune.examples import Examples
from hyenadna.inference.many_shot_prompt import Episode, Example, Layout, prompt


def layout_of(kind: Literal["suited", "published"], classes: int, n_token: Literal["n", "pad"]) -> Layout:
    """The layout of prompts of so many classes; takes and raises what `Layout.suited` and `Layout.published` do."""
    return Layout.suited(classes, n_token) if kind == "suited" else Layout.published(classes)


@dataclasses.dataclass(frozen=True)
class PromptSource:
    """Prompts of one task or of several, each of one of them."""

    tasks: tuple[InContextTask, ...]
    layouts: tuple[Layout, ...]
    """Of each task."""
    shots: int
    """Examples of each class in a prompt, on average."""
    permute: bool = True
    """Whether words mean other classes in every prompt."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt that may be drawn."""
        return max(
            self.examples_of(task) * self.example_tokens(task, layout)
            for task, layout in zip(self.tasks, self.layouts, strict=True)
        )

    def example_tokens(self, task: InContextTask, layout: Layout) -> int:
        """Tokens of the longest example."""
        return task.longest + 2 * len(layout.separator_tokens) + layout.width

    def examples_of(self, task: InContextTask) -> int:
        """Labels of a prompt: each but the first is asked for behind examples."""
        return self.shots * task.classes + 1

    def draw(self, number: int, random: np.random.Generator) -> Examples:
        """So many prompts, of tasks as likely as each other; their targets are the tokens of the labels.

        Returns
        -------
        Examples                ids are the names of the tasks; targets int64 (number, longest): at the position
                                before each token of a label that token, else IGNORE
        """
        found = []
        for _ in range(number):
            of = int(random.integers(len(self.tasks)))
            found.append((self.tasks[of].name, *self._one(self.tasks[of], self.layouts[of], random)))
        names, tokens, targets = zip(*found, strict=True)
        table = np.full((number, max(map(len, tokens))), IGNORE, dtype=np.int64)
        for row, of_prompt in zip(table, targets, strict=True):
            row[: len(of_prompt)] = of_prompt
        return Examples(names, tokens, table)

    def _one(
        self, task: InContextTask, layout: Layout, random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Tokens (L,) up to the last that says something of a label, and the targets (L,)."""
        drawn = task.draw(self.examples_of(task), random)
        meaning = random.permutation(task.classes) if self.permute else np.arange(task.classes)
        tokens, places = prompt(_examples(drawn, meaning), None, layout)
        targets = np.full(len(tokens), IGNORE, dtype=np.int64)
        of_words = (places[:, None] + np.arange(layout.width)).ravel()
        targets[of_words - 1] = tokens[of_words]
        return tokens[: of_words[-1]], targets[: of_words[-1]]


def right_answers(predictions: NDArray[np.float64], targets: NDArray[np.int64], layout: Layout) -> NDArray[np.bool_]:
    """Whether each label of a prompt is right, the tokens of the label words alone competing: (labels,), in order.

    Parameters
    ----------
    predictions : float64 array (L, tokens)
        Probabilities of the next token, behind the prompt's end anything.
    targets : int64 array (L,)
        As `PromptSource.draw` gives them.
    """
    asked = targets != IGNORE
    likely, wanted = predictions[asked].reshape(-1, layout.width, predictions.shape[1]), targets[asked]
    right = np.ones(len(likely), dtype=bool)
    for place, allowed in enumerate(layout.label_tokens.T):
        allowed = np.unique(allowed)
        said = allowed[likely[:, place, allowed].argmax(axis=1)]
        right &= said == wanted.reshape(-1, layout.width)[:, place]
    return right


def episode(
    task: InContextTask,
    shots: int,
    queries: int,
    random: np.random.Generator,
    *,
    shuffled: bool = False,
) -> Episode:
    """Examples of one labelling in rounds of one of each class, and queries that it holds for too, to be probed.

    Parameters
    ----------
    task : InContextTask
    shots : int
        Examples of each class; the first k classes-fold of them have k of each.
    queries : int
    random : Generator
    shuffled : bool
        Give the labels of each round to its examples in random order, so that they tell nothing; the right answers stay
        what they are.
    """
    C, drawn = task.classes, task.draw(4 * shots * task.classes + queries, random)
    by_class = [np.flatnonzero(drawn.labels[queries:] == label)[:shots] + queries for label in range(C)]
    while min(map(len, by_class)) < shots:  # of i.i.d. labels, four times as many hold enough but for one in thousands
        drawn = task.draw(4 * shots * C + queries, random)
        by_class = [np.flatnonzero(drawn.labels[queries:] == label)[:shots] + queries for label in range(C)]
    examples = []
    for of_round in np.stack(by_class, axis=1):
        rows = random.permutation(of_round)
        labels = random.permutation(C) if shuffled else drawn.labels[rows]
        examples += [Example(drawn.sequences[row], int(label)) for row, label in zip(rows, labels, strict=True)]
    return Episode(tuple(examples), drawn.sequences[:queries], drawn.labels[:queries])


def _examples(drawn: Drawn, meaning: NDArray[np.int64]) -> list[Example]:
    return [Example(tokens, int(meaning[label])) for tokens, label in zip(*drawn, strict=True)]
