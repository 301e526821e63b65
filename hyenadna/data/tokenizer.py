"""One token a nucleotide, with the ids of the published HyenaDNA tokenizer."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import IUPAC
from hyenadna.errors import InputError

VOCABULARY = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
"""Token of every id. The embedding has 16 rows; the last four are never used."""
SEP, PAD, A, C, G, T, N = 1, 4, 7, 8, 9, 10, 11
IGNORE = -100
"""Target of a position that is not in the loss (torch's cross_entropy ignores it)."""

COMPLEMENT_TOKEN: NDArray[np.uint8] = np.arange(16, dtype=np.uint8)
"""uint8 (16,): the token of the complementary base; other tokens map to themselves."""
COMPLEMENT_TOKEN[[A, C, G, T]] = T, G, C, A


def _token_of_byte() -> NDArray[np.uint8]:
    table = np.full(256, 255, dtype=np.uint8)
    for letter in IUPAC:
        token = {"A": A, "C": C, "G": G, "T": T, "U": T}.get(letter, N)
        table[ord(letter)] = table[ord(letter.lower())] = token
    return table


TOKEN_OF_BYTE = _token_of_byte()
"""uint8 (256,): the token of every ASCII byte, 255 for a byte that is no nucleotide code."""


def encode(sequence: str | bytes | NDArray[np.uint8], n_token: Literal["n", "pad"] = "n") -> NDArray[np.uint8]:
    """Tokens of a sequence: upper and lower case alike, U as T, IUPAC ambiguity codes as N. No SEP is added.

    Parameters
    ----------
    sequence : str, bytes or uint8 array (L,)
        Nucleotides as ASCII.
    n_token : {'n', 'pad'}
        What N is in the model's input: its own token, or PAD as the published weights saw it (`HyenaConfig.n_token`).

    Returns
    -------
    uint8 array (L,)

    Raises
    ------
    InputError              a character that is no nucleotide code, named with its position

    Examples
    --------
    >>> encode("ACgtRN").tolist()
    [7, 8, 9, 10, 11, 11]
    """
    as_bytes = sequence.encode("utf-8") if isinstance(sequence, str) else sequence
    letters = np.frombuffer(as_bytes, dtype=np.uint8) if isinstance(as_bytes, bytes) else as_bytes
    tokens = TOKEN_OF_BYTE[letters]
    if (tokens == 255).any():
        position = int(np.argmax(tokens == 255))
        # all before it is ASCII, so that a string has its letter at the same place
        letter = sequence[position] if isinstance(sequence, str) else chr(letters[position])
        raise InputError(
            f"character {letter!r} at position {position + 1} is no nucleotide; "
            f"allowed are {IUPAC} in either case: is this DNA?"
        )
    if n_token == "pad":
        tokens[tokens == N] = PAD
    return tokens


def decode(tokens: NDArray[np.integer]) -> str:
    """The text of tokens; special tokens appear by name.

    Examples
    --------
    >>> decode(np.array([7, 8, 9, 10, 11, 1]))
    'ACGTN[SEP]'
    """
    return "".join(VOCABULARY[token] for token in tokens)


def reverse_complement_tokens(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tokens of the other strand: (..., L) -> (..., L)."""
    return COMPLEMENT_TOKEN[tokens[..., ::-1]]
