"""A quantised model is the dense model of its decoded weights on every path, and its folder holds what it holds."""

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
import torch.nn.functional as F
from checkpoints import edit_json, edit_tensors, one_line, same_weights, small_model
from oracles import relative_error
from packing import bytes_of, dense, packed, quantized
from typer.testing import CliRunner

from hyenadna import HyenaDNA
from hyenadna.cli.main import app
from hyenadna.errors import CheckpointError, ProbeError, UsageError
from hyenadna.model import mlp
from hyenadna.model.config import HyenaConfig, Quantization, named_size
from hyenadna.model.language_model import QUANTIZED
from hyenadna.model.packed_linear import DenseLinear, PackedLinear, bits_per_weight, packed_layers, weight_count
from hyenadna.model.weights import base_sha256, packed_model

IN_PROJ = "backbone.layers.0.mixer.in_proj"


def parent(**fields) -> HyenaDNA:
    """Widths that no group divides."""
    return small_model(
        **{"d_model": 20, "d_inner": 44, "layers": "HH", "filter_length": 100, "filter_order": 8} | fields
    )


def tokens(B: int = 2, L: int = 40) -> torch.Tensor:
    return torch.randint(7, 12, (B, L), generator=torch.Generator().manual_seed(L))


@pytest.fixture(scope="module")
def both() -> tuple[HyenaDNA, HyenaDNA]:
    child = quantized(parent(filter_length=1310))
    return child, dense(child)


