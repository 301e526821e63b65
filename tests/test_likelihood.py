"""Per-base log-likelihoods against a loop over positions, in float64."""

import math

import numpy as np
import pytest
import torch
from checkpoints import small_model

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, NotFiniteError
from hyenadna.inference import likelihood
from hyenadna.inference.evaluate import evaluate
from hyenadna.inference.likelihood import context_of, likelihood_of, likelihoods, scored_windows, window_nats
from hyenadna.inference.markov import MarkovModels, count_both_strands

CONTEXT = 12
LENGTHS = (1, 2, 7, 12, 13, 18, 19, 28)
"""Bases: about one, two and more windows."""


@pytest.fixture(scope="module")
def model():
    return small_model(layers="HH", filter_length=CONTEXT + 2).double()


def random_dna(length: int, seed: int = 0, letters: str = "ACGTacgtNR") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def naive(model, sequence: str, context: int = CONTEXT) -> np.ndarray:
    """Nats of each base of one strand: the model reads what stands before it in its window, and nothing else."""
    tokens = torch.from_numpy(encode(sequence, model.config.n_token)).long()
    found = np.full(len(sequence), math.nan)
    for position, letter in enumerate(sequence.upper()):
        if position == 0 or letter not in "ACGT":
            continue
        # the window that scores it in its second half
        half = context // 2
        start = 0 if position < context else (position - context) // half * half + half
        with torch.no_grad():
            logits = model(tokens[None, start:position]).logits[0, -1, 7:11]
        found[position] = logits[int(tokens[position]) - 7] - logits.logsumexp(0)
    return found


@pytest.mark.parametrize("n_token", ["n", "pad"])
def test_forward_strand_equals_a_loop_over_positions(n_token) -> None:
    model = small_model(layers="HH", filter_length=CONTEXT + 2, n_token=n_token).double()
    sequences = [random_dna(length, length) for length in LENGTHS]
    for sequence, found in zip(sequences, likelihoods(model, sequences), strict=True):
        expected = naive(model, sequence)
        np.testing.assert_allclose(found.per_base, expected, rtol=0, atol=1e-9)
        assert found.scored == np.isfinite(expected).sum()
        assert found.nats == pytest.approx(np.nansum(expected), abs=1e-9)
        if found.scored:
            assert found.bits_per_base == pytest.approx(-np.nanmean(expected) / math.log(2), abs=1e-9)
        else:
            assert math.isnan(found.bits_per_base)


def test_the_other_strand_and_the_mean_of_both(model) -> None:
    sequence = "NN" + random_dna(22, 3)
    plus, minus = naive(model, sequence), naive(model, reverse_complement(sequence))[::-1]
    reverse, both = (likelihoods(model, [sequence], strand=strand)[0] for strand in ("reverse", "both"))
    np.testing.assert_allclose(reverse.per_base, minus, rtol=0, atol=1e-9)
    mean = np.where(np.isnan(plus), minus, np.where(np.isnan(minus), plus, (plus + minus) / 2))
    np.testing.assert_allclose(both.per_base, mean, rtol=0, atol=1e-9)
    assert both.nats == pytest.approx((np.nansum(plus) + np.nansum(minus)) / 2, abs=1e-9)
    scored = np.isfinite(plus).sum() + np.isfinite(minus).sum()
    assert both.scored == scored / 2
    assert both.bits_per_base == pytest.approx(-(np.nansum(plus) + np.nansum(minus)) / scored / math.log(2))


