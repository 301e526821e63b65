"""The online convolution against its sum in float64: any pieces, any rows, any epochs."""

import copy
import pickle

import pytest
import torch
from oracles import direct_long_conv, relative_error

from hyenadna.kernels.online_conv import BLOCK, Filters, OnlineConv

D = 3


class Case:
    """Inputs and gates (B, D, L), and filters of so many taps, which say what was asked of them."""

    def __init__(self, L, B=2, dtype=torch.float64, taps=None):
        random = torch.Generator().manual_seed(L)

        def signal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        self.u, self.gate = signal(B, D, L), signal(B, D, L)
        self.h, self.skip = signal(D, taps or L), signal(D)
        self.sizes = []
        self.filters = Filters(lambda n: self.h[:, :n], self.spectra, self.skip, self.h.shape[1])

    def spectra(self, transform):
        self.sizes.append(transform.size)
        return lambda channels: torch.fft.rfft(self.h[channels, : transform.taps], n=transform.size)

    def exact(self):
        return direct_long_conv(self.u, self.h, self.skip, None, self.gate)

    def run(self, conv, pieces, *, first=0, ahead=lambda last: 0, rows=slice(None)):
        """What the convolution gives from `first` on, in pieces of these lengths."""
        y = []
        for m in pieces:
            here = slice(first, first + m)
            u, gate = self.u[rows, :, here], self.gate[rows, :, here]
            y.append(conv.extend(u, gate, self.filters, ahead=ahead(first + m)))
            first += m
        return torch.cat(y, dim=-1)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def pieces_of(L, seed):
    """Lengths that sum to L, of 1 to 300, most of them small."""
    random, lengths = torch.Generator().manual_seed(seed), []
    while sum(lengths) < L:
        lengths.append(int(2 ** (8.3 * torch.rand(1, generator=random).item() ** 2)))
    return [*lengths[:-1], L - sum(lengths[:-1])]


@pytest.mark.parametrize("L", [1, 2, 31, 32, 33, 63, 64, 65, 129, 257, 600])
def test_one_by_one_is_the_direct_sum(L):
    case = Case(L)
    assert relative_error(case.run(OnlineConv(), [1] * L), case.exact()) < 1e-13


@pytest.mark.parametrize("past", [0, 1, 50, 100])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_length_are_the_direct_sum(seed, known, past):
    case, L = Case(900), 900
    conv = OnlineConv([case.u[..., :past]] if past else [])
    ahead = (lambda last: L - last) if known else (lambda last: 0)
    y = case.run(conv, pieces_of(L - past, seed), first=past, ahead=ahead)
    assert relative_error(y, case.exact()[..., past:]) < 1e-13
    assert conv.length == L


def test_some_hundred_steps_in_float32():
    case = Case(500, dtype=torch.float32)
    y = case.run(OnlineConv(), [1] * 500)
    assert y.dtype == torch.float32
    assert relative_error(y, case.exact()) < 1e-5


def test_half_precision_is_convolved_in_float32():
    case = Case(300, dtype=torch.float32)
    case.u, case.gate = case.u.bfloat16(), case.gate.bfloat16()
    conv = OnlineConv([case.u[..., :100]])
    y = case.run(conv, [1] * 70 + [130], first=100)
    assert y.dtype == conv.past[0].dtype == torch.bfloat16 and conv.buffer.dtype == torch.float32
    assert relative_error(y, case.exact()[..., 100:]) < torch.finfo(torch.bfloat16).eps


def test_what_was_carried_is_used_and_then_made_anew():
    case = Case(300)
    padded = torch.cat([case.u[..., :100], torch.zeros(2, D, 60, dtype=torch.float64)], dim=-1)
    carried = direct_long_conv(padded, case.h[:, :160], torch.zeros(D))[..., 100:]
    conv = OnlineConv([case.u[..., :100]], carried)
    y = case.run(conv, [1] * 60, first=100)
    assert conv.carried is carried and conv.reach == 60
    y = torch.cat([y, case.run(conv, [1] * 140, first=160)], dim=-1)
    assert conv.reach == 140  # as many as there are taps for
    assert relative_error(y, case.exact()[..., 100:]) < 1e-13