class TestTheModel:
    @pytest.mark.parametrize("meta_bits", [8, 16])
    @pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
    def test_it_is_the_dense_model_of_its_decoded_weights(self, bits, meta_bits):
        child = quantized(parent(), bits, 32, meta_bits)
        plain, given = dense(child), tokens()
        with torch.no_grad():
            assert relative_error(child(given).logits, plain(given).logits) < 1e-5
        assert relative_error(child(given).logits, plain(given).logits) < 1e-5

    # 1,300 positions are two blocks of rows on a CPU
    def test_on_every_path_without_gradients(self, both):
        child, plain = both
        with torch.no_grad():
            for given in (tokens(1, 1), tokens(1, 1300), tokens(3, 500)):
                for number in range(3):
                    found, exact = (model.hidden_states(given, number) for model in both)
                    assert relative_error(found, exact) < 1e-5
            embeddings = torch.randn(7, 20, generator=torch.Generator().manual_seed(1))
            found, exact = (model(tokens(), prefix=model.prefix(embeddings, 40)).logits for model in (child, plain))
            assert relative_error(found, exact) < 1e-5

    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_gradients_reach_embeddings_and_prefix(self, both, checkpointed):
        embeddings, gradients = torch.randn(7, 20, generator=torch.Generator().manual_seed(1)), []
        for model in both:
            model.backbone.checkpoint_activations = checkpointed
            model.zero_grad()
            learnt = embeddings.clone().requires_grad_(True)
            logits = model(tokens(), prefix=model.prefix(learnt, 40)).logits
            F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).backward()
            gradients.append({"prefix": learnt.grad} | {n: p.grad for n, p in model.named_parameters()})
            model.backbone.checkpoint_activations = False
        found, exact = gradients
        assert found.keys() == exact.keys() - {f"{name}.weight" for name in both[0].projections}
        for name, gradient in found.items():
            assert relative_error(gradient, exact[name]) < 1e-4, name

    def test_training_keeps_nothing_wide_where_that_is_large(self, monkeypatch):
        child, widths, gradients = quantized(parent()), [], []
        for room in (1 << 30, 0):
            monkeypatch.setattr(mlp, "bytes_to_keep", lambda device, room=room: room)
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, kept=kept: kept.append(x.shape[-1]) or x, lambda x: x
            ):
                loss = child(tokens()).logits.square().sum()
            child.zero_grad()
            loss.backward()
            widths.append(child.config.d_inner in kept)
            gradients.append(child.embedding.weight.grad.clone())
        assert widths == [True, False] and torch.equal(*gradients)

    # weights may differ in their last bit; measured 6e-7, 4e-4 and 0 at most
    @pytest.mark.parametrize(
        ("dtype", "allowed"), [(torch.float64, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)]
    )
    def test_in_every_dtype(self, dtype, allowed):
        child = quantized(parent())
        plain = dense(child)
        child.to(dtype), plain.to(dtype)
        with torch.no_grad():
            assert relative_error(child(tokens()).logits, plain(tokens()).logits) < allowed
        assert child(tokens()).logits.dtype == plain(tokens()).logits.dtype

    def test_under_autocast(self, both):
        with torch.autocast("cpu", torch.bfloat16):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    found, exact = (model(tokens()).logits for model in both)
                assert relative_error(found, exact) < 2e-2

    def test_only_the_matrices_of_the_blocks_are_packed(self, both):
        child, plain = both
        names = {f"backbone.layers.{number}.{name}" for number in (0, 1) for name in QUANTIZED}
        assert {name for name, module in child.named_modules() if isinstance(module, PackedLinear)} == names
        assert child.projections.keys() == names
        assert all(type(layer) is DenseLinear for layer in plain.projections.values())
        assert weight_count(child) == weight_count(plain) == sum(p.numel() for p in plain.parameters())
        assert child.quantization == Quantization(4, 16, 8) and plain.quantization is None

    def test_the_parent_stays_as_it_was(self):
        model = parent().train()
        before = bytes_of(model)
        child = quantized(model)
        assert child.parent_sha256 == base_sha256(model.state_dict()) != base_sha256(child.state_dict())
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in child.parameters()}
        assert bytes_of(model) == before and not shared and model.training and not child.training
        assert model.quantization is None and model.parent_sha256 is None

    def test_what_cannot_be_packed(self):
        model = parent()
        layers = {name: packed(layer, Quantization(4, 16, 8)) for name, layer in model.projections.items()}
        with pytest.raises(UsageError, match="quantised already, to 4 bits: take its parent"):
            packed_model(quantized(model), layers, Quantization(4, 16, 8))
        with pytest.raises(UsageError, match=r"in torch.bfloat16; take it in float32"):
            packed_model(parent().bfloat16(), layers, Quantization(4, 16, 8))
        with pytest.raises(UsageError, match=r"packed as \[\(4, 16, 8\)\] .* each of its 8 projections needs one"):
            packed_model(model, layers, Quantization(3, 16, 8))
        layers.popitem()
        with pytest.raises(UsageError, match="7 layers packed"):
            packed_model(model, layers, Quantization(4, 16, 8))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "small"
    quantized(parent()).save_pretrained(folder, training={"steps": 3})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy, which a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "small"))


