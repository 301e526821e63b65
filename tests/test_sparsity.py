"""The penalty on the gates of experts, what steers it, and both in a step of pretraining."""

import dataclasses
import math
import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretraining import SMALL, assert_same_run, final_state, hyena, metrics, write_genome

from hyenadna import HyenaConfig, HyenaDNA, plots
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import packed
from hyenadna.data.sampler import Source, WindowSampler
from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import UsageError
from hyenadna.model.experts import gates_of
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.length_warmup import length_warmup
from hyenadna.pretrain.module import EXPERT_METRICS, PretrainModule
from hyenadna.pretrain.sparsity import BOUNDS, SparsityControl, balanced_l1, gate_counts

CONFIG = HyenaConfig(
    d_model=16, d_inner=32, filter_length=34, embed_dropout=0.0, feed_forward="remoe", experts=4, active_experts=1
)


def control_of(kind, coefficient=1e-3, target=0.75, factor=1.2):
    return SparsityControl(target=target, active_experts=1, control=kind, factor=factor, coefficient=coefficient)


@pytest.mark.parametrize(("sparsity", "exponent"), [(0.5, 1), (0.7499, 1), (0.75, -1), (0.7501, -1), (1.0, -1)])
def test_the_sign_multiplies_below_the_target_and_divides_at_and_above(sparsity, exponent):
    control = control_of("sign")
    control.update(sparsity)
    assert control.state.coefficient == pytest.approx(1e-3 * 1.2**exponent, rel=1e-15)


def test_the_damped_step_is_the_distance_less_the_rise():
    control, expected, before = control_of("damped"), 1e-3, None
    for sparsity in (0.5, 0.75, 0.75, 1.0, 0.9):
        expected *= 1.2 ** (0.75 - sparsity) * math.exp(-5 * (sparsity - (sparsity if before is None else before)))
        before = sparsity
        control.update(sparsity)
        assert control.state.coefficient == pytest.approx(expected, rel=1e-14) and control.state.sparsity == sparsity
    control = control_of("damped")
    control.update(0.75)
    assert control.state.coefficient == 1e-3  # at the target and at rest nothing changes


@pytest.mark.parametrize("kind", ["sign", "damped"])
def test_the_coefficient_comes_back_from_its_bounds(kind):
    lowest, highest = BOUNDS[kind]
    for sparsity, bound, start in ((1.0, lowest, lowest * 1.01), (0.0, highest, highest / 1.01)):
        control = control_of(kind, start)
        for _ in range(3):
            control.update(sparsity)
        assert control.state.coefficient == bound
        control.update(1 - sparsity)
        assert lowest < control.state.coefficient < highest


def hand_made():
    """Two layers, four tokens, four experts."""
    gates = torch.zeros(2, 4, 4, dtype=torch.float64)
    gates[0, :3, 0] = torch.tensor([1.0, 2.0, 3.0])
    gates[0, 0, 1] = 0.5
    gates[1, 3, 2] = 4.0
    return gates.requires_grad_()


def test_hand_made_gates():
    gates = hand_made()
    off, number, without, tokens = gate_counts(gates).tolist()
    assert (off, number, without, tokens) == (32 - 5, 32, 1 + 3, 8)
    # f of layer 0: 4 / (1 * 4) times 3, 1, 0, 0 tokens; of layer 1: 0, 0, 1, 0. The sum over e of f R, then / (2 * 4)
    value = balanced_l1(gates, 1)
    assert float(value.detach()) == pytest.approx((3 * 6.0 + 1 * 0.5 + 1 * 4.0) / 8, rel=1e-15)
    value.backward()
    expected = torch.tensor([3.0, 1.0, 0.0, 0.0]).expand(4, 4), torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(4, 4)
    assert torch.equal(gates.grad, torch.stack(expected).double() / 8)  # f itself is not differentiated
    assert float(balanced_l1(gates, 2).detach()) == pytest.approx(float(value.detach()) / 2)


