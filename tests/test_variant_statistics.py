"""What the variant benchmark measures with, against scikit-learn, scipy and counting by hand."""

import importlib

import numpy as np
import pytest
from oracles import BENCHMARKS
from scipy import stats
from sklearn.metrics import roc_auc_score

ROWS = 60


@pytest.fixture
def statistics(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("variant_statistics")


@pytest.fixture
def random():
    return np.random.default_rng(5)


def once(statistic, n=ROWS):
    return float(statistic(np.ones((1, n)))[0])


def test_auroc_and_spearman_are_those_of_other_libraries(statistics, random) -> None:
    positive, score = random.random(ROWS) < 0.3, random.integers(0, 12, ROWS).astype(float)  # with ties
    values, times = random.normal(size=ROWS), random.integers(0, 4, ROWS)
    assert once(statistics.auroc(positive, score)) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert once(statistics.spearman(values, score)) == pytest.approx(stats.spearmanr(values, score)[0], abs=1e-12)
    # a row of weight 3 is three rows
    drawn = np.repeat(np.arange(ROWS), times)
    weighted = float(statistics.auroc(positive, score)(times[None].astype(float))[0])
    assert weighted == pytest.approx(roc_auc_score(positive[drawn], score[drawn]), abs=1e-12)


def test_planted_scores(statistics, random) -> None:
    positive = random.random(ROWS) < 0.4
    perfect = positive + 0.01 * random.random(ROWS)
    areas = {"perfect": statistics.auroc(positive, perfect), "turned": statistics.auroc(positive, -perfect)}
    areas["again"] = areas["perfect"]
    found = statistics.estimates(areas, np.arange(ROWS), [("perfect", "turned"), ("perfect", "again")])
    assert (found["perfect"].value, found["perfect"].low, found["perfect"].high) == (1, 1, 1)
    assert (found["turned"].value, found["turned"].low, found["turned"].high) == (0, 0, 0)
    assert found["perfect - turned"].low == 1
    assert (found["perfect - again"].low, found["perfect - again"].high) == (0, 0)
    # a constant tells nothing apart
    assert once(statistics.auroc(positive, np.zeros(ROWS))) == 0.5


def test_within_strata_only_pairs_of_a_stratum_count(statistics, random) -> None:
    positive, strata = random.random(ROWS) < 0.4, random.integers(0, 4, ROWS)
    score = random.integers(0, 6, ROWS) + 10.0 * strata
    wins = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
        if strata[i] == strata[j]
    ]
    assert once(statistics.auroc_within(positive, score, strata)) == pytest.approx(np.mean(wins), abs=1e-12)
    # the means of the strata do not matter, though they do for the pooled one
    level = statistics.auroc_within(positive, score - 10.0 * strata, strata)
    assert once(level) == pytest.approx(np.mean(wins), abs=1e-12)
    # weights of rows weigh their pairs
    times = random.integers(0, 3, ROWS)
    drawn = np.repeat(np.arange(ROWS), times)
    weighted = statistics.auroc_within(positive, score, strata)(times[None].astype(float))[0]
    repeated = statistics.auroc_within(positive[drawn], score[drawn], strata[drawn])
    assert weighted == pytest.approx(once(repeated, len(drawn)), abs=1e-12)
    alone = statistics.auroc_within(positive, score, np.arange(ROWS))
    assert np.isnan(once(alone))


def test_rows_of_a_position_are_drawn_together(statistics, random) -> None:
    positive, score = random.random(ROWS) < 0.4, random.normal(size=ROWS)
    thrice = np.repeat(np.arange(ROWS), 3)
    single = statistics.estimates({"a": statistics.auroc(positive, score)}, np.arange(ROWS))["a"]
    # three rows a position that say the same are no more than one
    grouped = statistics.estimates({"a": statistics.auroc(positive[thrice], score[thrice])}, thrice)["a"]
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((single.value, single.low, single.high))
    apart = statistics.estimates({"a": statistics.auroc(positive[thrice], score[thrice])}, np.arange(3 * ROWS))["a"]
    assert apart.high - apart.low < 0.75 * (single.high - single.low)
    lone = statistics.estimates({"a": statistics.auroc(positive, score)}, np.zeros(ROWS))["a"]
    assert lone.value == single.value and np.isnan(lone.low)


def test_intervals_are_of_the_resampled_rows(statistics, random) -> None:
    values = random.normal(size=400)
    found = statistics.estimates({"mean": statistics.mean(values)}, np.arange(400))["mean"]
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    two = statistics.mean_of([statistics.mean(values), statistics.mean(values + 2)])
    assert once(two, 400) == pytest.approx(values.mean() + 1)


def test_rhythm_of_three(statistics, random) -> None:
    places = np.arange(300)
    noise = random.normal(size=(40, 300))
    exact = np.abs(np.exp(-2j * np.pi * 100 / 300 * places) @ (noise[0] - noise[0].mean())) ** 2 / 300
    assert statistics.rhythm(noise)[0][0] == pytest.approx(exact, rel=1e-10)
    beat = noise + 2.0 * (places % 3 == 0)
    drift = noise + np.sin(places / 20)
    series = {"beat": beat, "noise": noise, "drift": drift, "again": beat}
    found = statistics.rhythms(series, [("beat", "noise"), ("beat", "again")])
    assert found["noise"].low < 1 < found["noise"].high and found["drift"].low < 1 < found["drift"].high
    assert found["beat"].low > 50 and found["beat - noise"].low > np.log(30)
    assert found["beat - again"].low == found["beat - again"].high == 0
    shuffled = statistics.rhythms({"beat": random.permuted(beat, axis=1)})["beat"]
    assert shuffled.low < 1 < shuffled.high


def test_means_over_blocks(statistics, random) -> None:
    long = random.normal(size=2_050)
    found = statistics.block_means({"a": long + 3, "b": long}, 100, [("a", "b")])
    assert found["a"].value == pytest.approx(long.mean() + 3, abs=1e-12)
    assert (found["a - b"].low, found["a - b"].high) == pytest.approx((3, 3), abs=1e-9)
    # neighbours that are alike make a wider interval than single places would
    alike = statistics.block_means({"a": np.repeat(random.normal(size=20), 100)}, 100)["a"]
    assert (alike.high - alike.low) / 2 == pytest.approx(1.96 / 20**0.5, rel=0.4)
