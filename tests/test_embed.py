"""Embeddings against a model that reads one sequence at a time in float64; and the files that hold them."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from checkpoints import small_model
from embedding import config_of, differences, oracle, ragged_sequences, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, NotFiniteError, SequenceTooLong, UsageError
from hyenadna.inference.embed import EmbedConfig, Embedder
from hyenadna.inference.long_windows import long_windows
from hyenadna.inference.sequence_chunks import chunks

SEQUENCES = ragged_sequences()
CONFIGS = [
    {},
    {"layer": 0},
    {"layer": 1, "pool": "max"},
    {"layer": -2, "pool": "last"},
    {"pool": "none"},
    {"bins": 7},
    {"pool": "max", "both": True},
    {"pool": "last", "both": True},
    {"bins": 5, "both": True, "layer": 2},
    {"pool": "none", "both": True},
]


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def in_float64(model):
    return copy.deepcopy(model).double()


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_batched_equals_one_at_a_time_in_float64(model, in_float64, options):
    found = Embedder(model, config_of(options), batch_tokens=300)(tokens_of(SEQUENCES))
    assert all(value.dtype == np.float32 for value in found)
    wanted = [oracle(in_float64, sequence, **options) for _, sequence in SEQUENCES]
    assert differences(found, wanted) < 1e-5


@pytest.mark.parametrize("stride", [None, 68, 30])
def test_long_sequences_are_read_in_windows(model, in_float64, stride):
    draw = random.Random(1)
    pairs = [(str(n), "".join(draw.choices("ACGT", k=n))) for n in (68, 69, 150)]
    for options in CONFIGS:
        embedder = Embedder(model, config_of(options | {"stride": stride}), batch_tokens=300)
        wanted = [oracle(in_float64, sequence, **options, stride=stride) for _, sequence in pairs]
        assert differences(embedder(tokens_of(pairs)), wanted) < 1e-5


@pytest.fixture(scope="module")
def alone(model):
    return [Embedder(model)([tokens])[0] for tokens in tokens_of(SEQUENCES)]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(SEQUENCES))), st.integers(1, 700), st.integers(1, len(SEQUENCES)))
def test_neighbours_order_and_batches_do_not_matter(model, alone, order, batch_tokens, number):
    tokens = tokens_of(SEQUENCES)
    found = Embedder(model, batch_tokens=batch_tokens)([tokens[row] for row in order[:number]])
    assert differences(found, [alone[row] for row in order[:number]]) < 1e-5


def test_n_is_what_the_model_takes_it_for():
    model = small_model(n_token="pad")
    in_float64 = copy.deepcopy(model).double()
    wanted = [oracle(in_float64, sequence) for _, sequence in SEQUENCES]
    assert differences(Embedder(model)(tokens_of(SEQUENCES, "pad")), wanted) < 1e-5


@pytest.mark.parametrize("options", [{}, {"pool": "max"}, {"pool": "last"}, {"bins": 4}, {"pool": "none"}], ids=str)
def test_both_strands_give_one_embedding(model, options):
    sequences = [sequence for _, sequence in SEQUENCES if len(sequence) % 4 == 0]  # else bins have other borders
    embedder = Embedder(model, config_of(options | {"both": True}))
    one = embedder([encode(sequence) for sequence in sequences])
    other = embedder([encode(reverse_complement(sequence)) for sequence in sequences])
    if embedder.config.ragged:
        other = [value[::-1] for value in other]
    assert differences(one, other) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model, dtype):
    found = Embedder(model, dtype=dtype)(tokens_of(SEQUENCES))
    assert differences(found, Embedder(model)(tokens_of(SEQUENCES))) < 16 * torch.finfo(dtype).eps


def test_hidden_states_are_those_before_the_head(model):
    tokens = torch.randint(7, 11, (2, 30))
    with torch.no_grad():
        assert torch.equal(model.hidden_states(tokens), model(tokens).hidden)
        assert torch.equal(model.hidden_states(tokens, 0), model.embedding(tokens))
        assert torch.equal(model.hidden_states(tokens, -4), model.hidden_states(tokens, 0))
        assert torch.equal(model.hidden_states(tokens, 3), model.hidden_states(tokens, -1))
    with pytest.raises(SequenceTooLong, match="takes up to 70"):
        model.hidden_states(torch.full((1, 71), 7))
    for layer in (4, -5):
        with pytest.raises(UsageError, match=f"layer is {layer}; this model of 3 blocks has 0 .* to 3 .* or -4 to -1"):
            model.hidden_states(tokens, layer)


@given(st.lists(st.integers(1, 50), max_size=5), st.integers(1, 12), st.data())
def test_windows_hold_every_base_once_as_new(lengths, context, data):
    stride = data.draw(st.integers(1, context))
    windows = long_windows(lengths, context, stride)
    for row, length in enumerate(lengths):
        own = [window for window in windows if window.row == row]
        assert [base for window in own for base in range(window.first, window.end)] == list(range(length))
        assert all(window.end - window.start == min(context, length) for window in own)
        assert all(two.start - one.start <= stride for one, two in itertools.pairwise(own))


def test_settings_that_do_not_fit(model):
    with pytest.raises(UsageError, match="--bins 8 takes means; leave out --pool max"):
        EmbedConfig(pool="max", bins=8)
    with pytest.raises(UsageError, match="--bins 0: it takes a number of bases"):
        EmbedConfig(bins=0)
    with pytest.raises(UsageError, match="stride of 69 bases; allowed are 1 to the 68 bases of a window"):
        Embedder(model, EmbedConfig(stride=69))
    with pytest.raises(UsageError, match="layer is 9"):
        Embedder(model, EmbedConfig(layer=9))


def test_what_cannot_be_embedded(model, monkeypatch):
    monkeypatch.setattr("hyenadna.inference.embed.MOST_BYTES", 4 * 16 * 10)
    with pytest.raises(InputError, match=r"sequence of 11 bases would give 11 rows of 16 numbers.*larger --bins"):
        Embedder(model, EmbedConfig(pool="none"))([encode("A" * 11)])
    broken = small_model()
    broken.backbone.ln_f.weight.data[0] = torch.nan
    with pytest.raises(NotFiniteError, match="embedding of a sequence of 3 bases is not made of numbers"):
        Embedder(broken)([encode("ACG")])


def test_chunks_depend_on_the_sequences_alone():
    found = list(chunks(iter(SEQUENCES), n_token="n", bases=200))
    assert [name for chunk in found for name in chunk.ids] == [name for name, _ in SEQUENCES]
    assert [chunk.first for chunk in found] == np.cumsum([0, *map(len, found[:-1])]).tolist()
    assert all(chunk.lengths.sum() >= 200 > chunk.lengths[:-1].sum() for chunk in found[:-1])
    later = list(chunks(iter(SEQUENCES[found[0].end :]), n_token="n", bases=200))
    assert [chunk.ids for chunk in later] == [chunk.ids for chunk in found[1:]]
    assert [len(chunk) for chunk in chunks(iter(SEQUENCES), n_token="n", bases=10**6, rows=10)] == [10, 2]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "AC"), ("b", "")], r"sequence 2 \('b'\) is empty"),
        ([("a", "AC"), ("b", "AXG")], r"sequence 2 \('b'\): character 'X' at position 2 is no nucleotide"),
        ([], "the input holds no sequences"),
    ],
)
def test_what_is_no_sequence_is_named(pairs, message):
    with pytest.raises(InputError, match=message):
        list(chunks(iter(pairs), n_token="n", bases=100))
