"""Every step from the model's distribution to the one that is drawn from, on its golden cases."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.errors import UsageError
from hyenadna.inference.decoding import (
    Decoding,
    WrittenKmers,
    at_temperature,
    base_nats,
    block_nats,
    decode,
    draw,
    dynamic_temperature,
    entropy,
    normalised,
    top_k,
    top_p,
    typical,
)

SKEWED = (0.4, 0.3, 0.2, 0.1)
distributions = st.lists(st.floats(1e-6, 1), min_size=4, max_size=4).map(lambda p: np.log(np.array(p) / np.sum(p)))


def kept(nats):
    """Which bases are left, and that they keep their proportions and sum to 1."""
    assert np.exp(nats).sum() == pytest.approx(1)
    return set(np.flatnonzero(np.exp(nats)).tolist())


def test_only_bases_count():
    logits = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    nats = base_nats(logits)
    p = np.exp(logits[:, 7:11].astype(np.float64))
    assert nats.dtype == np.float64 and np.allclose(np.exp(nats), p / p.sum(axis=1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize(
    ("p", "by_mass"),
    [
        (SKEWED, {0.2: {1}, 0.5: {1, 2}, 0.9: {0, 1, 2}, 0.95: {0, 1, 2, 3}}),
        ((0.5, 0.3, 0.15, 0.05), {0.2: {1}, 0.5: {0, 1}, 0.9: {0, 1, 2}, 0.95: {0, 1, 2}}),
        ((0.7, 0.1, 0.1, 0.1), {0.2: {0}, 0.5: {0}, 0.9: {0, 1, 2, 3}}),
        ((0.25, 0.25, 0.25, 0.25), {0.2: {0, 1, 2, 3}, 0.95: {0, 1, 2, 3}}),  # ties are kept
        ((0.5, 0.5, 0.0, 0.0), {0.2: {0, 1}, 0.99: {0, 1}}),
    ],
)
def test_typical_as_in_the_paper(p, by_mass):
    with np.errstate(divide="ignore"):
        nats = np.log(np.array(p))
    for mass, wanted in by_mass.items():
        left = typical(nats, mass)
        assert kept(left) == wanted
        chosen = sorted(wanted)
        assert np.allclose(np.exp(left)[chosen], np.array(p)[chosen] / sum(p[base] for base in chosen))
        # in any order of the bases, and beside others in a batch
        turned = typical(np.stack([nats[::-1], nats]), mass)
        assert kept(turned[0]) == {3 - base for base in wanted} and np.array_equal(turned[1], left)


@pytest.mark.parametrize(
    ("p", "by_mass", "by_number"),
    [
        (SKEWED, {0.4: {0}, 0.41: {0, 1}, 0.9: {0, 1, 2}, 0.91: {0, 1, 2, 3}}, {1: {0}, 2: {0, 1}, 3: {0, 1, 2}}),
        ((0.1, 0.4, 0.1, 0.4), {0.3: {1, 3}, 0.8: {1, 3}, 0.81: {0, 1, 2, 3}}, {1: {1, 3}, 2: {1, 3}, 3: {0, 1, 2, 3}}),
    ],
)
def test_top_p_and_top_k(p, by_mass, by_number):
    for mass, wanted in by_mass.items():
        assert kept(top_p(np.log(p), mass)) == wanted
    for k, wanted in by_number.items():
        assert kept(top_k(np.log(p), k)) == wanted


def test_temperature():
    nats = np.log(np.array([SKEWED, SKEWED[::-1]]))
    for T in (0.5, 2.0):
        p = np.array(SKEWED) ** (1 / T)
        assert np.allclose(np.exp(at_temperature(nats, T))[0], p / p.sum(), rtol=1e-12)
    own = at_temperature(nats, np.array([[0.5], [2.0]]))
    assert np.array_equal(own[0], at_temperature(nats, 0.5)[0])
    assert np.array_equal(own[1], at_temperature(nats, 2.0)[1])
    assert np.exp(at_temperature(nats, 0)).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert np.exp(at_temperature(np.log(np.array([[0.2, 0.4, 0.4, 0]]) + 1e-300), 0)).tolist() == [[0, 1, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(distributions)
def test_what_is_off_changes_no_bit(nats):
    for left in (at_temperature(nats, 1), top_k(nats, 4), top_p(nats, 1), typical(nats, 1)):
        assert left is nats
    assert decode(nats[None], Decoding()) is not None and np.array_equal(decode(nats[None], Decoding())[0], nats)


@settings(max_examples=100, deadline=None)
@given(distributions, st.floats(0.01, 0.999))
def test_the_fewest_that_have_the_mass(nats, mass):
    p = np.exp(nats)
    for left, distance in ((top_p(nats, mass), -nats), (typical(nats, mass), np.abs(-nats - entropy(nats)))):
        chosen = kept(left)
        assert p[list(chosen)].sum() >= mass - 1e-11
        farthest = max(distance[base] for base in chosen)
        assert all(distance[base] > farthest for base in set(range(4)) - chosen)
        nearer = [base for base in chosen if distance[base] < farthest]
        assert p[nearer].sum() < mass  # without the farthest it would not be enough


def test_dynamic_temperature_rises_from_end_to_end():
    s = np.linspace(0, 1, 101)
    for mapping in ("linear", "exponential", "inverse-sigmoid"):
        T = dynamic_temperature(s, mapping, 0.5, 1.3)
        assert (T[0], T[-1]) == pytest.approx((0.5, 1.3)) and (np.diff(T) >= 0).all()
    assert dynamic_temperature(np.array(0.5), "linear", 0.5, 1.3) == pytest.approx(0.9)
    assert dynamic_temperature(np.array(0.5), "exponential", 0.5, 1.3) == pytest.approx(np.sqrt(0.5 * 1.3))
    # s = 1 / (1 + exp(-(T - 0.9) / 0.2)), turned round
    T = dynamic_temperature(1 / (1 + np.exp(-(np.array([0.7, 0.9, 1.2]) - 0.9) / 0.2)), "inverse-sigmoid", 0.5, 1.3)
    assert np.allclose(T, [0.7, 0.9, 1.2])


def test_a_constant_score_is_a_fixed_temperature_bit_for_bit():
    nats = normalised(np.random.default_rng(1).normal(size=(5, 4)))
    fixed = decode(nats, Decoding(temperature=0.5 + (1.3 - 0.5) * 0.25, top_p=0.8))
    assert np.array_equal(decode(nats, Decoding(dynamic="diversity", top_p=0.8), scores=np.full(5, 0.25)), fixed)


def test_the_entropy_as_the_score():
    nats = np.log(np.array([[0.25] * 4, [0.97, 0.01, 0.01, 0.01]]))
    left = decode(nats, Decoding(dynamic="entropy"))
    share = entropy(nats)[1] / np.log(4)
    assert np.allclose(left[0], nats[0]) and np.allclose(left[1], at_temperature(nats, 0.5 + 0.8 * share)[1])


def test_the_steps_come_in_the_order_that_is_stated():
    nats, penalty = np.log(np.array([SKEWED])), np.array([[1.0, 0, 0, 0]])
    wanted = typical(top_p(top_k(at_temperature(normalised(nats - penalty), 0.7), 3), 0.9), 0.6)
    given = decode(nats, Decoding(temperature=0.7, top_k=3, top_p=0.9, typical_p=0.6), penalty=penalty)
    assert np.array_equal(given, wanted)


def test_blocks_are_products_of_their_bases():
    rng = np.random.default_rng(2)
    levels = [normalised(rng.normal(size=(2 * 4**j, 4))) for j in range(3)]
    levels[0][0, 2] = -np.inf
    levels[1][2] = np.nan  # behind what cannot be drawn stands anything
    joint = block_nats(levels)
    assert joint.shape == (2, 64)
    for row in range(2):
        for number, (a, b, c) in enumerate(itertools.product(range(4), repeat=3)):
            if (row, a) == (0, 2):
                assert np.isneginf(joint[row, number])
            else:
                wanted = levels[0][row, a] + levels[1][4 * row + a, b] + levels[2][16 * row + 4 * a + b, c]
                assert joint[row, number] == pytest.approx(wanted, rel=1e-12)


def test_drawing():
    nats = np.log(np.array([[0.5, 0.25, 0.125, 0.125]] * 5))
    assert draw(nats, np.array([0.0, 0.49, 0.5, 0.75, 0.999])).tolist() == [0, 0, 1, 2, 3]
    with np.errstate(divide="ignore"):
        for p in ([0, 1, 0, 0], [0, 0, 1, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0, 0.1, 0.2, 0.7]):
            for u in (0.0, 0.5, 1 - 2**-53):
                assert p[draw(np.log(np.array([p])), np.array([u]))[0]] > 0


def test_written_kmers_are_counted_as_by_hand():
    rng, k = np.random.default_rng(3), 3
    prompt, written = rng.integers(0, 2, 9), rng.integers(0, 2, (2, 12))
    counted = WrittenKmers(k, prompt, 2)
    for step in range(12):
        texts = ["".join(map(str, [*prompt, *row[:step]])) for row in written]
        for row, (text, times) in enumerate(zip(texts, counted.times(counted.ending), strict=True)):
            for base in range(4):
                wanted = len(re.findall(f"(?={text[-2:]}{base})", text))
                assert times[base] == wanted, (row, text, base)
        counted.add(written[:, step])
    counted.select(np.array([1]))
    assert counted.times(counted.ending).shape == (1, 4)
    new = WrittenKmers(k, np.array([1]), 1)
    assert not new.times(new.ending).any()  # nothing is complete yet


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1}, "temperature is -1; allowed are 0 to 100"),
        ({"temperature": float("nan")}, "temperature is nan; allowed are 0 to 100"),
        ({"top_k": 5}, "top_k is 5; allowed are 1 to 4"),
        ({"top_p": 0}, "top_p is 0; allowed are 1e-06 to 1"),
        ({"typical_p": 1.5}, "typical_p is 1.5; allowed are 1e-06 to 1"),
        ({"typical_kmer": 5, "typical_p": 0.5}, "typical_kmer is 5; allowed are 1 to 4"),
        ({"typical_kmer": 3}, "typical_kmer 3 does nothing while typical_p is 1"),
        ({"repetition_kmer": 1}, "repetition_kmer is 1; allowed are 2 to 31"),
        ({"min_temperature": 2.0}, "min_temperature 2 is above max_temperature 1.3"),
        ({"dynamic": "entropy", "temperature": 0.5}, "temperature 0.5 is fixed and dynamic 'entropy' is not"),
    ],
)
def test_values_that_are_refused(fields, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        Decoding(**fields)


def test_methods_in_a_word():
    assert (Decoding().method, Decoding(temperature=0).method) == ("ancestral", "greedy")
    assert Decoding(typical_p=0.9, temperature=0.8).method == "temperature:0.8,typical_p:0.9"