def test_in_balance_at_the_target_the_penalty_is_the_plain_l1_norm():
    random = torch.Generator().manual_seed(0)
    gates = torch.zeros(3, 40, 8)
    for layer in range(3):
        order = torch.randperm(40, generator=random)
        for place, token in enumerate(order.tolist()):  # two of eight experts for each token, each for ten tokens
            gates[layer, token, [place % 8, (place + 1) % 8]] = torch.rand(2, generator=random)
    plain = gates.sum() / (3 * 40)
    assert float(balanced_l1(gates, 2)) == pytest.approx(float(plain), rel=1e-6)


def test_the_gradient_stops_at_gates_that_are_zero():
    random = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 50, 8, generator=random, requires_grad=True)
    gates = torch.relu(scores)
    balanced_l1(gates, 1).backward()
    assert ((scores.grad > 0) == (gates > 0)).all() and (scores.grad[gates == 0] == 0).all()


def toy(kind, seed, steps=600, E=8, T=128, D=16):
    """Sparsity in each step of a router and constant experts that learn which of eight classes a token is in."""
    random = torch.Generator().manual_seed(seed)
    router = (torch.randn(D + 1, E, generator=random) * 0.1).requires_grad_()
    outputs = torch.randn(E, D, generator=random).requires_grad_()
    classes, means = torch.randn(D, 8, generator=random), torch.randn(8, D, generator=random)
    optimizer = torch.optim.Adam([router, outputs], lr=1e-2, fused=True)
    control = SparsityControl(target=1 - 1 / E, active_experts=1, control=kind, factor=1.2, coefficient=1e-5)
    found = []
    for _ in range(steps):
        x = torch.randn(T, D, generator=random)
        gates = torch.relu(torch.addmm(router[-1], x, router[:-1]))
        loss = F.mse_loss(gates @ outputs, means[(x @ classes).argmax(1)])
        optimizer.zero_grad()
        (loss + control.penalty(gates[None])).backward()
        optimizer.step()
        found.append(float((gates.detach() == 0).double().mean()))
        control.update(found[-1])
    return np.array(found)


def test_a_toy_comes_to_its_target_and_swings_less_than_as_published():
    swings = {}
    for kind in ("damped", "sign"):
        late = toy(kind, seed=0)[-250:]
        smooth = np.convolve(late, np.ones(10) / 10, mode="valid")  # of 128 tokens a step tells the sparsity to 0.01
        swings[kind] = smooth.std()
        if kind == "damped":
            assert abs(late.mean() - 0.875) < 0.05 and np.abs(smooth - 0.875).max() < 0.05
    assert swings["sign"] > 3 * swings["damped"]


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    path = write_genome(tmp_path_factory.mktemp("genome") / "a.fa", 5000)
    source = Source(packed(path), (Interval("chr1", 0, 5000),), 1.0)
    return WindowSampler([source], 3, n_token="n", soft_mask="upper", reverse_complement=True, max_n_share=0.9)


def model():
    torch.manual_seed(1)
    made = HyenaDNA(CONFIG)
    for block in made.backbone.layers:
        torch.nn.init.normal_(block.mlp.router.weight, std=0.3)
    return made


def first_step(sampler, micro_batches, *, recompute=False):
    """The module after a step in float64 in which the penalty is as large as the loss."""
    config = PretrainConfig(lr=1e-3, filter_lr=1e-3, clip=1e12, sparsity_start=1.0)
    network = model()
    network.backbone.checkpoint_activations = recompute
    warmup = length_warmup(warmup_from=16, max_length=32, steps=1, batch_tokens=256, micro_batches=8, share=0.0)
    module = PretrainModule(network, config, sampler, warmup, micro_batches=micro_batches)
    pl.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_epochs=1, accumulate_grad_batches=micro_batches,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module)  # fmt: skip
    return module, torch.cat([parameter.grad.flatten() for parameter in module.model.parameters()])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_is_that_of_loss_and_penalty(sampler, micro_batches):
    plain = model().double()
    inputs, targets = (torch.from_numpy(array) for array in sampler.windows(0, 0, 8, 32))
    off, scored, loss = 0, (targets != IGNORE).sum(), 0.0
    for part, goal in zip(inputs.chunk(micro_batches), targets.chunk(micro_batches), strict=True):
        with gates_of(plain) as gates:
            logits = plain(part).logits
        nats = F.cross_entropy(logits.flatten(0, 1), goal.flatten(), ignore_index=IGNORE, reduction="sum")
        opened = gates.all()
        on = (opened > 0).double().mean(dim=1, keepdim=True)
        penalty = (4 * on * opened).sum() / (2 * opened.shape[1])
        loss = loss + (nats + (goal != IGNORE).sum() * penalty) / scored
        off += int((opened == 0).sum())
    loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    module, found = first_step(sampler, micro_batches)
    assert (found - expected).norm() < 1e-9 * expected.norm()
    sparsity = off / (2 * 256 * 4)
    assert 0.3 < sparsity < 0.7
    assert module.expert_metrics["sparsity"] == pytest.approx(sparsity, rel=1e-12)
    assert module.expert_metrics["sparsity_coefficient"] == 1.0 and tuple(module.expert_metrics) == EXPERT_METRICS
    assert module.sparsity.state.coefficient == pytest.approx(1.2 ** (0.75 - sparsity), rel=1e-12)
    bits = float(sum(nats.detach() for nats in [F.cross_entropy(
        plain(inputs).logits[..., 7:11].flatten(0, 1), torch.where(targets >= 7, targets - 7, IGNORE).flatten(),
        ignore_index=IGNORE,
    )])) / math.log(2)  # fmt: skip
    assert module.train_bits == pytest.approx(bits, rel=1e-6)  # without the penalty


