"""What a run will do: defaults filled in, stages, the new model, and a rehearsal in seconds."""

import dataclasses
import math
from typing import Any

import torch

from hyenadna.errors import UsageError
from hyenadna.machine import available_cpus, keep_freed_memory, torch_device, total_memory
from hyenadna.model.config import HyenaConfig, named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.estimate import training_memory, training_rate
from hyenadna.pretrain.length_warmup import LengthWarmup, length_warmup
from hyenadna.pretrain.run_folder import RunFolder
from hyenadna.progress import duration, quantity

_OF_THE_MACHINE = ("batch_tokens", "micro_batch_tokens", "checkpoint_activations", "lr", "filter_lr", "dtype")
"""Defaults that depend on the machine; a run that moves to another one keeps what it had."""


def architecture(config: PretrainConfig) -> HyenaConfig:
    """The architecture of a run: that of its size, but for what the run says itself.

    Raises
    ------
    UsageError              mixers or experts that there are not, or that do not fit the width of the size
    """
    own = {name: getattr(config, name) for name in ("layers", "feed_forward", "experts", "active_experts")}
    found = dataclasses.replace(
        named_size(config.size, max_length=config.max_length),
        embed_dropout=config.dropout,
        filter_shift=config.filter_shift,
        **{name: value for name, value in own.items() if value is not None},
    )
    if found.feed_forward != "remoe" and (config.experts or config.active_experts):
        raise UsageError("--experts and --active-experts are of a remoe model; give --feed-forward remoe too")
    steering = {f.name for f in dataclasses.fields(config) if f.name.startswith("sparsity_")}
    if found.feed_forward != "remoe" and any(getattr(config, name) != getattr(type(config), name) for name in steering):
        raise UsageError("--sparsity-control, -factor and -start are of a remoe model; give --feed-forward remoe too")
    return found


