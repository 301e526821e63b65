"""All single-base changes against two whole passes each."""

import math

import numpy as np
import pytest
import torch
from checkpoints import small_model

from hyenadna import HyenaDNA
from hyenadna.data.alphabet import BASES, reverse_complement
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, NotFiniteError, SequenceTooLong
from hyenadna.inference.likelihood import context_of, likelihoods
from hyenadna.inference.variants import ratios_of, substitution_units, substitutions, unit_ratios
from hyenadna.model.hub import STARTER

SEQUENCE = "acgNNTTGACCRGATTNCAG"


@pytest.fixture(scope="module")
def model():
    return small_model(layers="HH", filter_length=26).double()


def naive(model, sequence: str, positions=None) -> np.ndarray:
    """Of the forward strand, by whole passes over every changed sequence."""
    found = np.full((len(sequence), 4), math.nan)
    reference = likelihoods(model, [sequence])[0].nats
    for position in range(len(sequence)) if positions is None else positions:
        own = sequence[position].upper()
        if own in BASES:
            changed = [sequence[:position] + base + sequence[position + 1 :] for base in BASES]
            found[position] = [one.nats - reference for one in likelihoods(model, changed)]
            found[position, BASES.index(own)] = 0
    return found


@pytest.mark.parametrize("n_token", ["n", "pad"])
@pytest.mark.parametrize("batch_tokens", [1, 120, 1 << 13])
def test_every_change_equals_whole_passes(n_token, batch_tokens) -> None:
    model = small_model(layers="HH", filter_length=26, n_token=n_token).double()
    found = substitutions(model, SEQUENCE, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, naive(model, SEQUENCE), rtol=0, atol=1e-9)
    assert np.isnan(found[3]).all() and (found[[0, 1, 2], [0, 1, 2]] == 0).all()


def test_the_other_strand_and_the_mean_of_both(model) -> None:
    plus, minus = naive(model, SEQUENCE), naive(model, reverse_complement(SEQUENCE))[::-1, ::-1]
    np.testing.assert_allclose(substitutions(model, SEQUENCE, strand="reverse"), minus, rtol=0, atol=1e-9)
    np.testing.assert_allclose(substitutions(model, SEQUENCE, strand="both"), (plus + minus) / 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 24])
def test_shortest_and_longest(model, length) -> None:
    sequence = "".join(np.random.default_rng(length).choice(list(BASES), length))
    found = substitutions(model, sequence, batch_tokens=300)
    np.testing.assert_allclose(found, naive(model, sequence), rtol=0, atol=1e-9)


def test_one_base_has_nothing_scored(model) -> None:
    assert not substitutions(model, "G", strand="both").any()
    assert np.isnan(substitutions(model, "NN", strand="both")).all()


def test_the_starter_model_in_float32() -> None:
    model = HyenaDNA.from_pretrained(STARTER)
    sequence = "".join(np.random.default_rng(1).choice(list(BASES), 400))
    positions = [0, 1, 150, 399]
    units = list(substitution_units(encode(sequence), context_of(model), batch_tokens=1 << 12))
    some = [unit for unit in units if set(positions) & set(unit.positions.tolist())]
    found = ratios_of(encode(sequence), some, [unit_ratios(model, unit) for unit in some])
    np.testing.assert_allclose(found[positions], naive(model, sequence, positions)[positions], rtol=0, atol=1e-4)


def test_units_hold_every_change_once_and_keep_to_their_tokens() -> None:
    tokens = encode(SEQUENCE * 2)
    for budget in (1, 130, 500, 1 << 20):
        units = list(substitution_units(tokens, len(tokens), "both", batch_tokens=budget))
        for strand in "+-":
            changes = [
                (position, base)
                for unit in units
                if unit.strand == strand
                for position, base in zip(unit.positions.tolist(), unit.bases.tolist(), strict=True)
            ]
            own = np.count_nonzero((tokens >= 7) & (tokens <= 10))
            assert len(set(changes)) == len(changes) == 3 * own
        assert not any((unit.reference[unit.positions] - 7 == unit.bases).any() for unit in units)
        assert max(unit.tokens for unit in units) <= max(budget, 4 * len(tokens))
    whole = sum(unit.tokens for unit in units)
    assert whole <= 2 * (3 * own + 1) * len(tokens)


def test_units_read_what_they_say_they_read(model, monkeypatch) -> None:
    read = []
    forward = HyenaDNA.forward

    def watched(self, tokens, *, prefix=None):
        read.append(tokens.numel())
        return forward(self, tokens, prefix=prefix)

    monkeypatch.setattr(HyenaDNA, "forward", watched)
    for unit in substitution_units(encode(SEQUENCE), 24, batch_tokens=200):
        unit_ratios(model, unit)
        assert read.pop() + unit.start == unit.tokens


def test_units_come_in_any_order(model) -> None:
    tokens = encode(SEQUENCE)
    units = list(substitution_units(tokens, len(tokens), "both", batch_tokens=200))[::-1]
    found = ratios_of(tokens, units, [unit_ratios(model, unit) for unit in units])
    np.testing.assert_array_equal(found, substitutions(model, SEQUENCE, strand="both", batch_tokens=200))


def test_half_precision_differences_stay_near(model) -> None:
    half = substitutions(small_model(layers="HH", filter_length=26), SEQUENCE, dtype=torch.bfloat16)
    np.testing.assert_allclose(half, substitutions(model, SEQUENCE), rtol=0, atol=0.5)


def test_bad_input(model) -> None:
    with pytest.raises(SequenceTooLong, match="has 25 bases; all its substitutions can be scored up to the 24 that"):
        substitutions(model, "A" * 25)
    with pytest.raises(InputError, match="the sequence is empty"):
        substitutions(model, "")
    with pytest.raises(InputError, match="character '-' at position 2 is no nucleotide"):
        substitutions(model, "A-C")
    broken = small_model()
    with torch.no_grad():
        broken.backbone.ln_f.weight[0] = math.nan
    with pytest.raises(NotFiniteError, match="not numbers in a sequence of 5 bases"):
        substitutions(broken, "ACGTA")
