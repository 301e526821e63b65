"""Sequences written base by base: a model's distribution, decoded and kept to constraints, drawn, and read again.

The prompt is read once, in one pass, and its state branches into a row for each sequence; all rows then take a base
each at a time. Every row draws from a generator of its own, seeded by (seed, row, prompt), one number a base or block.
So a sequence does not depend on how many are written with it, but for the rounding of the model's products, which may
turn a draw that falls within about 1e-7 of the border between two bases. What is drawn behind one prompt does not
depend on what is drawn behind another.

A sequence ends after `length` bases, or earlier with the last base of a stop motif. Only A, C, G and T are written.
There is no start token: without a prompt the first base is drawn from the four alike (of those that constraints leave),
whatever the decoding, and is not scored. So what is said of a sequence is what `likelihoods` says of it, and behind a
prompt what it says of both less what it says of the prompt.
"""

from hyenadna.data.alphabet import BASES
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.inference.constraints import Constraints, plan
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generation import Generated, Generation, Piece, Scorer
from hyenadna.inference.generation_config import Motifs
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.pyramid_kv import CacheBudget
from hyenadna.model.language_model import HyenaDNA

__all__ = ["Generated", "Generation", "Piece", "Scorer", "checked_prompt", "generate", "stream"]


def generate(
    model: HyenaDNA,
    prompt: str = "",
    *,
    length: int,
    count: int = 1,
    decoding: Decoding | None = None,
    seed: int = 0,
    constraints: Constraints | None = None,
    stop: Motifs = (),
    diversity: Scorer | None = None,
    cache: CacheBudget | None = None,
) -> list[Generated]:
    """Sequences that a model writes, behind a prompt or from nothing.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    prompt : str
        What all sequences follow: A, C, G and T in either case, U as T; may be empty.
    length : int
        Bases of each sequence, at least 1; with the prompt no more than the model's context.
    count : int
        How many sequences, written side by side.
    decoding : Decoding, optional
        How bases are chosen. Default: drawn from the model's own distribution.
    seed : int
        0 or more.
    constraints : Constraints, optional
        What every sequence keeps to.
    stop : tuple of str
        Motifs of IUPAC codes that end a sequence, wherever it keeps to its constraints by then.
    diversity : callable, optional
        The head that the temperature goes by, where decoding.dynamic is 'diversity'.
    cache : CacheBudget, optional
        What the softmax layers keep of the prompt and of what is written; the log-likelihood is then of such a model.
        Default: everything.

    Returns
    -------
    list of Generated

    Raises
    ------
    UsageError              numbers that are not allowed, constraints that contradict each other, a motif that is none,
                            no head where one is needed, or a cache budget for a model without softmax layers
    InputError              the prompt has a letter that is not A, C, G or T
    SequenceTooLong         prompt and length are more than the model's context
    NotFiniteError          the model gives something that is not a number
    """
    generation = stream(
        model, prompt, length=length, count=count, decoding=decoding, seed=seed, constraints=constraints, stop=stop,
        diversity=diversity, cache=cache,
    )  # fmt: skip
    for _ in generation:
        pass
    return generation.sequences


def stream(
    model: HyenaDNA,
    prompt: str = "",
    *,
    length: int,
    count: int = 1,
    decoding: Decoding | None = None,
    seed: int = 0,
    constraints: Constraints | None = None,
    stop: Motifs = (),
    diversity: Scorer | None = None,
    cache: CacheBudget | None = None,
    first_row: int = 0,
) -> "Generation":
    """The same sequences base by base, as they are written; what is wrong with the arguments is found at once.

    Parameters and errors are those of `generate`.

    Parameters
    ----------
    first_row : int
        Number of the first row: a part of more sequences than are written at once.

    Returns
    -------
    Generation, an iterator over Piece
    """
    if length < 1 or count < 1 or seed < 0:
        raise UsageError(
            f"{count:,} sequences of {length:,} bases by the seed {seed}; allowed are a count and a length of 1 or "
            "more and a seed of 0 or more"
        )
    prompt = checked_prompt(prompt)
    context = context_of(model)
    if len(prompt) + length > context:
        behind = f"a prompt of {len(prompt):,} bases and {length:,} more are {len(prompt) + length:,}"
        raise SequenceTooLong(
            f"{behind if prompt else f'{length:,} bases were asked for'}; this model takes up to {context:,}: shorten "
            "them, or take a model with a longer context"
        )
    decoding = decoding or Decoding()
    if (decoding.dynamic == "diversity") != (diversity is not None):
        raise UsageError("a diversity head and dynamic 'diversity' need each other; give both or none")
    if cache is not None and "S" not in model.config.layers:
        raise UsageError(
            f"a cache budget is for softmax layers, and this model's are {model.config.layers}; leave it out"
        )
    ahead = None
    if stop or constraints not in (None, Constraints()):
        ahead = plan(constraints or Constraints(), length, stop=stop, prompt=prompt)
    rows = range(first_row, first_row + count)
    return Generation(model, prompt, length, rows, decoding, seed, ahead, diversity, cache)


def checked_prompt(prompt: str) -> str:
    """A prompt in upper case, U as T.

    Raises
    ------
    InputError              it has a letter that is not A, C, G or T
    """
    upper = prompt.strip().upper().replace("U", "T")
    for position, letter in enumerate(upper, 1):
        if letter not in BASES:
            raise InputError(
                f"the prompt has {letter!r} at position {position:,}; a sequence goes on from A, C, G and T alone: cut "
                "the prompt behind it, or replace it"
            )
    return upper
