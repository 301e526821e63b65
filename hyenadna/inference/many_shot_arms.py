"""What the examples of a prompt say: the arms of a many-shot probe.

true                the sequence and its class
shuffled            the same sequences, their classes dealt out among them anew, so that both stay as frequent
flipped             each class called by the next one's word, the last by the first's: who reads the examples answers
                    likewise, and that is what is counted as right
unlabelled          sequences alone (unsupervised in-context learning of Agarwal et al. 2024, section 3.2)
reverse-complement  each example twice, on either strand
reinforced          sequences that the model labels itself, behind the prompt so far, of which those become examples
                    whose answer is confirmed (section 3.1; here by the true class, as their worked solutions are by
                    the true result: so it needs labels as the others do, and says what a check by them is worth)
matched             as many examples with true classes, answered right or not, out of the same candidates and of the
                    same confidence: what reinforced examples gain over these is not that they are easy ones

In the last two, a class of which too few answers are confirmed ends the sweep.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.tokenizer import encode, reverse_complement_tokens
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.many_shot import Answers, GrowingPrompt, answers_of
from hyenadna.inference.many_shot_prompt import Example
from hyenadna.inference.many_shot_scores import calibrated, normalised, share_correct
from hyenadna.inference.many_shot_task import ProbeTask
from hyenadna.model.language_model import HyenaDNA

CANDIDATES = 4
"""Sequences of each class that the model is asked for each example that is wanted of it."""
_FEWEST = 8


class Step(NamedTuple):
    """What a model answered at one number of examples a class."""

    arm: str
    shots: int
    answers: Answers
    about: dict[str, Any]
    """How examples were chosen, where the model had a say in it."""


class Ended(NamedTuple):
    """Where a sweep of reinforced examples could not go on."""

    shots: int
    """The number of examples a class that could not be had."""
    why: str


def right_answers(arm: str, answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The class (Q,) that an arm's examples make the right answer to each query."""
    return (answers + 1) % classes if arm == "flipped" else answers


def examples_of(arm: str, task: ProbeTask, rows: NDArray[np.int64], seed: int) -> list[Example]:
    """Some rows as an arm shows them, in their order; all arms but those that the model chooses.

    Parameters
    ----------
    arm : str
    task : ProbeTask
    rows : int array (n,)
        Of the task.
    seed : int
        Of the order of shuffled labels and of copies.
    """
    # by the rows too: were blocks of one length dealt alike, labels of two classes would be all true or all flipped
    random = np.random.default_rng((seed, 2, *rows.tolist()))
    tokens = [encode(task.sequences[row], task.n_token) for row in rows]
    labels: list[int | None] = task.labels[rows].tolist()
    match arm:
        case "shuffled":
            labels = random.permutation(task.labels[rows]).tolist()
        case "flipped":
            labels = right_answers(arm, task.labels[rows], len(task.classes)).tolist()
        case "unlabelled":
            labels = [None] * len(rows)
        case "reverse-complement":
            order = random.permutation(2 * len(rows))
            both = [*tokens, *map(reverse_complement_tokens, tokens)]
            return [Example(both[at], labels[at % len(rows)]) for at in order]
    return [Example(*pair) for pair in zip(tokens, labels, strict=True)]


def swept(
    model: HyenaDNA, task: ProbeTask, arm: str, shots: Sequence[int], seed: int, wanted: set[int], batch_tokens: int
) -> Iterator[Step]:
    """The answers behind the prompts of one arm and seed, at each of `shots` that is `wanted`."""
    prompt = new_prompt(model, task, batch_tokens)
    queries, read = task.query_tokens, 0
    for k, rows in zip(shots, task.blocks(shots, seed), strict=True):
        if k > max(wanted):
            return
        prompt.add(examples_of(arm, task, rows, seed))
        if k in wanted:
            yield Step(arm, k, answers_of(prompt, queries, task.contentless, read_before=read), {})
            read = prompt.tokens_read