def test_epochs_double_and_tiles_stay_within_them():
    case = Case(2000, B=1)
    case.run(OnlineConv([case.u[..., :100]]), [1] * 1900, first=100)
    # 100 -> 200 -> 400 -> 800 -> 1600 -> 2000
    long = [size for size in case.sizes if size & (size - 1)]
    assert [size >= 2 * n for size, n in zip(long, (100, 200, 400, 800), strict=False)] == [True] * 4
    tiles = [size // 2 for size in case.sizes if not size & (size - 1)]
    assert max(tiles) == 512 and tiles.count(512) == 1 and tiles.count(BLOCK) > 20


def test_known_positions_make_one_epoch():
    case = Case(400)
    conv = OnlineConv([case.u[..., :100]])
    case.run(conv, [1] * 300, first=100, ahead=lambda last: 400 - last)
    assert conv.reach == 300 and conv.past[0].shape[-1] == 100


def test_one_known_position_after_the_other_makes_no_epoch_each():
    case = Case(700, B=1)
    conv, epochs = OnlineConv([case.u[..., :100]]), set()
    for t in range(100, 700):
        case.run(conv, [1], first=t, ahead=lambda last: 1)
        epochs.add(conv.past[0].shape[-1])
    assert epochs == {100, 200, 400}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("steps", [0, 7, 64, 100])
def test_what_is_left_to_the_next_positions(steps, grad):
    case = Case(300)
    conv = OnlineConv([case.u[:1, :, :100]])
    u = torch.cat([case.u[:1, :, :100].expand(2, -1, -1), case.u[..., 100 : 100 + steps]], dim=-1)
    if steps:
        case.run(conv, [1] * steps, first=100)
    exact = direct_long_conv(torch.nn.functional.pad(u, (0, 50)), case.h, torch.zeros(D))[..., 100 + steps :]
    with torch.set_grad_enabled(grad):
        left = conv.left(50, case.filters)
    assert left.shape == (2 if steps else 1, D, 50)
    assert relative_error(left.expand(2, -1, -1), exact) < 1e-13
    assert OnlineConv().left(5, case.filters) is None


class TestBranches:
    @pytest.mark.parametrize("steps", [0, 1, 40, 200])
    def test_each_goes_its_own_way(self, steps):
        case = Case(400, B=3)
        case.u[:, :, : 100 + steps] = case.u[:1, :, : 100 + steps]
        conv = OnlineConv([case.u[:1, :, :100]])
        if steps:
            case.run(conv, [1] * steps, first=100, rows=slice(0, 1))
        before = None if conv.buffer is None else conv.buffer.clone()
        wide, alone = conv.branch(torch.zeros(3, dtype=torch.int64)), conv.branch()
        exact = case.exact()[..., 100 + steps :]
        y = case.run(wide, [1] * (300 - steps), first=100 + steps)
        assert relative_error(y, exact) < 1e-13
        assert before is None or torch.equal(before, conv.buffer)
        for branch in (alone, conv):
            y = case.run(branch, [1] * (300 - steps), first=100 + steps, rows=slice(0, 1))
            assert relative_error(y, exact[:1]) < 1e-13

    def test_the_past_of_one_row_stays_one_row(self):
        case = Case(400, B=3)
        conv = OnlineConv([case.u[:1, :, :100]])
        case.u[:, :, :100] = case.u[:1, :, :100]
        wide = conv.branch(torch.zeros(3, dtype=torch.int64))
        assert wide.past[0] is conv.past[0]
        y = case.run(wide, [1] * 50, first=100)
        assert len(wide.carried) == 1
        y = torch.cat([y, case.run(wide, [1] * 250, first=150)], dim=-1)
        assert [len(part) for part in wide.past] == [1, 3] and len(wide.carried) == 3
        assert relative_error(y, case.exact()[..., 100:]) < 1e-13

    def test_rows_in_any_order(self):
        case = Case(400, B=3)
        conv = OnlineConv([case.u[..., :100]])
        case.run(conv, [1] * 150, first=100)
        order = torch.tensor([2, 0, 0, 1])
        branch = conv.branch(order)
        case.u, case.gate = case.u[order], case.gate[order]
        y = case.run(branch, [1] * 150, first=250)
        assert relative_error(y, case.exact()[..., 250:]) < 1e-13

    def test_copies_and_pickles_go_on_alike(self):
        case = Case(300)
        conv = OnlineConv([case.u[..., :100]])
        case.run(conv, [1] * 70, first=100)
        twins = [copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), conv]
        outputs = [case.run(twin, [1] * 130, first=170) for twin in twins]
        assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[2])


def test_nbytes_are_those_of_its_tensors():
    case = Case(1000)
    conv = OnlineConv([case.u[..., :100]])
    assert conv.nbytes == 2 * D * 100 * 8
    case.run(conv, [1] * 33, first=100)
    # the past, what it carries to the 100 positions of the epoch, the near taps, and 64 positions of the buffer
    assert conv.nbytes == 8 * D * (2 * 100 + 2 * 100 + BLOCK + 2 * 64)


def test_memory_is_two_numbers_for_each_position_and_channel():
    case = Case(1300, B=1)
    conv = OnlineConv([case.u[..., :100]])
    for t in range(100, 1300):
        case.run(conv, [1], first=t)
        assert conv.nbytes <= 8 * D * (2 * (t + 1) + 2 * BLOCK)
