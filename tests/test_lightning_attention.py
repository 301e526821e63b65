"""Lightning attention: its forms against each other in float64, value and every gradient, and states that go on."""

import math

import pytest
import torch
from oracles import assert_as_exact_as, relative_error

from hyenadna.errors import ShapeError
from hyenadna.kernels import lightning_attention as module
from hyenadna.kernels.lightning_attention import (
    lightning_attention,
    lightning_attention_extend,
    lightning_attention_recurrent,
    lightning_attention_reference,
)

SLOPES = torch.tensor([0.0, 1e-6, 0.01, 0.5, 40.0, 1e6], dtype=torch.float64)
LENGTHS = (1, 2, 63, 64, 65, 127, 257)


def operands(L, *, B=2, K=3, V=5, slopes=SLOPES, dtype=torch.float64):
    """q, k (B, H, L, K), v (B, H, L, V), a state (B, H, K, V) in float64 or float32, and gradients of the results."""
    random = torch.Generator().manual_seed(1000 * L + 10 * K + V)
    H = len(slopes)
    q, k, v, grad_o = (torch.randn(B, L, H, n, generator=random, dtype=torch.float64) for n in (K, K, V, V))
    state, grad_state = (torch.randn(B, H, K, V, generator=random, dtype=torch.float64) for _ in range(2))
    of_state = torch.float64 if dtype == torch.float64 else torch.float32
    given = [*(x.transpose(1, 2).to(dtype) for x in (q, k, v)), state.to(of_state)]
    return given, [grad_o.transpose(1, 2).to(dtype), grad_state.to(of_state)]


def direct(q, k, v, slopes, state):
    """Float64, from the sum over all earlier positions of one position and head after the other."""
    B, H, L, _ = q.shape
    o, last = torch.zeros_like(v), torch.zeros_like(state)
    for b in range(B):
        for h in range(H):
            s = float(slopes[h])
            for t in range(L):
                seen = math.exp(-s * (t + 1)) * state[b, h]
                seen = seen + sum(math.exp(-s * (t - i)) * torch.outer(k[b, h, i], v[b, h, i]) for i in range(t + 1))
                o[b, h, t] = q[b, h, t] @ seen
            last[b, h] = seen
    return o, last


def value_and_gradients(function, given, slopes, grads):
    leaves = [x.detach().requires_grad_() for x in given]
    results = function(*leaves[:3], slopes, leaves[3])
    grads = [grad.to(result.dtype) for grad, result in zip(grads, results, strict=True)]
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads)]


def assert_close(found, exact, tolerance):
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape and float((one - other).abs().max()) < tolerance


