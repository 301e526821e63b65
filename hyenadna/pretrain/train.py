"""A pretraining run from its configuration to its model folder."""

import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from hyenadna import plots
from hyenadna.errors import Interrupted, MissingExtra, NotFiniteError, RunFolderError
from hyenadna.machine import keep_freed_memory, torch_device
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.length_warmup import LengthWarmup
from hyenadna.pretrain.metrics_file import cut_metrics, read_metrics
from hyenadna.pretrain.module import EXPERT_METRICS, PretrainModule
from hyenadna.pretrain.monitor import Monitor, signals_given_back
from hyenadna.pretrain.plan import describe, new_model, resolved, stages
from hyenadna.pretrain.run_folder import METRICS, Checkpoint, RunFolder, read_checkpoint
from hyenadna.pretrain.sparsity import SparsityControl
from hyenadna.progress import notice


def pretrain(config: PretrainConfig, *, overwrite: bool = False) -> RunFolder:
    """Train a model, or continue where the run in `config.out` stopped; returns its folder.

    Raises
    ------
    RunFolderError          the folder is in use, or holds something else
    NotFiniteError          a loss or a gradient is not a number; the state before it is saved
    Interrupted             a signal ended the run; its state is saved
    HyenaError              data, configuration or disk; see `hyenadna.errors`
    """
    folder = RunFolder(config.out)
    config = resolved(config, None if overwrite else folder.stored())
    assert config.threads is not None and config.max_length is not None
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    if is_main_process():
        folder.check(config, overwrite=overwrite)
    corpus = Corpus.of(config, config.max_length)
    warmup, micro_batches = stages(config)
    if not is_main_process():
        _fit(config, corpus, warmup, micro_batches, folder, None)
        return folder
    with folder.locked():
        checkpoint = folder.enter(config, overwrite=overwrite)
        notice(describe(config, corpus, warmup))
        _fit(config, corpus, warmup, micro_batches, folder, checkpoint)
    return folder


def _fit(
    config: PretrainConfig,
    corpus: Corpus,
    warmup: LengthWarmup,
    micro_batches: int,
    folder: RunFolder,
    checkpoint: Path | None,
) -> None:
    module = PretrainModule(new_model(config), config, corpus.sampler(config), warmup, micro_batches=micro_batches)
    monitor = Monitor(folder, config, corpus)
    trainer = _trainer(config, monitor, micro_batches, Resume(checkpoint, monitor))
    try:
        with signals_given_back():
            trainer.fit(module)
    except NotFiniteError:
        if trainer.is_global_zero:
            monitor.save_recorded(module)
        raise
    except Interrupted:
        if monitor.signal_number is None or module.optimizer is None:
            raise
    if not trainer.is_global_zero:
        return
    saved_step = monitor.save_recorded(module)
    if folder.metrics.exists():
        _draw_curves(folder, module.sparsity)
    if saved_step < warmup.steps:
        number = monitor.signal_number or signal.SIGTERM
        raise Interrupted(number, f"saved at step {saved_step} in {folder.path}; the same command continues from there")


def _draw_curves(folder: RunFolder, sparsity: SparsityControl | None) -> None:
    rows = read_metrics(folder.metrics)
    if not rows:
        return
    columns = METRICS if sparsity is None else METRICS + EXPERT_METRICS
    metrics = {name: np.array([row[name] for row in rows]) for name in columns}
    drawn, panels = plots.stacked_figure((3, 1.5, 1) if sparsity is None else (3, 1.5, 2, 1))
    plots.training_curves([*panels[:2], panels[-1]], metrics)
    if sparsity is not None:
        plots.sparsity_curve(panels[2], metrics, sparsity.target)
    plots.write_png(drawn, folder.curves)


class Resume(pl.Callback):
    """Before training, bring every rank to the state of the checkpoint that rank 0 found.

    Lightning's own resuming restores its loops' counters, which fit neither a stateless loader nor another number of
    devices. Here a resumed run is a new loop over what remains.
    """

    def __init__(self, checkpoint: Path | None, monitor: Monitor) -> None:
        self.checkpoint, self.monitor = checkpoint, monitor

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load weights, optimizer and the best validation.

        Raises
        ------
        RunFolderError          the checkpoint is of other genomes or other windows, or its model is missing
        """
        assert isinstance(pl_module, PretrainModule)
        path = trainer.strategy.broadcast(self.checkpoint)
        if trainer.is_global_zero:
            step = 0 if path is None else int(path.stem.removeprefix("step-"))
            cut_metrics(self.monitor.folder.metrics, "step", step)
        if path is None:
            return
        state = read_checkpoint(path)
        self._check(state, pl_module)
        pl_module.model.load_state_dict(state.model)
        pl_module.optimizer_state, pl_module.step, self.monitor.best = state.optimizer, state.step, state.best
        self.monitor.saved_step = state.step
        if pl_module.sparsity is not None and state.sparsity is not None:
            pl_module.sparsity.state = state.sparsity
        if trainer.is_global_zero:
            done = "; the run is complete" if state.step >= pl_module.warmup.steps else ""
            notice(f"resumed at step {state.step}{done}")
            if state.threads != torch.get_num_threads():
                notice(
                    f"the checkpoint was computed with {state.threads} threads, this run uses "
                    f"{torch.get_num_threads()}: results will differ in the last digits; --threads sets the number"
                )

    def _check(self, state: Checkpoint, module: PretrainModule) -> None:
        folder, windows = self.monitor.folder, tuple(stage.windows for stage in module.warmup.stages)
        if state.sequences != self.monitor.corpus.sequences:
            raise RunFolderError(
                f"the genomes are not those that {folder.path} was trained on; give the same FASTA files, or start "
                "anew with --overwrite"
            )
        if state.windows != windows:
            raise RunFolderError(
                f"on this number of devices the stages have {windows} windows a step, but {state.windows} in "
                f"{folder.path}; take a number of devices that divides these"
            )
        if state.best.step and not folder.model.is_dir():
            raise RunFolderError(
                f"{folder.model}, the best model so far, is missing; put it back, or start anew with --overwrite"
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
    try:
        match config.logger:
            case "csv":
                return False
            case "tensorboard":
                return pl.loggers.TensorBoardLogger(config.out, name="logs")
            case "wandb":
                return pl.loggers.WandbLogger(save_dir=config.out / "logs")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"--logger {config.logger}: install the '{config.logger}' extra: pip install hyenadna[{config.logger}]"
        ) from error


def is_main_process() -> bool:
    """Whether this is rank 0, as torchrun, SLURM or Lightning's own launcher say before anything is set up."""
    return getattr(rank_zero_only, "rank", 0) == 0
