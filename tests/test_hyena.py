"""The Hyena operator: both paths through it, in groups and at once, and the spectra that it keeps."""

import copy
import pickle

import pytest
import torch
from oracles import benchmark_module

from hyenadna.kernels import fft_conv, working_set
from hyenadna.kernels.fft_conv import Transform
from hyenadna.model import hyena, spectra
from hyenadna.model.config import HyenaConfig
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.hyena import HyenaOperator

T = 130


@pytest.fixture
def operator():
    return make()


def make(d_model=40, taps=3, length=T, spectra=None):
    torch.manual_seed(0)
    long_filter = HyenaFilter(d_model, length=length, width=16, emb_dim=5, sine_frequency=10.0, shift=0.05)
    return HyenaOperator(d_model, long_filter, short_filter_taps=taps, spectra=spectra).eval()


def signal(L, B=2, D=40):
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(L))


def keep_at_most(nbytes, monkeypatch):
    monkeypatch.setattr(spectra, "spectra_bytes", lambda device: nbytes)


def without_gradients(operator, x):
    with torch.no_grad():
        return operator(x)


def close(a, b, tolerance=1e-5):
    return bool((a - b).detach().abs().max() <= tolerance * b.detach().abs().max())


@pytest.mark.parametrize("taps", [1, 3, 4])
@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 127, T])
def test_both_paths_are_the_textbook(L, taps):
    operator = make(taps=taps).double()
    config = HyenaConfig(d_model=40, filter_length=T, filter_order=16, short_filter_taps=taps)
    torch.set_default_dtype(torch.float64)
    try:
        textbook = benchmark_module("textbook").Operator(config)
    finally:
        torch.set_default_dtype(torch.float32)
    textbook.load_state_dict(operator.state_dict())
    x = signal(L).double()
    torch.testing.assert_close(operator(x), textbook(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(without_gradients(operator, x), textbook(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("channels", [1, 7, 40, 1000])
def test_in_groups_is_the_whole(operator, monkeypatch, channels, keep):
    x = signal(65)
    whole = operator(x).detach()
    for module in (hyena, fft_conv, spectra):
        monkeypatch.setattr(module, "channels_at_once", lambda device, row_elements: channels)
    keep_at_most(1 << 30 if keep else 0, monkeypatch)
    assert close(without_gradients(operator, x), whole)
    assert bool(operator.spectra.kept) == keep


@pytest.mark.parametrize("rows", [1, 64, 100, 130])
def test_some_positions_at_a_time_are_the_whole(operator, rows):
    x = signal(65)
    with torch.no_grad():
        mixed = operator.mix(x.flatten(0, 1).split(rows), 2, 65)
        assert close(operator.out_proj(mixed.T).view(2, 65, 40), operator(x))


def test_groups_hold_eight_channels_or_what_the_allocator_keeps():
    cpu = torch.device("cpu")
    sizes = (1 << 10, 1 << 16, 324_000, 1 << 21, 1 << 30)
    assert [working_set.channels_at_once(cpu, n) for n in sizes] == [2048, 32, 8, 4, 1]
    assert working_set.channels_at_once(torch.device("cuda"), 1 << 10) == 1 << 16


class TestWorkspace:
    def test_the_same_memory_for_whatever_fits(self):
        workspace, like = working_set.Workspace(), torch.empty(0)
        first = workspace.empty(4, 6, like=like)
        second = workspace.empty(5, 3, like=like)
        assert second.shape == (5, 3) and second.is_contiguous()
        assert second.data_ptr() == first.data_ptr()

    @pytest.mark.parametrize(("shape", "dtype"), [((5, 5), torch.float32), ((2, 2), torch.float64)])
    def test_other_memory_for_what_does_not(self, shape, dtype):
        workspace = working_set.Workspace()
        first = workspace.empty(4, 6, like=torch.empty(0))
        second = workspace.empty(*shape, like=torch.empty(0, dtype=dtype))
        assert second.shape == shape and second.dtype == dtype
        assert second.data_ptr() != first.data_ptr()


def test_the_input_is_left_as_it_was(operator):
    x = signal(65)
    before = x.clone()
    without_gradients(operator, x)
    assert torch.equal(x, before)


def test_a_strided_input_is_the_contiguous_one(operator):
    x = signal(65)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert close(operator(strided), operator(x))
    assert close(without_gradients(operator, strided), without_gradients(operator, x))


TRANSFORM_OF_65, NBYTES_OF_65 = Transform("torch", 144, 72), 40 * 73 * 8


class TestKeptSpectra:
    """What is kept is used again, and never for other weights."""

    def test_the_second_call_is_the_first(self, operator):
        first = without_gradients(operator, signal(65))
        ((key, kept),) = operator.spectra.kept.items()
        assert key == (operator.filter_fn, TRANSFORM_OF_65)
        assert torch.equal(without_gradients(operator, signal(65)), first)
        assert operator.spectra.kept[key] is kept

    def test_kept_is_computed(self, operator, monkeypatch):
        kept = without_gradients(operator, signal(65))
        keep_at_most(0, monkeypatch)
        assert close(without_gradients(make(), signal(65)), kept)

    def test_lengths_of_one_size_share_a_spectrum(self, operator):
        for L in (65, 72, 68):
            assert close(without_gradients(operator, signal(L)), operator(signal(L)).detach())
        assert [transform for _, transform in operator.spectra.kept] == [TRANSFORM_OF_65]

    def change_in_place(self, operator):
        with torch.no_grad():
            operator.filter_fn.implicit_filter["2"].weight.mul_(1.5)

    def train_a_step(self, operator):
        optimizer = torch.optim.AdamW(operator.parameters(), lr=0.1)
        operator(signal(65)).square().sum().backward()
        optimizer.step()

    def load(self, operator):
        other = {name: value * 1.5 for name, value in operator.state_dict().items()}
        operator.load_state_dict(other)

    def assign(self, operator):
        other = {name: value * 1.5 for name, value in operator.state_dict().items()}
        operator.load_state_dict(other, assign=True)

    def replace_data(self, operator):
        weight = operator.filter_fn.implicit_filter["6"].weight
        weight.data = weight.data * 1.5

    def change_data_in_place(self, operator):
        # torch counts no change that is made in this way
        operator.filter_fn.implicit_filter["6"].weight.data.mul_(1.5)

    @pytest.mark.parametrize(
        "change", ["change_in_place", "train_a_step", "load", "assign", "replace_data", "change_data_in_place"]
    )
    def test_dropped_when_the_weights_change(self, operator, change):
        x = signal(65)
        before = without_gradients(operator, x)
        getattr(self, change)(operator)
        after = without_gradients(operator, x)
        assert close(after, operator(x).detach())
        assert not close(after, before, 1e-3)

    def test_dropped_when_moved_to_another_dtype(self, operator):
        x = signal(65)
        single = without_gradients(operator, x)
        double = without_gradients(operator.double(), x.double())
        assert close(single.double(), double)
        torch.testing.assert_close(double, operator(x.double()).detach(), rtol=0, atol=1e-13)
        assert close(without_gradients(operator.float(), x), single)

    def test_those_of_earlier_weights_go_at_every_length(self, operator):
        for L in (20, 65):
            without_gradients(operator, signal(L))
        assert len(operator.spectra.kept) == 2
        self.change_in_place(operator)
        without_gradients(operator, signal(65))
        assert [transform for _, transform in operator.spectra.kept] == [TRANSFORM_OF_65]

    def test_none_are_kept_while_the_weights_learn(self, operator):
        without_gradients(operator, signal(65))
        operator(signal(65))
        assert operator.spectra.kept
        operator.train()(signal(65))
        assert not operator.spectra.kept

    def test_a_copy_has_its_own(self, operator):
        x = signal(65)
        before = without_gradients(operator, x)
        twin = copy.deepcopy(operator)
        self.change_in_place(twin)
        assert close(without_gradients(twin, x), twin(x).detach())
        assert torch.equal(without_gradients(operator, x), before)

    def test_they_are_no_part_of_the_state(self, operator):
        names = set(operator.state_dict())
        without_gradients(operator, signal(65))
        assert set(operator.state_dict()) == names

    def test_those_longest_unused_go_when_there_are_too_many(self, operator, monkeypatch):
        keep_at_most(NBYTES_OF_65 + 40 * 40 * 8, monkeypatch)
        for L in (65, 40, 20, 65, 10):
            assert close(without_gradients(operator, signal(L)), operator(signal(L)).detach())
        assert [transform.size for _, transform in operator.spectra.kept] == [144, 32]

    def test_operators_share_one_budget_and_the_first_stay(self, monkeypatch):
        keep_at_most(2 * NBYTES_OF_65 + 100, monkeypatch)
        shared = spectra.KeptSpectra()
        operators = [make(spectra=shared) for _ in range(3)]
        for L, kept in ((20, operators), (65, operators[:2]), (65, operators[:2]), (20, operators)):
            for operator in operators:
                assert close(without_gradients(operator, signal(L)), operator(signal(L)).detach())
            in_use = [long_filter for long_filter, transform in shared.kept if transform.taps >= L]
            assert all(operator.filter_fn in in_use for operator in kept)

    def test_copies_and_pickles_begin_with_none(self, operator):
        without_gradients(operator, signal(65))
        assert not copy.deepcopy(operator).spectra.kept
        assert not pickle.loads(pickle.dumps(operator)).spectra.kept

    def test_inference_mode_is_as_no_grad(self, operator):
        x = signal(65)
        with torch.inference_mode():
            inside = operator(x)
        assert torch.equal(inside.clone(), without_gradients(operator, x))
        self.change_in_place(operator)
        with torch.inference_mode():
            assert close(operator(x).clone(), operator_with_gradients(operator, x))

    def test_weights_made_in_inference_mode(self):
        with torch.inference_mode():
            operator = make()
            before = operator(signal(65))
            operator.filter_fn.implicit_filter["6"].weight.mul_(1.5)
            assert not close(operator(signal(65)), before, 1e-3)


def operator_with_gradients(operator, x):
    with torch.inference_mode(False):
        return operator(x).detach()
