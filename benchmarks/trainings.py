"""Small models trained on equal terms, for benchmarks that compare architectures; every finished training is kept.

All contenders see the same windows in the same order and are scored on the same held-out windows. A training is one
process; what it came to is a JSON file in the folder of runs, and is not computed again while the plan stays the same.
"""

import dataclasses
import hashlib
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy import stats
from side_by_side import in_fresh_process

from hyenadna.errors import UsageError
from hyenadna.files import write_json
from hyenadna.model.config import HyenaConfig
from hyenadna.model.experts import expert_layers
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import weight_count
from hyenadna.model.weights import blank_model
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.length_warmup import length_warmup
from hyenadna.pretrain.module import PretrainModule, nats_of_bases
from hyenadna.progress import notice

PROMPT = 128
"""Tokens before those whose generation is timed."""
WITHIN = 0.02
"""How far the active weights of contenders may differ."""


class Plan(NamedTuple):
    """What is the same for all contenders."""

    fasta: str
    length: int = 1024
    """Tokens of a window."""
    tokens: int = 4_000_000
    """Of a training."""
    batch_tokens: int = 4096
    d_model: int = 128
    lr: float = 2e-3
    test_windows: int = 256
    generated: int = 256
    """Tokens that are generated one by one, if the windows are as long."""
    sparsity_control: str = "damped"
    threads: int = 1


class Contender(NamedTuple):
    """One architecture."""

    layers: str
    feed_forward: str
    d_inner: int

    @property
    def name(self) -> str:
        return self.layers + ("" if self.feed_forward == "mlp" else " + ReMoE")


def model_config(contender: Contender, plan: Plan) -> HyenaConfig:
    return HyenaConfig(
        d_model=plan.d_model, d_inner=contender.d_inner, layers=contender.layers, filter_length=plan.length + 2,
        feed_forward=contender.feed_forward, embed_dropout=0.0,
    )  # fmt: skip


def weights(config: HyenaConfig) -> tuple[int, int]:
    """All of a model, and those that work on a mean token at the target sparsity."""
    model = blank_model(config)
    of_experts = sum(weight_count(layer.experts) for layer in expert_layers(model))
    total = weight_count(model)
    return total, total - round(of_experts * (1 - config.active_experts / config.experts))


def matched(layers: str, feed_forward: str, plan: Plan, like: str) -> Contender:
    """The contender whose feed-forward width gives it as many active weights as `like`, dense and 4 widths wide, has.

    Mixers differ in their weights, so what is left for the feed-forward layer does too.
    """
    goal = weights(model_config(Contender(like, "mlp", 4 * plan.d_model), plan))[1]

    def active(d_inner: int) -> int:
        return weights(model_config(Contender(layers, feed_forward, d_inner), plan))[1]

    few, step = active(8), active(16) - active(8)  # linear in the width
    found = Contender(layers, feed_forward, max(8, 8 + 8 * round((goal - few) / step)))
    if abs(active(found.d_inner) / goal - 1) > WITHIN:
        raise UsageError(f"{found.name}: no feed-forward width comes within {WITHIN:.0%} of {goal:,} weights")
    return found


