"""The diversity head: labels by hand, sampling against full recomputation, gradients, files, and a planted signal."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import small_model
from evaluating import random_dna
from scipy.stats import spearmanr
from typer.testing import CliRunner

from hyenadna.cli.main import app
from hyenadna.errors import CheckpointError, InputError, SequenceTooLong, UsageError
from hyenadna.finetune import diversity as command
from hyenadna.finetune import diversity_head
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.continuations import diversity, sample
from hyenadna.finetune.diversity import Contexts, train
from hyenadna.finetune.diversity_evaluation import evaluate
from hyenadna.finetune.diversity_head import DiversityHead

A = 7


@pytest.fixture(scope="module")
def model():
    model = small_model(layers="HH", filter_length=66).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(30)  # far from uniform
    return model.double()


def test_diversity_is_one_minus_the_mean_cosine_of_all_pairs() -> None:
    continuations = np.random.default_rng(0).integers(0, 4, (3, 5, 20)).astype(np.uint8)
    for k in (1, 2, 4):
        for of_context, found in zip(continuations, diversity(continuations, k), strict=True):
            counts = []
            for row in of_context:
                words = ["".join(map(str, row[i : i + k])) for i in range(20 - k + 1)]
                counts.append({word: words.count(word) for word in words})
            cosines = []
            for a, b in itertools.combinations(counts, 2):
                norms = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
                cosines.append(sum(a[word] * b.get(word, 0) for word in a) / norms)
            assert found == pytest.approx(1 - np.mean(cosines), abs=1e-6)


def test_continuations_are_those_of_full_recomputation(model) -> None:
    random = np.random.default_rng(1)
    contexts = random.integers(A, A + 4, (3, 9)).astype(np.uint8)
    uniform = random.random((3, 2, 6))
    found = sample(model, contexts, uniform)
    for row, copy_ in itertools.product(range(3), range(2)):
        tokens = contexts[row].tolist()
        for position in range(6):
            with torch.no_grad():
                output = model(torch.tensor([tokens]))
            p = output.logits[0, -1, A : A + 4].softmax(-1).numpy()
            if position == 0:
                np.testing.assert_allclose(found.hidden[row], output.hidden[0, -1], atol=1e-9)
                assert found.entropy[row] == pytest.approx(-(p * np.log(p)).sum())
            base = int((uniform[row, copy_, position] >= np.cumsum(p)[:3]).sum())
            assert found.continuations[row, copy_, position] == base
            tokens.append(A + base)


def test_what_is_sampled_does_not_depend_on_the_batch(model) -> None:
    random = np.random.default_rng(2)
    contexts, uniform = random.integers(A, A + 4, (4, 8)).astype(np.uint8), random.random((4, 3, 5))
    together = sample(model, contexts, uniform).continuations
    alone = [sample(model, contexts[i : i + 1], uniform[i : i + 1]).continuations for i in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_the_language_model_gets_no_gradient(model) -> None:
    model.requires_grad_(True)
    head = DiversityHead(model.config.d_model)
    hidden = model(torch.randint(A, A + 4, (4, 12))).hidden[:, -1]
    assert hidden.requires_grad
    (head(hidden) - 0.3).square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())
    scores = head(hidden * 1e3)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def planted(n: int, seed: int, noise: float = 0.02) -> Contexts:
    """Diversity that one direction of the hidden states decides, and entropy that another one does."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(n, 8))
    labels = 0.5 + 0.4 * np.tanh(hidden[:, 0]) + noise * random.normal(size=n)
    return Contexts(torch.from_numpy(hidden).float(), hidden[:, 1], labels)


def test_a_planted_direction_is_learnt_and_beats_the_entropy() -> None:
    config = FinetuneConfig(objective="diversity", epochs=12, head_lr=1e-2)
    head, epoch = train(planted(200, 1), planted(60, 2), (0.1, 0.9), config)
    again, _ = train(planted(200, 1), planted(60, 2), (0.1, 0.9), config)
    test = planted(200, 3)
    with torch.no_grad():
        score = head(test.hidden)
        assert torch.equal(score, again(test.hidden))
    assert 1 <= epoch <= 12
    found = evaluate(score.double().numpy(), test.entropy, test.diversity)
    assert found.spearman.value > 0.9 and found.spearman.low > 0.85
    assert found.beats_entropy and "better than the entropy" in found.text()
    # against scipy and least squares
    assert found.spearman.value == pytest.approx(spearmanr(score, test.diversity)[0])
    y, columns = test.diversity, [np.ones(200), test.entropy, score.double().numpy()]
    r2 = []
    for n in (2, 3):
        design = np.stack(columns[:n], axis=1)
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        r2.append(1 - rest.var() / y.var())
    assert found.r2_entropy.value == pytest.approx(r2[0])
    assert found.r2_increment.value == pytest.approx(r2[1] - r2[0])


