"""A pretraining run from its configuration to its model folder."""

import dataclasses
import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from hyenadna import plots
from hyenadna.data.sampler import WindowSampler
from hyenadna.errors import Interrupted, NotFiniteError, UsageError
from hyenadna.machine import available_cpus, available_memory, torch_device
from hyenadna.model.config import HyenaConfig, named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.pretrain.card import model_card, training_provenance
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.estimate import training_memory
from hyenadna.pretrain.length_warmup import LengthWarmup, length_warmup
from hyenadna.pretrain.module import PretrainModule
from hyenadna.pretrain.monitor import Monitor
from hyenadna.pretrain.optimizer import adamw
from hyenadna.pretrain.run_folder import Best, RunFolder, read_checkpoint, read_metrics
from hyenadna.progress import duration, notice, quantity


def resolved(config: PretrainConfig) -> PretrainConfig:
    """The same run with everything that was left open set to what suits the machine.

    Raises
    ------
    UsageError              batch and micro-batch do not fit the length or the number of devices
    """
    device = torch_device(config.device)
    on_gpu = device.type == "cuda"
    max_length = config.max_length or named_size(config.size).filter_length - 2
    world = config.devices * config.nodes
    batch_tokens = config.batch_tokens or max(262_144 if on_gpu else 4_096, max_length * world)
    model = dataclasses.replace(named_size(config.size, max_length=max_length), embed_dropout=config.dropout)
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory() // config.devices
    micro, checkpoint = _micro_batch(config, model, max_length, batch_tokens // world, half, free)
    steps = config.steps or max(1, round((config.tokens or (2.5e9 if on_gpu else 8e6)) / batch_tokens))
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
        lr=config.lr or 3e-3 * 128 / model.d_model,
        valid_every=config.valid_every or max(1, steps // 10),
        checkpoint_every=config.checkpoint_every or max(1, steps // 20),
        threads=config.threads or max(1, available_cpus() // config.devices),
        dtype="bfloat16" if half else "float32",
    )


def pretrain(config: PretrainConfig, *, overwrite: bool = False) -> RunFolder:
    """Train a model, or continue where the run in `config.out` stopped; returns its folder.

    Raises
    ------
    RunFolderError          the folder is in use, or holds something else
    NotFiniteError          a loss or a gradient is not a number; the state before it is saved
    Interrupted             a signal ended the run; its state is saved
    HyenaError              data, configuration or disk; see `hyenadna.errors`
    """
    config = resolved(config)
    assert config.threads is not None and config.max_length is not None
    torch.set_num_threads(config.threads)
    corpus = Corpus.of(config, config.max_length)
    warmup, micro_batches = stages(config)
    folder = RunFolder(config.out)
    if not is_main_process():
        _fit(config, corpus, warmup, micro_batches, folder, None)
        return folder
    with folder.locked():
        checkpoint = folder.enter(config, overwrite=overwrite)
        notice(describe(config, corpus, warmup))
        _fit(config, corpus, warmup, micro_batches, folder, checkpoint)
    return folder


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
    rows = [f"  {stage.length:>9,} bases  {stage.steps:>7,} steps of {stage.windows:,} windows" for stage in warmup.stages]
    chosen = ("lr", "batch_tokens", "micro_batch_tokens", "steps", "valid_every", "checkpoint_every", "threads", "dtype")
    settings = "  ".join(f"{name} {getattr(config, name):,}" if isinstance(getattr(config, name), int)
                         else f"{name} {getattr(config, name)}" for name in chosen)  # fmt: skip
    head = f"{config.size}, {warmup.tokens:,} tokens, length warm-up:"
    return "\n".join([corpus.describe(), head, *rows, settings, f"run folder: {config.out}"])


def dry_run(config: PretrainConfig, seconds: float = 4.0) -> dict[str, Any]:
    """Check all inputs, train for a few seconds in memory, and say what the whole run will take.

    Returns
    -------
    dict                    text (for a person), nt_per_second by length, seconds, memory_bytes
    """
    config = resolved(config)
    assert config.threads is not None and config.max_length is not None
    torch.set_num_threads(config.threads)
    corpus = Corpus.of(config, config.max_length)
    warmup, micro_batches = stages(config)
    world = config.devices * config.nodes
    sampler, device = corpus.sampler(config), torch_device(config.device)
    model = new_model(config).to(device)
    rates = {
        stage.length: _rate(model, sampler, config, stage.length, stage.windows // (world * micro_batches), seconds)
        for stage in {stage.length: stage for stage in (warmup.stages[0], warmup.stages[-1])}.values()
    }
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


def new_model(config: PretrainConfig) -> HyenaDNA:
    """The model of a resolved run with its initial weights, which the seed alone decides."""
    assert config.max_length is not None
    architecture = dataclasses.replace(
        named_size(config.size, max_length=config.max_length),
        embed_dropout=config.dropout,
        filter_shift=config.filter_shift,
    )
    torch.manual_seed(config.seed)
    model = HyenaDNA(architecture)
    model.backbone.checkpoint_activations = bool(config.checkpoint_activations)
    return model


def _fit(
    config: PretrainConfig,
    corpus: Corpus,
    warmup: LengthWarmup,
    micro_batches: int,
    folder: RunFolder,
    checkpoint: Path | None,
) -> None:
    assert config.max_length is not None
    module = PretrainModule(new_model(config), config, corpus.sampler(config), warmup, micro_batches=micro_batches)
    best = Best(math.inf, 0)

    def save_model(best: Best) -> None:
        module.model.save_pretrained(
            folder.model,
            card=model_card(module.model.config, config, corpus, best, warmup.steps),
            overwrite=True,
            training=training_provenance(config, corpus, best, warmup.steps, torch.get_num_threads()),
            extra={"split.json": corpus.split_json()},
        )

    monitor = Monitor(folder, config, corpus.validation(config, config.max_length), best, save_model)
    trainer = _trainer(config, monitor, micro_batches, Resume(checkpoint, folder, monitor))
    try:
        trainer.fit(module)
    except NotFiniteError:
        if trainer.is_global_zero:
            monitor.save(module)
        raise
    except Interrupted:
        if monitor.signal_number is None or module.optimizer is None:
            raise
    if not trainer.is_global_zero:
        return
    if module.step < warmup.steps and module.optimizer is not None:
        monitor.save(module)
    if folder.metrics.exists():
        plots.save_training_curves(read_metrics(folder.metrics), folder.curves)
    if module.step < warmup.steps:
        number = monitor.signal_number or 15
        raise Interrupted(number, f"saved at step {module.step} in {folder.path}; the same command continues from there")


class Resume(pl.Callback):
    """Before training, bring every rank to the state of the checkpoint that rank 0 found.

    Lightning's own resuming restores its loops' counters, which fit neither a stateless loader nor another number of
    devices. Here a resumed run is a new loop over what remains.
    """

    def __init__(self, checkpoint: Path | None, folder: RunFolder, monitor: Monitor) -> None:
        self.checkpoint, self.folder, self.monitor = checkpoint, folder, monitor

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load weights, optimizer and the best validation."""
        assert isinstance(pl_module, PretrainModule)
        path = trainer.strategy.broadcast(self.checkpoint)
        if trainer.is_global_zero:
            self.folder.cut_metrics(0 if path is None else int(path.stem.removeprefix("step-")))
        if path is None:
            return
        state = read_checkpoint(path)
        pl_module.model.load_state_dict(state.model)
        pl_module.optimizer_state, pl_module.step, self.monitor.best = state.optimizer, state.step, state.best
        if trainer.is_global_zero:
            done = "; the run is complete" if state.step >= pl_module.warmup.steps else ""
            notice(f"resumed at step {state.step}{done}")
            if state.threads != torch.get_num_threads():
                notice(
                    f"the checkpoint was computed with {state.threads} threads, this run uses {torch.get_num_threads()}: "
                    "results will differ in the last digits; --threads sets the number"
                )


def _trainer(config: PretrainConfig, monitor: Monitor, micro_batches: int, resume: Resume) -> pl.Trainer:
    # what Lightning says at its start is said by us, or does not concern a user
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    device = torch_device(config.device)
    several = config.devices * config.nodes > 1
    devices: list[int] | int = [device.index] if device.index is not None and not several else config.devices
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=devices,
        num_nodes=config.nodes,
        strategy="ddp" if several else "auto",
        precision="bf16-mixed" if config.dtype == "bfloat16" else "32-true",
        max_epochs=1,
        accumulate_grad_batches=micro_batches,
        use_distributed_sampler=False,
        logger=_logger(config),
        callbacks=[resume, monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=config.out,
    )


def _logger(config: PretrainConfig) -> Any:
    match config.logger:
        case "csv":
            return False
        case "tensorboard":
            return pl.loggers.TensorBoardLogger(config.out, name="logs")
        case "wandb":
            return pl.loggers.WandbLogger(save_dir=config.out / "logs")


def _micro_batch(
    config: PretrainConfig, model: HyenaConfig, max_length: int, device_tokens: int, half: bool, free: int
) -> tuple[int, bool]:
    """Tokens of a micro-batch and whether to recompute activations, so that a step takes at most 70 % of what is free."""

    def fits(tokens: int, checkpoint: bool) -> bool:
        memory = training_memory(
            model, length=max_length, micro_batch_tokens=tokens, half=half, checkpoint_activations=checkpoint
        )
        return memory.total < 0.7 * free

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
    ).total


def _rate(
    model: HyenaDNA, sampler: WindowSampler, config: PretrainConfig, length: int, windows: int, seconds: float
) -> float:
    """Tokens a second of training on micro-batches of some length, on this device."""
    optimizer = adamw(model, lr=1e-9, weight_decay=0.0, betas=config.betas)
    kind: Literal["cuda", "cpu"] = "cuda" if model.device.type == "cuda" else "cpu"
    done, start = 0, 0.0
    for step in range(1_000):
        if step == 1:  # the first step warms up caches and allocators
            done, start = 0, time.monotonic()
        batch = sampler.windows(step, 0, windows, length)
        inputs, targets = (torch.from_numpy(array).to(model.device) for array in batch)
        with torch.autocast(kind, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            logits = model(inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if kind == "cuda":
            torch.cuda.synchronize()
        done += inputs.numel()
        if step and time.monotonic() - start > seconds:
            break
    return done / (time.monotonic() - start)


def is_main_process() -> bool:
    """Whether this is rank 0, as torchrun, SLURM or Lightning's own launcher say before anything is set up."""
    return not pl.utilities.rank_zero.rank_zero_only.rank
