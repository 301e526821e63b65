"""A Hyena operator, and a model of them, that go on from a state: pieces are the whole, branches are their own."""

import pytest
import torch
from oracles import relative_error

from hyenadna.errors import UsageError
from hyenadna.model.config import HyenaConfig, Quantization
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.hyena import HyenaOperator, item_by_item
from hyenadna.model.language_model import HyenaDNA

T, D = 700, 6


def make(length=T, d_model=D, taps=3):
    torch.manual_seed(0)
    long_filter = HyenaFilter(d_model, length=length, width=8, emb_dim=5, sine_frequency=10.0, shift=0.05)
    return HyenaOperator(d_model, long_filter, short_filter_taps=taps).eval()


def signal(L, B=2, d_model=D):
    return torch.randn(B, L, d_model, generator=torch.Generator().manual_seed(L), dtype=torch.float64)


def run(operator, x, pieces, state=None, ahead=None):
    """What the operator gives in pieces of these lengths, and the state behind them."""
    y, first = [], 0
    for m in pieces:
        known = 0 if ahead is None else ahead - first - m
        mixed, state = operator.extend(x[:, first : first + m], state, ahead=known)
        y.append(operator.out_proj(mixed))
        first += m
    return torch.cat(y, dim=1), state


PIECES = {
    "steps": [1] * 330,
    "whole": [330],
    "prompt and steps": [100] + [1] * 230,
    "pieces": [1, 2, 3, 64, 65, 1, 128, 66],
    "both": [40, 1, 1, 1, 200, 1, 1, 31, 33, 21],
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_pieces_are_the_whole(pieces, known, grad):
    if grad and len(pieces) > 100:
        pieces = [*pieces[:60], sum(pieces[60:])]
    operator, x = make().double(), signal(330)
    with torch.set_grad_enabled(grad):
        y, state = run(operator, x, pieces, ahead=330 if known else None)
    assert relative_error(y, operator(x).detach()) < 1e-12
    assert state.rows == 2 and state.conv.length == 330


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_short_filters_of_any_length(taps):
    operator, x = make(taps=taps).double(), signal(60)
    with torch.no_grad():
        for pieces in ([1] * 60, [2, 1, 1, 3, 33, 20]):
            y, state = run(operator, x, pieces)
            assert relative_error(y, operator(x)) < 1e-12
            assert state.tail.shape == (3, 2, D, taps - 1)


def test_to_the_last_tap():
    operator, x = make(length=131).double(), signal(131)
    with torch.no_grad():
        for pieces in ([1] * 131, [64, 67], [130, 1]):
            y, _ = run(operator, x, pieces, ahead=1000)
            assert relative_error(y, operator(x)) < 1e-12


@torch.no_grad()
def test_with_and_without_gradients_in_turns():
    operator, x = make().double(), signal(300)
    y, state = run(operator, x[:, :100], [50] + [1] * 50)
    with torch.enable_grad():
        later, state = run(operator, x[:, 100:150], [1, 49], state)
    last, state = run(operator, x[:, 150:], [1] * 150, state)
    assert relative_error(torch.cat([y, later, last], dim=1), operator(x)) < 1e-12


def test_gradients_of_pieces_are_those_of_the_whole():
    operator, x = make().double(), signal(40).requires_grad_()
    weights = [x, *operator.parameters()]
    whole = torch.autograd.grad(operator(x).square().sum(), weights)
    for pieces in ([10, 1, 29], [40]):
        parts = torch.autograd.grad(run(operator, x, pieces, ahead=40)[0].square().sum(), weights)
        for part, of_whole in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, of_whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 5, 70])
@torch.no_grad()
def test_forward_behind_any_state_leaves_it_as_it_is(steps):
    operator, x = make().double(), signal(300)
    whole = operator(x)[:, 100 + steps :]
    _, state = run(operator, x[:, : 100 + steps], [100] + [1] * steps)
    for _ in range(2):
        assert relative_error(operator(x[:, 100 + steps :], state), whole) < 1e-12
        with torch.enable_grad():
            assert relative_error(operator(x[:, 100 + steps :], state), whole) < 1e-12
    assert relative_error(run(operator, x[:, 100 + steps :], [1] * (200 - steps), state)[0], whole) < 1e-12


@torch.no_grad()
def test_what_is_carried_is_made_with_the_prompt():
    operator, x = make().double(), signal(300, B=1)
    asked = []
    of = operator.spectra.of
    operator.spectra.of = lambda long_filter, transform: asked.append(transform) or of(long_filter, transform)
    _, state = run(operator, x[:, :100], [100], ahead=130)
    assert state.conv.carried.shape == (1, D, 30) and len(asked) == 1
    run(operator, x[:, 100:130], [1] * 30, state, ahead=30)
    assert len(asked) == 1


