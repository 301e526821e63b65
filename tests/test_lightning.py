"""The Lightning mixer: the published block written out, pieces and states, and the families of slopes."""

import copy
import io

import pytest
import torch
from oracles import relative_error

from hyenadna.kernels.lightning_attention import lightning_attention_reference
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.lightning import LightningMixer, LightningState, _pieces, slopes

D, H = 24, 3


def make(dtype=torch.float64):
    torch.manual_seed(0)
    mixer = LightningMixer(D, heads=H, decay=slopes("context", H, layer=0, n_layer=2, context=100))
    torch.nn.init.normal_(mixer.in_proj.weight)
    torch.nn.init.uniform_(mixer.norm.weight, 0.5, 2.0)
    return mixer.to(dtype)


def signal(B, L, dtype=torch.float64):
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(100 * B + L), dtype=torch.float64).to(dtype)


def published(mixer, x, kv=None):
    """The published block, from its formulas and the masked form of attention; also what follows from kv."""
    B, L, _ = x.shape
    parts = torch.nn.functional.linear(x, mixer.in_proj.weight, mixer.in_proj.bias).chunk(4, dim=-1)
    q, k, v = ((part * torch.sigmoid(part)).view(B, L, H, D // H).transpose(1, 2) for part in parts[:3])
    o, kv = lightning_attention_reference(q, k, v, mixer._slopes, kv)
    o = torch.cat([o[:, head] for head in range(H)], dim=-1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    return (o * torch.sigmoid(parts[3])) @ mixer.out_proj.weight.T + mixer.out_proj.bias, kv


def without_gradients(mixer, x, state=None):
    with torch.no_grad():
        return mixer(x, state)


@pytest.mark.parametrize("L", [1, 2, 65, 130])
def test_both_paths_are_the_published_block(L):
    mixer, x = make(), signal(2, L)
    exact, _ = published(mixer, x)
    for found in (mixer(x), without_gradients(mixer, x)):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("state_rows", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 49, 50, 51, 120, 1000])
def test_some_positions_at_a_time_are_the_whole(rows, state_rows):
    mixer, x = make(), signal(3, 50)
    state = LightningState(torch.randn(state_rows, H, D // H, D // H).double()) if state_rows else None
    with torch.no_grad():
        mixed = mixer.mix(x.flatten(0, 1).split(rows), 3, 50, state=state)
        exact, _ = published(mixer, x, None if state is None else state.kv)
    assert mixed.shape == (D, 150)
    torch.testing.assert_close(mixer.out_proj(mixed.T).view_as(x), exact, rtol=0, atol=1e-12)


def test_pieces_are_parts_of_one_item_or_whole_items():
    assert list(_pieces(0, 7, 7)) == [(0, 1, slice(0, 7))]
    assert list(_pieces(0, 25, 10)) == [(0, 2, slice(0, 20)), (2, 1, slice(20, 25))]
    assert list(_pieces(25, 33, 10)) == [(2, 1, slice(0, 5)), (3, 2, slice(5, 25)), (5, 1, slice(25, 33))]
    assert list(_pieces(12, 3, 10)) == [(1, 1, slice(0, 3))]


@pytest.mark.parametrize("pieces", [(50,), (1,) * 50, (20, 1, 1, 28), (3, 47)])
def test_extended_piece_by_piece_is_the_whole(pieces):
    mixer, x = make(), signal(2, 50)
    exact, last = published(mixer, x)
    state, mixed = None, []
    for piece in x.split(pieces, dim=1):
        y, state = mixer.extend(piece, state, ahead=9)
        mixed.append(y)
    torch.testing.assert_close(mixer.out_proj(torch.cat(mixed, dim=1)), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.kv, last, rtol=0, atol=1e-12)


def test_gradients_reach_through_a_state():
    mixer, x = make(), signal(2, 50).requires_grad_()
    whole = torch.autograd.grad(mixer(x).square().sum(), [x, *mixer.parameters()])
    first, state = mixer.extend(x[:, :20], None)
    rest = mixer(x[:, 20:], state)
    pieces = mixer.out_proj(first).square().sum() + rest.square().sum()
    for found, exact in zip(torch.autograd.grad(pieces, [x, *mixer.parameters()]), whole, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_causality_by_the_bit():
    mixer, x = make(torch.float32), signal(2, 80, torch.float32)
    for run in (mixer, lambda x: without_gradients(mixer, x)):
        before, later = run(x), x.clone()
        later[:, 33:] += 1
        after = run(later)
        assert torch.equal(after[:, :33], before[:, :33]) and not torch.equal(after[:, 33:], before[:, 33:])


def test_a_state_is_one_matrix_a_head_that_branches():
    mixer = make(torch.float32)
    _, state = mixer.extend(signal(2, 7, torch.float32), None)
    _, longer = mixer.extend(signal(2, 7, torch.float32), state)
    assert state.kv.shape == (2, H, D // H, D // H) and state.rows == 2
    assert state.nbytes == longer.nbytes == 4 * state.kv.numel()
    assert not torch.equal(longer.kv, state.kv)
    assert torch.equal(state.repeat(2).kv, state.kv[[0, 0, 1, 1]])
    assert torch.equal(state.select(torch.tensor([1, 1, 0])).kv, state.kv[[1, 1, 0]])
    branch = state.repeat(1)
    branch.kv.zero_()
    assert bool(state.kv.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    mixer, x = make(dtype), signal(2, 200, dtype)
    with torch.no_grad():
        exact, _ = published(copy.deepcopy(mixer).double(), x.double())
    for found in (mixer(x), without_gradients(mixer, x)):
        assert found.dtype == dtype
        assert relative_error(found, exact) < 8 * torch.finfo(dtype).eps
    _, state = mixer.extend(x, None)
    assert state.kv.dtype == torch.float32


def test_sums_beyond_float16_stay_finite():
    """65,504 is the largest number of float16; here a head that never forgets sums to 400,000."""
    mixer = LightningMixer(2, heads=1, decay=torch.zeros(1)).half()
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.in_proj.bias.fill_(10.0)
        y, state = mixer.extend(torch.zeros(1, 200, 2).half(), None)
    assert float(state.kv.max()) > 19_000 and bool(torch.isfinite(y).all())
    torch.testing.assert_close(y, torch.ones_like(y), rtol=1e-3, atol=0)


def test_autocast_on_a_cpu():
    mixer, x = make(torch.float32), signal(2, 70, torch.float32)
    exact = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        for found in (mixer(x), without_gradients(mixer, x)):
            assert found.dtype == torch.bfloat16 and relative_error(found, exact.double()) < 0.05


def test_slopes_are_no_weights_and_survive_casts_copies_and_models_without_memory():
    mixer = make()
    assert set(mixer.state_dict()) == {
        "in_proj.weight", "in_proj.bias", "norm.weight", "out_proj.weight", "out_proj.bias",
    }  # fmt: skip
    assert not list(mixer.buffers())
    exact, memory = mixer(signal(1, 50)), io.BytesIO()
    torch.save(mixer, memory)
    memory.seek(0)
    with torch.device("meta"):
        empty = HyenaDNA(HyenaConfig(d_model=D, heads=H, d_inner=8, layers="L", filter_length=100))
    mixer.bfloat16()
    mixer(signal(1, 50, torch.bfloat16))
    for other in (copy.deepcopy(mixer), torch.load(memory, weights_only=False)):
        torch.testing.assert_close(other._slopes, slopes("context", H, layer=0, n_layer=2, context=100))
    assert torch.equal(empty.backbone.layers[0].mixer._slopes, slopes("context", H, layer=0, n_layer=1, context=100))
    torch.testing.assert_close(torch.load(io.BytesIO(memory.getvalue()), weights_only=False)(signal(1, 50)), exact)


def test_slopes_of_the_published_family():
    first = slopes("alibi", 8, layer=0, n_layer=4, context=1000)
    halves = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625], dtype=torch.float64)
    torch.testing.assert_close(first, halves * (1 + 1e-5), rtol=1e-15, atol=0)
    torch.testing.assert_close(slopes("alibi", 8, layer=1, n_layer=4, context=7), halves * (2 / 3 + 1e-5))
    torch.testing.assert_close(slopes("alibi", 8, layer=3, n_layer=4, context=7), halves * 1e-5)
    torch.testing.assert_close(slopes("alibi", 8, layer=0, n_layer=1, context=7), first)
    six = slopes("alibi", 6, layer=0, n_layer=4, context=7) / (1 + 1e-5)
    torch.testing.assert_close(six, torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8], dtype=torch.float64))


def test_slopes_of_flash_linear_attention():
    first = slopes("linear", 8, layer=0, n_layer=4, context=1000)
    assert first.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert slopes("linear", 4, layer=3, n_layer=4, context=1000).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("heads", [2, 3, 4, 8])
def test_slopes_from_two_bases_to_the_whole_context(heads):
    lengths = 1 / slopes("context", heads, layer=0, n_layer=4, context=1_000_002)
    assert lengths[0] == 2 and float(lengths[-1]) == pytest.approx(1_000_002)
    steps = lengths[1:] / lengths[:-1]
    torch.testing.assert_close(steps, steps[:1].expand(heads - 1))
    assert torch.equal(slopes("context", heads, layer=3, n_layer=4, context=1_000_002), 1 / lengths)


def test_slopes_of_one_head_and_of_a_context_of_one_token():
    assert slopes("context", 1, layer=0, n_layer=1, context=500).tolist() == [1 / 500]
    assert slopes("context", 3, layer=0, n_layer=1, context=1).tolist() == [0.5] * 3
    for family in ("context", "alibi", "linear"):
        found = slopes(family, 1, layer=0, n_layer=1, context=1)
        assert found.shape == (1,) and bool((found >= 0).all() and torch.isfinite(found).all())
