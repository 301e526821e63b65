"""A soft prompt as a carried state is the prompt written before every sequence."""

import copy

import pytest
import torch
from adapting import LENGTHS, adapted, answers, ragged, small, tokens
from oracles import benchmark_module

from hyenadna.errors import SequenceTooLong, ShapeError, UsageError
from hyenadna.finetune.soft_prompt import SoftPrompt
from hyenadna.model.hyena import item_by_item


def embeddings(n, D=16, seed=0):
    prompt = torch.randn(n, D, generator=torch.Generator().manual_seed(n + seed), dtype=torch.float64)
    return prompt.requires_grad_()


def textbook(model):
    """The same weights in the model that is written down from the equations."""
    torch.set_default_dtype(torch.float64)
    try:
        written_out = benchmark_module("textbook").Textbook(model.config)
    finally:
        torch.set_default_dtype(torch.float32)
    written_out.load_state_dict(model.state_dict())
    return written_out.double().requires_grad_(False)


def concatenated(written_out, prompt, given):
    """The oracle: the prompt before every embedded sequence; hidden states of the sequences' positions."""
    backbone = written_out.backbone
    embedded = backbone.embeddings["word_embeddings"](given)
    x = torch.cat([prompt.expand(len(given), -1, -1), embedded], dim=1)
    for layer in backbone.layers:
        x = layer(x)
    return backbone.ln_f(x)[:, len(prompt) :]


@pytest.fixture(scope="module")
def frozen():
    return small().double().requires_grad_(False)


