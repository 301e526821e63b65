"""The adapted model: what it learns, what it leaves alone, and that neighbours and pads never matter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from adapting import (
    BASES,
    BINARY,
    LENGTHS,
    METHODS,
    NUMBER,
    THREE,
    adapted,
    answers,
    copy_of,
    ragged,
    small,
    tokens,
    train,
)

from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.finetune.adaptation import PROJECTIONS, Adaptation
from hyenadna.finetune.lora import base_state
from hyenadna.finetune.sequence_model import SequenceModel

TARGETS = torch.tensor([0, 1, 1, 0])


def alone(model, batch, lengths):
    return torch.cat([answers(model, batch[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths)])


@pytest.mark.parametrize(
    ("method", "pool"),
    [*((method, "mean") for method in METHODS), *(("soft-prompt", pool) for pool in ("max", "last", "attention"))],
)
def test_a_ragged_batch_is_each_sequence_alone(method, pool):
    model, batch = adapted(method, pool=pool), ragged()
    exact = alone(model, batch, LENGTHS)
    torch.testing.assert_close(answers(model, batch, LENGTHS), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers(model, F.pad(batch, (0, 9), value=4), LENGTHS), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers(model, batch.flip(0), LENGTHS.flip(0)), exact.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(batch, LENGTHS).detach(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_what_is_learnt_and_nothing_else(method):
    base = small()
    model, before = adapted(method, base=base), copy_of(base.state_dict())
    learnt = copy_of(model.learnt())
    losses = train(model, ragged(), LENGTHS, TARGETS, steps=8)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(tensor, model.learnt()[name]) for name, tensor in learnt.items())
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert unchanged == (method != "full")
    assert all(p.requires_grad for p in model.learnt().values())
    if method != "full":
        assert all(p.grad is None and not p.requires_grad for p in base.parameters())
        assert not base.training


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("head", {"pool.query", "head.linear.weight", "head.linear.bias"}),
        ("soft-prompt", {"pool.query", "head.linear.weight", "head.linear.bias", "prompt.embeddings"}),
        (
            "lora",
            {"pool.query", "head.linear.weight", "head.linear.bias"}
            | {
                f"lora.backbone.layers.{i}.mixer.{p}.{m}" for i in (0, 1) for p in ("in_proj", "out_proj") for m in "AB"
            },
        ),
    ],
)
def test_what_is_learnt_has_short_names(method, names):
    model = adapted(method, pool="attention")
    assert set(model.learnt()) == names
    assert set(model.own_state()) == names | {"head.center", "head.deviation"}


def test_full_learns_every_weight_of_the_base():
    model = adapted("full")
    names = {f"base.{name}" for name, _ in model.base.named_parameters()}
    assert set(model.learnt()) == names | {"head.linear.weight", "head.linear.bias"}
    assert set(model.own_state()) == {"head.linear.weight", "head.linear.bias", "head.center", "head.deviation"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", [BINARY, BASES])
def test_gradients_are_those_of_the_plain_composition_in_float64(method, task):
    """Hidden states by the base's own layers on concatenated embeddings, and torch's autograd of everything."""
    model = adapted(method, task, dropout=0.0, lora_projections=PROJECTIONS).double().train()
    model.base.eval()
    batch, plain = ragged(), copy.deepcopy(model)
    embedded = plain.base.embedding(batch)
    n = 0 if plain.prompt is None else 6
    x = embedded if n == 0 else torch.cat([plain.prompt.embeddings.expand(4, -1, -1), embedded], dim=1)
    for layer in plain.base.backbone.layers:
        x = layer(x)
    hidden = plain.base.backbone.ln_f(x)[:, n:]
    if task is BINARY:
        hidden = torch.stack([row[:length].mean(0) for row, length in zip(hidden, LENGTHS, strict=True)])
    expected = F.linear(hidden, plain.head.linear.weight, plain.head.linear.bias)
    ours = model(batch, LENGTHS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    for answer in (ours, expected):
        answer.square().sum().backward()
    for name, parameter in plain.learnt().items():
        torch.testing.assert_close(model.learnt()[name].grad, parameter.grad, rtol=1e-8, atol=1e-10)


def test_no_prompt_is_exactly_the_head_alone():
    head, prompt = adapted("head"), adapted("soft-prompt", prompt_length=0)
    assert set(prompt.learnt()) - set(head.learnt()) == {"prompt.embeddings"}
    with torch.no_grad():
        for name, parameter in head.learnt().items():
            prompt.learnt()[name].copy_(parameter)
    assert torch.equal(answers(prompt, ragged(), LENGTHS), answers(head, ragged(), LENGTHS))
    assert torch.equal(prompt(ragged(), LENGTHS), head(ragged(), LENGTHS))


def test_new_lora_is_exactly_the_head_alone():
    base = small()
    head, lora = (SequenceModel(base, BINARY, Adaptation(method=m), seed=5).eval() for m in ("head", "lora"))
    assert torch.equal(answers(lora, ragged(), LENGTHS), answers(head, ragged(), LENGTHS))


def test_features_of_a_head_are_computed_once():
    model = adapted("head")
    assert model.fixed_features and not model.features(ragged(), LENGTHS).requires_grad
    features = model.train().features(ragged(), LENGTHS)
    losses = train(model, ragged(), LENGTHS, TARGETS)
    assert losses and torch.equal(model.features(ragged(), LENGTHS), features)
    assert torch.equal(model.read(features), model(ragged(), LENGTHS))
    others = [adapted(m) for m in METHODS if m != "head"] + [adapted("head", BASES), adapted("head", pool="attention")]
    assert not any(other.fixed_features for other in others)


def test_a_class_of_every_nucleotide_sees_what_lies_before():
    model, batch = adapted("soft-prompt", BASES), tokens(1, 20)
    out = answers(model, batch, torch.tensor([20]))
    assert out.shape == (1, 20, 2)
    torch.testing.assert_close(answers(model, batch[:, :7], torch.tensor([7])), out[:, :7], rtol=0, atol=1e-5)


class TestLabelTokens:
    @pytest.mark.parametrize("method", ["full", "lora", "soft-prompt"])
    @pytest.mark.parametrize(("task", "chosen"), [(BINARY, [7, 11]), (THREE, [7, 9, 11])])
    def test_the_answer_is_the_language_models_after_the_last_base(self, method, task, chosen):
        model, batch = adapted(method, task, read_out="label-tokens"), ragged()
        assert model.head is None and not any(name.startswith(("head", "pool")) for name in model.learnt())
        with torch.no_grad():
            prefix = None if model.prompt is None else model.base.prefix(model.prompt.embeddings, 20)
            logits = model.base(batch, prefix=prefix).logits
        expected = torch.stack([logits[row, length - 1, chosen] for row, length in enumerate(LENGTHS)])
        torch.testing.assert_close(answers(model, batch, LENGTHS), expected, rtol=0, atol=1e-5)

    def test_a_prompt_alone_moves_it(self):
        model = adapted(read_out="label-tokens", dropout=0.0)
        losses = train(model, ragged(), LENGTHS, torch.ones_like(TARGETS), steps=20, lr=0.1)
        assert losses[-1] < losses[0] - 0.03
        assert set(model.learnt()) == {"prompt.embeddings"}

    def test_an_untied_head_answers_itself(self):
        base = small(tie_head=False)
        model = adapted(base=base, read_out="label-tokens")
        features = torch.randn(2, 16)
        assert torch.equal(model.read(features), F.linear(features, base.lm_head.weight[[7, 11]]))

    def test_not_for_a_regression(self):
        with pytest.raises(InputError, match="this task is regression with 1 outputs: take read_out head"):
            adapted(task=NUMBER, read_out="label-tokens")

    @pytest.mark.parametrize("fields", [{"method": "head"}, {"method": "soft-prompt", "prompt_length": 0}])
    def test_not_where_nothing_is_learnt(self, fields):
        with pytest.raises(UsageError, match="has nothing to learn: take read_out head"):
            Adaptation(read_out="label-tokens", **fields)


class TestAdaptation:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"lora_rank": 0}, "lora_rank is 0; allowed are 1 to 1,024"),
            ({"lora_alpha": -1.0}, "lora_alpha is -1.0; it must be more than 0"),
            ({"lora_projections": ("qkv",)}, "lora_projections is qkv; allowed are any of in_proj, out_proj, fc1, fc2"),
            ({"lora_projections": ()}, "lora_projections is empty"),
            ({"prompt_length": 32_769}, "prompt_length is 32,769; allowed are 0 to 32,768"),
            ({"dropout": 1.0}, "dropout is 1.0; allowed are 0 up to but not including 1"),
        ],
    )
    def test_values_that_are_refused(self, fields, message):
        with pytest.raises(UsageError, match=message):
            Adaptation(**fields)

    def test_the_seed_decides_what_is_new_and_disturbs_nothing(self):
        base = small()
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        models = [SequenceModel(base, BINARY, Adaptation(method="soft-prompt"), seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(torch.rand(3), expected)
        first, second, third = (model.learnt() for model in models)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["prompt.embeddings"], third["prompt.embeddings"])

    @pytest.mark.parametrize(("dtype", "own"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
    def test_what_is_new_follows_the_base_but_never_in_half_precision(self, dtype, own):
        model = adapted(base=small().to(dtype))
        assert {tensor.dtype for tensor in model.own_state().values()} == {own}
        assert answers(model, ragged(), LENGTHS).dtype == own
        model.train()(ragged(), LENGTHS).sum().backward()
        assert model.prompt.embeddings.grad.isfinite().all()


class TestWhatDoesNotFit:
    def test_prompt_sequence_and_two_more_fit_into_the_context(self):
        assert adapted("head").longest == 62 and adapted(prompt_length=6).longest == 56
        answers(adapted(), tokens(1, 56), torch.tensor([56]))
        with pytest.raises(SequenceTooLong, match="57 bases; this model takes up to 56 behind a prompt of 6: cut it"):
            adapted()(tokens(1, 57), torch.tensor([57]))
        with pytest.raises(SequenceTooLong, match="63 bases; this model takes up to 62: cut it"):
            adapted("full")(tokens(1, 63), torch.tensor([63]))

    def test_a_prompt_that_leaves_no_room(self):
        assert adapted(prompt_length=61).longest == 1
        with pytest.raises(UsageError, match="a prompt of 62 leaves no room for a sequence in a context of 64 tokens"):
            adapted(prompt_length=62)

    @pytest.mark.parametrize("lengths", [[0, 3], [3, 6], [3], [[3, 3]]])
    def test_lengths_that_are_not_the_batchs(self, lengths):
        with pytest.raises(InputError, match="lengths"):
            adapted()(tokens(2, 5), torch.tensor(lengths))


def test_a_base_is_shared_by_models_of_every_frozen_method():
    base = small()
    models = [adapted(method, base=base) for method in ("head", "lora", "soft-prompt", "lora")]
    before = [answers(model, ragged(), LENGTHS) for model in models]
    train(models[1], ragged(), LENGTHS, TARGETS)
    after = [answers(model, ragged(), LENGTHS) for model in models]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, True, True]
    weights = {id(tensor) for tensor in base.state_dict(keep_vars=True).values()}
    assert weights <= {id(p) for p in models[1].base.parameters()}
    assert base_state(models[1].base).keys() == base.state_dict().keys()