class TestTheFolder:
    @pytest.mark.parametrize(("bits", "meta_bits"), [(1, 8), (3, 16), (8, 8)])
    def test_it_loads_as_it_was(self, bits, meta_bits, tmp_path):
        child = quantized(parent(), bits, 16, meta_bits)
        child.save_pretrained(tmp_path / "small")
        loaded = HyenaDNA.from_pretrained(tmp_path / "small")
        assert same_weights(loaded, child) and bytes_of(loaded) == bytes_of(child)
        assert (loaded.quantization, loaded.parent_sha256) == (child.quantization, child.parent_sha256)
        assert torch.equal(loaded(tokens()).logits, child(tokens()).logits)
        loaded.save_pretrained(tmp_path / "again")
        for name in ("config.json", "model.safetensors", "probe.json", "README.md"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_casts_change_no_stored_byte(self, folder, dtype):
        before = dict(HyenaDNA.from_pretrained(folder).named_buffers())
        loaded = HyenaDNA.from_pretrained(folder, dtype=dtype)
        assert loaded.embedding.weight.dtype == dtype and dict(loaded.named_buffers()).keys() == before.keys()
        for name, buffer in loaded.named_buffers():
            assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])

    def test_its_description(self, folder):
        description = json.loads((folder / "config.json").read_text())
        model = parent()
        assert description["quantization"] == {"bits": 4, "group": 16, "meta_bits": 8}
        assert description["parent_sha256"] == base_sha256(model.state_dict())
        assert description["base_sha256"] == base_sha256(quantized(model).state_dict())
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            found = {name for name in file.keys() if name.startswith(IN_PROJ)}  # noqa: SIM118
        assert f"from the model with base_sha256 `{description['parent_sha256']}`" in (folder / "README.md").read_text()
        parts = ("packed", "scale", "scale_ends", "zero", "zero_ends", "bias")
        assert found == {f"{IN_PROJ}.{part}" for part in parts}

    def test_a_dense_one_says_that_it_is_dense_and_may_say_nothing(self, tmp_path):
        parent().save_pretrained(tmp_path / "dense")
        path = tmp_path / "dense" / "config.json"
        description = json.loads(path.read_text())
        assert description.pop("quantization") is None and description.pop("parent_sha256") is None
        path.write_text(json.dumps(description))
        assert HyenaDNA.from_pretrained(tmp_path / "dense").quantization is None

    def test_the_matrices_of_large_1m_take_under_a_fifth_in_4_bits(self, tmp_path):
        torch.manual_seed(0)
        child = quantized(HyenaDNA(named_size("large-1m", max_length=1024)).eval(), 4, 64)
        names = {name for name, _ in child.named_buffers()}
        weights = 8 * (3 + 1 + 4 + 4) * 256**2
        assert weights == sum(layer.in_features * layer.out_features for layer in packed_layers(child))
        child.save_pretrained(tmp_path / "small")
        for model in (child, HyenaDNA.from_pretrained(tmp_path / "small")):
            held = {
                buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes() for buffer in model.buffers()
            }
            assert len(held) == len(names) and sum(held.values()) < 0.2 * 4 * weights
        header = (tmp_path / "small" / "model.safetensors").read_bytes()
        offsets = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
        stored = sum(math.dist(*([end] for end in offsets[name]["data_offsets"])) for name in names)
        assert stored == sum(held.values()) == bits_per_weight(child) * weights / 8
        assert 4.25 < bits_per_weight(child) < 4.26