def kept(runs: Path, contender: Contender, seed: int, plan: Plan) -> dict[str, Any]:
    """What a training came to, from the folder of runs or by training now."""
    settings = {
        "contender": contender._asdict(),
        "seed": seed,
        "plan": plan._asdict() | {"fasta": Path(plan.fasta).name},
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    path = runs / f"{contender.name.replace(' + ', '-')}-seed{seed}-{digest}.json"
    if not path.exists():
        torch.set_num_threads(plan.threads)
        found, peak = in_fresh_process(train, contender, seed, plan)
        write_json(path, settings | found | {"peak_memory_gb": peak / 1e9})
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shown = f"{result['bits_per_base']:.4f} bits per base, {result['nt_per_cpu_second']:,.0f} nt in a CPU second"
    notice(
        f"{contender.name:16} seed {seed}  {shown}"
        + (f", sparsity {result['sparsity'][-1]:.3f}" if result["sparsity"] else "")
    )
    return result


class _Trace(Callback):
    """The metrics of the experts, step by step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        self.rows.append(dict(module.expert_metrics))


def train(contender: Contender, seed: int, plan: Plan) -> dict[str, Any]:
    """Train and score one model; runs in a process of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    config = PretrainConfig(
        fasta=(plan.fasta,), max_length=plan.length, seed=seed, lr=plan.lr, filter_lr=min(plan.lr, 1e-3),
        valid_tokens=plan.test_windows * plan.length, sparsity_control=plan.sparsity_control,
    )  # fmt: skip
    corpus = Corpus.of(config, plan.length)
    torch.manual_seed(seed)
    model = HyenaDNA(model_config(contender, plan))
    warmup = length_warmup(
        warmup_from=plan.length, max_length=plan.length, steps=max(1, plan.tokens // plan.batch_tokens),
        batch_tokens=plan.batch_tokens, micro_batches=1, share=0.0,
    )  # fmt: skip
    # the windows are the same whatever the seed of the weights
    sampler = corpus.sampler(dataclasses.replace(config, seed=0))
    module, trace = PretrainModule(model, config, sampler, warmup, micro_batches=1), _Trace()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[trace],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total, active = weights(model.config)
    bits = held_out_bits(model.eval(), corpus, config, plan)
    return {
        "weights": total, "active_weights": active, "bits_per_base": float(bits[0].sum() / bits[1].sum()),
        "bits": bits[0].tolist(), "bases": bits[1].tolist(), "nt_per_second": warmup.tokens / wall,
        "nt_per_cpu_second": warmup.tokens / cpu, "generated_per_cpu_second": generation_rate(model, plan),
        "sparsity": [row["sparsity"] for row in trace.rows if row],
        "tokens_without_expert": [row["tokens_without_expert"] for row in trace.rows if row],
        "sparsity_coefficient": [row["sparsity_coefficient"] for row in trace.rows if row],
    }  # fmt: skip


def held_out_bits(model: HyenaDNA, corpus: Corpus, config: PretrainConfig, plan: Plan) -> np.ndarray:
    """Bits and bases of each held-out window, (2, windows): of the part that no training saw."""
    inputs, targets = corpus.validation(config, plan.length)
    found = []
    with torch.inference_mode():
        for read, goal in zip(torch.from_numpy(inputs), torch.from_numpy(targets), strict=True):
            nats, bases = nats_of_bases(model(read[None]).logits, goal[None])
            found.append([float(nats) / np.log(2), float(bases)])
    return np.array(found).T


def generation_rate(model: HyenaDNA, plan: Plan) -> float:
    """Tokens in a CPU second, one sequence, the likeliest base each time, behind a prompt."""
    before = min(PROMPT, plan.length // 2)
    number = min(plan.generated, plan.length - before)
    with torch.inference_mode():
        prompt = torch.randint(7, 11, (1, before), generator=torch.Generator().manual_seed(0))
        logits, state = model.extend(prompt)
        start = time.process_time()
        for _ in range(number):
            token = logits[:, -1:, 7:11].argmax(-1) + 7
            logits, state = model.extend(token, state)
        return number / (time.process_time() - start)


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds and its 95 % interval by Student's t; NaN with one seed."""
    found = np.array(values)
    half = stats.t.ppf(0.975, len(found) - 1) * stats.sem(found) if len(found) > 1 else np.nan
    return {"value": float(found.mean()), "low": float(found.mean() - half), "high": float(found.mean() + half)}


def paired(these: list[dict[str, Any]], those: list[dict[str, Any]]) -> dict[str, float]:
    """Bits per base of these minus those, seed by seed, with the interval over seeds."""
    return interval([a["bits_per_base"] - b["bits_per_base"] for a, b in zip(these, those, strict=True)])
