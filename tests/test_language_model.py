"""The whole model: what it may see, that its paths agree, and what it costs in digits."""

import dataclasses
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_as_exact_as, benchmark_module, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyenadna.errors import InputError, SequenceTooLong
from hyenadna.kernels import fft_conv, implicit_filter, mlp
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA

PAD = 4
CONFIG = HyenaConfig(d_model=32, d_inner=64, layers="HHH", filter_length=130, filter_order=16, embed_dropout=0.0)


def make(**changes):
    torch.manual_seed(0)
    return HyenaDNA(dataclasses.replace(CONFIG, **changes))


@pytest.fixture
def model():
    return make().eval()


def tokens(B, L):
    return torch.randint(7, 12, (B, L), generator=torch.Generator().manual_seed(L))


def logits(model, given):
    with torch.no_grad():
        return model(given).logits


def loss(model, given):
    return F.cross_entropy(model(given).logits[:, :-1].flatten(0, 1), given[:, 1:].flatten())


def gradients(model, given, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    value = loss(model, given)
    value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def textbook(model, dtype):
    torch.set_default_dtype(dtype)  # its positional features are made in this
    try:
        opponent = benchmark_module("textbook").Textbook(model.config)
    finally:
        torch.set_default_dtype(torch.float32)
    opponent.load_state_dict(model.state_dict())
    return opponent.to(dtype)


@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 127, 130])
def test_logits_are_the_textbooks_in_float64(model, L):
    given, model = tokens(2, L), model.double()
    exact = logits_of_textbook(model, given, torch.float64)
    torch.testing.assert_close(logits(model, given), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(given).logits, exact, rtol=0, atol=1e-10, check_stride=False)


def logits_of_textbook(model, given, dtype):
    with torch.no_grad():
        return textbook(model, dtype)(given)


@pytest.mark.parametrize("L", [2, 64, 130])
def test_gradients_are_the_textbooks_in_float64(model, L):
    given, model = tokens(2, L), model.double()
    _, ours = gradients(model, given)
    opponent = textbook(model, torch.float64)
    F.cross_entropy(opponent(given)[:, :-1].flatten(0, 1), given[:, 1:].flatten()).backward()
    for name, parameter in opponent.named_parameters():
        assert relative_error(ours[name], parameter.grad) < 1e-9, name


@pytest.mark.parametrize("L", [1, 65, 130])
def test_float32_is_as_exact_as_the_textbook_in_float32(model, L):
    given = tokens(2, L)
    exact = logits_of_textbook(make().double(), given, torch.float64)
    eager = logits_of_textbook(model, given, torch.float32)
    assert_as_exact_as(logits(model, given), eager, exact)
    assert_as_exact_as(model(given).logits.detach(), eager, exact)


@pytest.mark.parametrize("gradients", [True, False])
def test_future_tokens_do_not_reach_the_past(model, gradients):
    given = tokens(1, 100)
    model = model.double()
    with torch.set_grad_enabled(gradients):
        whole = model(given).logits
        for t in (0, 1, 62, 98):
            changed = given.clone()
            changed[0, t + 1] = 7 if changed[0, t + 1] != 7 else 8
            difference = (model(changed).logits - whole).abs().amax(2)[0]
            assert difference[: t + 1].max() < 1e-13
            assert difference[t + 1] > 1e-6


