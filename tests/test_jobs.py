"""What requests come to, against the functions that read one sequence at a time."""

import math

import numpy as np
import pytest
from embedding import ragged_sequences
from served_models import computed, served

from hyenadna.data.tokenizer import encode
from hyenadna.errors import NotFiniteError, UsageError
from hyenadna.finetune.predict import Predictor
from hyenadna.inference.embed import EmbedConfig, Embedder
from hyenadna.inference.likelihood import likelihoods
from hyenadna.inference.variants import substitutions
from hyenadna.serve.jobs import EmbedJob, LikelihoodJob, PredictJob, SubstitutionsJob
from hyenadna.serve.units import Embeddings

SEQUENCES = ragged_sequences(number=7, longest=150)
SHORT = [(name, sequence[:12]) for name, sequence in SEQUENCES]
close = pytest.approx


@pytest.fixture(scope="module")
def model():
    return served()


def numbers(values):
    return np.array([math.nan if value is None else value for value in values])


def assert_close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
def test_likelihoods(model, strand):
    [items] = computed(LikelihoodJob(model=model, sequences=SEQUENCES, per_base=True, strand=strand))
    for item, (name, sequence) in zip(items, SEQUENCES, strict=True):
        [expected] = likelihoods(model.network, [sequence], strand=strand)
        assert (item["id"], item["length"], item["scored"]) == (name, len(sequence), expected.scored)
        assert item["nats"] == close(expected.nats, rel=1e-5)
        assert numbers([item["bits_per_base"]]) == close(expected.bits_per_base, rel=1e-5, nan_ok=True)
        assert_close(numbers(item["per_base"]), expected.per_base)


def test_the_bases_are_left_out_unless_asked_for(model):
    [items] = computed(LikelihoodJob(model=model, sequences=[("one", "A"), ("two", "ACNT")]))
    assert items[0] == {"id": "one", "length": 1, "scored": 0, "nats": 0, "bits_per_base": None}
    assert items[1]["scored"] == 2
    assert "per_base" not in items[1]


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
@pytest.mark.parametrize("layer", [1, -1])
def test_embeddings(model, pool, layer):
    [items] = computed(EmbedJob(model=model, sequences=SEQUENCES, layer=layer, pool=pool))
    embedder = Embedder(model.network, EmbedConfig(layer=layer, pool=pool))
    for item, (name, sequence) in zip(items, SEQUENCES, strict=True):
        assert (item["id"], item["length"]) == (name, len(sequence))
        assert_close(item["embedding"], embedder([encode(sequence)])[0])


@pytest.mark.parametrize("name", ["prompt", "head", "lora", "bases", "labels"])
def test_predictions(model, name):
    """As `hyena predict` makes them: by windows, and on both strands where the adapter was trained so."""
    [items] = computed(PredictJob(model=model, sequences=SEQUENCES, adapter=name))
    adapter = model.adapters[name]
    task = adapter.model.task
    predictor = Predictor(adapter.model, reverse_complement=adapter.reverse_complement)
    for item, (_, sequence) in zip(items, SEQUENCES, strict=True):
        [expected] = predictor([encode(sequence)])
        if task.kind == "regression":
            assert item["prediction"] == close(expected[0], rel=1e-5)
            continue
        assert_close(np.array([item["probabilities"][label] for label in task.labels]).T, expected)
        match task.kind:
            case "nucleotide":
                assert item["prediction"] == "".join(task.labels[best] for best in expected.argmax(1))
            case "multilabel":
                assert item["prediction"] == [label for label, p in zip("abc", expected, strict=True) if p > 0.5]
            case _:
                assert item["prediction"] == task.labels[expected.argmax()]


@pytest.mark.parametrize("strand", ["forward", "both"])
def test_substitutions(model, strand):
    [items] = computed(SubstitutionsJob(model=model, sequences=SHORT, strand=strand))
    for item, (_, sequence) in zip(items, SHORT, strict=True):
        rows = np.array([numbers(row) for row in item["log_likelihood_ratio"]])
        assert item["bases"] == "ACGT"
        assert_close(rows, substitutions(model.network, sequence, strand=strand))


def test_answers_do_not_depend_on_the_batch(model):
    jobs = [
        LikelihoodJob(model=model, sequences=SEQUENCES, per_base=True),
        EmbedJob(model=model, sequences=SEQUENCES),
        *(PredictJob(model=model, sequences=SHORT, adapter=name) for name in model.adapters if name != "sites"),
    ]
    together = computed(*jobs)
    backwards = computed(
        *(type(job)(**vars(job) | {"sequences": job.sequences[::-1]}) for job in jobs), batch_tokens=64, seed=1
    )
    for one, other in zip(together, backwards, strict=True):
        for item, again in zip(one, other[::-1], strict=True):
            assert item.keys() == again.keys()
            assert_same(item, again)


def assert_same(one, other):
    match one:
        case float():
            assert one == close(other, rel=1e-5, abs=1e-5)
        case dict():
            for name in one:
                assert_same(one[name], other[name])
        case list():
            for a, b in zip(one, other, strict=True):
                assert_same(a, b)
        case _:
            assert one == other


