"""Sequences shuffled so that each pair of neighbours is as frequent as before."""

import numpy as np
from numpy.typing import NDArray


def shuffled(tokens: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A sequence with the same first and last token and the same number of each pair of neighbours, drawn uniformly.

    Altschul and Erickson 1985: the pairs are the edges of a graph, a sequence is a walk along each of them once, and
    one is drawn by the last edges by which the walk leaves each token: these must lead to the last token.

    Parameters
    ----------
    tokens : uint8 array (L,)
    random : numpy.random.Generator

    Examples
    --------
    >>> shuffled(np.array([7, 8, 9], dtype=np.uint8), np.random.default_rng(0)).tolist()
    [7, 8, 9]
    """
    if len(tokens) < 4:  # every such sequence is the only one of its pairs
        return tokens.copy()
    after = {int(token): tokens[1:][tokens[:-1] == token] for token in np.unique(tokens[:-1])}
    end = int(tokens[-1])
    leaving = _last_edges(after, end, random)
    edges: dict[int, list[int]] = {}
    for token, successors in after.items():
        order = random.permutation(len(successors))
        if token != end:
            # the edge that was chosen comes last, the others in any order
            order = np.append(order[order != leaving[token]], leaving[token])
        edges[token] = successors[order].tolist()
    walk, used = [int(tokens[0])], dict.fromkeys(edges, 0)
    for _ in range(len(tokens) - 1):
        here = walk[-1]
        walk.append(edges[here][used[here]])
        used[here] += 1
    return np.array(walk, dtype=np.uint8)


def _last_edges(after: dict[int, NDArray[np.uint8]], end: int, random: np.random.Generator) -> dict[int, int]:
    """Which of its successors each token but the end is left by last, drawn uniformly of those that lead to the end."""
    while True:
        chosen = {token: int(random.integers(len(successors))) for token, successors in after.items() if token != end}
        reached = {end}
        for _ in after:
            reached |= {token for token, number in chosen.items() if int(after[token][number]) in reached}
        if reached.issuperset(chosen):
            return chosen