@pytest.mark.parametrize("gradients", [True, False])
def test_batch_of_two_is_two_batches_of_one_with_right_padding(model, gradients):
    long, short = tokens(1, 100), tokens(1, 41)
    batch = torch.cat([long, F.pad(short, (0, 59), value=PAD)])
    with torch.set_grad_enabled(gradients):
        both = model(batch).logits.detach()
        torch.testing.assert_close(both[:1], model(long).logits.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(both[1:, :41], model(short).logits.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("L", range(1, 131, 3))
def test_any_length_up_to_the_filters_is_a_prefix_of_the_longest(model, L):
    given = tokens(1, 130)
    torch.testing.assert_close(logits(model, given[:, :L]), logits(model, given)[:, :L], rtol=0, atol=1e-5)


def test_a_sequence_beyond_the_filters_is_refused(model):
    with pytest.raises(SequenceTooLong, match="has 131 tokens; this model takes up to 130: cut it into windows"):
        model(tokens(1, 131))


@pytest.mark.parametrize("shape", [(3,), (1, 0), (0, 3), (1, 2, 3)])
def test_what_is_no_batch_of_sequences_is_refused(model, shape):
    with pytest.raises(InputError, match=r"tokens of shape .*; it takes \(B, L\), neither of them 0"):
        model(torch.zeros(shape, dtype=torch.long))


def test_every_integer_dtype_is_the_same(model):
    given = tokens(2, 9)
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(logits(model, given.to(dtype)), logits(model, given))


@pytest.mark.parametrize("L", [1, 64, 130])
def test_with_and_without_gradients_it_is_the_same(model, L):
    given = tokens(3, L)
    torch.testing.assert_close(model(given).logits.detach(), logits(model, given), rtol=0, atol=1e-5)


def test_long_inputs_go_by_rows_as_by_the_whole():
    model = make(filter_length=3001).double().eval()
    given = tokens(1, 3001)  # more rows than are worked on at once
    torch.testing.assert_close(logits(model, given), model(given).logits.detach(), rtol=0, atol=1e-12)


def test_the_number_of_threads_changes_roundings_only():
    model, given, threads = make(filter_length=3001).eval(), tokens(1, 3001), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = logits(model, given)
        torch.set_num_threads(2)
        assert relative_error(logits(model, given), alone) < 1e-5
    finally:
        torch.set_num_threads(threads)


class TestPrecision:
    def test_float64_is_close_to_float32(self, model):
        given = tokens(2, 130)
        output = make().double().eval()(given)
        assert output.logits.dtype == output.hidden.dtype == torch.float64
        assert relative_error(logits(model, given), output.logits) < 1e-5

    @pytest.mark.parametrize("gradients", [True, False])
    def test_autocast_stays_near_float32(self, model, gradients):
        given = tokens(2, 130)
        exact = logits(model, given)
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(given)
        assert output.logits.dtype == torch.float32
        assert relative_error(output.logits.detach(), exact) < 4 * torch.finfo(torch.bfloat16).eps

    def test_gradients_under_autocast_stay_near_float32(self, model):
        given = tokens(2, 130)
        _, exact = gradients(model, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(model, given)
        model.zero_grad()
        value.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32
            error = (parameter.grad - exact[name]).norm() / exact[name].norm()
            assert error < 16 * torch.finfo(torch.bfloat16).eps, name

    @pytest.mark.parametrize("gradients", [True, False])
    def test_a_bfloat16_model_keeps_its_residual_stream_in_float32(self, model, gradients):
        given = tokens(2, 130)
        exact = logits(model, given)
        model.bfloat16()
        streams = []
        for layer in model.backbone.layers:
            layer.register_forward_hook(lambda module, inputs, output: streams.append((inputs[0], output)))
        with torch.set_grad_enabled(gradients):
            output = model(given)
        assert len(streams) == 3 and all(x.dtype == torch.float32 for pair in streams for x in pair)
        assert output.logits.dtype == torch.float32 and output.hidden.dtype == torch.bfloat16
        assert relative_error(output.logits.detach(), exact) < 8 * torch.finfo(torch.bfloat16).eps


class TestActivationCheckpointing:
    def test_same_loss_and_gradients_with_dropout(self):
        model = make(embed_dropout=0.2, resid_dropout=0.3).train()
        names, (value, plain) = list(model.state_dict()), gradients(model, tokens(2, 65), seed=5)
        model.backbone.checkpoint_activations = True
        assert list(model.state_dict()) == names
        checkpointed_value, checkpointed = gradients(model, tokens(2, 65), seed=5)
        assert torch.equal(checkpointed_value, value)
        for name in plain:
            torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-6, atol=1e-9)

    def test_without_gradients_it_changes_nothing(self, model):
        plain = logits(model, tokens(2, 65))
        model.backbone.checkpoint_activations = True
        assert torch.equal(logits(model, tokens(2, 65)), plain)


class Allocations(TorchDispatchMode):
    """The bytes of all tensors that live while operations run within, and the widest tensor of all."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.sizes[storage._cdata] = storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


class TestMemoryOfTraining:
    """Counted tensor by tensor, with blocks recomputed and nothing small enough to be kept."""

    D, L = 64, 4096

    def step(self, monkeypatch, *, layers, length):
        for module in (fft_conv, mlp):
            monkeypatch.setattr(module, "bytes_to_keep", lambda device: 0)
        monkeypatch.setattr(fft_conv, "channels_at_once", lambda device, elements: 4)  # of 64, as 16 of 256
        for module in (mlp, implicit_filter):
            monkeypatch.setattr(module, "rows_at_once", lambda device: 64)
        model = make(d_model=self.D, d_inner=4 * self.D, layers="H" * layers, filter_length=length)
        model.backbone.checkpoint_activations = True
        given = tokens(1, length)
        with Allocations() as allocations:
            loss(model, given).backward()
        return allocations

    def test_a_layer_costs_its_input_and_nothing_is_as_wide_as_four(self, monkeypatch):
        unit = 4 * self.D * self.L
        few, many = (self.step(monkeypatch, layers=layers, length=self.L) for layers in (2, 6))
        gradients = 4 * sum(p.numel() for p in make(d_model=self.D, d_inner=4 * self.D, layers="H").parameters())
        assert unit <= (many.peak - few.peak) / 4 <= unit + gradients
        # the projection and its gradient, three wide, are the largest
        assert many.largest == 3 * unit
        assert few.peak < 24 * unit

    def test_memory_is_linear_in_length(self, monkeypatch):
        short, long = (self.step(monkeypatch, layers=2, length=length).peak for length in (self.L, 2 * self.L))
        assert long / short == pytest.approx(2, rel=0.05)


class TestDropout:
    @pytest.mark.parametrize("where", ["embed_dropout", "resid_dropout"])
    @pytest.mark.parametrize("gradients", [True, False])
    def test_only_in_training(self, where, gradients):
        model, given = make(**{where: 0.5}), tokens(2, 65)
        plain = logits(make().eval(), given)
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(model.eval()(given).logits.detach(), plain, rtol=0, atol=1e-5)
            first, second = (model.train()(given).logits.detach() for _ in range(2))
        assert not torch.allclose(first, second, atol=1e-3)

    def test_both_parts_of_a_block_are_dropped_with_and_without_gradients(self):
        block = make(resid_dropout=0.999999).backbone.layers[0].train()
        x = torch.randn(1, 20, 32)
        torch.testing.assert_close(block(x).detach(), x)
        with torch.no_grad():
            torch.testing.assert_close(block(x), x)


class TestInitialWeights:
    def test_linear_layers_and_the_embedding_are_normal(self):
        model = make(d_model=128, d_inner=512)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            std = 0.02 / math.sqrt(2 * 3) if name.endswith(("out_proj", "fc2")) else 0.02
            count = module.weight.numel()
            assert abs(module.weight.detach().std() / std - 1) < 5 / math.sqrt(2 * count), name
            assert abs(module.weight.detach().mean()) < 5 * std / math.sqrt(count), name
            if isinstance(module, nn.Linear) and module.bias is not None:
                assert not module.bias.any(), name

    def test_the_rest_is_as_the_paper_has_it(self):
        mixer = make(d_model=128).backbone.layers[0].mixer
        assert (mixer.filter_fn.implicit_filter["1"].freq == CONFIG.sine_frequency).all()
        assert abs(mixer.filter_fn.bias.detach().std() - 1) < 5 / math.sqrt(2 * 128)
        assert mixer.short_filter.weight.detach().abs().max() <= 1 / math.sqrt(3)

    def test_a_seed_decides_them(self):
        first, second = make().state_dict(), make().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_untied_head_has_its_own_weights():
    tied, untied = make(), make(tie_head=False)
    extra = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert extra == 16 * 32
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"lm_head.weight"}
    output = untied.eval()(tokens(1, 9))
    torch.testing.assert_close(output.logits, output.hidden @ untied.lm_head.weight.T)


def test_parameters_follow_from_the_config():
    D, inner, F_, emb, M, n_layer = 32, 64, 16, 5, 3, 3
    filter_network = emb * F_ + F_ + 2 * (F_ * F_ + F_) + F_ * D + F_ + D
    mixer = 3 * D * D + 3 * D + 3 * D * M + 3 * D + D * D + D + filter_network
    block = mixer + 2 * 2 * D + D * inner + inner + inner * D + D
    assert sum(p.numel() for p in make().parameters()) == 16 * D + n_layer * block + 2 * D
