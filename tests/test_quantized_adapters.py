"""Adapters on a quantised base: the numbers of the dense model that it equals, the parent's identity, frozen codes."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from adapting import LENGTHS, METHODS, adapted, answers, ragged, small, tokens, train
from checkpoints import edit_json, edit_tensors, one_line
from finetuning import base as finetuning_base
from finetuning import leave_out_the_slow, planted, write_table
from oracles import relative_error
from packing import bytes_of, dense, quantized
from pretraining import hyena

from hyenadna import HyenaDNA
from hyenadna.errors import CheckpointError, ProbeError, UsageError
from hyenadna.finetune import adapter
from hyenadna.finetune.adaptation import PROJECTIONS
from hyenadna.finetune.adapter_batch import AdapterBatch
from hyenadna.finetune.lora import BesidePacked, attach, base_state, held, merged, updates
from hyenadna.inference import markov

FROZEN = tuple(method for method in METHODS if method != "full")
ALL = {"lora_projections": PROJECTIONS}


@pytest.fixture(scope="module")
def models():
    """A parent, its quantised child, and the dense model that the child equals."""
    parent = small()
    child = quantized(parent)
    return parent, child, dense(child)


class TestNumbers:
    @pytest.mark.parametrize("method", FROZEN)
    def test_they_are_those_of_the_dense_model(self, method, models):
        found, exact = (adapted(method, base=base, pool="attention", **ALL) for base in models[1:])
        assert found.own_state().keys() == exact.own_state().keys()
        for name, tensor in exact.own_state().items():
            assert torch.equal(found.own_state()[name], tensor)  # one seed draws both alike
        given = answers(exact, ragged(), LENGTHS)
        assert relative_error(answers(found, ragged(), LENGTHS), given) < 1e-5
        assert relative_error(found(ragged(), LENGTHS), given) < 1e-5

    @pytest.mark.parametrize("checkpointed", [False, True])
    @pytest.mark.parametrize("method", FROZEN)
    def test_so_are_gradients(self, method, checkpointed, models):
        found, exact = (adapted(method, base=base, **ALL) for base in models[1:])
        found.base.backbone.checkpoint_activations = checkpointed
        for model in (found, exact):
            model(ragged(), LENGTHS).square().sum().backward()
        found.base.backbone.checkpoint_activations = False
        assert found.learnt().keys() == exact.learnt().keys()
        for name, parameter in found.learnt().items():
            assert relative_error(parameter.grad, exact.learnt()[name].grad) < 1e-4, name

    @pytest.mark.parametrize("projection", PROJECTIONS)
    def test_an_update_stands_beside_every_layer_that_it_names(self, projection, models):
        _, child, plain = models
        model = adapted("lora", base=child, lora_projections=(projection,)).base
        expected = copy.deepcopy(plain)
        for name, update in updates(model).items():
            assert name.endswith(projection) and isinstance(model.get_submodule(name), BesidePacked)
            expected.get_submodule(name).weight.data += update.scale * update.B.data @ update.A.data
        assert len(updates(model)) == 2
        for grad in (False, True):
            with torch.set_grad_enabled(grad), held(model):
                assert relative_error(model(tokens(2, 9)).hidden, expected(tokens(2, 9)).hidden) < 1e-5

    @pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-6), (torch.bfloat16, 0.05)])
    def test_they_follow_casts_and_autocast(self, dtype, allowed, models):
        found, exact = (adapted("lora", base=copy.deepcopy(base), **ALL) for base in models[1:])
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype):
                given = [answers(model, ragged(), LENGTHS) for model in (found, exact)]
            assert relative_error(*given) < allowed
        given = [answers(model.to(dtype), ragged(), LENGTHS) for model in (found, exact)]
        assert given[0].dtype == given[1].dtype and relative_error(*given) < allowed

    def test_in_bfloat16_it_learns_as_exactly_as_the_dense_model(self, models):
        each = [adapted("lora", base=base, **ALL) for base in (*models[1:], models[2])]
        for model, half in zip(each, (True, True, False), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(ragged(), LENGTHS).square().sum()
            loss.backward()
        found, dense_half, exact = (torch.cat([p.grad.flatten() for p in m.learnt().values()]) for m in each)
        assert found.dtype == torch.float32
        assert relative_error(found, exact) < 2 * relative_error(dense_half, exact) < 0.1

    def test_several_of_one_base_in_one_batch(self, models):
        child = models[1]
        each = [adapted(method, base=child, **ALL) for method in (*FROZEN, "lora")]
        which = torch.tensor([2, 0, 1, 3])
        for row, answer in enumerate(AdapterBatch(each)(ragged(), LENGTHS, which)):
            length = LENGTHS[row : row + 1]
            alone = answers(each[which[row]], ragged()[row : row + 1, : int(length)], length)
            torch.testing.assert_close(answer, alone[0], rtol=1e-4, atol=1e-5)


class TestTheBase:
    @pytest.mark.parametrize("method", FROZEN)
    def test_training_changes_no_byte_of_it(self, method):
        child = quantized(small())
        before = bytes_of(child)
        model = adapted(method, base=child)
        losses = train(model, ragged(), LENGTHS, torch.tensor([0, 1, 1, 0]), steps=8)
        assert losses[-1] < losses[0]
        assert bytes_of(child) == before
        kept = base_state(model.base)
        assert kept.keys() == before.keys()
        assert all(kept[name].data_ptr() == tensor.data_ptr() for name, tensor in child.state_dict().items())

    def test_as_a_whole_it_is_not_trained(self, models):
        with pytest.raises(UsageError, match=r"quantised to 4 bits .* take the method lora, soft-prompt or head, or"):
            adapted("full", base=models[1])

    def test_updates_are_not_written_into_it(self, models):
        model = attach(models[1], rank=2, alpha=2.0, projections=("fc1",))
        with pytest.raises(UsageError, match="keep the adapter beside it, or merge it into the parent"):
            merged(model)

    def test_all_that_share_it_move_with_it(self):
        child = quantized(small())
        first, second = (attach(child, rank=2, alpha=2.0, projections=PROJECTIONS) for _ in range(2))
        packed = child.projections["backbone.layers.0.mlp.fc1"]
        assert all(model.backbone.layers[0].mlp.fc1.original is packed for model in (first, second))
        first.double()
        assert child.embedding.weight.dtype == packed.bias.dtype == torch.float64
        second.double()
        assert second(tokens(1, 5)).hidden.dtype == child(tokens(1, 5)).hidden.dtype == torch.float64
        first.to("meta")
        assert {tensor.device.type for tensor in child.projections["backbone.layers.0.mlp.fc1"].buffers()} == {"meta"}


def saved(model, folder, base="../base"):
    adapter.save(model, folder, base=str(base), card="# x\n", training={})
    return folder


class TestFiles:
    @pytest.mark.parametrize("method", FROZEN)
    def test_an_adapter_of_the_child_serves_both(self, method, models, tmp_path):
        parent, child, _ = models
        child.save_pretrained(tmp_path / "base")
        model = adapted(method, base=child, **ALL)
        folder = saved(model, tmp_path / "a")
        assert torch.equal(answers(adapter.load(folder), ragged(), LENGTHS), answers(model, ragged(), LENGTHS))
        on_parent = adapter.load(folder, base=parent)
        expected = answers(adapted(method, base=parent, **ALL), ragged(), LENGTHS)
        assert torch.equal(answers(on_parent, ragged(), LENGTHS), expected)
        assert adapter.identity(model.base) == adapter.identity(on_parent.base) == adapter.identity(parent)
        assert json.loads((folder / "adapter.json").read_text())["base_sha256"] == child.parent_sha256

    @pytest.mark.parametrize("method", FROZEN)
    def test_an_adapter_of_the_parent_serves_every_child(self, method, models, tmp_path):
        parent = models[0]
        folder = saved(adapted(method, base=parent, **ALL), tmp_path / "a")
        for bits in (1, 8):
            child = quantized(parent, bits)
            loaded = adapter.load(folder, base=child)
            expected = answers(adapted(method, base=dense(child), **ALL), ragged(), LENGTHS)
            assert relative_error(answers(loaded, ragged(), LENGTHS), expected) < 1e-5

    def test_its_files_are_those_of_the_dense_model(self, models, tmp_path):
        """But for what was learnt there is the same in the file: names, shapes and bytes."""
        folders = [saved(adapted("lora", base=base, **ALL), tmp_path / str(n)) for n, base in enumerate(models[:2])]
        one, other = ((folder / "adapter.safetensors").read_bytes() for folder in folders)
        assert one == other

    def test_the_child_of_another_is_refused(self, models, tmp_path):
        folder = saved(adapted(base=models[1]), tmp_path / "a")
        other = small()
        other.embedding.weight.data[0, 0] += 1e-6
        with pytest.raises(CheckpointError, match=r"adapts '../base' with SHA-256") as error:
            adapter.load(folder, base=quantized(other))
        one_line(error)

    @pytest.mark.parametrize("part", ["embedding.weight", "backbone.layers.1.mlp.fc1.bias", "backbone.ln_f.weight"])
    def test_a_child_that_was_changed_since_is_refused(self, part, models, tmp_path):
        parent = models[0]
        folder, child = saved(adapted("head", base=parent), tmp_path / "a"), quantized(parent)
        child.get_parameter(part).data.view(-1)[0] += 1e-6
        child.save_pretrained(tmp_path / "changed")  # which still names the parent
        with pytest.raises(
            CheckpointError, match=r"was quantised, but its embedding, norms, .* changed since"
        ) as error:
            adapter.load(folder, base=HyenaDNA.from_pretrained(tmp_path / "changed"))
        one_line(error)

    def test_a_dense_model_is_known_by_its_own_weights(self, models):
        other = small()
        other.parent_sha256 = "0" * 64
        assert adapter.identity(other) == adapter.identity(models[0])

    def test_damage_is_found_on_its_own_base_and_on_the_others(self, models, tmp_path):
        parent, child, _ = models
        folder = saved(adapted("head", base=child), tmp_path / "a")
        edit_tensors(folder / "adapter.safetensors", lambda t: t["head.linear.bias"].add_(0.5))
        with pytest.raises(ProbeError, match=r"does not give the answer in adapter.json"):
            adapter.load(folder, base=child)
        with pytest.raises(CheckpointError, match=r"holds numbers with SHA-256 .* but adapter.json says") as error:
            adapter.load(folder, base=parent)
        one_line(error)
        edit_json(folder / "adapter.json", probe="none")
        with pytest.raises(ProbeError, match="holds no probe of this format"):
            adapter.load(folder, base=child)

    def test_in_half_precision_it_is_not_recognised(self, models, tmp_path):
        folder = saved(adapted(base=models[1]), tmp_path / "a")
        with pytest.raises(UsageError, match=r"the base is in torch.float16, .* take it in float32"):
            adapter.load(folder, base=quantized(small()).half())


class TestCommands:
    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("files")
        parent = finetuning_base()
        parent.save_pretrained(folder / "parent")
        quantized(parent).save_pretrained(folder / "small")
        write_table(folder / "my.csv", planted(60, 20, seed=4))
        letters = np.random.default_rng(1).choice(list("ACGT"), 2000)
        (folder / "a.fa").write_text(">c\n" + "".join(letters) + "\n")
        return folder

    def run(self, files, out, method):
        common = ("--threads", "1", "--device", "cpu", "--no-baselines", "--epochs", "1", "--split-by", "row")
        given = ("-m", files / "small", "-o", out, "--method", method, "--prompt-length", "4")
        return hyena("finetune", files / "my.csv", *given, *common)

    @pytest.mark.parametrize("method", FROZEN)
    def test_finetune_and_predict(self, method, files, tmp_path, monkeypatch):
        leave_out_the_slow(monkeypatch)
        before = (files / "small" / "model.safetensors").read_bytes()
        code, _, err = self.run(files, tmp_path / "run", method)
        assert code == 0 and f"method    {method}: " in err, err
        learnt, kept = (
            int(words.split()[0].replace(",", "")) for words in err.split(f"{method}: ")[1].split("learnt, ")
        )
        whole = sum(p.numel() for p in HyenaDNA.from_pretrained(files / "parent").parameters())
        assert kept == whole and learnt > 0
        assert (files / "small" / "model.safetensors").read_bytes() == before
        given = ("predict", files / "my.csv", "-m", tmp_path / "run", "--threads", "1")
        tables = []
        for base in ((), ("--base", files / "parent")):
            code, out, err = hyena(*given, *base)
            assert code == 0, err
            tables.append(out.splitlines())
        assert len(tables[0]) == len(tables[1]) == 62
        assert tables[0][0] != tables[1][0]  # which says by the SHA-256 of its weights what predicted

    def test_as_a_whole_it_is_refused_in_one_line(self, files, tmp_path):
        code, _, err = self.run(files, tmp_path / "run", "full")
        assert code == 2 and "fine-tune its parent and quantise what comes of it" in err.splitlines()[-1]
        assert not (tmp_path / "run" / "adapter").exists()

    def test_embed_and_evaluate(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(markov, "fit", functools.partial(markov.fit, order=2))
        code, _, err = hyena(
            "embed",
            files / "a.fa",
            "-m",
            files / "small",
            "-o",
            tmp_path / "e.npy",
            "--threads",
            "1",
            "--dtype",
            "bfloat16",
        )
        assert code == 0, err
        found = np.load(tmp_path / "e.npy")
        assert found.shape == (1, 16) and np.isfinite(found).all()
        code, out, err = hyena("evaluate", "--fasta", files / "a.fa", "-m", files / "small", "--threads", "1", "--json")
        assert code == 0, err
        config = json.loads((files / "small" / "config.json").read_text())
        assert config["base_sha256"] in out

    def test_predict_says_what_a_quantised_model_is(self, files):
        code, _, err = hyena("predict", files / "my.csv", "-m", files / "small")
        assert code == 3 and "is a language model and predicts no labels" in err
