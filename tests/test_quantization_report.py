"""What quantisation costs, against evaluate and against sums by hand; the search; and how it is told."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from evaluating import ORDER
from quantizing import TEST, dense_model, genome, held_out

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, IntervalError, NotFiniteError, UsageError
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.evaluate import evaluate
from hyenadna.inference.markov import MarkovModels, count_both_strands
from hyenadna.inference.quantization_cost import Cost, Costs, HeldOut, measure
from hyenadna.inference.quantization_report import Report, card_section, picture, text
from hyenadna.inference.quantization_search import nominal_bits, smallest_within
from hyenadna.inference.quantize import quantize
from hyenadna.inference.random_changes import CHANGES, random_substitutions
from hyenadna.model.config import Quantization


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return genome(tmp_path_factory.mktemp("genome"))


@pytest.fixture(scope="module")
def models():
    dense = dense_model()
    return dense, [quantize(dense, bits=bits, group=16) for bits in (8, 4, 2)]


@pytest.fixture(scope="module")
def costs(models, pack):
    return measure(models[0], models[1], held_out(pack))


def test_bits_per_base_are_those_of_evaluate(models, pack, costs):
    dense, quantised = models
    baselines = MarkovModels(count_both_strands([pack.contig("c0")], ORDER))
    wanted = [
        evaluate(model, pack, TEST, baselines, length=64, max_bases=1024).model.value for model in (dense, *quantised)
    ]
    assert costs.bits_per_base.value == pytest.approx(wanted[0], abs=1e-6)
    for cost, bits in zip(costs.of, wanted[1:], strict=True):
        assert cost.bits_per_base.value == pytest.approx(bits, abs=1e-6)
        assert cost.loss.value == pytest.approx(bits - wanted[0], abs=2e-6)
        assert cost.loss.low < cost.loss.value < cost.loss.high
    # paired: the loss is far better known than the bits themselves
    width = costs.of[1].loss.high - costs.of[1].loss.low
    assert width < 0.3 * (costs.bits_per_base.high - costs.bits_per_base.low)


def test_embeddings_and_blocks_by_hand(models, pack):
    dense, quantised = models
    # of 64, 54 and 45 bases, so that batches are padded
    small = HeldOut(pack, (Interval("c1", 0, 150), Interval("c1", 200, 245)), 64, 4096)
    assert {window.length for window in small.windows()} == {64, 54, 45}
    costs = measure(dense, quantised[2:], small)
    squares, cosines = np.zeros((2, 2)), []
    for window in small.windows():
        tokens = torch.from_numpy(encode(window.letters(pack)))[None].long()
        with torch.no_grad():
            first = [model.hidden_states(tokens, 1).double() for model in (dense, quantised[2])]
            last = [model.backbone.layers[1](hidden.float()).double() for model, hidden in zip(
                (dense, quantised[2]), first, strict=True)]  # fmt: skip
            means = [model(tokens).hidden[0].double().mean(dim=0) for model in (dense, quantised[2])]
        cosines.append(float(means[0] @ means[1] / means[0].norm() / means[1].norm()))
        for block, (one, other) in enumerate((first, last)):
            squares[block] += float((other - one).square().sum()), float(one.square().sum())
    cost = costs.of[0]
    assert (cost.cosine, cost.worst_cosine) == pytest.approx((np.mean(cosines), min(cosines)), abs=1e-5)
    assert cost.blocks == pytest.approx(np.sqrt(squares[:, 0] / squares[:, 1]), rel=1e-3)
    assert len(cosines) == costs.windows and costs.bases <= 32 * costs.windows


def test_matrices_and_sizes(models, costs):
    dense, quantised = models
    for cost, model in zip(costs.of, quantised, strict=True):
        assert cost.setting == model.quantization
        assert [matrix.name for matrix in cost.matrices] == list(dense.projections)
        for matrix in cost.matrices:
            weight, layer = dense.projections[matrix.name].weight.detach().double(), model.projections[matrix.name]
            assert matrix.shape == weight.shape and matrix.bytes_dense == 4 * weight.numel()
            assert matrix.bytes_packed == pytest.approx(layer.stored_bits * weight.numel() / 8)
            error = float((layer.dequantized() - weight).norm() / weight.norm())
            assert matrix.relative_error == pytest.approx(error, rel=1e-6)
    assert costs.bytes == 4 * sum(parameter.numel() for parameter in dense.parameters())
    saved = sum(matrix.bytes_dense - matrix.bytes_packed for matrix in costs.of[1].matrices)
    assert costs.of[1].bytes == costs.bytes - saved


def test_more_bits_cost_less(costs):
    eight, four, two = costs.of
    # a model that has learnt nothing may gain by chance
    assert abs(eight.loss.value) < 1e-3 < 0.1 * abs(two.loss.value)
    assert eight.cosine > four.cosine > two.cosine and eight.blocks[1] < four.blocks[1] < two.blocks[1]
    assert 0.999 < eight.substitutions <= 1 and two.substitutions < four.substitutions < eight.substitutions
    assert costs.changes % CHANGES == 0 and costs.changes >= 3 * CHANGES


def changed(unit):
    """Tokens (1 + changes, L) of a window as it is, and with each of its changes."""
    rows = [unit.reference.copy() for _ in range(1 + len(unit.positions))]
    for row, place, base in zip(rows[1:], unit.positions, unit.bases, strict=True):
        row[place] = 7 + base
    return np.stack(rows)


def test_substitutions_by_hand(models, pack):
    dense, quantised = models
    small = held_out(pack, tokens=512, length=32)
    cost = measure(dense, quantised[2:], small).of[0]

    def log_likelihood(model, tokens):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None].long()).logits[0, :-1, 7:11].double()
        return float(logits.log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:].astype(int) - 7].sum())

    ratios = [
        [log_likelihood(model, row) - log_likelihood(model, window[0]) for window in windows for row in window[1:]]
        for windows in [[changed(unit) for unit in random_substitutions(pack, TEST, 32, 512, seed=0)]]
        for model in (dense, quantised[2])
    ]
    ranks = [np.argsort(np.argsort(values)) for values in ratios]
    assert cost.substitutions == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-6)


def test_changes_are_of_one_base_of_the_middle(pack):
    windows = [changed(unit) for unit in random_substitutions(pack, TEST, 64, 8192, seed=0)]
    assert len(windows) > 3
    for window in windows:
        differs = window[1:] != window[0]
        places = differs.nonzero()[1]
        assert window.shape == (1 + CHANGES, 64) and (differs.sum(axis=1) == 1).all()
        assert len(set(places)) == CHANGES and places.min() >= 16 and places.max() < 48
        assert set(np.unique(window)) == {7, 8, 9, 10}
        forward = pack.contig("c1").tobytes().decode().upper()
        assert "".join("ACGT"[token - 7] for token in window[0]) in forward
    assert reverse_complement("A") == "T"


def test_the_batch_and_the_mode_change_nothing(models, pack):
    dense, quantised = models
    once = measure(dense, quantised[1:], held_out(pack, tokens=1024))
    dense.train()
    again = measure(dense, quantised[1:], held_out(pack, tokens=1024), batch_tokens=192)
    assert dense.training and not quantised[0].training
    dense.eval()
    for one, other in zip(once.of, again.of, strict=True):
        assert one.loss.value == pytest.approx(other.loss.value, abs=1e-6)
        assert one.substitutions == other.substitutions
        assert one.blocks == pytest.approx(other.blocks, rel=1e-4)


def test_what_cannot_be_measured_is_refused(models, pack):
    dense, quantised = models
    with pytest.raises(IntervalError, match="none of 1 intervals holds a window"):
        measure(dense, quantised, dataclasses.replace(held_out(pack), intervals=TEST[:1], length=40_000))
    with pytest.raises(UsageError, match="cost of a model that is not quantised"):
        measure(dense, [dense], held_out(pack, tokens=256))
    gap = HeldOut(NoBases(), (TEST[0],), 64, 256)
    with pytest.raises(InputError, match="nothing to score"):
        measure(dense, quantised[:1], gap)
    broken = quantize(dense, bits=4, group=16)
    broken.backbone.ln_f.weight.data[:] = float("nan")
    with pytest.raises(NotFiniteError, match="the quantised model gives probabilities that are not numbers"):
        measure(dense, [broken], held_out(pack, tokens=256))


class NoBases:
    """A genome of N."""

    def contig(self, name):
        return np.full(24_000, ord("N"), dtype=np.uint8)


def cost(setting: Quantization, loss: float) -> Cost:
    sure = Estimate(loss, loss - 0.001, loss + 0.001)
    return Cost(setting, 1000, nominal_bits(setting), (), Estimate(2 + loss, 2.0, 3.0), sure, 0.9, 0.8, 0.7, (0.1, 0.2))


def loss_of(setting: Quantization) -> float:
    """Half with every further bit, and with groups a quarter as long."""
    return 0.1 * 2.0**-setting.bits * (setting.group / 64) ** 0.5


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        (1.0, (2, 128)),
        (0.026, (2, 64)),
        (0.02, (2, 32)),
        (0.0063, (3, 16)),
        (0.004, (4, 16)),
        (0.001, (8, 128)),
        (1e-6, None),
    ],
)
@pytest.mark.parametrize("known", [(8, 4, 3, 2), ()])
def test_the_search_finds_the_smallest_that_passes(allowed, found, known):
    tried = []

    def trial(setting):
        tried.append(setting)
        return cost(setting, loss_of(setting))

    before = [trial(Quantization(bits, 64, 8)) for bits in known]
    tried.clear()
    chosen, measured = smallest_within(allowed, before, trial, meta_bits=8, largest_group=1000)
    every = [Quantization(bits, group, 8) for bits in (2, 3, 4, 8) for group in (16, 32, 64, 128)]
    passing = [setting for setting in every if loss_of(setting) <= allowed]
    wanted = min(passing, key=nominal_bits, default=None)
    assert (chosen.setting if chosen else None) == wanted
    assert (None if chosen is None else (chosen.setting.bits, chosen.setting.group)) == found
    assert [one.setting for one in measured] == tried and len(set(tried)) == len(tried)
    assert not set(tried) & {one.setting for one in before}


def test_the_search_skips_what_must_lose_more_and_what_does_not_fit():
    tried = []

    def trial(setting):
        tried.append((setting.bits, setting.group))
        return cost(setting, loss_of(setting))

    known = [cost(Quantization(3, 32, 8), 0.5)]
    chosen, _ = smallest_within(0.0063, known, trial, meta_bits=8, largest_group=64, above=Quantization(2, 64, 8))
    assert tried == [(2, 16), (3, 16)] and chosen.setting == Quantization(3, 16, 8)


@pytest.fixture
def report(costs):
    return Report({"model": "m", "fasta": "f.fa"}, costs, costs.of[1], 0.01)


def test_the_report_says_all(report, costs):
    said = text(report)
    lines = said.splitlines()
    assert lines[:2] == ["# model: m", "# fasta: f.fa"]
    assert "4 bits, groups of 16, scales and zero points in 8 bits: 5." in said
    four = costs.of[1]
    packed = sum(matrix.bytes_packed for matrix in four.matrices)
    assert f"{4 * 2 * (4 * 32 * 32 + 2 * 32 * 40):>14,}{packed:>14,}" in said
    assert f"all tensors         {costs.bytes:>14,}{four.bytes:>14,}" in said
    assert "mixer.in_proj, mixer.out_proj, mlp.fc1, mlp.fc2 of 2 blocks" in said
    assert "never quantised" in said and "filter networks, short filters" in said
    chosen = next(line for line in lines if line.startswith("4b g16 *"))
    assert f"{four.loss.value:+.4f}  [{four.loss.low:+.4f}, {four.loss.high:+.4f}]" in chosen
    assert [line[:6] for line in lines if line[:6] in ("8b g16", "4b g16", "2b g16")] == ["8b g16", "4b g16", "2b g16"]
    assert f"{costs.bases:,} bases in {costs.windows} windows" in said
    assert sum(line.startswith("backbone.layers.") for line in lines) == 8
    assert sum(line.startswith("what block ") for line in lines) == 2


def test_the_report_as_json_and_in_the_card(report, costs):
    value = json.loads(json.dumps(report.to_json()))
    assert value["setting"] == {"bits": 4, "group": 16, "meta_bits": 8}
    assert value["bytes_before"] == costs.bytes and value["bytes_after"] == costs.of[1].bytes
    assert value["passes"] == (costs.of[1].loss.value <= 0.01) and "short filters" in value["never_quantised"]
    assert [one["setting"]["bits"] for one in value["settings"]] == [8, 4, 2]
    assert value["settings"][1]["loss"]["value"] == costs.of[1].loss.value
    card = card_section(report, "hyena quantize m -o small")
    assert card.startswith("\n## Quantised\n") and "\n    hyena quantize m -o small\n" in card
    assert "![bits per base lost, by bits a weight](quantization.png)" in card


def test_the_curve_is_of_one_group_size_and_the_chosen_setting():
    tried = [cost(Quantization(bits, group, 8), 0.1) for bits, group in ((2, 64), (2, 32), (3, 64), (2, 16))]
    costs = Costs(1, Estimate(2.0, 1.9, 2.1), 1, 1, 1, 1, tuple(tried))
    shown = [(one.setting.bits, one.setting.group) for one in Report({}, costs, tried[3], None).curve]
    assert shown == [(3, 64), (2, 16), (2, 64)]


def test_the_picture_of_one_setting_whose_loss_is_not_known(report):
    few = dataclasses.replace(report.costs, of=(cost(Quantization(1, 128, 16), math.nan),))
    assert picture(Report({}, few, few.of[0], None)).startswith(b"\x89PNG")


def test_costs_hold_numbers_only(costs):
    assert isinstance(costs, Costs) and json.loads(json.dumps(dataclasses.asdict(costs)))["changes"] == costs.changes