def test_recomputed_blocks_have_the_same_gradients(sampler):
    one, kept = first_step(sampler, 2)
    other, recomputed = first_step(sampler, 2, recompute=True)
    assert torch.equal(kept, recomputed) and one.expert_metrics == other.expert_metrics


RUN = (
    *SMALL, "--layers", "H", "--feed-forward", "remoe", "--experts", "4", "--warmup-share", "0.5", "--sparsity-start",
    "1e-3", "--checkpoint-every", "3", "--valid-every", "6",
)  # fmt: skip


def test_a_resumed_run_goes_on_with_the_same_coefficient(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ("pretrain", "--fasta", write_genome(tmp_path / "a.fa"), *RUN, "--steps", "6")
    code, _, err = hyena(*command, "--out", whole)
    assert code == 0, err
    rows, control = metrics(whole), control_of("damped")
    assert len(rows) == 6
    for row in rows:
        assert float(row["sparsity_coefficient"]) == pytest.approx(control.state.coefficient, rel=1e-6)
        assert 0 <= float(row["tokens_without_expert"]) <= 1
        control.update(float(row["sparsity"]))
    shutil.copytree(whole, cut)
    (cut / "checkpoints" / "step-00000006.ckpt").unlink()  # as if killed after step 6
    code, _, err = hyena(*command, "--out", cut)
    assert code == 0 and "resumed at step 3" in err, err
    assert_same_run(whole, cut)
    states = [final_state(run).sparsity for run in (whole, cut)]
    assert states[0] == states[1] and states[0].coefficient == pytest.approx(control.state.coefficient, rel=1e-6)


def test_curves_show_the_experts():
    from matplotlib.colors import to_hex

    drawn, ax = plots.figure()
    tokens = np.arange(1.0, 6)
    columns = {"tokens": tokens, "sparsity": tokens / 6, "tokens_without_expert": tokens / 60,
               "sparsity_coefficient": 10 ** -tokens}  # fmt: skip
    plots.sparsity_curve(ax, columns, 0.875)
    drawn_lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert np.array_equal(drawn_lines["gates that are off"], tokens / 6)
    assert list(drawn_lines["target 0.875"]) == [0.875, 0.875]
    (other,) = (axis for axis in drawn.axes if axis is not ax)
    assert other.get_yscale() == "log" and np.array_equal(other.lines[0].get_ydata(), 10**-tokens)
    assert to_hex(other.lines[0].get_color()) == plots.BASELINE.lower()


def test_what_the_fields_allow():
    for field, value, message in (
        ("sparsity_factor", 1.0, "--sparsity-factor is 1.0; it must be above 1 and at most 10"),
        ("sparsity_start", 0.0, "--sparsity-start is 0.0; it must be from 1e-8 to 10"),
    ):
        with pytest.raises(UsageError, match=message):
            PretrainConfig(**{field: value})
    with pytest.raises(UsageError, match="active_experts is 5; it may be up to experts, 4"):
        dataclasses.replace(CONFIG, active_experts=5)
