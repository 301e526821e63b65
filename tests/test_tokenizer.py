"""The published ids, and encoding against a loop over characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyenadna.data import tokenizer
from hyenadna.data.alphabet import IUPAC, reverse_complement
from hyenadna.data.tokenizer import decode, encode, reverse_complement_tokens
from hyenadna.errors import InputError

# ids of the published tokenizer_config.json
PUBLISHED = {"[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6}
BASES = {"A": 7, "C": 8, "G": 9, "T": 10, "U": 10, "N": 11}


def test_ids_are_the_published_ones():
    assert {token: number for number, token in enumerate(tokenizer.VOCABULARY) if token.startswith("[")} == PUBLISHED
    assert [tokenizer.A, tokenizer.C, tokenizer.G, tokenizer.T, tokenizer.N] == [7, 8, 9, 10, 11]
    assert (tokenizer.SEP, tokenizer.PAD) == (1, 4)


@given(st.text(alphabet=IUPAC + IUPAC.lower(), max_size=100))
def test_encode_against_a_loop(sequence):
    expected = [BASES.get(letter.upper(), 11) for letter in sequence]
    assert encode(sequence).tolist() == expected
    assert encode(sequence.encode()).tolist() == expected
    assert encode(sequence, n_token="pad").tolist() == [4 if token == 11 else token for token in expected]
    assert decode(encode(sequence)) == "".join("NACGT"[token - 6 if token < 11 else 0] for token in expected)


@given(st.text(alphabet="ACGTNacgtn", max_size=100))
def test_reverse_complement_of_tokens_is_that_of_letters(sequence):
    assert np.array_equal(reverse_complement_tokens(encode(sequence)), encode(reverse_complement(sequence)))


def test_reverse_complement_leaves_special_tokens():
    assert reverse_complement_tokens(np.array([[1, 4, 7, 11]], dtype=np.uint8)).tolist() == [[11, 10, 4, 1]]


@pytest.mark.parametrize(
    "sequence, letter, position", [("ACG*", r"'\*'", 4), ("E", "'E'", 1), ("AC-GT", "'-'", 3), ("ACé", "'é'", 3)]
)
def test_other_characters_are_refused(sequence, letter, position):
    with pytest.raises(
        InputError, match=f"character {letter} at position {position} is no nucleotide; allowed are ACGTU"
    ):
        encode(sequence)


def test_encode_does_not_change_its_input():
    letters = np.frombuffer(bytearray(b"ANG"), dtype=np.uint8)
    encode(letters, n_token="pad")
    assert letters.tobytes() == b"ANG"