def resolved(config: PretrainConfig, stored: PretrainConfig | None = None) -> PretrainConfig:
    """The same run with everything that was left open set to what suits the machine, or to what a stored run has.

    Raises
    ------
    UsageError              batch and micro-batch do not fit the length or the number of devices
    """
    if stored is not None:
        open_fields = [name for name in _OF_THE_MACHINE if getattr(config, name) in (None, "auto")]
        if config.steps is None and config.tokens is None:
            open_fields.append("steps")
        config = dataclasses.replace(config, **{name: getattr(stored, name) for name in open_fields})
    device = torch_device(config.device)
    on_gpu = device.type == "cuda"
    model = architecture(config)
    max_length = model.filter_length - 2
    world = config.devices * config.nodes
    batch_tokens = config.batch_tokens or max(262_144 if on_gpu else 2_048, max_length * world)
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    # of what there is, not of what is free at the moment: all ranks must come to the same plan
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else total_memory() // config.devices
    micro, checkpoint = _micro_batch(config, model, max_length, batch_tokens // world, half, device, memory)
    steps = config.steps or max(1, round((config.tokens or (2.5e9 if on_gpu else 6e6)) / batch_tokens))
    # the published rate goes with the large batches of a GPU; the small ones of a CPU were tuned on E. coli
    lr = config.lr or (6e-4 if on_gpu else 5e-3 * 128 / model.d_model)
    return dataclasses.replace(
        config,
        max_length=max_length,
        warmup_from=min(config.warmup_from, max_length),
        warmup_share=0.3 if config.warmup_steps is None and config.warmup_share is None else config.warmup_share,
        batch_tokens=batch_tokens,
        micro_batch_tokens=micro,
        checkpoint_activations=checkpoint,
        steps=steps,
        tokens=None,
        lr=lr,
        filter_lr=config.filter_lr or min(lr, 1e-3),
        valid_every=config.valid_every or max(1, steps // 10),
        checkpoint_every=config.checkpoint_every or max(1, steps // 20),
        threads=config.threads or max(1, available_cpus() // config.devices),
        dtype="bfloat16" if half else "float32",
    )


def stages(config: PretrainConfig) -> tuple[LengthWarmup, int]:
    """The length warm-up of a resolved run, and the micro-batches of a step on each device."""
    assert config.batch_tokens and config.micro_batch_tokens and config.max_length and config.steps
    world = config.devices * config.nodes
    micro_batches = max(1, math.ceil(config.batch_tokens / (world * config.micro_batch_tokens)))
    warmup = length_warmup(
        warmup_from=config.warmup_from,
        max_length=config.max_length,
        steps=config.steps,
        batch_tokens=config.batch_tokens,
        micro_batches=world * micro_batches,
        share=config.warmup_share,
        stage_steps=config.warmup_steps,
    )
    return warmup, micro_batches


def describe(config: PretrainConfig, corpus: Corpus, warmup: LengthWarmup) -> str:
    """A run before it starts: data, stages, and what was chosen where nothing was given."""
    rows = [
        f"  {stage.length:>9,} bases  {stage.steps:>7,} steps of {stage.windows:,} windows" for stage in warmup.stages
    ]
    chosen = (
        "lr",
        "filter_lr",
        "batch_tokens",
        "micro_batch_tokens",
        "steps",
        "valid_every",
        "checkpoint_every",
        "threads",
        "dtype",
    )
    settings = "  ".join(f"{name} {getattr(config, name):,}" if isinstance(getattr(config, name), int)
                         else f"{name} {getattr(config, name)}" for name in chosen)  # fmt: skip
    head = f"{config.size} ({architecture(config).blocks}), {warmup.tokens:,} tokens, length warm-up:"
    return "\n".join([corpus.describe(), head, *rows, settings, f"run folder: {config.out}"])


def new_model(config: PretrainConfig) -> HyenaDNA:
    """The model of a resolved run with its initial weights, which the seed alone decides."""
    torch.manual_seed(config.seed)
    model = HyenaDNA(architecture(config))
    model.backbone.checkpoint_activations = bool(config.checkpoint_activations)
    return model


def dry_run(config: PretrainConfig, *, overwrite: bool = False, seconds: float = 4.0) -> dict[str, Any]:
    """Check all inputs, train for a few seconds in memory, and say what the whole run will take.

    Returns
    -------
    dict                    text (for a person), nt_per_second by length, seconds, memory_bytes
    """
    config = resolved(config, None if overwrite else RunFolder(config.out).stored())
    assert config.threads is not None and config.max_length is not None
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    RunFolder(config.out).check(config, overwrite=overwrite)
    corpus = Corpus.of(config, config.max_length)
    warmup, micro_batches = stages(config)
    world = config.devices * config.nodes
    sampler, device = corpus.sampler(config), torch_device(config.device)
    model = new_model(config).to(device)
    rates = {}
    for stage in {stage.length: stage for stage in (warmup.stages[0], warmup.stages[-1])}.values():
        windows = sampler.windows(0, 0, stage.windows // (world * micro_batches), stage.length)
        inputs, targets = (torch.from_numpy(array).to(device) for array in windows)
        rates[stage.length] = training_rate(model, inputs, targets, half=config.dtype == "bfloat16", seconds=seconds)
    slowest = min(rates.values()) * world
    took = warmup.tokens / slowest
    memory = _memory(config, model.config)
    text = (
        f"{describe(config, corpus, warmup)}\n"
        f"rate      {', '.join(f'{quantity(rate)}nt/s at {length:,} bases' for length, rate in rates.items())}\n"
        f"time      {duration(took)} on {world} such device(s) (validation and checkpoints add a little)\n"
        f"memory    {memory / 1e9:.2f} GB on each device (estimated)"
    )
    return {"text": text, "nt_per_second": rates, "seconds": took, "memory_bytes": memory}


def _micro_batch(
    config: PretrainConfig,
    model: HyenaConfig,
    max_length: int,
    device_tokens: int,
    half: bool,
    device: torch.device,
    available: int,
) -> tuple[int, bool]:
    """Tokens of a micro-batch and whether to recompute activations, so that a step takes at most 60 % of the memory."""

    def fits(tokens: int, checkpoint: bool) -> bool:
        memory = training_memory(
            model,
            length=max_length,
            micro_batch_tokens=tokens,
            half=half,
            checkpoint_activations=checkpoint,
            device=device,
        )
        return memory.total < 0.6 * available

    checkpoint = config.checkpoint_activations
    if checkpoint is None:
        checkpoint = not fits(max(max_length, min(config.micro_batch_tokens or 0, device_tokens)), False)
    if config.micro_batch_tokens is not None:
        if config.micro_batch_tokens < max_length:
            raise UsageError(
                f"--micro-batch-tokens {config.micro_batch_tokens:,} holds no window of {max_length:,} bases; "
                f"it must be at least {max_length:,}"
            )
        return config.micro_batch_tokens, checkpoint
    tokens = max(max_length, device_tokens)
    while tokens // 2 >= max_length and not fits(tokens, checkpoint):
        tokens //= 2
    return tokens, checkpoint


def _memory(config: PretrainConfig, model: HyenaConfig) -> int:
    assert config.max_length and config.micro_batch_tokens
    return training_memory(
        model,
        length=config.max_length,
        micro_batch_tokens=config.micro_batch_tokens,
        half=config.dtype == "bfloat16",
        checkpoint_activations=bool(config.checkpoint_activations),
        device=torch_device(config.device),
    ).total
