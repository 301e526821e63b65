"""Bits per base against the definition in design.md, computed base by base in float64."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluating import ORDER, random_dna, sharp_model
from torch import nn

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.errors import InputError, IntervalError, NotFiniteError, SequenceTooLong, UsageError
from hyenadna.inference import block_sums
from hyenadna.inference.bootstrap import Bootstrap
from hyenadna.inference.evaluate import evaluate
from hyenadna.inference.evaluation import Evaluation
from hyenadna.inference.markov import MarkovModels, count_both_strands
from hyenadna.inference.windows import WindowPlan
from hyenadna.model.language_model import HyenaDNA

TOKENS = dict(zip("ACGTN", range(7, 12), strict=True))


class Genome:
    """What evaluation needs of a pack."""

    def __init__(self, **contigs: str) -> None:
        self.contigs = {name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in contigs.items()}
        self.lengths = {name: len(text) for name, text in contigs.items()}

    def contig(self, name: str) -> np.ndarray:
        return self.contigs[name]

    def fetch(self, interval: Interval) -> np.ndarray:
        return self.contigs[interval.contig][interval.start : interval.end]

    def text(self, interval: Interval) -> str:
        return self.fetch(interval).tobytes().decode()


class Constant(nn.Module):
    """The same distribution at every position, whatever the input."""

    def __init__(self, bases: tuple[float, ...], elsewhere: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(filter_length=1 << 20, n_token="n")
        p = torch.full((16,), elsewhere / 12)
        p[7:11] = torch.tensor(bases) * (1 - elsewhere)
        self.logits = nn.Parameter(p.log() + 3.0)

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*tokens.shape, 16))


@pytest.fixture(scope="module")
def genome() -> Genome:
    broken = random_dna(70, 1) + "N" * 9 + random_dna(50, 2) + "RN" + random_dna(33, 3).lower() + random_dna(41, 4)
    return Genome(one=broken, two=random_dna(150, 5, "ACGTacgtN"), gap="A" + "N" * 60)


INTERVALS = (Interval("one", 3, 199), Interval("two", 10, 47), Interval("two", 60, 75), Interval("two", 80, 150))


@pytest.fixture(scope="module")
def model() -> HyenaDNA:
    return sharp_model()


@pytest.fixture(scope="module")
def baselines() -> MarkovModels:
    letters = np.frombuffer(random_dna(4000, 6, "AACGTTT").encode(), dtype=np.uint8)
    return MarkovModels(count_both_strands([letters], ORDER), prior_weight=30.0)


@dataclasses.dataclass
class Base:
    """A base that a window shows."""

    place: tuple[str, int]
    letter: str
    before: int
    scored: bool
    bits: float
    elsewhere: float
    baseline_bits: np.ndarray


def bases_of(
    model: HyenaDNA, genome: Genome, intervals: tuple[Interval, ...], baselines: MarkovModels, L: int
) -> list[Base]:
    """Every base of every window that has a base to score, by the words of design.md."""
    model.eval()
    bases = []
    for interval in intervals:
        for strand in "+-":
            text = genome.text(interval)
            text = text if strand == "+" else reverse_complement(text)
            by_markov = baselines.bits(np.frombuffer(text.encode(), dtype=np.uint8))
            starts = [start for start in range(0, len(text), L // 2) if len(text) - start > L - L // 2]
            padded = text + "A" * L  # what follows a base does not change what the model says of it
            tokens = [[TOKENS.get(letter.upper(), TOKENS["N"]) for letter in padded[i : i + L]] for i in starts]
            with torch.no_grad():
                probabilities = model(torch.tensor(tokens)).logits.double().softmax(-1).numpy() if tokens else []
            for start, p in zip(starts, probabilities, strict=True):
                window = text[start : start + L]
                if not set(window[L - L // 2 :].upper()) & set("ACGT"):
                    continue
                for t in range(1, len(window)):
                    if window[t].upper() in "ACGT":
                        place = interval.start + start + t if strand == "+" else interval.end - 1 - start - t
                        among = p[t - 1, 7:11]
                        bits = -math.log2(among["ACGT".index(window[t].upper())] / among.sum())
                        where, scored = (interval.contig, place), t >= L - L // 2
                        bases.append(Base(where, window[t], t, scored, bits, 1 - among.sum(), by_markov[:, start + t]))
    return bases


def run(model: HyenaDNA, genome: Genome, baselines: MarkovModels, length: int, **options: object) -> Evaluation:
    return evaluate(model, genome, INTERVALS, baselines, length=length, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [2, 3, 7, 16, 31, 64])
def test_equals_the_definition(model: HyenaDNA, genome: Genome, baselines: MarkovModels, length: int) -> None:
    regions = {"some": [Interval("one", 50, 120), Interval("one", 100, 130), Interval("two", 0, 30)]}
    result = run(model, genome, baselines, length, regions=regions)
    shown = bases_of(model, genome, INTERVALS, baselines, length)
    scored = [base for base in shown if base.scored]
    assert result.bases == len(scored)
    assert result.model.value == pytest.approx(np.mean([base.bits for base in scored]), rel=1e-6)
    assert result.mass_elsewhere == pytest.approx(np.mean([base.elsewhere for base in scored]), rel=1e-5)
    expected = np.mean([base.baseline_bits for base in scored], axis=0)
    got = [baseline.bits_per_base.value for baseline in (*result.baselines[1:], result.baselines[0])]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert result.interpolated.difference.value == pytest.approx(result.model.value - expected[-1], abs=1e-9)
    assert result.best_plain.bits_per_base.value == pytest.approx(expected[:-1].min())

    assert [bin.start for bin in result.contexts] == [2**i for i in range(math.ceil(math.log2(length)))]
    assert result.contexts[-1].end == length
    for bin in result.contexts:
        there = [base for base in shown if bin.start <= base.before < bin.end]
        assert bin.comparison.bases == len(there)
        assert bin.comparison.model.value == pytest.approx(np.mean([base.bits for base in there]), rel=1e-6)
        interpolated = np.mean([base.baseline_bits[-1] for base in there])
        assert bin.comparison.interpolated.value == pytest.approx(interpolated, rel=1e-9)

    in_some = {("one", i) for i in range(50, 130)} | {("two", i) for i in range(30)}
    assert [annotation.name for annotation in result.annotations] == ["some", "soft-masked"]
    some, soft = result.annotations
    parts = [
        (some.inside, [base for base in scored if base.place in in_some]),
        (some.outside, [base for base in scored if base.place not in in_some]),
        (soft.inside, [base for base in scored if base.letter.islower()]),
        (soft.outside, [base for base in scored if base.letter.isupper()]),
    ]
    for part, there in parts:
        assert part.bases == len(there)
        assert part.model.value == pytest.approx(np.mean([base.bits for base in there]), rel=1e-6)


def test_both_strands_score_all_but_the_first_context_of_each_interval() -> None:
    """On both strands each base is scored once, and has half a window of context at least."""
    intervals = (Interval("a", 5, 105), Interval("a", 200, 209), Interval("b", 0, 33))
    for length in (2, 5, 8, 13, 32):
        plan = WindowPlan(intervals, length)
        places: dict[tuple[str, str], list[int]] = {}
        for window in plan:
            assert plan.context < window.length <= length
            places.setdefault((window.interval.contig, window.strand), []).extend(window.places()[plan.context :])
        for strand in "+-":
            for contig in "ab":
                expected = [
                    place
                    for interval in intervals
                    if interval.contig == contig
                    for place in range(interval.start, interval.end)[
                        slice(plan.context, None) if strand == "+" else slice(0, max(0, len(interval) - plan.context))
                    ]
                ]
                assert sorted(places[contig, strand]) == expected


def test_a_known_distribution_costs_what_it_must(genome: Genome, baselines: MarkovModels) -> None:
    constant = Constant((0.5, 0.25, 0.125, 0.125), elsewhere=0.2)
    text = "".join(genome.text(interval)[4:] + reverse_complement(genome.text(interval))[4:] for interval in INTERVALS)
    cost = {"A": 1, "C": 2, "G": 3, "T": 3}
    costs = [cost[letter] for letter in text.upper() if letter in cost]
    result = run(constant, genome, baselines, 8)  # type: ignore[arg-type]
    assert result.bases == len(costs)
    assert result.model.value == pytest.approx(np.mean(costs), rel=1e-6)
    assert result.mass_elsewhere == pytest.approx(0.2, rel=1e-5)
    assert result.to_json()["perplexity"] == pytest.approx(2 ** np.mean(costs), rel=1e-5)


def test_batch_size_does_not_change_the_result(model: HyenaDNA, genome: Genome, baselines: MarkovModels) -> None:
    one, several, all_ = (run(model, genome, baselines, 32, batch_tokens=tokens) for tokens in (1, 96, 1 << 20))
    assert one.bases == several.bases == all_.bases
    assert several.model.value == pytest.approx(one.model.value, rel=1e-7)
    assert all_.model.value == pytest.approx(one.model.value, rel=1e-7)
    assert all_.interpolated.bits_per_base.value == pytest.approx(one.interpolated.bits_per_base.value, rel=1e-12)


def test_n_is_what_the_model_was_trained_with(genome: Genome, baselines: MarkovModels) -> None:
    seen = set()

    class Recorder(Constant):
        def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
            seen.update(tokens.unique().tolist())
            return super().forward(tokens)

    recorder = Recorder((0.25,) * 4, 0.01)
    recorder.config.n_token = "pad"
    run(recorder, genome, baselines, 16, batch_tokens=1)  # type: ignore[arg-type]
    assert seen == {4, 7, 8, 9, 10}


def test_a_sample_of_windows_is_spread_evenly() -> None:
    intervals = (Interval("a", 0, 4000), Interval("b", 0, 10), Interval("c", 0, 6000))
    every = list(WindowPlan(intervals, 100))
    plan = WindowPlan(intervals, 100, max_bases=1000)
    sample = list(plan)
    assert len(plan) == len(sample) == 40
    assert len(WindowPlan(intervals, 100)) == len(every)
    assert set(sample) <= set(every)
    forward = [window for window in sample if window.strand == "+"]
    assert sum(window.interval.contig == "a" for window in forward) == 8
    gaps = np.diff([window.start for window in forward if window.interval.contig == "c"])
    assert gaps.min() >= 450 and gaps.max() <= 500
    assert list(WindowPlan(intervals, 100, max_bases=10**9)) == every


def test_bootstrap_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(7)
    bases = rng.integers(1, 100, 12).astype(float)
    blocks = np.stack((bases, bases * rng.normal(1.9, 0.1, 12), bases * rng.normal(2.0, 0.1, 12)), axis=1)
    estimate = Bootstrap.of(blocks, resamples=200, seed=3).estimate(lambda sums: (sums[:, 1] - sums[:, 2]) / sums[:, 0])
    draws, values = np.random.default_rng(3), []
    for _ in range(200):
        drawn = blocks[draws.integers(12, size=12)]
        values.append((drawn[:, 1].sum() - drawn[:, 2].sum()) / drawn[:, 0].sum())
    assert estimate.low == pytest.approx(np.quantile(values, 0.025))
    assert estimate.high == pytest.approx(np.quantile(values, 0.975))
    assert estimate.value == pytest.approx((blocks[:, 1] - blocks[:, 2]).sum() / bases.sum())
    assert math.isnan(Bootstrap.of(blocks[:1]).estimate(lambda sums: sums[:, 1] / sums[:, 0]).low)


def test_differences_are_paired_in_blocks(
    model: HyenaDNA, genome: Genome, baselines: MarkovModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_sums, "BLOCK", 25)
    result = run(model, genome, baselines, 16)
    blocks: dict[tuple[str, int], list[float]] = {}
    for base in bases_of(model, genome, INTERVALS, baselines, 16):
        row = blocks.setdefault((base.place[0], base.place[1] // 25), [0.0, 0.0])
        if base.scored:
            row[0] += 1
            row[1] += base.bits - base.baseline_bits[-1]
    rows = np.array([blocks[key] for key in sorted(blocks)])
    expected = Bootstrap.of(rows).estimate(lambda sums: sums[:, 1] / sums[:, 0])
    assert result.blocks == (rows[:, 0] > 0).sum()
    assert result.interpolated.difference.low == pytest.approx(expected.low, abs=1e-6)
    assert result.interpolated.difference.high == pytest.approx(expected.high, abs=1e-6)


def test_upper_case_only_has_no_soft_masked_class(baselines: MarkovModels) -> None:
    upper = Genome(one=random_dna(100, 8))
    result = evaluate(Constant((0.25,) * 4, 0.1), upper, [Interval("one", 0, 100)], baselines, length=16)  # type: ignore[arg-type]
    assert result.annotations == ()


def test_mode_is_restored(model: HyenaDNA, genome: Genome, baselines: MarkovModels) -> None:
    model.train()
    run(model, genome, baselines, 16)
    assert model.training


def test_what_cannot_be_evaluated(model: HyenaDNA, genome: Genome, baselines: MarkovModels) -> None:
    with pytest.raises(UsageError, match="window length is 1; it must be at least 2"):
        run(model, genome, baselines, 1)
    with pytest.raises(SequenceTooLong, match="windows of 67 bases were asked for; this model takes up to 66"):
        run(model, genome, baselines, 67)
    with pytest.raises(IntervalError, match=r"none of 1 intervals holds a window: .* 15 bp .* at most 15 bp"):
        evaluate(model, genome, [Interval("two", 60, 75)], baselines, length=32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to score"):
        evaluate(model, genome, [Interval("gap", 10, 61)], baselines, length=8)  # type: ignore[arg-type]
    with pytest.raises(NotFiniteError, match=r"not numbers in one:4-199, strand \+, base 1 on"):
        run(Constant((math.nan,) * 4, 0.1), genome, baselines, 16)  # type: ignore[arg-type]
