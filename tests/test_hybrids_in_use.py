"""Pretraining, fine-tuning, scoring, embedding and serving of models with every kind of block."""

import json
import shutil

import numpy as np
import pytest
import torch
from hybrids import CONTEXT, PATTERNS, hybrid, letters
from pretraining import SMALL, assert_same_run, hyena, write_genome
from served_models import computed

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.data.tokenizer import encode
from hyenadna.errors import UsageError
from hyenadna.finetune.adaptation import PROJECTIONS, Adaptation
from hyenadna.finetune.adapter_batch import AdapterBatch
from hyenadna.finetune.lora import attach, merged, updates
from hyenadna.finetune.predict import Predictor
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.inference.likelihood import likelihoods
from hyenadna.inference.variants import substitutions
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.estimate import inference_memory, parameters, training_flops, training_memory
from hyenadna.pretrain.optimizer import adamw
from hyenadna.pretrain.plan import architecture, new_model
from hyenadna.serve.jobs import LikelihoodJob, PredictJob
from hyenadna.serve.served_model import ServedAdapter, ServedModel

LENGTHS = torch.tensor([30, 7, 30, 1, 19])
HYBRIDS = ("L", "S", "HLS", "HS+remoe")


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    return write_genome(tmp_path_factory.mktemp("genome") / "a.fa")