class TestBranches:
    @torch.no_grad()
    def test_rows_repeat_and_go_their_own_ways(self):
        operator, x = make().double(), signal(300, B=6)
        for shared in (100, 140):
            x[:, :shared] = x[::3, :shared].repeat_interleave(3, 0)
            _, state = run(operator, x[::3, :shared], [100] + [1] * (shared - 100))
            branch, twin = state.repeat(3), state.repeat(1)
            y, branch = run(operator, x[:, shared:], [1, 20] + [1] * (279 - shared), branch)
            assert branch.rows == 6
            assert relative_error(y, operator(x)[:, shared:]) < 1e-12
            for one in (twin, state):
                y, _ = run(operator, x[::3, shared:], [1] * (300 - shared), one)
                assert relative_error(y, operator(x)[::3, shared:]) < 1e-12

    @torch.no_grad()
    def test_selected_rows(self):
        operator, x = make().double(), signal(300, B=3)
        _, state = run(operator, x[:, :150], [100] + [1] * 50)
        rows = torch.tensor([2, 0, 2])
        y, _ = run(operator, x[rows, 150:], [1] * 150, state.select(rows))
        assert relative_error(y, operator(x[rows])[:, 150:]) < 1e-12

    @torch.no_grad()
    def test_a_shared_past_takes_the_memory_of_one_row(self):
        operator, x = make(), signal(200, B=1).float()
        _, state = run(operator, x, [200], ahead=210)
        wide = state.repeat(50)
        assert wide.conv.past[0] is state.conv.past[0] and wide.conv.carried is state.conv.carried
        assert wide.nbytes == state.nbytes + 49 * state.tail.nbytes

    @torch.no_grad()
    def test_states_that_were_joined_item_by_item_end(self):
        model = small(torch.float64)
        joined = item_by_item([model.prefix(torch.randn(3, 16).double(), 5)], torch.zeros(2, dtype=torch.long), 5)
        with pytest.raises(UsageError, match="joined item by item cannot be extended"):
            model.extend(torch.full((2, 1), 7), joined)


def small(dtype=torch.float32, length=400, quantization=None):
    torch.manual_seed(1)
    config = HyenaConfig(d_model=16, d_inner=32, layers="HHH", filter_length=length, filter_order=16)
    model = HyenaDNA(config, quantization).eval()
    for parameter in model.parameters():  # so that the logits are of order one
        if parameter.dim() > 1:
            parameter.data *= 3
    return model.to(dtype)


def tokens_of(L, B=2):
    return torch.randint(7, 11, (B, L), generator=torch.Generator().manual_seed(L))


def logits_in(model, tokens, pieces, state=None):
    y, first = [], 0
    for m in pieces:
        logits, state = model.extend(tokens[:, first : first + m], state)
        y.append(logits)
        first += m
    return torch.cat(y, dim=1)


@torch.no_grad()
def test_the_model_one_token_at_a_time():
    tokens = tokens_of(200)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = small(dtype)
        whole = model(tokens).logits
        for pieces in ([1] * 200, [100] + [1] * 70 + [30]):
            assert relative_error(logits_in(model, tokens, pieces), whole.double()) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_rounds_where_the_whole_does(dtype):
    tokens = tokens_of(150)
    exact = small(torch.float64)(tokens).logits
    model = small(dtype)
    allowed = 2 * relative_error(model(tokens).logits, exact) + 4 * torch.finfo(dtype).eps
    assert relative_error(logits_in(model, tokens, [100] + [1] * 50), exact) <= allowed


@torch.no_grad()
def test_packed_projections():
    model = small(quantization=Quantization(bits=4, group=16))
    for layer in model.projections.values():
        layer.packed = torch.randint(0, 256, layer.packed.shape, dtype=torch.uint8)
        layer.scale_ends, layer.zero_ends = (
            torch.tensor([[0.02, 0.05]]).half().expand_as(layer.scale_ends),
            torch.tensor([[7.0, 8.0]]).half(),
        )
    tokens = tokens_of(150)
    whole = model(tokens).logits
    assert whole.std() > 0.01
    assert relative_error(logits_in(model, tokens, [100] + [1] * 50), whole.double()) < 1e-4


@torch.no_grad()
def test_sampled_steps_of_a_long_context():
    operator, x = make(length=8192, d_model=4).double(), signal(8192, B=1, d_model=4)
    whole = operator(x)
    for L in (1000, 4095, 8160):
        _, state = run(operator, x[:, :L], [L])
        y, state = run(operator, x[:, L : L + 32], [1] * 32, state)
        assert relative_error(y, whole[:, L : L + 32]) < 1e-12
    single = make(length=8192, d_model=4)
    y, _ = run(single, x.float(), [1, 2000, 31, 1, 4000, 1, 1, 2100, 1, 56])
    assert relative_error(y, whole) < 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_every_step_of_65_536():
    operator, x = make(length=65_536, d_model=4), signal(65_536, B=1, d_model=4)
    y, _ = run(operator, x.float(), [1] * 65_536)
    assert relative_error(y, operator.double()(x)) < 1e-5
