"""Many-shot in-context probing: what a model answers behind prompts of more and more labelled examples.

A prompt grows by examples and is read only once: its state is carried (`hyenadna.model.state`), the queries of each
length are read behind it, and it goes on from there. So a sweep over any numbers of examples costs the longest prompt
once, and the queries once for every number.

The answer to a query is the class whose word is the likeliest behind it. What an answer is worth is p(class) = p(word)
/ sum of p(words). Contextual calibration (Zhao et al. 2021, section 4) takes away what the prompt alone makes likely:
behind the same prompt, sequences without content are asked, here queries whose bases were shuffled so that each pair of
neighbours is as frequent as before, and p(class) is divided by its mean over those.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.dinucleotides import shuffled
from hyenadna.errors import InputError, NotFiniteError, UsageError
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.many_shot_prompt import Episode, Example, Layout
from hyenadna.inference.many_shot_scores import calibrated, mean_over, normalised, share_correct
from hyenadna.inference.ragged import batches, padded
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.state import State

BATCH_TOKENS = 1 << 13


class GrowingPrompt:
    """A prompt that is read as it grows, and asked at any time.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    layout : Layout
    longest_query : int
        Bases of the longest query that will be asked, as far as that is known: what it needs of the prompt is then
        computed at once. It changes speed, never the result.
    batch_tokens : int
        Most tokens of a batch of queries, pads included, but at least one query; changes no result.

    Attributes
    ----------
    length : int
        Tokens of the prompt so far.
    tokens_read : int
        Tokens that the model has read, of the prompt and of queries, pads not counted.
    """

    def __init__(
        self, model: HyenaDNA, layout: Layout, *, longest_query: int = 0, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.model, self.layout, self.batch_tokens = model, layout, batch_tokens
        self.length = self.tokens_read = 0
        self._ahead = longest_query + len(layout.separator_tokens) + layout.width - 1
        self._state: State | None = None

    @torch.inference_mode()
    def add(self, examples: Sequence[Example]) -> None:
        """Read further examples.

        Raises
        ------
        SequenceTooLong         the prompt would be longer than the model's context
        """
        if not examples:
            return
        tokens = np.concatenate([self.layout.example(example) for example in examples])
        read = torch.from_numpy(tokens)[None].to(self.model.device)
        _, self._state = self.model.extend(read, self._state, ahead=self._ahead)
        self.length += len(tokens)
        self.tokens_read += len(tokens)

    @torch.inference_mode()
    def ask(self, queries: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Log-likelihood of each class's word behind the prompt and each query: (Q, C), in nats.

        Over all tokens of the vocabulary: exp of a row sums to what the model gives to any of the words.

        Raises
        ------
        SequenceTooLong         prompt and query are longer than the model's context
        NotFiniteError          the model gives something that is not a number
        """
        words = self.layout.label_tokens
        # all but the last token of a word is read; words that begin alike share that
        stems, of_word = np.unique(words[:, :-1], axis=0, return_inverse=True)
        asked = [self.layout.query(query) for query in queries]
        rows = [np.concatenate([query, stem]) for query in asked for stem in stems]
        found = np.empty((len(rows), self.layout.width, 16))
        for numbers in batches(np.array([len(row) for row in rows], dtype=np.int64), self.batch_tokens):
            found[numbers] = self._last(
                [rows[number] for number in numbers],
                [len(asked[number // len(stems)]) - 1 for number in numbers.tolist()],
            )
        self.tokens_read += sum(map(len, rows))
        by_stem = found.reshape(len(asked), len(stems), self.layout.width, 16)[:, of_word.reshape(-1)]
        of_tokens = np.take_along_axis(by_stem, words[None, :, :, None].astype(np.int64), axis=3)[..., 0]
        nats: NDArray[np.float64] = of_tokens.sum(axis=2)
        if not np.isfinite(nats).all():
            raise NotFiniteError("the model gives log-likelihoods that are not numbers; are its weights damaged?")
        return nats

    def _last(self, rows: list[NDArray[np.uint8]], first: list[int]) -> NDArray[np.float64]:
        """Log-probabilities of all tokens, (rows, W, 16), at W positions of each row from `first` on."""
        tokens, _ = padded(rows)
        logits = self.model(tokens.to(self.model.device), prefix=self._state).logits
        places = torch.tensor(first)[:, None] + torch.arange(self.layout.width)
        taken = logits[torch.arange(len(rows))[:, None], places.to(logits.device)]
        said: NDArray[np.float64] = torch.log_softmax(taken.double(), dim=-1).cpu().numpy()
        return said


class Answers(NamedTuple):
    """What a model answers behind one prompt."""

    log_likelihoods: NDArray[np.float64]
    """(Q, C): of each class's word, in nats, over the whole vocabulary."""
    prior: NDArray[np.float64]
    """(C,): mean probability of each class over queries without content; equal shares where none were asked."""
    prompt_tokens: int
    """Length of the prompt."""
    tokens_read: int
    """Tokens read since the answers before these."""

    @property
    def raw(self) -> NDArray[np.float64]:
        """(Q, C): probabilities of the classes, of a sum of 1."""
        return normalised(self.log_likelihoods)

    @property
    def calibrated(self) -> NDArray[np.float64]:
        """(Q, C): the same after contextual calibration."""
        return calibrated(self.raw, self.prior)


def answers_of(
    prompt: GrowingPrompt,
    queries: Sequence[NDArray[np.uint8]],
    contentless: Sequence[NDArray[np.uint8]] = (),
    *,
    read_before: int = 0,
) -> Answers:
    """What the model answers behind a prompt as it is.

    Parameters
    ----------
    prompt : GrowingPrompt
    queries, contentless : sequences of uint8 arrays
        What is asked, and sequences without content to calibrate by.
    read_before : int
        `prompt.tokens_read` at the answers before these.
    """
    found = prompt.ask(queries)
    C = found.shape[1]
    prior = normalised(prompt.ask(contentless)).mean(axis=0) if len(contentless) else np.full(C, 1 / C)
    return Answers(found, prior, prompt.length, prompt.tokens_read - read_before)


def sweep(
    model: HyenaDNA,
    episode: Episode,
    layout: Layout,
    counts: Sequence[int],
    *,
    contentless: Sequence[NDArray[np.uint8]] = (),
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Answers]:
    """What the model answers behind the first n examples of an episode, for each n of `counts`, ascending.

    Raises
    ------
    UsageError              counts that do not ascend, or that the episode has no examples for
    InputError              no query
    SequenceTooLong         the longest prompt and query are longer than the model's context
    """
    if list(counts) != sorted(set(counts)) or not counts or counts[0] < 0 or counts[-1] > len(episode.examples):
        raise UsageError(
            f"prompts of {', '.join(map(str, counts))} examples were asked for; give numbers from 0 to "
            f"{len(episode.examples)}, which the episode has, each larger than the one before"
        )
    if not episode.queries:
        raise InputError("an episode needs a query")
    longest = max(map(len, (*episode.queries, *contentless)))
    prompt = GrowingPrompt(model, layout, longest_query=longest, batch_tokens=batch_tokens)
    for before, count in zip((0, *counts), counts, strict=False):
        read = prompt.tokens_read
        prompt.add(episode.examples[before:count])
        yield answers_of(prompt, episode.queries, contentless, read_before=read)


@dataclasses.dataclass(frozen=True)
class Probed:
    """What a model answered to the queries of several episodes, E, of as many queries each, Q."""

    counts: tuple[int, ...]
    """Numbers of examples, K of them."""
    raw: NDArray[np.float64]
    """(E, K, Q, C): probability of each class."""
    calibrated: NDArray[np.float64]
    """(E, K, Q, C): the same after contextual calibration; as `raw` where nothing was asked to calibrate by."""
    log_likelihoods: NDArray[np.float64]
    """(E, K, Q, C): of each class's word, in nats."""
    answers: NDArray[np.int64]
    """(E, Q): the right ones."""
    crossed: bool
    """Whether query q is the same in all episodes."""

    def correct(self, *, calibrate: bool = True) -> NDArray[np.float64]:
        """(E, K, Q): 1 where the likeliest class is the right one; classes as likely as each other share it."""
        probabilities = self.calibrated if calibrate else self.raw
        return share_correct(probabilities, self.answers[:, None])

    def accuracy(self, count: int, *, calibrate: bool = True) -> Estimate:
        """Share of right answers behind so many examples, with the interval of `mean_over`."""
        return mean_over(self.correct(calibrate=calibrate)[:, self.counts.index(count)], crossed=self.crossed)

    def gain(self, first: int, last: int, *, calibrate: bool = True) -> Estimate:
        """What the examples from the first number to the last add to the accuracy; paired by episode and query."""
        correct = self.correct(calibrate=calibrate)
        difference = correct[:, self.counts.index(last)] - correct[:, self.counts.index(first)]
        return mean_over(difference, crossed=self.crossed)


def probe(
    model: HyenaDNA,
    episodes: Sequence[Episode],
    layout: Layout,
    counts: Sequence[int],
    *,
    shuffles: int = 0,
    crossed: bool = False,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Probed:
    """What a model answers in episodes that are tasks of their own, or orders of one task.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    episodes : sequence of Episode
        With as many queries each.
    layout : Layout
    counts : sequence of int
        Numbers of examples, of all classes together, ascending.
    shuffles : int
        Queries of each episode, shuffled, by which answers are calibrated; 0: not at all.
    crossed : bool
        Whether all episodes have the same queries in the same order; else each has its own.
    seed : int
        Of the shuffles.

    Raises
    ------
    InputError              no episode, or ones with different numbers of queries
    UsageError              counts that do not ascend, or that an episode has no examples for
    SequenceTooLong         a prompt is longer than the model's context
    """
    if len({len(episode.queries) for episode in episodes}) != 1:
        raise InputError("a probe takes one episode or more, all with the same number of queries")
    random, found = np.random.default_rng(seed), []
    for episode in episodes:
        chosen = random.permutation(len(episode.queries))[:shuffles]
        contentless = [shuffled(episode.queries[number], random) for number in chosen]
        found.append(list(sweep(model, episode, layout, counts, contentless=contentless, batch_tokens=batch_tokens)))
    return Probed(
        tuple(counts),
        np.stack([[one.raw for one in of_episode] for of_episode in found]),
        np.stack([[one.calibrated for one in of_episode] for of_episode in found]),
        np.stack([[one.log_likelihoods for one in of_episode] for of_episode in found]),
        np.stack([episode.answers for episode in episodes]),
        crossed,
    )