def test_bits_per_base_are_those_of_evaluate(model) -> None:
    class Genome:
        lengths = {"c": 167}
        letters = np.frombuffer(random_dna(167, 9).encode(), dtype=np.uint8)

        def contig(self, _name):
            return self.letters

    interval, context = Interval("c", 0, 167), 10
    baselines = MarkovModels(count_both_strands([Genome.letters], 1), prior_weight=1.0)
    result = evaluate(model, Genome(), [interval], baselines, length=context)
    windows = scored_windows(encode(Genome.letters), context, "both")
    nats = window_nats(model, windows)
    # evaluate leaves out what has less than half a window before it
    values = np.concatenate([v[context // 2 :] if w.start == 0 else v for w, v in zip(windows, nats, strict=True)])
    values = values[np.isfinite(values)]
    assert len(values) == result.bases
    assert result.model.value == pytest.approx(-values.mean() / math.log(2), abs=1e-5)


def test_what_follows_changes_nothing(model) -> None:
    sequence = random_dna(12, 5, "ACGT")
    before = likelihoods(model, [sequence[:5], sequence[:5] + "A" * 7, sequence])
    for found in before[1:]:
        np.testing.assert_allclose(found.per_base[:5], before[0].per_base, rtol=0, atol=1e-12)


def test_any_batch_gives_the_same(model) -> None:
    sequences = [random_dna(length, length + 1) for length in LENGTHS]
    alone = [likelihoods(model, [sequence], strand="both")[0].per_base for sequence in sequences]
    for batch_tokens in (1, 30, 1 << 20):
        for found, expected in zip(
            likelihoods(model, sequences, strand="both", batch_tokens=batch_tokens), alone, strict=True
        ):
            np.testing.assert_allclose(found.per_base, expected, rtol=0, atol=1e-11)


def test_batches_keep_to_their_tokens(model, monkeypatch) -> None:
    shapes = []

    def watched(model, windows, **options):
        shapes.append((len(windows), max(len(window.tokens) for window in windows)))
        return window_nats(model, windows, **options)

    monkeypatch.setattr(likelihood, "window_nats", watched)
    likelihoods(model, [random_dna(length, length) for length in LENGTHS], batch_tokens=30)
    assert max(rows * longest for rows, longest in shapes) <= 30
    assert max(rows for rows, _ in shapes) > 1


@pytest.mark.parametrize("context", [1, 2, 3, 4, 7, 68])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 30, 200])
def test_every_base_is_in_one_window_s_scored_part(context, length) -> None:
    windows = scored_windows(np.arange(length, dtype=np.uint8) % 4 + 7, context, "both")
    for strand in "+-":
        own = [window for window in windows if window.strand == strand]
        scored = [p for window in own for p in range(window.first, window.start + len(window.tokens))]
        assert scored == list(range(length))
        assert all(len(window.tokens) <= context for window in own)
        assert all(window.first - window.start >= context // 2 for window in own[1:])


def test_float32_is_close(model) -> None:
    sequence = random_dna(60, 7)
    exact = likelihoods(model, [sequence])[0].per_base
    single = likelihoods(small_model(layers="HH", filter_length=CONTEXT + 2), [sequence])[0].per_base
    np.testing.assert_allclose(single, exact, rtol=0, atol=1e-4)
    half = likelihoods(small_model(layers="HH", filter_length=CONTEXT + 2), [sequence], dtype=torch.bfloat16)[
        0
    ].per_base
    np.testing.assert_allclose(half, exact, rtol=0, atol=0.2)


def test_nothing_to_score(model) -> None:
    found = likelihoods(model, ["NNNN", "A"])
    assert [one.scored for one in found] == [0, 0] and np.isnan(found[0].per_base).all()
    assert math.isnan(found[0].bits_per_base) and found[0].nats == 0
    assert likelihoods(model, []) == []


def test_the_pieces_come_in_any_order(model) -> None:
    tokens = encode(random_dna(60, 8))
    windows = scored_windows(tokens, context_of(model), "both")
    nats = window_nats(model, windows)
    turned = likelihood_of(len(tokens), windows[::-1], nats[::-1])
    np.testing.assert_array_equal(turned.per_base, likelihood_of(len(tokens), windows, nats).per_base)


def test_bad_input(model) -> None:
    with pytest.raises(InputError, match="the sequence is empty; give at least one base"):
        likelihoods(model, ["ACG", ""])
    with pytest.raises(InputError, match="character 'J' at position 3 is no nucleotide"):
        likelihoods(model, ["ACJ"])
    broken = small_model()
    with torch.no_grad():
        broken.backbone.ln_f.weight[0] = math.nan
    with pytest.raises(NotFiniteError, match="not numbers in a sequence of 5 bases; are the weights whole"):
        likelihoods(broken, ["ACGTA"])
