"""Labelled data as a many-shot probe takes them: examples, queries that none of them repeats, and what a context holds.

Queries are drawn once, as many of each class as there are, so that a guess is right once in C. Examples are drawn anew
by each seed, as many of each class, and prompts of one seed are nested: that of k examples a class begins that of 2 k.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.dinucleotides import shuffled
from hyenadna.data.duplicates import distinct, duplicated
from hyenadna.data.label_kinds import kind_of
from hyenadna.data.label_split import carve
from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.tables import read_labelled
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.many_shot_config import ProbeConfig
from hyenadna.inference.many_shot_prompt import Layout
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA
from hyenadna.progress import notice


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """What a probe asks, and what it may show."""

    classes: tuple[str, ...]
    """Their names, in the order of their numbers."""
    sequences: tuple[str, ...]
    """That may be examples, none of them a query or its other strand, none twice."""
    labels: NDArray[np.int64]
    """(n,): the class of each."""
    queries: tuple[str, ...]
    answers: NDArray[np.int64]
    """(Q,): the class of each query."""
    layout: Layout
    n_token: Literal["n", "pad"]
    """What N is in the model's input; the layout's own words may have it otherwise."""
    contentless: tuple[NDArray[np.uint8], ...]
    """Tokens of queries whose bases were shuffled."""
    notes: tuple[str, ...]
    """What was done to the data, in words."""

    @property
    def query_tokens(self) -> list[NDArray[np.uint8]]:
        """Tokens of each query."""
        return [encode(query, self.n_token) for query in self.queries]

    @property
    def longest_query(self) -> int:
        """In bases."""
        return max(map(len, self.queries))

    @property
    def most_shots(self) -> int:
        """Examples of the class that has the fewest."""
        return int(np.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def sha256(self) -> str:
        """Of all that decides the answers of a model, but for the seeds."""
        digest = hashlib.sha256()
        for rows, classes in ((self.sequences, self.labels), (self.queries, self.answers)):
            for sequence, label in zip(rows, classes.tolist(), strict=True):
                digest.update(f"{sequence}\t{label}\n".encode())
            digest.update(b"\f")
        for tokens in self.contentless:
            digest.update(tokens.tobytes() + b"\n")
        return digest.hexdigest()

    def order(self, seed: int) -> list[NDArray[np.int64]]:
        """The rows of each class in the order in which a seed takes them."""
        random = np.random.default_rng((seed, 0))
        return [random.permutation(np.flatnonzero(self.labels == c)) for c in range(len(self.classes))]

    def blocks(self, shots: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
        """The rows that take a prompt from each number of examples a class to the next, from 0 on, mixed.

        Parameters
        ----------
        shots : sequence of int
            Ascending; a leading 0 adds nothing.
        seed : int
        """
        random, order = np.random.default_rng((seed, 1)), self.order(seed)
        steps = zip((0, *shots), shots, strict=False)
        return [random.permutation(np.concatenate([rows[before:k] for rows in order])) for before, k in steps]

    def holds(self, context: int, seeds: Sequence[int], *, copies: int = 1, labelled: bool = True) -> int:
        """Examples of each class that fit before the longest query, whatever the seed, if the data have as many.

        Parameters
        ----------
        context : int
            Tokens that the model reads.
        seeds : sequence of int
        copies : int
            How often each example is shown.
        labelled : bool
            Whether with its label.
        """
        between = len(self.layout.separator_tokens)
        around = between + (self.layout.width + between if labelled else 0)
        room = context - (self.longest_query + between + self.layout.width - 1)
        lengths, fewest = np.array([len(sequence) for sequence in self.sequences]), self.most_shots
        taken = [
            copies * np.cumsum(np.sum([lengths[rows[:fewest]] + around for rows in self.order(seed)], axis=0))
            for seed in seeds
        ]
        return int(min(np.searchsorted(tokens, room, side="right") for tokens in taken))


def read_task(config: ProbeConfig, model: HyenaConfig, *, tuned_on: str | None = None) -> ProbeTask:
    """The examples and queries of the data that a configuration names.

    Parameters
    ----------
    config : ProbeConfig
    model : HyenaConfig
    tuned_on : str, optional
        The layout that the model was tuned on.

    Raises
    ------
    InputError              unreadable data; labels that are no classes, or one class only; no row left to ask or show
    UsageError              a layout that does not fit the classes
    """
    data = carve(
        read_labelled(config.data_config), by=config.split_by, valid=0, test=config.test_share, seed=config.seed
    )
    train, test = data.part("train"), data.part("test")
    classes = _classes(data, train, test)
    layout = _layout(config, len(classes), model, tuned_on)
    notes = [data.rule] if data.rule else []
    train, test = (_cut(part, config.max_length, notes) for part in (train, test))
    random = np.random.default_rng(config.seed)
    asked = _drawn(test, classes, config.queries, random)
    shown = _others(train, asked, notes, near=config.split_by != "row")
    assert asked.labels is not None and shown.labels is not None
    if lacking := [name for name in classes if name not in shown.labels]:
        raise InputError(f"{data.source}: no row of class {lacking[0]} is left to show, once the queries are drawn")
    some = random.permutation(len(asked))
    contentless = [
        shuffled(encode(asked.sequences[some[number % len(some)]], model.n_token), random)
        for number in range(config.calibration)
    ]
    return ProbeTask(
        classes, shown.sequences, _numbers(shown.labels, classes), asked.sequences, _numbers(asked.labels, classes),
        layout, model.n_token, tuple(contentless), tuple(notes),
    )  # fmt: skip


def shots_of(config: ProbeConfig, task: ProbeTask, model: HyenaDNA) -> dict[str, tuple[int, ...]]:
    """The numbers of examples of each class that each arm is probed at; says what the context holds.

    Arms whose examples are longer end earlier.

    Raises
    ------
    UsageError              --shots that context or data do not hold
    SequenceTooLong         not one example of each class fits before a query
    """
    context, seeds = context_of(model), seeds_of(config)
    kinds = {"unlabelled": (1, False), "reverse-complement": (2, True)}
    held = {}
    for arm in config.arms:
        copies, labelled = kinds.get(arm, (1, True))
        held[arm] = task.holds(context, seeds, copies=copies, labelled=labelled)
    holds = task.holds(context, seeds)
    if min(holds, max(held.values())) < 1:
        strands = " on both strands" if holds else ""
        raise SequenceTooLong(
            f"an example of each of {len(task.classes)} classes{strands} and a query of up to {task.longest_query:,} "
            f"bases do not fit into this model's context of {context:,}: cut the sequences by --max-length, or take a "
            "model with a longer context"
        )
    enough = holds < task.most_shots
    notice(
        f"this model's context of {context:,} tokens holds k = {holds:,} of this data"
        + ("" if enough else f", or more: that is all there is of the rarest of its {len(task.classes)} classes")
    )
    if config.shots and config.shots[-1] > holds:
        limit = f"the context of {context:,} tokens" if enough else "the rarest class of the data"
        raise UsageError(f"--shots {config.shots[-1]}: {limit} holds {holds:,} examples of each class; give up to that")
    wanted = config.shots or (0, *(1 << power for power in range(holds.bit_length())))
    return {arm: tuple(k for k in wanted if k <= held[arm]) for arm in config.arms}


def seeds_of(config: ProbeConfig) -> tuple[int, ...]:
    """The seeds of a probe."""
    return tuple(range(config.seed, config.seed + config.seeds))


def _classes(data: LabelledSequences, train: LabelledSequences, test: LabelledSequences) -> tuple[str, ...]:
    assert train.labels is not None and test.labels is not None
    kind = kind_of(train.labels)
    if kind not in ("binary", "multiclass"):
        raise InputError(f"{data.source}: the labels are a {kind}; a probe takes one class a sequence")
    classes = tuple(sorted(set(train.labels)))
    if len(classes) < 2:
        raise InputError(
            f"{data.source}: all training rows are of class {classes[0]}; a probe needs two classes or more"
        )
    if not len(test):
        raise InputError(f"{data.source} has no test row to ask; leave it to --test-share, or give --test")
    if unknown := set(test.labels) - set(classes):
        raise InputError(f"{data.source}: class {min(unknown)} is in the test part alone, so that no prompt shows it")
    return classes


def _layout(config: ProbeConfig, classes: int, model: HyenaConfig, tuned_on: str | None) -> Layout:
    kind = config.layout or tuned_on or "suited"
    if config.label_words and len(config.label_words) != classes:
        raise UsageError(
            f"--label-words {' '.join(config.label_words)}: {len(config.label_words)} words for {classes} classes; "
            "give one for each"
        )
    if kind == "published" and not config.label_words:
        layout = Layout.published(classes)
    elif kind == "published":
        layout = Layout(config.label_words, "sep")
    else:
        layout = Layout.suited(classes, model.n_token)
    layout = dataclasses.replace(
        layout,
        label_words=config.label_words or layout.label_words,
        separator=layout.separator if config.separator is None else config.separator,
    )
    if tuned_on is not None and tuned_on != kind:
        notice(f"this model was tuned on the layout {tuned_on}; it is asked in the layout {kind}")
    if tuned_on is None and layout.never_an_input:
        notice(f"this layout is for models that are tuned on it: {layout.never_an_input}")
    return layout


def _cut(data: LabelledSequences, longest: int | None, notes: list[str]) -> LabelledSequences:
    """The rows, those that are longer cut to their middle."""
    if longest is None or data.lengths.max() <= longest:
        return data
    cut = []
    for sequence in data.sequences:
        start = max(0, (len(sequence) - longest) // 2)
        cut.append(sequence[start : start + longest])
    number = int((data.lengths > longest).sum())
    notes.append(f"{number:,} of {len(data):,} sequences were cut to {longest:,} bases around their middle")
    notice(notes[-1])
    return dataclasses.replace(data, sequences=tuple(cut))


def _drawn(
    test: LabelledSequences, classes: Sequence[str], wanted: int, random: np.random.Generator
) -> LabelledSequences:
    """Different rows of the test part, as many of each class as there are, in any order."""
    assert test.labels is not None
    of_class: dict[str, list[int]] = {name: [] for name in classes}
    order = random.permutation(len(test))
    for row in order[distinct([test.sequences[row] for row in order])].tolist():
        of_class[test.labels[row]].append(row)
    share = max(1, wanted // len(classes))
    rows = [row for found in of_class.values() for row in found[:share]]
    if len(rows) < share * len(classes):
        counts = ", ".join(f"{name} {min(share, len(found))}" for name, found in of_class.items())
        notice(f"fewer than the {share:,} queries of each class that were wanted: {counts}")
    return test.take(random.permutation(rows))


def _others(train: LabelledSequences, asked: LabelledSequences, notes: list[str], *, near: bool) -> LabelledSequences:
    """The rows that are no query, and not nearly one, on neither strand; each sequence once."""
    copies = duplicated(asked.sequences, train.sequences)
    exact, nearly = copies.exact | copies.reverse_complement, copies.near & near
    others = np.flatnonzero(~exact & ~nearly)
    kept = others[distinct([train.sequences[row] for row in others])]
    for number, why in (
        (int(exact.sum()), "are queries too"),
        (int(nearly.sum()), "are nearly queries"),
        (len(others) - len(kept), "stand there before"),
    ):
        if number:
            notes.append(f"{number:,} of {len(train):,} training rows are never shown: they {why}, on either strand")
    return train.take(kept)


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    number = {name: at for at, name in enumerate(classes)}
    return np.array([number[label] for label in labels], dtype=np.int64)
