"""Batches of sequences of different lengths."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyenadna.data.tokenizer import PAD, encode
from hyenadna.inference.ragged import batches, padded


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths, tokens):
    found = batches(np.array(lengths, dtype=np.int64), tokens)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    for rows in found:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= tokens
    in_order = [lengths[row] for rows in found for row in rows]
    assert in_order == sorted(lengths)
    for rows, following in itertools.pairwise(found):  # no batch could have taken one more
        assert (len(rows) + 1) * lengths[following[0]] > tokens


def test_equal_lengths_keep_their_order():
    assert [rows.tolist() for rows in batches(np.array([3, 3, 3, 3, 3]), 6)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("to", [0, 3, 9])
def test_padded_is_right_padded(to):
    tokens, lengths = padded([encode("ACG"), encode("N"), encode("acgtA")], to)
    assert tokens.dtype == torch.uint8 and lengths.tolist() == [3, 1, 5]
    L = max(5, to)
    rows = [[7, 8, 9], [11], [7, 8, 9, 10, 7]]
    assert tokens.tolist() == [row + [PAD] * (L - len(row)) for row in rows]
