"""Scores of in-context answers, their intervals, and shuffled sequences, against other ways to get them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from hyenadna.data.dinucleotides import shuffled
from hyenadna.data.tokenizer import encode
from hyenadna.inference import many_shot_scores as scores


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (137, 200)])
def test_wilson_is_scipys(right, n):
    wanted = binomtest(right, n).proportion_ci(method="wilson")
    assert scores.wilson(right, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert np.isnan(scores.wilson(0, 0)).all()


def test_probabilities_of_classes():
    random = np.random.default_rng(0)
    nats, answers = random.normal(size=(50, 3)), random.integers(3, size=50)
    found = scores.normalised(nats - 1000)
    np.testing.assert_allclose(found, np.exp(nats) / np.exp(nats).sum(1, keepdims=True), rtol=1e-12)
    assert scores.negative_log_likelihood(found, answers) == pytest.approx(log_loss(answers, found), rel=1e-12)
    prior = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(scores.calibrated(found, prior).sum(1), 1)
    # odds change by the odds of the prior
    after = scores.calibrated(found, prior)
    np.testing.assert_allclose(after[:, 0] / after[:, 1], found[:, 0] / found[:, 1] / (0.5 / 0.3), rtol=1e-12)
    assert np.isfinite(scores.calibrated(found, np.array([1.0, 0.0, 0.0]))).all()


def test_ties_are_shared():
    said = np.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0.4, 0.4 - 1e-15, 0.2]])
    assert scores.share_correct(said, np.array([1, 2, 1])).tolist() == [0.5, 1.0, 0.5]


def test_calibration_error_by_hand():
    said = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    # bin of 0.95: half right; bin of 0.65: all right
    wanted = (2 * abs(0.5 - 0.95) + 2 * abs(1 - 0.65)) / 4
    assert scores.calibration_error(said, np.array([0, 1, 0, 1])) == pytest.approx(wanted, abs=1e-12)


def test_intervals_know_of_both_sources_of_chance():
    random = np.random.default_rng(1)
    S, Q = 20, 300

    def width(values, **how):
        found = scores.mean_over(values, **how)
        assert found.value == pytest.approx(values.mean()) and found.low < found.value < found.high
        return (found.high - found.low) / (2 * 1.96)

    by_seed = np.repeat(random.normal(size=(S, 1)), Q, axis=1)
    assert width(by_seed) == pytest.approx(by_seed[:, 0].std() / np.sqrt(S), rel=0.15)
    by_query = np.repeat(random.normal(size=(1, Q)), S, axis=0)
    assert width(by_query) == pytest.approx(by_query[0].std() / np.sqrt(Q), rel=0.15)
    # where each episode has its own queries they are not drawn
    assert np.isclose(scores.mean_over(by_query, crossed=False).low, by_query.mean())
    both = by_seed + by_query
    wanted = np.sqrt(by_seed[:, 0].var() / S + by_query[0].var() / Q)
    assert width(both) == pytest.approx(wanted, rel=0.15)
    assert np.isnan(scores.mean_over(np.ones((1, 1))).low) and np.isnan(
        scores.mean_over(by_query[:1], crossed=False).low
    )


def test_rank_correlation():
    one = np.array([1.0, 2, 3, 4, 5])
    rho, p = scores.rank_correlation(one, -np.exp(one))
    assert rho == pytest.approx(-1) and p < 0.01
    assert np.isnan(scores.rank_correlation(one, np.ones(5))).all()


def test_shuffled_sequences_keep_their_pairs():
    random = np.random.default_rng(2)
    tokens = random.integers(7, 12, 400).astype(np.uint8)
    found = shuffled(tokens, random)
    assert found.dtype == np.uint8 and (found[0], found[-1]) == (tokens[0], tokens[-1])
    assert Counter(itertools.pairwise(found.tolist())) == Counter(itertools.pairwise(tokens.tolist()))
    assert (found != tokens).mean() > 0.5


def test_every_shuffle_is_as_likely():
    tokens, random = encode("AACACCAGA"), np.random.default_rng(3)
    pairs = Counter(itertools.pairwise(tokens.tolist()))
    inner = {
        (tokens[0], *middle, tokens[-1])
        for middle in itertools.permutations(tokens[1:-1].tolist())
        if Counter(itertools.pairwise((int(tokens[0]), *middle, int(tokens[-1])))) == pairs
    }
    drawn = Counter(tuple(shuffled(tokens, random).tolist()) for _ in range(1500))
    assert set(drawn) == inner and len(inner) > 10
    expected = 1500 / len(inner)
    # chi-squared of len(inner) - 1 degrees of freedom, far out
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 3 * len(inner)


@pytest.mark.parametrize("text", ["A", "AC", "ACG", "AAAA", "ACAC"])
def test_short_and_simple_sequences(text):
    assert shuffled(encode(text), np.random.default_rng(0)).tolist() == encode(text).tolist()