def test_a_head_of_noise_does_not_beat_the_entropy_and_the_text_says_so() -> None:
    random = np.random.default_rng(0)
    entropy = random.normal(size=200)
    found = evaluate(random.normal(size=200), entropy, entropy + 0.5 * random.normal(size=200))
    assert not found.beats_entropy
    assert found.r2_increment.value < 0.05
    assert "no better than the entropy" in found.text()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a genome, a model and a head, made by the command itself."""
    folder = tmp_path_factory.mktemp("diversity")
    (folder / "genome.fa").write_text(f">one\n{random_dna(30_000, 1)}\n")
    torch.manual_seed(1)
    model = small_model(layers="HH", filter_length=66).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(8)
    model.save_pretrained(folder / "model")
    arguments = ["finetune", str(folder / "genome.fa"), "--objective", "diversity", "-m", str(folder / "model"),
                 "-o", str(folder / "head"), "--contexts", "120", "--context-length", "40", "--continuations", "4",
                 "--continuation-length", "16", "--epochs", "5", "--threads", "1", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (folder / "result.json").write_text(result.stdout)
    return folder


def test_the_command_writes_a_head_that_loads(made) -> None:
    result = json.loads((made / "result.json").read_text())
    assert result["evaluation"]["contexts"] == 24 and "hyena generate" in result["text"]
    files = {path.name for path in (made / "head").iterdir()}
    assert files == {"diversity.json", "diversity.safetensors", "README.md", "diversity.png", "diversity.tsv"}
    base = small_model(layers="HH", filter_length=66).from_pretrained(made / "model")
    head = diversity_head.load(made / "head", base=base)
    rows = np.loadtxt(made / "head" / "diversity.tsv", skiprows=1)
    assert rows.shape == (24, 3)
    assert np.ptp(rows[:, 1]) > 0.01
    scores = head(base(torch.randint(A, A + 4, (3, 20))).hidden[:, -1])
    assert scores.shape == (3,) and not scores.requires_grad
    card = (made / "head" / "README.md").read_text()
    assert "--objective diversity" in card and "rank correlation" in card


def test_a_head_of_another_model_or_a_damaged_one_is_refused(made, tmp_path) -> None:
    torch.manual_seed(5)
    with pytest.raises(CheckpointError, match="a head works on the very model"):
        diversity_head.load(made / "head", base=small_model(layers="HH", filter_length=66))
    with pytest.raises(CheckpointError, match="is no diversity head"):
        diversity_head.load(made / "model", base=small_model())
    base = small_model(layers="HH", filter_length=66).from_pretrained(made / "model")
    description = json.loads((made / "head" / "diversity.json").read_text())
    (tmp_path / "diversity.safetensors").write_bytes((made / "head" / "diversity.safetensors").read_bytes())
    (tmp_path / "diversity.json").write_text(json.dumps(description | {"learnt_sha256": "0"}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        diversity_head.load(tmp_path, base=base)


def test_a_head_is_replaced_only_when_told_to(made) -> None:
    config = FinetuneConfig(objective="diversity", out=made / "head", data=str(made / "genome.fa"))
    for run in (command.finetune, command.dry_run):
        with pytest.raises(UsageError, match="--overwrite"):
            run(config)


def test_settings_that_do_not_fit_are_refused(made) -> None:
    with pytest.raises(UsageError, match="--method says nothing to --objective diversity"):
        FinetuneConfig(objective="diversity", method="lora")
    with pytest.raises(UsageError, match="--contexts says nothing to --objective labels"):
        FinetuneConfig(contexts=100)
    with pytest.raises(UsageError, match="--continuations is 1; it must be at least 2"):
        FinetuneConfig(objective="diversity", continuations=1)
    config = FinetuneConfig(objective="diversity", out=made / "other", contexts=60, test_share=0.01)
    for run in (command.finetune, command.dry_run):
        with pytest.raises(UsageError, match=r"--contexts 60 are 53 train, 6 valid, 1 test by .*; each part needs 5"):
            run(config)
    config = FinetuneConfig(
        objective="diversity", model=str(made / "model"), out=made / "other", data=str(made / "genome.fa"), threads=1
    )
    with pytest.raises(SequenceTooLong, match=r"576 together; .* takes up to 66"):
        command.finetune(config)


def test_contexts_that_are_all_alike_cannot_be_learnt_from(made, tmp_path) -> None:
    (tmp_path / "genome.fa").write_text(f">one\n{'A' * 20_000}\n")
    flat = small_model(layers="HH", filter_length=66)
    with torch.no_grad():
        flat.embedding.weight.zero_()
        flat.embedding.weight[A] = 1e4
        flat.backbone.ln_f.weight.zero_()
        flat.backbone.ln_f.bias.fill_(1.0)
    flat.save_pretrained(tmp_path / "model")
    config = FinetuneConfig(
        objective="diversity", model=str(tmp_path / "model"), out=tmp_path / "head", data=str(tmp_path / "genome.fa"),
        contexts=50, context_length=16, continuations=2, continuation_length=8, threads=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="there is nothing to learn"):
        command.finetune(config)
    assert not (tmp_path / "head").exists()