def reinforced(
    model: HyenaDNA, task: ProbeTask, shots: Sequence[int], seed: int, batch_tokens: int
) -> Iterator[Step | Ended]:
    """The answers behind reinforced and matched prompts of one seed, at each of `shots`, from 1, that can be had."""
    prompts = {arm: new_prompt(model, task, batch_tokens) for arm in ("reinforced", "matched")}
    order, queries, room = task.order(seed), task.query_tokens, context_of(model) - _behind(task)
    read, first = dict.fromkeys(prompts, 0), 0
    random = np.random.default_rng((seed, 3))
    for before, k in zip((0, *shots), shots, strict=False):
        number = max(_FEWEST, CANDIDATES * (k - before))
        candidates = np.concatenate([rows[first : first + number] for rows in order])
        # longer ones than any query might not fit behind the prompt
        left = context_of(model) - prompts["reinforced"].length - _behind(task) + task.longest_query
        candidates = candidates[[len(task.sequences[row]) <= left for row in candidates.tolist()]]
        first += number
        chosen = _chosen(prompts["reinforced"], task, candidates, k - before)
        if isinstance(chosen, str):
            yield Ended(k, chosen)
            return
        shown = {arm: examples_of("true", task, random.permutation(rows), seed) for arm, rows in chosen.rows.items()}
        longest = max(prompts[arm].length + sum(map(len, map(task.layout.example, shown[arm]))) for arm in prompts)
        if longest > room:
            yield Ended(k, f"these examples and a query are {longest + _behind(task):,} tokens")
            return
        for arm, prompt in prompts.items():
            prompt.add(shown[arm])
            said = answers_of(prompt, queries, task.contentless, read_before=read[arm])
            read[arm] = prompt.tokens_read
            yield Step(arm, k, said, chosen.about[arm])


class _Chosen(NamedTuple):
    rows: dict[str, NDArray[np.int64]]
    about: dict[str, dict[str, float]]


def _chosen(prompt: GrowingPrompt, task: ProbeTask, candidates: NDArray[np.int64], wanted: int) -> _Chosen | str:
    """The next examples of both arms, `wanted` of each class, or in words why there are none."""
    if len(candidates) < 2 * wanted * len(task.classes):
        return "the data have no further sequences to ask"
    said = normalised(prompt.ask([encode(task.sequences[row], task.n_token) for row in candidates]))
    if task.contentless:
        said = calibrated(said, normalised(prompt.ask(task.contentless)).mean(axis=0))
    labels, confidence = task.labels[candidates], said.max(axis=1)
    right = share_correct(said, labels) == 1
    confirmed, matched = [], []
    for c, name in enumerate(task.classes):
        # in the order of the seed, not the most confident ones first
        some = np.flatnonzero(right & (labels == c))[:wanted]
        others = np.setdiff1d(np.flatnonzero(labels == c), some)
        if len(some) < wanted:
            asked = len(some) + len(others)
            return f"of {asked} sequences of class {name}, {len(some)} were answered right; wanted were {wanted}"
        if len(others) < wanted:
            return f"class {name} has {len(others)} further sequences to compare with; wanted were {wanted}"
        confirmed.append(some)
        matched.append(others[_nearest(confidence[some], confidence[others])])
    found = {"reinforced": np.concatenate(confirmed), "matched": np.concatenate(matched)}
    about = {
        arm: {
            "asked_answered_right": round(float(right.mean()), 6),
            "answered_right": round(float(right[at].mean()), 6),
            "confidence": round(float(confidence[at].mean()), 6),
        }
        for arm, at in found.items()
    }
    return _Chosen({arm: candidates[at] for arm, at in found.items()}, about)


def _nearest(wanted: NDArray[np.float64], offered: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each number the place of another that is near it, none twice, so that the sum of differences is least."""
    from scipy.optimize import linear_sum_assignment

    _, places = linear_sum_assignment(np.abs(wanted[:, None] - offered))
    return np.asarray(places, dtype=np.int64)


def _behind(task: ProbeTask) -> int:
    """Tokens of the longest query, and of a label word but its last, which is not read."""
    return task.longest_query + len(task.layout.separator_tokens) + task.layout.width - 1


def new_prompt(model: HyenaDNA, task: ProbeTask, batch_tokens: int) -> GrowingPrompt:
    """A prompt for a task, without examples yet."""
    return GrowingPrompt(model, task.layout, longest_query=task.longest_query, batch_tokens=batch_tokens)
