"""What models answer behind prompts: reading prompts as they grow, and planted models."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from hybrids import hybrid
from planted import Planted, constant, oracle

from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, NotFiniteError, SequenceTooLong, UsageError
from hyenadna.inference.many_shot import GrowingPrompt, probe, sweep
from hyenadna.inference.many_shot_prompt import Episode, Example, Layout, prompt


def drawn(random, n, longest=9):
    return [random.integers(7, 11, random.integers(1, longest)).astype(np.uint8) for _ in range(n)]


def episode(seed, examples=8, queries=6, classes=2, longest=9):
    random = np.random.default_rng(seed)
    labels, answers = random.integers(classes, size=examples), random.integers(classes, size=queries)
    shown = [
        Example(tokens, int(label)) for tokens, label in zip(drawn(random, examples, longest), labels, strict=True)
    ]
    return Episode(tuple(shown), tuple(drawn(random, queries, longest)), answers)


LAYOUTS = [
    Layout(("A", "T"), "CTAG"),
    Layout(("A", "N"), "sep"),
    Layout(("AAC", "AAT"), "G"),
    Layout(("AG", "TC"), None),
]


@pytest.mark.parametrize(
    ("pattern", "layout"),
    [*(("HS", layout) for layout in LAYOUTS), ("H", LAYOUTS[0]), ("HLS", LAYOUTS[2]), ("HS+remoe", LAYOUTS[3])],
    ids=str,
)
def test_growing_equals_whole_prompts(pattern, layout):
    model = hybrid(pattern, filter_length=160).double()
    one = episode(1, queries=3)
    counts = (0, 1, 3, 8)
    # few tokens a batch, so that queries of different lengths come in several
    found = list(sweep(model, one, layout, counts, contentless=one.queries[:2], batch_tokens=40))
    for count, answers in zip(counts, found, strict=True):
        for query, said in zip(one.queries, answers.log_likelihoods, strict=True):
            for word, nats in zip(layout.label_tokens, said, strict=True):
                whole = prompt(one.examples[:count], query, layout).tokens
                tokens = torch.from_numpy(np.concatenate([whole, word]))[None]
                with torch.no_grad():
                    log_p = torch.log_softmax(model(tokens).logits[0], dim=-1)
                wanted = sum(float(log_p[len(whole) + at - 1, token]) for at, token in enumerate(word))
                assert nats == pytest.approx(wanted, abs=1e-9)
        shares = np.exp(answers.log_likelihoods[:2])
        np.testing.assert_allclose(answers.prior, (shares / shares.sum(1, keepdims=True)).mean(0), atol=1e-12)


def test_a_sweep_reads_the_prompt_once():
    one, layout, counts = episode(2, examples=16), Layout(("A", "T"), "CTAG"), (0, 1, 2, 4, 8, 16)
    model = constant(np.zeros(16))
    found = list(sweep(model, one, layout, counts))
    whole = len(prompt(one.examples, None, layout).tokens)
    queries = sum(len(layout.query(query)) for query in one.queries)
    assert found[-1].prompt_tokens == whole
    assert sum(answers.tokens_read for answers in found) == model.read == whole + len(counts) * queries
    lengths = [0, *accumulate(len(layout.example(example)) for example in one.examples)]
    assert [answers.prompt_tokens for answers in found] == [lengths[count] for count in counts]


def test_words_that_begin_alike_are_read_once():
    layout = Layout(("AAA", "AAT", "CCA"), "G")
    asked = GrowingPrompt(constant(np.zeros(16)), layout)
    asked.ask([encode("ACGT")])
    # the query and a separator with AA and with CC
    assert asked.tokens_read == 2 * 7


@pytest.mark.parametrize("layout", [Layout.suited(3), Layout(("AAC", "AAT", "CGA"), "sep")], ids=str)
def test_the_oracle_is_always_right(layout):
    episodes = [episode(seed, classes=3, queries=12, longest=30) for seed in range(3)]
    known = {}
    for one in episodes:
        # behind different prefixes: lengths differ, and all are told apart by their last letters
        tails = np.random.default_rng(len(known)).integers(7, 11, (12, 16)).astype(np.uint8)
        queries = tuple(np.append(query, tail) for query, tail in zip(one.queries, tails, strict=True))
        object.__setattr__(one, "queries", queries)
        known |= {query.tobytes(): int(answer) for query, answer in zip(queries, one.answers, strict=True)}
    found = probe(oracle(known, layout), episodes, layout, (0, 2, 8), shuffles=4)
    for count in found.counts:
        assert found.accuracy(count) == found.accuracy(count, calibrate=False)
        assert found.accuracy(count).value == 1
    assert found.gain(0, 8).value == 0


def test_the_uniform_model_is_right_once_in_c():
    episodes = [episode(seed, classes=3, queries=100, longest=4) for seed in range(10)]
    found = probe(constant(np.zeros(16)), episodes, Layout.suited(3), (0, 4), shuffles=2)
    assert found.accuracy(4).value == pytest.approx(1 / 3, abs=1e-12)
    # and one that tosses a coin, within its interval
    random = np.random.default_rng(4)
    chance = probe(Planted(lambda history: random.normal(size=16)), episodes, Layout.suited(3), (0, 4))
    assert chance.accuracy(4).low < 1 / 3 < chance.accuracy(4).high
    assert chance.gain(0, 4).low < 0 < chance.gain(0, 4).high


def test_calibration_takes_a_constant_bias_away():
    episodes = [episode(seed, queries=200, longest=4) for seed in range(2)]
    for one in episodes:
        one.answers[:] = np.arange(200) % 4 == 0  # three in four are of class 0
    biased = np.zeros(16)
    biased[7] = 3.0  # A, the word of class 0
    found = probe(constant(biased), episodes, Layout.suited(2), (4,), shuffles=20)
    assert found.accuracy(4, calibrate=False).value == 0.75
    assert found.accuracy(4).value == 0.5
    np.testing.assert_allclose(found.calibrated, 0.5, atol=1e-12)


def test_what_a_sweep_refuses():
    model, one, layout = hybrid("H", filter_length=40), episode(3), Layout.suited(2)
    with pytest.raises(UsageError, match=r"prompts of 2, 1 examples.*from 0 to 8"):
        next(sweep(model, one, layout, (2, 1)))
    with pytest.raises(UsageError, match="from 0 to 8"):
        next(sweep(model, one, layout, (9,)))
    with pytest.raises(SequenceTooLong, match="this model takes up to 40"):
        list(sweep(model, one, layout, (0, 8)))
    with pytest.raises(InputError, match="needs a query"):
        next(sweep(model, Episode(one.examples, (), np.zeros(0, dtype=np.int64)), layout, (1,)))
    with pytest.raises(InputError, match="the same number of queries"):
        probe(model, [one, episode(3, queries=2)], layout, (1,))
    with pytest.raises(InputError, match="one episode or more"):
        probe(model, [], layout, (1,))
    with pytest.raises(NotFiniteError, match="not numbers"):
        next(sweep(constant(np.full(16, np.nan)), one, layout, (1,)))