class TestPretraining:
    def test_two_steps_and_from_the_first_again(self, fasta, tmp_path):
        def run(folder):
            code, out, err = hyena(
                "pretrain", "--fasta", fasta, *SMALL, "--steps", 2, "--checkpoint-every", 1, "--valid-every", 2,
                "--layers", "HLS", "--feed-forward", "remoe", "--warmup-from", 64, "--out", folder,
            )  # fmt: skip
            assert code == 0, err
            return out + err

        one, other = tmp_path / "one", tmp_path / "other"
        assert "tiny-1k (HLS, remoe 1 of 8)" in run(one)
        assert HyenaDNA.from_pretrained(one / "model").config.blocks == "HLS, remoe 1 of 8"
        card = (one / "model/README.md").read_text()
        assert "--layers HLS --feed-forward remoe" in card and "3 layers (HLS, remoe 1 of 8)" in card
        shutil.copytree(one, other)
        (other / "checkpoints/step-00000002.ckpt").unlink()
        shutil.rmtree(other / "model")
        run(other)
        assert_same_run(one, other)

    def test_the_runs_own_blocks_take_the_place_of_the_sizes(self):
        assert architecture(PretrainConfig(size="tiny-1k-hs")).kv_heads == 2
        found = architecture(PretrainConfig(size="tiny-1k-hs", layers="LLH", feed_forward="remoe", active_experts=2))
        assert found.blocks == "LLH, remoe 2 of 8" and found.d_model == 128
        for fields, says in (
            ({"layers": "HQ"}, "layers is 'HQ'; allowed are .* out of 'HLS'"),
            ({"experts": 4}, "--experts and --active-experts are of a remoe model"),
            ({"sparsity_control": "sign"}, "--sparsity-control, -factor and -start are of a remoe model"),
            ({"feed_forward": "remoe", "active_experts": 9}, "active_experts is 9; it may be up to experts, 8"),
        ):
            with pytest.raises(UsageError, match=says):
                architecture(PretrainConfig(**fields))

    def test_a_seed_draws_the_weights_that_it_always_drew(self):
        """Of a model of Hyena blocks, as it was before there were others."""
        model = new_model(PretrainConfig(max_length=62, seed=3))
        assert model.backbone.layers[1].mlp.fc2.weight[0, 0].item() == pytest.approx(0.0005174643592908978, rel=1e-5)

    def test_decay_and_slopes_are_nothing_that_learns(self):
        model = hybrid("HLS+remoe")
        assert {name for name, _ in model.named_parameters()} == set(model.state_dict())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = adamw(model, lr=1e-2, filter_lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
        model(letters(2, 20)).logits.square().mean().backward()
        optimizer.step()
        assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestEstimates:
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_parameters(self, pattern):
        model = hybrid(pattern, tie_head=False)
        assert parameters(model.config) == sum(p.numel() for p in model.parameters())

    def test_operations_by_hand(self):
        config = HyenaConfig(
            d_model=32, d_inner=64, layers="LS", heads=4, kv_heads=1, feed_forward="remoe", experts=4, active_experts=2
        )
        L, D = 128, 32
        feed_forward = 2 * (2 * D * 64 + D * 4)
        lightning = 2 * (5 * D * D) + 4 * (sum(t % 64 for t in range(L)) / L + 0.5) * D + 4 * D * D / 4
        softmax = 2 * (2 * D * D + 2 * D * 8) + 4 * D * sum(range(1, L + 1)) / L
        forward = 2 * feed_forward + lightning + softmax + 2 * 16 * D
        assert training_flops(config, length=L) == pytest.approx(3 * forward)

    def test_memory_grows_with_what_grows(self):
        cpu = torch.device("cpu")
        given = {"length": 4096, "micro_batch_tokens": 8192, "half": False, "checkpoint_activations": False}
        of = {
            layers: training_memory(HyenaConfig(layers=layers, filter_length=4098), device=cpu, **given)
            for layers in ("H", "L", "S", "SS")
        }
        assert of["H"].filters > 0 == of["L"].filters == of["S"].filters
        assert of["SS"].activations - of["S"].activations > 8192 * 4 * 8 * 128
        remoe = HyenaConfig(layers="S", filter_length=4098, feed_forward="remoe")
        assert training_memory(remoe, device=cpu, **given).activations > of["S"].activations
        assert inference_memory(remoe, length=4096, batch_tokens=4096, device=cpu) > 4 * parameters(remoe)

    def test_command(self):
        code, out, _ = hyena(
            "estimate", "--layers", "HS", "--feed-forward", "remoe", "--experts", 4, "--max-length", 64, "--device",
            "cpu", "--json",
        )  # fmt: skip
        found = json.loads(out)
        assert code == 0 and found["blocks"] == "HS, remoe 1 of 4"
        config = PretrainConfig(layers="HS", feed_forward="remoe", experts=4)
        assert found["parameters"] == parameters(architecture(config))
        assert hyena("estimate", "--layers", "HQ")[0] == 2


def adapted(base, method, **fields):
    model = SequenceModel(base, Task("multiclass", ("a", "b", "c")), Adaptation(method=method, **fields), seed=3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.learnt().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("pattern", HYBRIDS)
class TestFineTuning:
    def test_updates_are_written_into_the_weights(self, pattern):
        base, tokens = hybrid(pattern), letters(2, 30)
        model = attach(base, rank=2, alpha=4.0, projections=PROJECTIONS)
        assert set(updates(model)) == set(base.projections)
        with torch.no_grad():
            close(model(tokens).logits, base(tokens).logits, 1e-5)
            for update in updates(model).values():
                update.B.normal_(std=0.2)
            changed = model(tokens).logits
            assert (changed - base(tokens).logits).abs().max() > 0.05
            close(merged(model)(tokens).logits, changed, 1e-4)

    def test_adapters_side_by_side_are_each_alone(self, pattern):
        base = hybrid(pattern).double()
        models = [
            adapted(base, "head"),
            adapted(base, "soft-prompt", prompt_length=3),
            adapted(base, "lora", lora_rank=2, lora_projections=PROJECTIONS),
            adapted(base, "soft-prompt", prompt_length=0),
            adapted(base, "soft-prompt", prompt_length=9),
        ]
        tokens = letters(5, 30).masked_fill(torch.arange(30) >= LENGTHS[:, None], 4)
        which = torch.tensor([4, 1, 2, 3, 0])
        together = AdapterBatch(models)(tokens, LENGTHS, which)
        with torch.no_grad():
            for row, (number, length) in enumerate(zip(which.tolist(), LENGTHS.tolist(), strict=True)):
                alone = models[number](tokens[row : row + 1, :length], LENGTHS[row : row + 1])
                close(together[row], alone[0])
            # a prompt of no embeddings is no prompt
            plain = base(tokens, prefix=None).hidden
            assert torch.equal(models[3].hidden(tokens, LENGTHS), plain)

    def test_a_soft_prompt_learns_and_the_base_does_not(self, pattern):
        base = hybrid(pattern)
        model, targets = (
            adapted(base, "soft-prompt", prompt_length=4, dropout=0.0).train(),
            torch.tensor([0, 1, 2, 0, 1]),
        )
        before, tokens = {name: value.clone() for name, value in base.state_dict().items()}, letters(5, 30)
        optimizer, losses = torch.optim.AdamW(model.learnt().values(), lr=1e-2), []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model.task.loss(model(tokens, LENGTHS), targets)
            loss.backward()
            assert model.prompt.embeddings.grad.abs().max() > 0
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("pattern", HYBRIDS)
def test_likelihoods_and_substitutions(pattern):
    model, sequence = hybrid(pattern).double(), "ACGTTGCANCATTAG"
    found = substitutions(model, sequence, batch_tokens=90, dtype=torch.float64)
    for position, base in ((0, "G"), (5, "A"), (14, "C")):
        changed = sequence[:position] + base + sequence[position + 1 :]
        nats = [item.nats for item in likelihoods(model, [changed, sequence], dtype=torch.float64)]
        assert found[position, "ACGT".index(base)] == pytest.approx(nats[0] - nats[1], abs=1e-9)
    long = sequence * 8  # longer than the context, and read in windows
    assert len(long) > CONTEXT and np.isfinite(likelihoods(model, [long], strand="both")[0].nats)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    hybrid("HLS+remoe").save_pretrained(path)
    return path


def test_commands(folder, tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGTTGCATTAGCATGCA\n>b\nACG\n")
    code, _, err = hyena("embed", tmp_path / "a.fa", "-m", folder, "-o", tmp_path / "e.npy", "--device", "cpu")
    assert code == 0, err
    assert np.load(tmp_path / "e.npy").shape == (2, 16)
    code, _, err = hyena("convert", folder, "-o", tmp_path / "c", "--to", "hf")
    assert code == 2 and err.count("\n") == 1 and "blocks are HLS, remoe 2 of 3, and the published layouts hold" in err


@pytest.mark.slow
def test_evaluated_beside_markov_models(folder, fasta):
    given = ("--max-bases", 500, "--device", "cpu", "--json")
    code, _, err = hyena("evaluate", "-m", folder, "--fasta", fasta, *given)
    assert code == 0, err


def test_a_server_batches_what_is_computed_alone():
    base = hybrid("HLS+remoe")
    heads = {name: adapted(base, *how) for name, how in (("prompt", ("soft-prompt",)), ("head", ("head",)))}
    model = ServedModel(base, name="m", adapters={name: ServedAdapter(head) for name, head in heads.items()})
    sequences = [("one", "ACGTTGCATTAGCA"), ("two", "ACG"), ("three", "ACGTTGCATTAGCA" * 3)]
    likely, *predicted = computed(
        LikelihoodJob(model=model, sequences=sequences),
        *(PredictJob(model=model, sequences=sequences[:2], adapter=name) for name in heads),
    )
    for item, alone in zip(likely, likelihoods(base, [sequence for _, sequence in sequences]), strict=True):
        assert item["nats"] == pytest.approx(alone.nats, rel=1e-5)
    for items, head in zip(predicted, heads.values(), strict=True):
        for item, (_, sequence) in zip(items, sequences[:2], strict=True):
            expected = Predictor(head)([encode(sequence)])[0]
            np.testing.assert_allclose(list(item["probabilities"].values()), expected, atol=1e-5)
