import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import packed
from hyenadna.data.sampler import Source, WindowSampler
from hyenadna.data.tokenizer import IGNORE, SEP
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.length_warmup import length_warmup
from hyenadna.pretrain.module import MicroBatches, PretrainModule, nats_of_bases


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    """Windows in which every fifth base is N, unevenly."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[rng.integers(0, 4, 5000)].copy()
    letters[rng.random(5000) < np.linspace(0, 0.4, 5000)] = ord("N")
    path = tmp_path_factory.mktemp("genome") / "n.fa"
    path.write_text(f">a\n{letters.tobytes().decode()}\n")
    source = Source(packed(path), (Interval("a", 0, 5000),), 1.0)
    return WindowSampler([source], 3, n_token="n", soft_mask="upper", reverse_complement=True, max_n_share=0.9)


def warmup_of(steps=1, windows=8):
    return length_warmup(
        warmup_from=16, max_length=32, steps=steps, batch_tokens=32 * windows, micro_batches=windows, share=0.0
    )


def model():
    torch.manual_seed(1)
    return HyenaDNA(HyenaConfig(d_model=16, d_inner=32, filter_length=34, embed_dropout=0.0))


def first_step(sampler, micro_batches):
    """The module after one step in float64, without clipping: its gradients are those of the step."""
    config = PretrainConfig(lr=1e-3, filter_lr=1e-3, clip=1e12)
    module = PretrainModule(model(), config, sampler, warmup_of(), micro_batches=micro_batches)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_epochs=1, accumulate_grad_batches=micro_batches,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module)
    assert module.step == 1
    return module


@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_a_step_is_the_mean_over_scored_targets(sampler, micro_batches):
    plain = model().double()
    inputs, targets = (torch.from_numpy(array) for array in sampler.windows(0, 0, 8, 32))
    counts = (targets != IGNORE).sum(dim=1)
    assert len(set(counts.tolist())) > 1  # else any mean of means would do
    logits = plain(inputs).logits
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    nats = [
        -log_p[row, place, targets[row, place]]
        for row in range(8)
        for place in range(32)
        if targets[row, place] != IGNORE
    ]
    loss = torch.stack(nats).sum() / len(nats)
    loss.backward()
    module = first_step(sampler, micro_batches)
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    found = torch.cat([parameter.grad.flatten() for parameter in module.model.parameters()])
    assert (found - expected).norm() < 1e-9 * expected.norm()
    assert module.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-9)
    bases = [
        float(torch.log(logits[row, place, 7:11].exp().sum()) - logits[row, place, targets[row, place]])
        for row in range(8)
        for place in range(32)
        if targets[row, place] >= 7
    ]
    assert len(bases) == len(nats) - 8  # each window ends with SEP, which is trained on but is no base
    # the sum of cross_entropy's parts passes through float64 only at its end
    assert module.train_bits == pytest.approx(sum(bases) / len(bases) / math.log(2), rel=1e-9)


def test_clipping_is_by_the_norm_of_the_whole_step(sampler):
    free = first_step(sampler, 2)
    config = PretrainConfig(lr=1e-3, filter_lr=1e-3, clip=0.01)
    module = PretrainModule(model(), config, sampler, warmup_of(), micro_batches=2)
    pl.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_epochs=1, accumulate_grad_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module)  # fmt: skip
    clipped = torch.cat([parameter.grad.flatten() for parameter in module.model.parameters()])
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-4)
    assert module.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-12)  # told before clipping


def test_nats_of_bases():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 5, 16)) * 3
    targets = rng.choice([7, 8, 9, 10, SEP, IGNORE], size=(3, 5))
    expected, number = 0.0, 0
    for row in range(3):
        for place in range(5):
            if targets[row, place] >= 7:
                four = np.exp(logits[row, place, 7:11])
                expected -= np.log(four[targets[row, place] - 7] / four.sum())
                number += 1
    nats, bases = nats_of_bases(torch.from_numpy(logits), torch.from_numpy(targets))
    assert 0 < number < 15 and float(bases) == number
    assert float(nats) == pytest.approx(expected, rel=1e-12)
    nothing = nats_of_bases(torch.from_numpy(logits), torch.full((3, 5), IGNORE))
    assert [float(value) for value in nothing] == [0.0, 0.0]


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 4), (2, 2), (4, 1), (2, 4)])
def test_ranks_and_micro_batches_share_the_windows(sampler, world, micro_batches):
    warmup = length_warmup(
        warmup_from=16, max_length=32, steps=4, batch_tokens=256, micro_batches=world * micro_batches, share=0.5
    )
    assert [(stage.length, stage.windows) for stage in warmup.stages] == [(16, 16), (32, 8)]
    ranks = [
        MicroBatches(sampler, warmup, first_step=1, micro_batches=micro_batches, rank=rank, world=world)
        for rank in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(list_) for list_ in batches} == {len(rank) for rank in ranks} == {3 * micro_batches}
    for step in (1, 2, 3):
        stage = warmup.at(step)
        whole = sampler.windows(step, 0, stage.windows, stage.length)
        first = (step - 1) * micro_batches
        for part, array in enumerate(whole):
            shared = [batches[rank][first + m][part] for m in range(micro_batches) for rank in range(world)]
            assert np.array_equal(torch.cat(shared).numpy(), array)