@pytest.mark.parametrize(
    "form", [lightning_attention_reference, lightning_attention_recurrent, lightning_attention_extend]
)
def test_every_form_is_the_direct_sum(form, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    given, _ = operands(11, B=1)
    assert_close(form(*given[:3], SLOPES, given[3]), direct(*given[:3], SLOPES, given[3]), 1e-12)


@pytest.mark.parametrize("L", LENGTHS)
def test_blocks_are_the_parallel_and_the_recurrent_form(L):
    given, grads = operands(L)
    ours = value_and_gradients(lightning_attention_extend, given, SLOPES, grads)
    assert_close(ours, value_and_gradients(lightning_attention_reference, given, SLOPES, grads), 1e-10)
    assert_close(ours[:2], lightning_attention_recurrent(*given[:3], SLOPES, given[3]), 1e-10)
    from_nothing = lightning_attention_extend(*given[:3], SLOPES)
    assert_close(from_nothing, lightning_attention_reference(*given[:3], SLOPES), 1e-10)
    assert torch.equal(lightning_attention(*given[:3], SLOPES), from_nothing[0])


@pytest.mark.parametrize("L", [1, 4, 6])
def test_gradcheck_also_of_the_second_derivative(L, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    slopes = SLOPES[[0, 3]]
    leaves = [x.requires_grad_() for x in operands(L, B=1, K=1, V=2, slopes=slopes)[0]]

    def function(q, k, v, state):
        return lightning_attention_extend(q, k, v, slopes, state)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    if L == 6:
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_only_the_gradients_that_are_asked_for_and_only_operands_saved():
    given, grads = operands(65)
    whole = value_and_gradients(lightning_attention_extend, given, SLOPES, grads)[2:]
    saved = []
    for number in range(4):
        leaves = [x.clone().requires_grad_(index == number) for index, x in enumerate(given)]
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            results = lightning_attention_extend(*leaves[:3], SLOPES, leaves[3])
        torch.autograd.backward(results, grads)
        assert [leaf.grad is not None for leaf in leaves] == [index == number for index in range(4)]
        assert torch.equal(leaves[number].grad, whole[number])
        assert sorted(saved) == sorted([*(x.numel() for x in given), len(SLOPES)])


@pytest.mark.parametrize("n", [1, 40, 64, 130])
def test_prefill_and_one_token_steps_are_the_whole(n):
    given, _ = operands(140)
    q, k, v, state = given
    whole, last = lightning_attention_extend(q, k, v, SLOPES, state)
    o, state = lightning_attention_extend(*(x[:, :, :n] for x in (q, k, v)), SLOPES, state)
    parts = [o]
    for t in range(n, 140):
        o, state = lightning_attention_extend(*(x[:, :, t : t + 1] for x in (q, k, v)), SLOPES, state)
        parts.append(o)
    assert_close((torch.cat(parts, dim=2), state), (whole, last), 1e-10)


def test_streaming_64k_in_pieces_is_the_whole():
    L = 1 << 16
    slopes = torch.tensor([0.0, 1 / L])
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, L, 4, generator=random) for _ in range(3))
    whole, last = lightning_attention_extend(q, k, v, slopes)
    state, parts = None, []
    for piece in zip(*(x.split(4096 + 7, dim=2) for x in (q, k, v)), strict=True):
        o, state = lightning_attention_extend(*piece, slopes, state)
        parts.append(o)
    # each sums up to 65,536 products in an order of its own
    assert relative_error(torch.cat(parts, dim=2), whole.double()) < 2e-5
    assert relative_error(state, last.double()) < 2e-5


def test_one_state_before_all_items():
    (q, k, v, state), grads = operands(70)
    shared = state[:1].clone().requires_grad_()
    results = lightning_attention_extend(q, k, v, SLOPES, shared)
    repeated = state[:1].repeat(2, 1, 1, 1).requires_grad_()
    each = lightning_attention_extend(q, k, v, SLOPES, repeated)
    assert_close([x.detach() for x in results], [x.detach() for x in each], 1e-12)
    (found,) = torch.autograd.grad(results, shared, grads)
    (exact,) = torch.autograd.grad(each, repeated, grads)
    assert_close([found], [exact.sum(0, keepdim=True)], 1e-10)


def test_future_input_does_not_reach_the_past_by_a_single_bit():
    given, _ = operands(200, dtype=torch.float32)
    slopes = SLOPES.float()
    before = lightning_attention(*given[:3], slopes, given[3])
    for t in (1, 30, 64, 130, 199):
        later = [x.clone() for x in given[:3]]
        for x in later:
            x[:, :, t:] += 1
        after = lightning_attention(*later, slopes, given[3])
        assert torch.equal(after[:, :, :t], before[:, :, :t]) and not torch.equal(after[:, :, t:], before[:, :, t:])


def test_padding_on_the_right_does_not_reach_the_sequence():
    given, _ = operands(65, dtype=torch.float32)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 35)) for x in given[:3]]
    short, long = (lightning_attention(*x, SLOPES.float()) for x in (given[:3], padded))
    torch.testing.assert_close(long[:, :, :65], short, rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_items_and_groups_of_them_the_whole(monkeypatch):
    given, grads = operands(70, B=3)
    whole = value_and_gradients(lightning_attention_extend, given, SLOPES, grads)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 1)
    assert_close(value_and_gradients(lightning_attention_extend, given, SLOPES, grads), whole, 1e-12)
    for b in range(3):
        alone = lightning_attention_extend(*(x[b : b + 1] for x in given[:3]), SLOPES, given[3][b : b + 1])
        assert_close(alone, [x[b : b + 1] for x in whole[:2]], 1e-12)


