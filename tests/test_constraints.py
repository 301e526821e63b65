"""Constraints: the sequences that can be written are those that keep to them, counted one by one."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from hyenadna.data.alphabet import reverse_complement
from hyenadna.errors import UsageError
from hyenadna.inference.constraints import Constraints, log_chance, plan
from hyenadna.inference.decoding import normalised

CODES = {"N": "[ACGT]", "R": "[AG]", "S": "[CG]", "W": "[AT]", "Y": "[CT]"}


def occurs(motif, text, prompt=""):
    """Whether a motif ends in `text` behind `prompt`, by a regular expression."""
    pattern = re.compile("(?=(" + "".join(CODES.get(letter, letter) for letter in motif) + "))")
    return any(found.end(1) > len(prompt) for found in pattern.finditer(prompt + text))


def keeps(constraints, text, prompt=""):
    def found(motif):
        return occurs(motif, text, prompt) or (
            constraints.both_strands and occurs(reverse_complement(motif), text, prompt)
        )

    low, high = constraints.gc or (0, 1)
    share = sum(base in "GC" for base in text) / len(text)
    return (
        all(map(found, constraints.require))
        and not any(map(found, constraints.forbid))
        and low - 1e-9 <= share <= high + 1e-9
    )


def written(constraints, length, prompt=""):
    """Every sequence that can be written, with its probability under a model to which all bases are alike."""
    ahead, found = plan(constraints, length, prompt=prompt), {}

    def go_on(text, chance, state, gc):
        if len(text) == length:
            found[text] = chance
            return
        nats = ahead.weighted(np.zeros((1, 4)), np.array([state]), np.array([gc]), length - len(text))
        assert not np.isneginf(nats).all(), f"{text} is a dead end"
        for base, share in enumerate(np.exp(normalised(nats))[0]):
            if share > 0:
                after, gc_after = ahead.after(np.array([state]), np.array([gc]), np.array([base]))
                go_on(text + "ACGT"[base], chance * share, int(after[0]), int(gc_after[0]))

    go_on("", 1.0, ahead.start, 0)
    return found


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ({"require": ("GAT",)}, ""),
        ({"require": ("GAT",)}, "CCGA"),
        ({"require": ("AC", "CA")}, ""),
        ({"require": ("ACA", "CAC")}, ""),
        ({"require": ("RNY",)}, ""),
        ({"require": ("GAA",), "both_strands": True}, ""),
        ({"forbid": ("AA", "CG", "TNT")}, ""),
        ({"forbid": ("AG", "C"), "both_strands": True}, "TTC"),
        ({"forbid": ("SW", "WS")}, ""),
        ({"gc": (0.5, 0.7)}, ""),
        ({"gc": (0.0, 0.0)}, ""),
        ({"gc": (0.4, 0.6), "require": ("TTT",)}, ""),
        ({"gc": (0.9, 1.0), "forbid": ("SW", "WS")}, ""),
        ({"gc": (0.5, 1.0), "require": ("GA",), "forbid": ("CC", "GG", "AA"), "both_strands": True}, "AG"),
    ],
)
def test_what_can_be_written_is_what_keeps_to_the_constraints(given, prompt):
    constraints, length = Constraints(**given), 5
    texts = map("".join, itertools.product("ACGT", repeat=length))
    allowed = {text for text in texts if keeps(constraints, text, prompt)}
    found = written(constraints, length, prompt)
    assert found.keys() == allowed
    if constraints.gc is None or not (constraints.require or constraints.forbid):
        # by the outlook, a model to which all bases are alike writes them equally often
        assert np.allclose(list(found.values()), 1 / len(allowed), rtol=1e-9)


def test_numbers_of_gc_with_gaps_between_are_exact():
    # all S or all W, so that with a band in the middle nothing is left, though it lies between what is possible
    ahead = plan(Constraints(forbid=("SW", "WS"), gc=(0.0, 1.0)), 12)
    first = np.array([ahead.automaton.following[0, 0], ahead.automaton.following[0, 1]])
    assert ahead.possible(first, np.array([0, 1]), 11).tolist() == [True, True]
    assert ahead.possible(first, np.array([1, 0]), 11).tolist() == [True, True]
    with pytest.raises(
        UsageError, match=r"no sequence of 12 bases lacks SW, WS and has 0\.3 to 0\.7 of its bases G or"
    ):
        plan(Constraints(forbid=("SW", "WS"), gc=(0.3, 0.7)), 12)


@pytest.mark.parametrize(
    ("given", "length", "prompt", "said"),
    [
        ({"require": ("GAATTC",)}, 5, "", "no sequence of 5 bases holds GAATTC; change the length"),
        ({"require": ("GAATTC",)}, 5, "TTT", "no sequence of 5 bases behind this prompt holds GAATTC; "),
        ({"require": ("GAATTC",), "forbid": ("AATT",)}, 50, "", "no sequence of 50 bases holds GAATTC and lacks AATT;"),
        ({"gc": (0.41, 0.43)}, 10, "", "no sequence of 10 bases has 0.41 to 0.43 of its bases G or C;"),
        ({"gc": (0.9, 1), "require": ("AAAA",)}, 8, "", "holds AAAA and has 0.9 to 1 of its bases G or C;"),
        ({"forbid": ("N",)}, 8, "", "no sequence of 8 bases lacks N;"),
        ({"gc": (0.5, 1), "require": ("AAAA",), "forbid": ("G", "C")}, 8, "", "8 bases lacks G, C and has 0.5 to 1 of"),
    ],
)
def test_contradictions_are_found_before_a_base_is_written(given, length, prompt, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        plan(Constraints(**given), length, prompt=prompt)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"require": ("",)}, "require '': a motif is made of IUPAC codes (ACGTURYSWKMBDHVN); it is empty"),
        (
            {"forbid": ("GAXC",)},
            "forbid 'GAXC': a motif is made of IUPAC codes (ACGTURYSWKMBDHVN); 'X' is no such code",
        ),
        ({"require": "GAATTC"}, "require is 'GAATTC'; give a tuple of motifs: ('GAATTC',)"),
        ({"gc": (0.6, 0.4)}, "gc is 0.6 to 0.4; allowed are 0 to 1, the lower one first"),
        ({"gc": (float("nan"), 1)}, "gc is nan to 1; allowed are 0 to 1, the lower one first"),
    ],
)
def test_constraints_that_are_none(given, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        Constraints(**given)


def test_too_many_states():
    with pytest.raises(UsageError, match=r"the motifs take more than 16,384 states together; give fewer of them"):
        plan(Constraints(require=("A" + "N" * 20 + "C", "G" + "N" * 20 + "T")), 100)


def test_motifs_may_be_in_lower_case_and_rna():
    assert written(Constraints(require=("gau",)), 4).keys() == written(Constraints(require=("GAT",)), 4).keys()


def test_a_stop_motif_counts_where_the_constraints_are_kept_to():
    ahead = plan(Constraints(require=("CC",), gc=(0.5, 1)), 9, stop=("TA",))
    state, gc, ends = np.array([ahead.start]), np.array([0]), []
    for written_bases, letter in enumerate("TACCTATA", 1):
        base = np.array(["ACGT".index(letter)])
        after, gc = ahead.after(state, gc, base)
        ends.append(bool(ahead.ends(state, base, gc, written_bases)[0]))
        state = after
    # the first TA comes before CC, the second with GC of 2 / 6, the third of 2 / 8
    assert not any(ends)
    state, gc = np.array([ahead.start]), np.array([0])
    for written_bases, letter in enumerate("CCTA", 1):
        base = np.array(["ACGT".index(letter)])
        after, gc = ahead.after(state, gc, base)
        assert bool(ahead.ends(state, base, gc, written_bases)[0]) == (written_bases == 4)
        state = after


def test_the_chance_of_a_gc_is_that_of_counting():
    for n in (0, 1, 5, 8):
        counts = Counter(sum(base in "GC" for base in text) for text in itertools.product("ACGT", repeat=n))
        for low, high in itertools.product(range(-2, n + 2), repeat=2):
            wanted = sum(counts[number] for number in range(low, high + 1)) / 4**n
            given = np.exp(log_chance(np.array([low]), np.array([high]), n))[0]
            assert given == pytest.approx(wanted, rel=1e-12)
    # and no matter how unlikely, there is a number
    far = log_chance(np.array([0, 9_999, 20_000]), np.array([10, 10_000, 30_000]), 10_000)
    assert (
        np.isfinite(far[:2]).all() and far[1] == pytest.approx(-10_000 * np.log(2) + np.log(10_001)) and far[2] < -1e9
    )


def test_looking_ahead_ends_where_nothing_changes_any_more():
    ahead = plan(Constraints(forbid=("GGATCC", "TATA"), both_strands=True), 1_000_000)
    assert len(ahead._levels) < 1_000
    # behind a short motif too, and what is far away still keeps what is near from dead ends
    ahead = plan(Constraints(require=("GAT",)), 1_000_000)
    assert len(ahead._levels) < 5_000
    forced = ahead.weighted(np.zeros((1, 4)), np.array([ahead.start]), np.array([0]), 3)
    assert np.isneginf(forced).tolist() == [[True, True, False, True]]
