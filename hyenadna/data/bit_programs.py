"""Random programs on strings of eight bits, composed of primitives, each with one bit for an answer.

After arXiv 2511.12797, which asks a genomic model for the output of programs on bit strings, 100 of them composed of 30
primitives. Departs from it: (1) the primitives are our own list, below; (2) a program ends in one bit, so that its
answers are two classes, as everything that probes and tunes in context here has classes of sequences, and not strings.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

BITS = 8
Bits = NDArray[np.bool_]
"""(n, BITS), the first bit of a string first."""
ALL: Bits = np.arange(1 << BITS)[:, None] >> np.arange(BITS)[::-1] & 1 == 1
"""(256, 8): every string, as the number that it reads as."""

CHANGES: dict[str, Callable[[Bits], Bits]] = {
    "identity": lambda x: x,
    "not": lambda x: ~x,
    "reverse": lambda x: x[:, ::-1],
    "shift left": lambda x: _moved(x, 1),
    "shift right": lambda x: _moved(x, -1),
    "rotate left": lambda x: np.roll(x, -1, axis=1),
    "rotate right": lambda x: np.roll(x, 1, axis=1),
    "swap halves": lambda x: np.roll(x, BITS // 2, axis=1),
    "swap neighbours": lambda x: x.reshape(-1, BITS // 2, 2)[..., ::-1].reshape(-1, BITS),
    "not at even places": lambda x: x ^ (np.arange(BITS) % 2 == 0),
    "not at odd places": lambda x: x ^ (np.arange(BITS) % 2 == 1),
    "not in the first half": lambda x: x ^ (np.arange(BITS) < BITS // 2),
    "xor with the next": lambda x: x ^ _moved(x, 1),
    "and with the next": lambda x: x & _moved(x, 1),
    "or with the next": lambda x: x | _moved(x, 1),
    "xor with the mirror image": lambda x: x ^ x[:, ::-1],
    "parity so far": lambda x: np.cumsum(x, axis=1) % 2 == 1,
    "ones first": lambda x: np.arange(BITS) < x.sum(axis=1, keepdims=True),
}
"""Primitives from strings to strings."""
ANSWERS: dict[str, Callable[[Bits], NDArray[np.bool_]]] = {
    **{f"bit {place + 1}": operator.itemgetter((slice(None), place)) for place in range(BITS)},
    "parity": lambda x: x.sum(axis=1) % 2 == 1,
    "majority": lambda x: x.sum(axis=1) > BITS // 2,
    "ends alike": lambda x: x[:, 0] == x[:, -1],
    "middle alike": lambda x: x[:, BITS // 2 - 1] == x[:, BITS // 2],
    "first half heavier": lambda x: x[:, : BITS // 2].sum(axis=1) > x[:, BITS // 2 :].sum(axis=1),
    "three ones in a row": lambda x: (x[:, :-2] & x[:, 1:-1] & x[:, 2:]).sum(axis=1) > 0,
}
"""Primitives from strings to one bit."""
LONGEST_PROGRAM = 3
"""Primitives of a program, the answer with them."""
_RAREST = 0.2
"""Share of the strings that either answer must have."""


def program(
    random: np.random.Generator, primitives: int = LONGEST_PROGRAM, answering: Sequence[str] = tuple(ANSWERS)
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """The names of a random program's primitives, in the order in which they are applied, and its answers (256,).

    One of `answering` comes last, and before it changes of the string, so that there are no more than `primitives`;
    programs that nearly always say the same are drawn again.
    """
    while True:
        changes = random.choice(list(CHANGES), random.integers(primitives)).tolist()
        names = (*changes, str(random.choice(list(answering))))
        answers = run(names)
        if _RAREST <= answers.mean() <= 1 - _RAREST:
            return names, answers


def run(names: Sequence[str]) -> NDArray[np.bool_]:
    """What a program answers to every string, (256,).

    Examples
    --------
    >>> run(["not", "bit 1"])[:3].tolist(), run(["parity"])[:4].tolist()
    ([True, True, True], [False, True, True, False])
    """
    strings = ALL
    for name in names[:-1]:
        strings = CHANGES[name](strings)
    return ANSWERS[names[-1]](strings)


def _moved(x: Bits, places: int) -> Bits:
    """Every bit so many places further to the left, or to the right if negative; what comes in is 0."""
    moved = np.roll(x, -places, axis=1)
    moved[:, -places:] = False
    if places < 0:
        moved[:, -places:] = x[:, : BITS + places]
        moved[:, :-places] = False
    return moved