def test_a_bad_sequence_spoils_its_own_item_alone(model):
    pairs = [("good", "ACGT"), ("bad", ""), ("worse", "ACXT"), ("fine", "GATTACA")]
    [items] = computed(EmbedJob(model=model, sequences=pairs))
    assert [item.get("error", {}).get("code") for item in items] == [None, "empty", "not_dna", None]
    assert "position 3" in items[2]["error"]["message"]
    assert items[1].keys() == {"id", "error"}
    [alone] = computed(EmbedJob(model=model, sequences=pairs[::3]))
    assert_same(items[::3], alone)


def test_a_sequence_may_be_too_long_for_a_task(model):
    long = [("long", "ACGT" * 20), ("short", "ACGT" * 5)]
    job = SubstitutionsJob(model=model, sequences=long)
    [items] = computed(job)
    assert job.tokens == job.cost(20) + 32  # so that it takes no room from others
    assert items[0]["error"]["code"] == "too_long"
    assert "80 bases" in items[0]["error"]["message"]
    assert len(items[1]["log_likelihood_ratio"]) == 20
    job = PredictJob(model=model, sequences=long, adapter="sites")
    [items] = computed(job)
    assert job.tokens == 32 + 32
    assert items[0]["error"]["code"] == "too_long"
    assert items[1]["prediction"] in ("no", "yes")


def test_what_the_model_does_not_have(model):
    with pytest.raises(UsageError, match="no adapter 'other'; there is prompt, head"):
        PredictJob(model=model, sequences=[], adapter="other")
    with pytest.raises(UsageError, match="name one of prompt, head"):
        PredictJob(model=model, sequences=[])
    with pytest.raises(UsageError, match="layer is 9; this model of 3 blocks"):
        EmbedJob(model=model, sequences=[], layer=9)


def test_a_job_knows_its_cost_before_it_is_cut(model):
    """An exact one but for the last window and for substitutions, whose units depend on the batch."""
    pairs = [pair for pair in SEQUENCES if len(pair[1]) <= model.context]
    for job in (EmbedJob(model=model, sequences=pairs), LikelihoodJob(model=model, sequences=pairs, strand="both")):
        assert job.tokens == sum(unit.cost for unit in job.cut(300).units) >= 32 * len(pairs)
    for name in ("head", "bases", "lora"):
        job = PredictJob(model=model, sequences=SEQUENCES, adapter=name)
        assert job.tokens == sum(unit.cost for unit in job.cut(300).units)
    long = LikelihoodJob(model=model, sequences=[("long", "ACGT" * 1000)])
    assert 0.95 * long.tokens <= sum(unit.cost for unit in long.cut(300).units) <= long.tokens
    changes = SubstitutionsJob(model=model, sequences=[("one", "ACGTA" * 13)], strand="both")
    assert 0.5 * changes.tokens <= sum(unit.cost for unit in changes.cut(2000).units) <= 1.25 * changes.tokens


@pytest.mark.parametrize("batch_tokens", [100, 1000])
def test_units_are_bounded(model, batch_tokens):
    jobs = [
        LikelihoodJob(model=model, sequences=SEQUENCES),
        EmbedJob(model=model, sequences=SEQUENCES),
        PredictJob(model=model, sequences=SEQUENCES, adapter="bases"),
        SubstitutionsJob(model=model, sequences=[("one", "ACGTA" * 5)]),
    ]
    for job in jobs:
        # the changes of one base are read together
        assert all(unit.cost <= max(batch_tokens, 4 * 68) for unit in job.cut(batch_tokens).units)
        assert all(len(row) <= unit.kind.length for unit in job.cut(batch_tokens).units for row in unit.piece[:1])


def test_numbers_that_are_none_are_a_failure_of_their_item(model):
    job = EmbedJob(model=model, sequences=[("one", "ACGT"), ("two", "GATTACA")])
    work = job.cut(300)
    work.put(work.units[0], NotFiniteError("no numbers"))
    work.put(work.units[1], work.units[1].kind.compute(model, [work.units[1].piece])[0])
    one, two = work.answer()
    assert one["error"] == {"code": "failed", "message": "no numbers"}
    assert "embedding" in two
    work.put(work.units[0], ValueError("/secret/path"))
    assert work.answer()[0]["error"] == {"code": "failed", "message": "the model failed on this sequence"}


def test_a_model_that_gives_no_numbers_says_so():
    broken = served()
    broken.network.backbone.layers[0].mlp.fc1.weight.data[0] = math.nan
    for job in (EmbedJob, LikelihoodJob, SubstitutionsJob):
        [unit] = job(model=broken, sequences=[("one", "AC")]).cut(300).units[:1]
        with pytest.raises(NotFiniteError):
            unit.kind.compute(broken, [unit.piece])
    [unit] = PredictJob(model=broken, sequences=[("one", "AC")], adapter="prompt").cut(300).units
    with pytest.raises(NotFiniteError, match="prediction is not made of numbers"):
        unit.kind.compute(broken, [unit.piece])


def test_alike_lengths_share_a_kind(model):
    job = EmbedJob(model=model, sequences=[("a", "A" * 41), ("b", "C" * 44), ("c", "G" * 60)])
    assert [unit.kind for unit in job.cut(300).units] == [
        Embeddings(layer=3, pool="mean", length=n) for n in (45, 45, 60)
    ]
