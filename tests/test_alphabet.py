"""Complements, against Biopython."""

from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from hyenadna.data.alphabet import COMPLEMENT, IUPAC, reverse_complement

dna = st.text(alphabet=IUPAC.replace("U", "") + IUPAC.replace("U", "").lower(), max_size=80)


@given(dna)
def test_reverse_complement_is_biopythons(sequence):
    assert reverse_complement(sequence) == str(Seq(sequence).reverse_complement())


@given(dna)
def test_reverse_complement_twice_is_identity(sequence):
    assert reverse_complement(reverse_complement(sequence)) == sequence


def test_uracil_pairs_with_adenine():
    assert reverse_complement("Uu") == "aA"


def test_table_agrees_with_the_function():
    for letter in IUPAC + IUPAC.lower():
        assert chr(COMPLEMENT[ord(letter)]) == reverse_complement(letter)