@pytest.mark.parametrize(("n", "L"), [(1, 1), (1, 33), (2, 2), (2, 33), (3, 1), (3, 61), (31, 3), (31, 33), (62, 2)])
def test_hidden_states_and_the_prompts_gradient_are_the_concatenations(frozen, n, L):
    given, prompt = tokens(3, L), embeddings(n)
    exact = concatenated(textbook(frozen), prompt, given)
    carried = frozen(given, prefix=frozen.prefix(prompt, L)).hidden
    torch.testing.assert_close(carried, exact, rtol=0, atol=1e-10)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((hidden * weights).sum(), prompt)[0] for hidden in (carried, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(
            frozen(given, prefix=frozen.prefix(prompt, L)).hidden, exact.detach(), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("taps", [1, 2, 5])
def test_other_short_filters(taps):
    model = small(short_filter_taps=taps).double().requires_grad_(False)
    given, written_out = tokens(2, 9), textbook(model)
    for n in (1, 3, 8):
        exact = concatenated(written_out, embeddings(n), given).detach()
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                ours = model(given, prefix=model.prefix(embeddings(n), 9)).hidden
            torch.testing.assert_close(ours.detach(), exact, rtol=0, atol=1e-10)


def test_gradcheck(frozen):
    given, prompt = tokens(2, 3), embeddings(2)
    assert torch.autograd.gradcheck(lambda p: frozen(given, prefix=frozen.prefix(p, 3)).hidden, prompt, fast_mode=True)


def test_gradients_reach_the_weights_through_the_prompt_too():
    model = small().double()
    given, prompt = tokens(2, 9), embeddings(5)
    model(given, prefix=model.prefix(prompt, 9)).hidden.square().sum().backward()
    written_out = textbook(model).requires_grad_(True)
    concatenated(written_out, embeddings(5), given).square().sum().backward()
    for name, parameter in written_out.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-9)


def test_with_activations_checkpointed_it_is_the_same(frozen):
    given, model = tokens(2, 9), copy.deepcopy(frozen)
    model.backbone.checkpoint_activations = True
    prompts = [embeddings(5), embeddings(5)]
    for each, prompt in zip((frozen, model), prompts, strict=True):
        each(given, prefix=each.prefix(prompt, 9)).hidden.square().sum().backward()
    torch.testing.assert_close(prompts[1].grad, prompts[0].grad)


def test_no_prompt_is_exactly_the_plain_model(frozen):
    given = tokens(2, 9)
    assert frozen.prefix(embeddings(0), 9) is None
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            none = item_by_item([None, frozen.prefix(embeddings(5), 9)], torch.zeros(2, dtype=torch.long), 9)
            assert torch.equal(frozen(given, prefix=none).hidden, frozen(given).hidden)


@pytest.mark.parametrize("L", [1, 50])
def test_a_state_serves_sequences_of_other_lengths(frozen, L):
    prompt, given = embeddings(5), tokens(2, 7)
    with torch.no_grad():
        other, exact = frozen.prefix(prompt, L), frozen(given, prefix=frozen.prefix(prompt, 7))
        torch.testing.assert_close(frozen(given, prefix=other).logits, exact.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grad", [True, False])
def test_each_item_its_own_prompt(frozen, grad):
    """A prompt that leaves room for 4 tokens beside one of 9: an item's own prompt decides how long it may be."""
    prompts, given = [embeddings(60), None, embeddings(4)], tokens(4, 9)
    which, own = torch.tensor([2, 0, 1, 2]), [9, 4, 9, 9]
    with torch.set_grad_enabled(grad):
        states = [frozen.prefix(prompts[0], 4), None, frozen.prefix(prompts[2], 20)]
        together = frozen(given, prefix=item_by_item(states, which, 9)).hidden
        for row, (number, length) in enumerate(zip(which.tolist(), own, strict=True)):
            alone = frozen(given[row : row + 1, :length], prefix=states[number]).hidden
            torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused(frozen):
    with pytest.raises(SequenceTooLong, match="a prefix of 60 before 5 tokens is 65; this model takes up to 64"):
        frozen.prefix(embeddings(60), 5)
    with pytest.raises(SequenceTooLong, match="62 tokens behind 3 are 65; this model takes up to 64"):
        frozen(tokens(1, 62), prefix=frozen.prefix(embeddings(3), 5))
    with pytest.raises(ShapeError, match=r"embeddings \(3, 8\) before 5 tokens; it takes \(n, 16\)"):
        frozen.prefix(embeddings(3, D=8), 5)
    with pytest.raises(ShapeError, match="before 0 tokens"):
        frozen.prefix(embeddings(3), 0)
    two = item_by_item([frozen.prefix(embeddings(3), 5)], torch.zeros(2, dtype=torch.long), 5)
    with pytest.raises(ShapeError, match="has 2 rows for 3 sequences"):
        frozen(tokens(3, 5), prefix=two)


class TestSoftPrompt:
    def test_it_is_normal_with_a_small_deviation(self):
        torch.manual_seed(0)
        prompt = SoftPrompt(200, 128).embeddings.detach()
        assert abs(prompt.std() / 0.02 - 1) < 0.02 and abs(prompt.mean()) < 5 * 0.02 / 160

    @pytest.mark.parametrize("L", [4, 6, 20])
    def test_it_can_begin_as_a_sequence(self, L):
        model, given = adapted(dropout=0.0), tokens(1, L)[0]
        model.initialise_from(given)
        expected = model.base.embedding.weight[given.repeat(2)[:6]]
        assert torch.equal(model.prompt.embeddings, expected)

    def test_a_prompt_that_is_a_sequence_acts_like_it(self):
        model, batch = adapted(dropout=0.0), tokens(3, 14)
        model.initialise_from(batch[0, :6])
        batch[:, :6] = batch[0, :6]
        with torch.no_grad():
            behind = model.hidden(batch[:, 6:], torch.tensor([8, 8, 8]))
            torch.testing.assert_close(behind, model.base(batch).hidden[:, 6:], rtol=0, atol=1e-5)

    def test_only_a_soft_prompt_can_begin_as_a_sequence(self):
        with pytest.raises(UsageError, match="method lora has no prompt"):
            adapted("lora").initialise_from(tokens(1, 4)[0])

    def test_dropout_acts_in_training_alone(self):
        model, batch = adapted(dropout=0.5), ragged()
        assert torch.equal(answers(model, batch, LENGTHS), answers(model, batch, LENGTHS))
        model.train()
        model.head.dropout.p = 0.0
        assert not torch.allclose(model(batch, LENGTHS), model(batch, LENGTHS))

    def test_the_state_is_made_once_and_again_when_something_changed(self, monkeypatch):
        model, made = adapted(), []
        original = type(model.base).prefix
        monkeypatch.setattr(type(model.base), "prefix", lambda *args: made.append(args[2]) or original(*args))
        for L in (9, 16, 3):
            answers(model, tokens(2, L), torch.tensor([L, L]))
        assert made == [16, 4]  # for up to a power of two
        before = answers(model, tokens(2, 9), torch.tensor([9, 9]))
        answers(model, tokens(2, 33), torch.tensor([33, 33]))
        assert made == [16, 4, 58]  # what the context leaves
        model.prompt.embeddings.data *= -1  # a constant would be lost in the norms
        assert not torch.allclose(answers(model, tokens(2, 9), torch.tensor([9, 9])), before)
        model.double()
        assert answers(model, tokens(2, 9), torch.tensor([9, 9])).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers(model.float(), tokens(2, 9), torch.tensor([9, 9]))
        assert len(made) == 6

    def test_a_copy_keeps_its_own_state(self):
        model, batch = adapted(), ragged()
        first = answers(model, batch, LENGTHS)
        other = copy.deepcopy(model)
        other.prompt.embeddings.data.zero_()
        assert not torch.allclose(answers(other, batch, LENGTHS), first)
        assert torch.equal(answers(model, batch, LENGTHS), first)