class TestDamage:
    @pytest.mark.parametrize(
        ("quantization", "message"),
        [
            (
                {"bits": 5, "group": 16, "meta_bits": 8},
                "does not describe a quantised model: bits: Input should be 1, 2",
            ),
            ({"bits": 4, "group": 8, "meta_bits": 8}, "group is 8; allowed are 16 to 128"),
            ({"bits": 4, "group": 16, "meta_bits": 8, "axis": 0}, "axis: Unexpected keyword argument"),
            ({"bits": "4", "group": 16, "meta_bits": 8}, "bits: Input should be 1, 2"),
            ({"bits": 4}, "quantization does not say group, meta_bits"),
            ("hqq", "quantization is 'hqq'; an object with bits, group and meta_bits is needed"),
            ({"bits": 3, "group": 16, "meta_bits": 8}, r"mis-shaped: .*in_proj.packed \(60, 10\) instead of \(60, 8\)"),
            ({"bits": 4, "group": 32, "meta_bits": 8}, r"mis-shaped: .*in_proj.scale \(60, 2\) instead of \(60, 1\)"),
            ({"bits": 4, "group": 16, "meta_bits": 16}, "in_proj.scale holds torch.uint8; in a quantised model it is"),
            (None, "in_proj.packed holds torch.uint8; weights are floating-point numbers"),
        ],
    )
    def test_another_quantisation_than_the_tensors(self, folder, quantization, message):
        edit_json(folder / "config.json", quantization=quantization)
        with pytest.raises(CheckpointError, match=message) as error:
            HyenaDNA.from_pretrained(folder)
        one_line(error)

    @pytest.mark.parametrize("parent_sha256", [None, "abc", 7])
    def test_no_parent(self, folder, parent_sha256):
        edit_json(folder / "config.json", parent_sha256=parent_sha256)
        with pytest.raises(CheckpointError, match=r"parent_sha256 is .*; a quantised model names its parent"):
            HyenaDNA.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop(f"{IN_PROJ}.scale"), r"missing: .*in_proj.scale \(60, 2\)"),
            (lambda t: t.pop(f"{IN_PROJ}.zero_ends"), "missing: .*in_proj.zero_ends"),
            (lambda t: t.update({f"{IN_PROJ}.weight": torch.zeros(60, 20)}), "not expected: .*in_proj.weight"),
            (lambda t: t.update({f"{IN_PROJ}.packed": t[f"{IN_PROJ}.packed"][:, :-1].clone()}), "mis-shaped"),
            (lambda t: t.update({f"{IN_PROJ}.packed": t[f"{IN_PROJ}.packed"].int()}), "torch.int32; in a quantised"),
            (lambda t: t.update({f"{IN_PROJ}.scale_ends": t[f"{IN_PROJ}.scale_ends"].float()}), "it is torch.float16"),
            (lambda t: t[f"{IN_PROJ}.scale_ends"].fill_(float("nan")), "scale_ends holds values that are not finite"),
        ],
    )
    def test_tensors_that_do_not_belong(self, folder, change, message):
        edit_tensors(folder / "model.safetensors", change)
        with pytest.raises(CheckpointError, match=message) as error:
            HyenaDNA.from_pretrained(folder)
        one_line(error)

    def test_other_numbers(self, folder):
        edit_tensors(folder / "model.safetensors", lambda t: t[f"{IN_PROJ}.packed"].bitwise_xor_(255))
        with pytest.raises(ProbeError, match="do not give the logits"):
            HyenaDNA.from_pretrained(folder)

    def test_one_other_code_is_told_by_the_sum(self, folder):
        edit_tensors(folder / "model.safetensors", lambda t: t[f"{IN_PROJ}.packed"][0, :1].bitwise_xor_(1))
        with pytest.raises(CheckpointError):
            HyenaDNA.from_pretrained(folder)


class TestCommands:
    def test_info(self, folder):
        shown = CliRunner().invoke(app, ["info", str(folder)])
        assert shown.exit_code == 0
        weights, model = 2 * 20 * (60 + 20 + 44 + 44), parent()
        for line in (
            "quantised          4 bits in groups of 16, whose scale and zero point have 8",
            f"{weights:,} weights in ",
            f"parent             {base_sha256(model.state_dict())}",
            f"parameters         {weight_count(model):,}",
            "probe              passes",
        ):
            assert line in shown.stdout
        facts = json.loads(CliRunner().invoke(app, ["info", str(folder), "--json"]).stdout)
        measured = facts["quantization"]
        assert measured["bits_per_weight"] == 8 * measured["bytes"] / weights and measured["weights"] == weights
        assert sum(facts["parameters_by_part"].values()) == facts["parameters"] == weight_count(model)

    def test_convert_copies_it_and_leaves_the_published_layouts_to_the_parent(self, folder, tmp_path):
        copied = CliRunner().invoke(app, ["convert", str(folder), "-o", str(tmp_path / "copy")])
        assert copied.exit_code == 0
        for name in ("config.json", "model.safetensors", "probe.json"):
            assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
        for layout in ("hf", "original"):
            refused = CliRunner().invoke(app, ["convert", str(folder), "-o", str(tmp_path / "x"), "--to", layout])
            assert refused.exit_code == 2 and not (tmp_path / "x").exists()
            said = f"quantised to 4 bits, which the layout {layout} cannot hold; export its parent, with base_sha256 "
            assert said in refused.stderr

    def test_a_model_of_zeros_is_made_from_a_configuration(self):
        model = HyenaDNA(HyenaConfig(d_model=16, d_inner=32), Quantization(2, 16, 16)).eval()
        assert not any(layer.dequantized().any() for layer in model.projections.values())
        assert torch.isfinite(model(tokens()).logits).all()