@pytest.mark.parametrize("L", LENGTHS)
def test_float32_is_as_exact_as_the_plain_computation(L):
    slopes = SLOPES[1:].float()
    given, grads = operands(L, slopes=slopes, dtype=torch.float32)
    exact = value_and_gradients(
        lightning_attention_reference, [x.double() for x in given], slopes, [x.double() for x in grads]
    )
    plain = value_and_gradients(lightning_attention_reference, given, slopes, grads)
    for ours, eager, right in zip(
        value_and_gradients(lightning_attention_extend, given, slopes, grads), plain, exact, strict=True
    ):
        assert ours.dtype == torch.float32
        assert_as_exact_as(ours, eager, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("L", [1, 257])
def test_half_precision_is_computed_in_float32_and_rounded_once(L, dtype):
    slopes = SLOPES[:5].float()
    given, grads = operands(L, slopes=slopes, dtype=dtype)
    exact = value_and_gradients(
        lightning_attention_reference, [x.double() for x in given], slopes, [x.double() for x in grads]
    )
    found = value_and_gradients(lightning_attention_extend, given, slopes, grads)
    half = (True, False, True, True, True, False)  # but for the states
    for ours, right, rounded in zip(found, exact, half, strict=True):
        assert ours.dtype == (dtype if rounded else torch.float32)
        allowed = torch.finfo(dtype).eps / 2 if rounded else 0
        assert relative_error(ours, right) <= allowed + 2**-18
        assert float((ours.double() - right).square().mean().sqrt() / right.square().mean().sqrt()) < 0.005


def test_autocast_leaves_the_sums_alone():
    given, _ = operands(65, dtype=torch.float32)
    plain = lightning_attention_extend(*given[:3], SLOPES, given[3])
    step = lightning_attention_extend(*(x[:, :, :1] for x in given[:3]), SLOPES, given[3])
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(lightning_attention_extend(*given[:3], SLOPES, given[3]), plain, 1e-12)
        assert_close(lightning_attention_extend(*(x[:, :, :1] for x in given[:3]), SLOPES, given[3]), step, 1e-12)


def test_a_given_state_is_not_changed():
    (q, k, v, state), _ = operands(70)
    copy = state.clone()
    for L in (1, 70):
        lightning_attention_extend(q[:, :, :L], k[:, :, :L], v[:, :, :L], SLOPES, state)
    assert torch.equal(state, copy)


@pytest.mark.parametrize(
    ("q", "k", "v", "slopes", "state", "message"),
    [
        ((2, 6, 3), (2, 6, 3), (2, 6, 3), (2,), None, r"q \(2, 6, 3\).*takes q and k \(B, H, L, K\)"),
        ((1, 2, 6, 3), (1, 2, 6, 4), (1, 2, 6, 3), (2,), None, r"k \(1, 2, 6, 4\).*none of them empty"),
        ((1, 2, 6, 3), (1, 2, 6, 3), (1, 2, 5, 3), (2,), None, r"v \(1, 2, 5, 3\)"),
        ((1, 2, 6, 3), (1, 2, 6, 3), (1, 2, 6, 4), (3,), None, r"slopes \(3,\); it takes .* slopes \(H,\)"),
        ((1, 2, 0, 3), (1, 2, 0, 3), (1, 2, 0, 4), (2,), None, "none of them empty"),
        ((3, 2, 6, 3), (3, 2, 6, 3), (3, 2, 6, 4), (2,), (3, 2, 3, 3), r"the state must be \(3 or 1, 2, 3, 4\)"),
        ((3, 2, 6, 3), (3, 2, 6, 3), (3, 2, 6, 4), (2,), (2, 2, 3, 4), r"state \(2, 2, 3, 4\); the state must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q, k, v, slopes, state, message):
    state = None if state is None else torch.zeros(state)
    with pytest.raises(ShapeError, match=message):
        lightning_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v), torch.zeros(slopes), state)


def test_other_dtypes_and_devices_are_refused():
    (q, k, v, _), _ = operands(3)
    for wrong in ((q.long(), k.long(), v.long()), (q, k.float(), v)):
        with pytest.raises(ShapeError, match="it takes one floating dtype for all"):
            lightning_attention(*wrong, SLOPES)
    with pytest.raises(ShapeError, match="slopes on meta; they must agree"):
        lightning_attention(q, k, v, SLOPES.to("meta"))
