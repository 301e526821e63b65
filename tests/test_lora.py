"""Low-rank updates: none at first, exact once merged, and never in the base."""

import copy

import pytest
import torch
import torch.nn.functional as F
from adapting import LENGTHS, adapted, copy_of, ragged, small, tokens

from hyenadna.finetune.adaptation import PROJECTIONS
from hyenadna.finetune.lora import attach, base_state, held, merged, updates


def with_updates(base, projections=PROJECTIONS, random=True):
    torch.manual_seed(1)
    model = attach(base, rank=3, alpha=6.0, projections=projections)
    if random:
        for update in updates(model).values():
            update.B.data.normal_()
    return model


def hidden(model, given):
    with torch.no_grad():
        return model(given).hidden


def test_a_new_update_changes_nothing():
    base, given = small(), tokens(2, 9)
    model = with_updates(base, random=False)
    assert torch.equal(hidden(model, given), hidden(base, given))
    assert torch.equal(model(given).hidden, base(given).hidden)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_an_update_is_w_plus_scaled_ba_in_every_block(projection):
    base, given = small().double(), tokens(2, 9)
    model = with_updates(base, (projection,))
    expected = copy.deepcopy(base)
    assert len(updates(model)) == base.config.n_layer
    for name, update in updates(model).items():
        assert name.endswith(projection)
        expected.get_submodule(name).weight.data += 6.0 / 3 * update.B.data @ update.A.data
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(given).hidden, expected(given).hidden, rtol=0, atol=1e-12)
    assert not torch.allclose(hidden(model, given), hidden(base, given))


def test_the_size_is_the_ranks():
    for update in updates(with_updates(small())).values():
        assert update.A.shape[0] == update.B.shape[1] == 3
    wide = attach(small(d_model=128, d_inner=256), rank=4, alpha=1.0, projections=("fc2",))
    for update in updates(wide).values():
        assert abs(update.A.detach().std() * 16 - 1) < 0.15 and not update.B.any()  # N(0, 1 / inputs)


def test_merged_is_unmerged():
    base = small()
    model, given = with_updates(base), tokens(3, 30)
    plain = merged(model)
    assert plain.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(hidden(plain, given), hidden(model, given), rtol=0, atol=1e-5)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}
    # the one that it was made from still learns
    model(given).hidden.sum().backward()
    assert all(update.B.grad is not None for update in updates(model).values())
    assert torch.equal(hidden(plain, given), hidden(plain, given))


def test_a_merged_model_is_saved_like_any_other(tmp_path):
    plain = merged(with_updates(small()))
    plain.save_pretrained(tmp_path / "merged")
    loaded = type(plain).from_pretrained(tmp_path / "merged")
    assert torch.equal(hidden(loaded, tokens(1, 9)), hidden(plain, tokens(1, 9)))


def test_gradients_are_those_of_the_product_in_float64():
    """Of A and B, from the gradient for the whole weight: dA = s B^T dW, dB = s dW A^T."""
    base, given = small().double(), tokens(2, 9)
    model = with_updates(base)
    expected = merged(model).requires_grad_(True)
    for each in (model, expected):
        F.cross_entropy(each(given).logits.flatten(0, 1), given.flatten()).backward()
    for name, update in updates(model).items():
        whole = expected.get_submodule(name).weight.grad
        torch.testing.assert_close(update.A.grad, 2 * update.B.T @ whole, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(update.B.grad, 2 * whole @ update.A.T, rtol=1e-9, atol=1e-12)


def test_activation_checkpointing_changes_no_gradient():
    model, batch = adapted("lora", lora_projections=PROJECTIONS), ragged()
    checkpointed = copy.deepcopy(model)
    checkpointed.base.backbone.checkpoint_activations = True
    for each in (model, checkpointed):
        each(batch, LENGTHS).square().sum().backward()
    for name, parameter in model.learnt().items():
        torch.testing.assert_close(checkpointed.learnt()[name].grad, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_base_is_shared_and_stays_as_it_was():
    base, given = small(), tokens(2, 9)
    before, plain = copy_of(base.state_dict()), hidden(base, given)
    first, second = with_updates(base), with_updates(base, ("fc1",))
    assert base_state(first).keys() == before.keys()
    for name, tensor in base_state(first).items():
        assert tensor.data_ptr() == base.state_dict()[name].data_ptr()
    alone = hidden(second, given)
    hidden(first, given)
    assert torch.equal(hidden(base, given), plain) and torch.equal(hidden(second, given), alone)
    assert list(base.state_dict()) == list(before)
    assert first.backbone.layers[0].mixer.filter_fn is base.backbone.layers[0].mixer.filter_fn
    assert first.backbone.layers[0].mixer.spectra is base.backbone.layers[0].mixer.spectra


def test_all_that_share_a_base_move_with_it():
    base = small()
    first, second = with_updates(base), with_updates(base)
    first.double()
    assert base.embedding.weight.dtype == torch.float64
    second.double()
    assert hidden(second, tokens(1, 5)).dtype == torch.float64


def test_copies_have_updates_of_their_own():
    model, given = with_updates(small()), tokens(2, 9)
    before = hidden(model, given)
    other = copy.deepcopy(model)
    for update in updates(other).values():
        update.B.data.zero_()
    with held(model), held(other):
        assert torch.equal(hidden(model, given), before)
        assert not torch.allclose(hidden(other, given), before)


def test_held_weights_are_computed_once_and_let_go(monkeypatch):
    model, given, computed = with_updates(small(filter_length=3001)), tokens(1, 3001), []
    original = torch.addmm
    before = hidden(model, given)
    monkeypatch.setattr("hyenadna.finetune.lora.torch.addmm", lambda *a, **k: computed.append(k) or original(*a, **k))
    with held(model):
        assert torch.equal(hidden(model, given), before)  # of three blocks of rows
    assert sum("alpha" in options for options in computed) == len(updates(model)) == 8
    for update in updates(model).values():
        assert update.held is None
        update.B.data.zero_()
    assert not torch.allclose(hidden(model, given), before)
