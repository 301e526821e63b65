"""What happens around the steps of a run: metrics, validation, checkpoints, and signals that end it."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from hyenadna.errors import Interrupted
from hyenadna.pretrain.card import model_card, training_provenance
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.metrics_file import append_metrics
from hyenadna.pretrain.module import PretrainModule, nats_of_bases
from hyenadna.pretrain.run_folder import Best, Checkpoint, RunFolder
from hyenadna.progress import Job

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The last is what SLURM sends when the job's time runs out."""

_PATIENCE_S = 20.0
"""How long a signal waits for a validation: clusters kill 30 seconds after they warn."""


@contextmanager
def signals_given_back() -> Iterator[None]:
    """Afterwards the signals do what they did before, whatever Lightning and the monitor made of them."""
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Monitor(pl.Callback):
    """Writes the run folder as the run goes on.

    Parameters
    ----------
    folder : RunFolder
    config : PretrainConfig         resolved: no field is None that decides what is done
    corpus : Corpus
    """

    def __init__(self, folder: RunFolder, config: PretrainConfig, corpus: Corpus) -> None:
        assert config.max_length is not None
        self.folder, self.config, self.corpus = folder, config, corpus
        self.validation = corpus.validation(config, config.max_length)
        self.best = Best(math.inf, 0)
        self.signal_number: int | None = None
        self.saved_step = self._recorded_step = 0
        self._job: Job | None = None
        self._may_give_up = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning set its own handlers."""
        module = _module(pl_module)
        self._recorded_step = module.step
        for number in _SIGNALS:
            signal.signal(number, self._handler(module))
        signal.signal(signal.SIGALRM, self._give_up)
        tokens = _tokens(module, module.step)
        if trainer.is_global_zero:
            self._job = Job("pretraining", _tokens(module, module.warmup.steps), "nt", tokens)
        self._step_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each optimizer step: measure, validate, save, stop."""
        module = _module(pl_module)
        if (batch_idx + 1) % module.micro_batches:
            return
        step, steps = module.step, module.warmup.steps
        assert self.config.valid_every is not None and self.config.checkpoint_every is not None
        row = self._row(module)
        if step % self.config.valid_every == 0 or step == steps:
            with self._patience(trainer):
                row["valid_bits_per_base"] = self.validate(trainer, module)
        if trainer.is_global_zero:
            self._record(trainer, module, row)
            self._recorded_step = step
            if row["valid_bits_per_base"] < self.best.bits_per_base:
                self.best = Best(row["valid_bits_per_base"], step)
                self._save_model(module)
            if step % self.config.checkpoint_every == 0 or step == steps:
                self.save(module)
        # a rank that stopped by itself would leave the others waiting
        trainer.should_stop = module.stop or (module.stop_requested and trainer.world_size == 1)
        module.busy = False
        self._step_start = time.monotonic()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """As at a normal end."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the progress off the terminal."""
        if self._job is not None:
            self._job.close()

    def validate(self, trainer: pl.Trainer, module: PretrainModule) -> float:
        """Bits per base of the validation windows, all ranks together."""
        inputs, targets = self.validation
        rows = max(1, (self.config.micro_batch_tokens or 0) // inputs.shape[1])
        sums = torch.zeros(2, dtype=torch.float64, device=module.device)
        module.model.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for first in range(trainer.global_rank * rows, len(inputs), trainer.world_size * rows):
                chosen = slice(first, first + rows)
                batch, target = (torch.from_numpy(array[chosen]).to(module.device) for array in (inputs, targets))
                sums += torch.stack(nats_of_bases(module.model(batch).logits, target))
        module.model.train()
        nats, bases = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return float(nats / max(bases, 1) / math.log(2))

    def save_recorded(self, module: PretrainModule) -> int:
        """Save the last step unless its validation was given up, and say which step is the last one saved."""
        if module.optimizer is not None and module.step == self._recorded_step != self.saved_step:
            self.save(module)
        return self.saved_step

    def save(self, module: PretrainModule) -> None:
        """Write a checkpoint of the step that was just made."""
        assert module.optimizer is not None
        state = Checkpoint(
            step=module.step,
            model=module.model.state_dict(),
            optimizer=module.optimizer.state_dict(),
            best=self.best,
            threads=torch.get_num_threads(),
            sequences=self.corpus.sequences,
            windows=tuple(stage.windows for stage in module.warmup.stages),
            sparsity=None if module.sparsity is None else module.sparsity.state,
        )
        self.folder.save(state, self.config.keep_last)
        self.saved_step = module.step

    def _save_model(self, module: PretrainModule) -> None:
        steps, model = module.warmup.steps, module.model
        model.save_pretrained(
            self.folder.model,
            card=model_card(model.config, self.config, self.corpus, self.best, steps),
            overwrite=True,
            training=training_provenance(self.config, self.corpus, self.best, steps, torch.get_num_threads()),
            extra={"split.json": self.corpus.split_json()},
        )

    def _row(self, module: PretrainModule) -> dict[str, float]:
        stage = module.warmup.at(module.step - 1)
        assert module.optimizer is not None
        return {
            "step": module.step,
            "length": stage.length,
            "tokens": _tokens(module, module.step),
            "bits_per_base": module.train_bits,
            "gradient_norm": module.gradient_norm,
            "learning_rate": module.optimizer.param_groups[-1]["lr"],
            "nt_per_second": stage.windows * stage.length / (time.monotonic() - self._step_start),
            "valid_bits_per_base": math.nan,
            **module.expert_metrics,
        }

    def _record(self, trainer: pl.Trainer, module: PretrainModule, row: dict[str, float]) -> None:
        append_metrics(self.folder.metrics, row)
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in row.items() if not math.isnan(value)}, module.step)
        if self._job is not None:
            stage = module.warmup.at(module.step - 1)
            detail = (
                f"step {module.step:,}/{module.warmup.steps:,}  L {stage.length:,}  {module.train_bits:.4f} bits/base"
            )
            if module.sparsity is not None:
                detail += f"  sparsity {module.expert_metrics['sparsity']:.3f}"
            if self.best.step:
                detail += f"  (best valid {self.best.bits_per_base:.4f})"
            self._job.advance(stage.windows * stage.length, detail)

    @contextmanager
    def _patience(self, trainer: pl.Trainer) -> Iterator[None]:
        """A signal waits for the validation, but not for ever: then it is given up, and the last checkpoint stands."""
        self._may_give_up = trainer.world_size == 1
        try:
            yield
        finally:
            self._may_give_up = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self._may_give_up and self.signal_number is not None:
            raise Interrupted(self.signal_number, "")

    def _handler(self, module: PretrainModule) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal_number is not None:
                raise Interrupted(number, "interrupted a second time; the last checkpoint stands")
            self.signal_number, module.stop_requested = number, True
            # a step at long context may take minutes: leave it, unless weights or files are just being changed or
            # other ranks wait for this one; then the step is finished first
            if module.trainer.world_size == 1 and not module.busy:
                raise Interrupted(number, "")
            if self._may_give_up:
                signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)

        return handle


def _tokens(module: PretrainModule, steps: int) -> int:
    return sum(
        stage.windows * stage.length * max(0, min(stage.steps, steps - stage.first_step))
        for stage in module.warmup.stages
    )


def _module(module: pl.LightningModule) -> PretrainModule:
    assert isinstance(module, PretrainModule)
    return module
