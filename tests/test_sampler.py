"""Training windows, against a loop over the loci that `describe` names."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import packed
from hyenadna.data.sampler import Source, WindowSampler, validation_windows
from hyenadna.data.tokenizer import IGNORE, SEP
from hyenadna.errors import InputError, UsageError

IDS = {"A": 7, "C": 8, "G": 9, "T": 10}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Two contigs, a tenth lower case, a few N."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("genome") / "a.fa"
    letters = [
        "".join(random.choice(list("ACGTacgtN"), n, p=[0.22] * 4 + [0.025] * 4 + [0.02])) for n in (5_000, 3_000)
    ]
    path.write_text(f">one\n{letters[0]}\n>two\n{letters[1]}\n")
    return packed(path)


INTERVALS = (Interval("one", 100, 1_100), Interval("one", 2_000, 2_040), Interval("two", 0, 3_000))


def sampler(pack, intervals=INTERVALS, seed=7, **options):
    settings = {"n_token": "n", "soft_mask": "upper", "reverse_complement": True, "max_n_share": 0.5}
    return WindowSampler([Source(pack, intervals, 1.0)], seed, **(settings | options))


def sequence_at(pack, locus):
    contig, start, end, strand = re.fullmatch(r"(?:\S+ )?(.+):([\d,]+)-([\d,]+)\(([+-])\)", locus).groups()
    start, end = int(start.replace(",", "")) - 1, int(end.replace(",", ""))
    text = pack.contig(contig)[start:end].tobytes().decode()
    return Interval(contig, start, end), reverse_complement(text) if strand == "-" else text


@pytest.mark.parametrize("n_token", ["n", "pad"])
@pytest.mark.parametrize("soft_mask", ["upper", "ignore"])
@pytest.mark.parametrize("length", [1, 2, 31, 900])
def test_windows_are_what_describe_names(pack, n_token, soft_mask, length):
    drawn = sampler(pack, n_token=n_token, soft_mask=soft_mask)
    inputs, targets = drawn.windows(3, 10, 40, length)
    loci = drawn.describe(3, 10, 40, length)
    assert inputs.shape == targets.shape == (40, length) and (inputs.dtype, targets.dtype) == (np.uint8, np.int64)
    assert {locus[-2] for locus in loci} == {"+", "-"}
    for tokens, following, locus in zip(inputs.tolist(), targets.tolist(), loci, strict=True):
        interval, text = sequence_at(pack, locus)
        assert len(text) == length
        assert any(
            i.contig == interval.contig and i.start <= interval.start <= interval.end <= i.end for i in INTERVALS
        )
        assert tokens == [IDS.get(base.upper(), 4 if n_token == "pad" else 11) for base in text]
        scored = "ACGT" if soft_mask == "ignore" else "ACGTacgt"
        assert following == [IDS[base.upper()] if base in scored else IGNORE for base in text[1:]] + [SEP]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 2**40), st.integers(0, 10**9))
def test_any_cut_of_a_step_gives_the_same_windows(pack, counts, step, first):
    drawn = sampler(pack, max_n_share=0.02)
    whole = drawn.windows(step, first, sum(counts), 50)
    begins = np.cumsum([0, *counts])
    parts = [drawn.windows(step, first + int(begin), n, 50) for begin, n in zip(begins[:-1], counts, strict=True)]
    assert np.array_equal(whole.inputs, np.concatenate([part.inputs for part in parts]))
    assert np.array_equal(whole.targets, np.concatenate([part.targets for part in parts]))
    again = sampler(pack, max_n_share=0.02)  # nothing is remembered from call to call
    assert np.array_equal(again.windows(step, first, sum(counts), 50).inputs, whole.inputs)


def test_seed_step_and_index_all_matter(pack):
    base = sampler(pack).describe(5, 0, 200, 40)
    assert base != sampler(pack, seed=8).describe(5, 0, 200, 40)
    assert base != sampler(pack).describe(6, 0, 200, 40)
    assert base[1:] == sampler(pack).describe(5, 1, 199, 40)
    assert len(set(base)) > 180
    assert sampler(pack, seed=-1).describe(0, 0, 3, 40)  # any integer is a seed


def test_frozen_windows(pack):
    # of our own first version: a change would make resumed runs differ from uninterrupted ones
    assert sampler(pack).describe(0, 0, 3, 16) == ["two:1,153-1,168(-)", "two:1,699-1,714(-)", "two:710-725(-)"]


def test_starts_are_uniform(pack):
    intervals = (Interval("one", 100, 160), Interval("two", 0, 25), Interval("two", 50, 59))
    drawn = sampler(pack, intervals, max_n_share=1.0)
    places = [(i.contig, start) for i in intervals for start in range(i.start, i.end - 10 + 1)]
    found = dict.fromkeys(places, 0)
    strands = {"+": 0, "-": 0}
    for step in range(4):
        for locus in drawn.describe(step, 0, 5_000, 10):
            interval, _ = sequence_at(pack, locus)
            found[interval.contig, interval.start] += 1
            strands[locus[-2]] += 1
    assert len(found) == len(places) == 51 + 16  # the interval of 9 bases gives none
    assert chisquare(list(found.values())).pvalue > 1e-3
    assert chisquare(list(strands.values())).pvalue > 1e-3


def test_strand_and_place_are_independent(pack):
    loci = sampler(pack, (Interval("two", 0, 11),), max_n_share=1.0).describe(0, 0, 4_000, 10)
    table = np.array(
        [sum(f"two:{start}-" in x and x[-2] == strand for x in loci) for start in (1, 2) for strand in "+-"]
    )
    assert chisquare(table).pvalue > 1e-3


def test_one_strand_only(pack):
    assert {locus[-2] for locus in sampler(pack, reverse_complement=False).describe(0, 0, 100, 20)} == {"+"}


def test_weights_are_shares_of_the_windows(pack, tmp_path):
    (tmp_path / "b.fa").write_text(">three\n" + "ACGT" * 50 + "N" * 2_000 + "\n")
    other = packed(tmp_path / "b.fa")
    sources = [Source(pack, INTERVALS, 3.0), Source(other, (Interval("three", 0, 2_200),), 1.0)]
    drawn = WindowSampler(sources, 1, n_token="n", soft_mask="upper", reverse_complement=True)
    loci = drawn.describe(0, 0, 4_000, 20)
    from_b = sum(locus.startswith("b.fa three:") for locus in loci)
    assert all(locus.startswith(("a.fa ", "b.fa ")) for locus in loci)
    assert chisquare([from_b, 4_000 - from_b], [1_000, 3_000]).pvalue > 1e-3  # though nearly all of b is N


def test_windows_with_n_are_redrawn(pack, tmp_path):
    (tmp_path / "b.fa").write_text(">a\n" + "N" * 400 + "ACGT" * 100 + "R" * 400 + "\n")
    genome = packed(tmp_path / "b.fa")
    drawn = sampler(genome, (Interval("a", 0, 1_200),), max_n_share=0.05)
    inputs, targets = drawn.windows(0, 0, 300, 40)
    assert ((inputs == 11).mean(axis=1) <= 0.05).all() and (inputs == 11).any()
    assert (targets[:, :-1][inputs[:, 1:] == 11] == IGNORE).all()


def test_best_of_64_when_no_window_is_good(tmp_path):
    (tmp_path / "b.fa").write_text(">a\n" + ("N" * 30 + "ACGT") * 40 + "\n")
    genome = packed(tmp_path / "b.fa")
    inputs, _ = sampler(genome, (Interval("a", 0, 1_360),), max_n_share=0.05).windows(0, 0, 50, 34)
    assert ((inputs == 11).sum(axis=1) == 30).all()
    short = sampler(genome, (Interval("a", 0, 1_360),), max_n_share=0.0).windows(0, 0, 4_000, 4).inputs
    # 40 of 1,357 places are good, and there are 64 tries
    assert ((short == 11).sum(axis=1) == 0).mean() == pytest.approx(1 - (1 - 40 / 1_357) ** 64, abs=0.025)


def test_refused_at_construction(pack, tmp_path):
    (tmp_path / "n.fa").write_text(">a\n" + "Nn" * 500 + "\n")
    masked = packed(tmp_path / "n.fa")
    with pytest.raises(InputError, match=r"n\.fa has no A, C, G or T in the 1 intervals"):
        sampler(masked, (Interval("a", 0, 1_000),))
    with pytest.raises(InputError, match=r"a\.fa has no A, C, G or T in the 0 intervals"):
        sampler(pack, ())
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="each must be a positive number"):
            WindowSampler([Source(pack, INTERVALS, weight)], 0, n_token="n", soft_mask="upper", reverse_complement=True)
    with pytest.raises(UsageError, match="each must be a positive number"):
        WindowSampler([], 0, n_token="n", soft_mask="upper", reverse_complement=True)


def test_a_window_longer_than_every_interval(pack):
    drawn = sampler(pack)
    assert drawn.windows(0, 0, 2, 3_000).inputs.shape == (2, 3_000)
    message = r"a window of 3,001 bases is longer than every interval of a\.fa .* up to 3,000 would do"
    with pytest.raises(InputError, match=message):
        drawn.windows(0, 0, 2, 3_001)
    with pytest.raises(InputError, match=message):
        validation_windows([Source(pack, INTERVALS, 1.0)], 3_001, 5, n_token="n", soft_mask="upper")


def test_validation_windows_are_evenly_spread_over_both_intervals(pack):
    text = {name: pack.contig(name).tobytes().decode().upper() for name in pack.names}
    source = Source(pack, (Interval("one", 0, 1_000), Interval("two", 500, 1_500)), 2.0)
    windows = validation_windows([source], 100, 18, n_token="n", soft_mask="upper", max_n_share=1.0)
    # 901 + 901 places in 18 equal stretches, the middle of each
    starts = [("one", 50 + 100 * k + (k > 4)) for k in range(9)] + [
        ("two", 500 + 50 + 100 * k + (k > 4)) for k in range(9)
    ]
    for tokens, (contig, start) in zip(windows.inputs.tolist(), starts, strict=True):
        near = [text[contig][start + shift : start + shift + 100] for shift in (-1, 0, 1)]
        assert tokens in [[IDS.get(base, 11) for base in bases] for bases in near]
    again = validation_windows([source], 100, 18, n_token="n", soft_mask="upper", max_n_share=1.0)
    assert np.array_equal(again.inputs, windows.inputs) and np.array_equal(again.targets, windows.targets)
    assert (windows.targets[:, -1] == SEP).all()


def test_validation_windows_leave_out_n_and_share_by_weight(pack, tmp_path):
    (tmp_path / "b.fa").write_text(">a\n" + "ACGT" * 100 + "N" * 600 + "\n")
    other = packed(tmp_path / "b.fa")
    sources = [Source(other, (Interval("a", 0, 1_000),), 1.0), Source(pack, (Interval("two", 0, 3_000),), 3.0)]
    windows = validation_windows(sources, 20, 40, n_token="pad", soft_mask="upper", max_n_share=0.2)
    assert 30 <= len(windows.inputs) <= 35 and ((windows.inputs == 4).mean(axis=1) <= 0.2).all()
    only_n = [Source(other, (Interval("a", 500, 1_000),), 1.0)]
    assert (validation_windows(only_n, 20, 5, n_token="n", soft_mask="upper").targets[:, :-1] == IGNORE).all()
    few = validation_windows([Source(pack, (Interval("two", 0, 22),), 1.0)], 20, 9, n_token="n", soft_mask="upper")
    assert len(few.inputs) == 3  # there are no more places


def test_sampler_works_in_a_forked_worker_and_pickled(pack):
    import multiprocessing
    import pickle

    drawn = sampler(pack)
    expected = drawn.windows(1, 0, 10, 30).inputs
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap(drawn.windows, [(1, 0, 10, 30)] * 4)
    assert all(np.array_equal(result.inputs, expected) for result in results)
    assert np.array_equal(pickle.loads(pickle.dumps(drawn)).windows(1, 0, 10, 30).inputs, expected)
