"""Bits per base against the definition in design.md, computed base by base in float64."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hyenadna.cli.main import app
from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import packed
from hyenadna.data.splits import contig_split, splits_to_json
from hyenadna.errors import InputError, IntervalError, NotFiniteError, SequenceTooLong, UsageError
from hyenadna.inference import block_sums, markov
from hyenadna.inference.bootstrap import Bootstrap
from hyenadna.inference.evaluate import evaluate
from hyenadna.inference.evaluation import Evaluation
from hyenadna.inference.markov import MarkovModels, count_both_strands
from hyenadna.inference.windows import WindowPlan
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA

ORDER = 3
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


def random_dna(n: int, seed: int, alphabet: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), n))


@pytest.fixture(scope="module")
def genome() -> Genome:
    broken = random_dna(70, 1) + "N" * 9 + random_dna(50, 2) + "RN" + random_dna(33, 3).lower() + random_dna(41, 4)
    return Genome(one=broken, two=random_dna(150, 5, "ACGTacgtN"), gap="A" + "N" * 60)


INTERVALS = (Interval("one", 3, 199), Interval("two", 10, 47), Interval("two", 60, 75), Interval("two", 80, 150))


@pytest.fixture(scope="module")
def model() -> HyenaDNA:
    torch.manual_seed(0)
    model = HyenaDNA(HyenaConfig(d_model=8, d_inner=16, layers="HH", filter_length=66, filter_order=8))
    with torch.no_grad():
        model.embedding.weight.mul_(40)  # far from uniform
    return model.double()


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


@pytest.fixture
def workplace(model: HyenaDNA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A genome, a model that stores its split, and Markov models of low order."""
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(markov, "fit", functools.partial(markov.fit, order=ORDER))
    contigs = (random_dna(9000, 11), random_dna(3000, 12, "ACGTacgtN"), random_dna(1000, 13))
    (tmp_path / "genome.fa").write_text("".join(f">c{i}\n{contig}\n" for i, contig in enumerate(contigs)))
    pack = packed(tmp_path / "genome.fa")
    split = contig_split(kept_contigs(pack.lengths, None).intervals, ("c2",), ("c1",), pack)
    model.save_pretrained(tmp_path / "model", extra={"split.json": splits_to_json([split])})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hyena(*arguments: object) -> Any:
    given = ["evaluate", "-m", "model", *map(str, arguments), "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(app, given)


def test_command_uses_the_stored_split(workplace: Path) -> None:
    (workplace / "some.bed").write_text("c1\t100\t700\n")
    result = json.loads(hyena("--fasta", "genome.fa", "--regions", "some=some.bed", "-o", "report", "--json").stdout)
    pack = packed(workplace / "genome.fa")
    baselines, _ = markov.fit(pack, [Interval("c0", 0, 9000)], [Interval("c2", 0, 1000)])
    regions = {"some": [Interval("c1", 100, 700)]}
    network = HyenaDNA.from_pretrained(workplace / "model")
    expected = evaluate(network, pack, [Interval("c1", 0, 3000)], baselines, length=64, regions=regions)
    assert {name: result[name] for name in expected.to_json()} == expected.to_json()
    assert result["split_stored_with_model"]
    assert result["part"] == "test"
    assert result["markov_trained_on"] == "both strands of the train part of genome.fa: 9,000 bases in 1 intervals"

    report = workplace / "report"
    assert json.loads((report / "evaluation.json").read_text()) == result
    tables = ("models", "context", "annotations")
    names = {f"{name}.{kind}" for name in tables for kind in ("png", "tsv")}
    assert {path.name for path in report.iterdir()} == {"evaluation.json", *names}
    rows = (report / "models.tsv").read_text().splitlines()
    assert len(rows) == 1 + 2 + ORDER + 1
    assert float(rows[1].split("\t")[1]) == expected.model.value

    refused = hyena("--fasta", "genome.fa", "-o", "report")
    assert refused.exit_code == 2
    assert "report holds an evaluation already (evaluation.json); --overwrite replaces it" in refused.stderr
    shorter = hyena("--fasta", "genome.fa", "-o", "report", "--overwrite", "--max-bases", 100, "--length", 32)
    assert shorter.exit_code == 0
    assert json.loads((report / "evaluation.json").read_text())["length"] == 32


def test_command_prints_a_table(workplace: Path) -> None:
    printed = hyena("--fasta", "genome.fa", "--split", "valid", "--length", 16)
    lines = [line for line in printed.stdout.splitlines() if not line.startswith("#")]
    assert lines[2].startswith("language model ")
    assert lines[3].startswith("Markov interpolated ")
    assert sum(line.startswith("Markov order") and " * " in line for line in lines) == 1
    assert "1,984" in lines[2]  # 992 of 1,000 bases on each of two strands
    assert "one block only" in lines[3]


def test_command_splits_an_unknown_genome_anew(workplace: Path) -> None:
    (workplace / "other.fa").write_text(f">x\n{random_dna(20_000, 14)}\n")
    printed = hyena("--fasta", "other.fa", "--json", "-o", "report")
    assert not json.loads(printed.stdout)["split_stored_with_model"]
    assert "model stores no split of this genome, and may have been trained on any of it" in printed.stderr
    assert (workplace / "report" / "models.png").exists()


def test_command_says_when_the_sequence_differs(workplace: Path) -> None:
    text = (workplace / "genome.fa").read_text()
    (workplace / "changed.fa").write_text(text[:50] + ("A" if text[50] != "A" else "C") + text[51:])
    printed = hyena("--fasta", "changed.fa", "--max-bases", 100)
    assert printed.exit_code == 0
    assert "changed.fa has the contigs of genome.fa, which the model was trained on" in printed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--length", 67), 3, "--length 67 is more than the 66 bases that model takes"),
        (("--regions", "some.bed"), 2, "--regions 'some.bed': it takes NAME=BED, such as exons=exons.bed"),
        (("--regions", "soft-masked=x"), 2, "the name 'soft-masked' is taken already"),
        (("--contigs", "c0"), 2, "--contigs 'c0': the test part of the model's split has nothing there"),
        (("-o", "genome.fa"), 2, "-o genome.fa is a file; give a folder"),
    ],
)
def test_command_refuses(workplace: Path, arguments: tuple[object, ...], code: int, message: str) -> None:
    refused = hyena("--fasta", "genome.fa", *arguments)
    assert refused.exit_code == code
    assert message in refused.stderr


def test_command_does_not_take_the_bundled_genome_for_another(workplace: Path) -> None:
    result = hyena()
    assert result.exit_code == 2
    assert "model was trained on genome.fa; say by --fasta where that, or another genome, is" in result.stderr
