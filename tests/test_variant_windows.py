"""The window of a variant and its haplotypes, against a search and plain slicing."""

import pytest
from fake_genome import FakeGenome, haplotype_pair, random_bases

from hyenadna.data.alleles import Variant
from hyenadna.errors import UsageError
from hyenadna.inference.variant_windows import check_window, haplotypes, longest_allele, place, window_letters

GENOME = FakeGenome(c=random_bases(173, 1))
CHANGES = [("A", "C"), ("AC", "GT"), ("", "G"), ("", "GATTA"), ("A", ""), ("ACGTA", ""), ("AC", "TTTTT"), ("ACGT", "T")]


def text(letters) -> str:
    return letters.tobytes().decode()


@pytest.mark.parametrize("window", [8, 32, 44])
@pytest.mark.parametrize("sign", ["+", "-"])
def test_haplotypes_are_those_of_the_one_window_that_fits(window, sign) -> None:
    length, kept = GENOME.lengths["c"], 0
    for length_ref, length_alt in {(len(ref), len(alt)) for ref, alt in CHANGES}:
        if max(length_ref, length_alt) > longest_allele(window):
            continue
        for start in range(length - length_ref + 1):
            variant = Variant("c", start, GENOME.fetch("c", start, start + length_ref), "GATTA"[:length_alt])
            at = place(variant, sign, window, length)
            expected, offset = haplotype_pair(GENOME, variant, window, sign)
            assert [text(letters) for letters in haplotypes(variant, at, GENOME)] == expected
            assert at.offset == offset and at.offset + at.scored == len(expected[0]) <= window
            if not at.near_edge:
                kept += 1
                assert window // 2 <= at.offset < 3 * window // 4
                assert at.scored == window // 4 + max(length_ref, length_alt)
                assert text(window_letters(at, window, GENOME)).startswith(expected[0])
    assert kept > 200


def test_look_back_goes_on_to_the_left_as_far_as_the_contig() -> None:
    variant = Variant("c", 30, GENOME.fetch("c", 30, 31), "")
    for sign in ("+", "-"):
        at = place(variant, sign, 32, 173)
        short, long = (haplotypes(variant, at, GENOME, look_back=back) for back in (0, 500))
        before = 30 if sign == "+" else 142
        for one, other in zip(short, long, strict=True):
            assert text(other).endswith(text(one)) and len(other) == before + at.scored


def test_which_windows_are_flagged_near_an_edge() -> None:
    flagged = [place(Variant("c", p, "A", "C"), "+", 32, 173).near_edge for p in range(173)]
    assert flagged == [p < 16 or p + 9 > 173 for p in range(173)]
    # an insertion behind the last base leaves nothing that both haplotypes have
    assert place(Variant("c", 173, "", "C"), "+", 32, 173).scored == 0
    assert place(Variant("c", 173, "", "C"), "-", 32, 173)[3:6] == (19, 0, 9)  # read from 19 bases within its window


def test_windows_that_cannot_be_read() -> None:
    check_window(1024, 1024)
    with pytest.raises(
        UsageError, match="a window of 6 bases was asked for; it must be a multiple of 4 and at least 8"
    ):
        check_window(6, 1024)
    with pytest.raises(UsageError, match=r"a window of 30 bases .* multiple of 4"):
        check_window(30, 1024)
    with pytest.raises(UsageError, match="this model reads up to 1,026: the largest window is 1,024, or take"):
        check_window(1028, 1026)
