"""The Lightning module of pretraining: one micro-batch's loss, and the step that ends an accumulation."""

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hyenadna.data.sampler import WindowSampler
from hyenadna.data.tokenizer import IGNORE, A, T
from hyenadna.errors import NotFiniteError
from hyenadna.model.experts import gates_of
from hyenadna.model.language_model import HyenaDNA
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.length_warmup import LengthWarmup
from hyenadna.pretrain.optimizer import adamw, cosine
from hyenadna.pretrain.sparsity import SparsityControl, gate_counts

EXPERT_METRICS = ("sparsity", "tokens_without_expert", "sparsity_coefficient")
"""Of a step: the share of gates that are zero, that of tokens of which all are, and lambda; if there are experts."""
MicroBatch = tuple[Tensor, Tensor]
"""inputs uint8 (B, L) and targets int64 (B, L)."""


class MicroBatches(IterableDataset[MicroBatch]):
    """This process's micro-batches from a step to the end of the run, as a function of seed and step alone.

    Micro-batch m of a step, on rank r of R with M micro-batches each, holds the windows (m R + r) w ... of that step,
    where w = windows / (R M).
    """

    def __init__(
        self,
        sampler: WindowSampler,
        warmup: LengthWarmup,
        *,
        first_step: int,
        micro_batches: int,
        rank: int,
        world: int,
    ) -> None:
        self.sampler, self.warmup, self.first_step = sampler, warmup, first_step
        self.micro_batches, self.rank, self.world = micro_batches, rank, world

    def __len__(self) -> int:
        return (self.warmup.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.first_step, self.warmup.steps):
            for micro_batch in range(self.micro_batches):
                windows = self.sampler.windows(step, *self.window_range(step, micro_batch, self.rank))
                yield torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)

    def window_range(self, step: int, micro_batch: int, rank: int) -> tuple[int, int, int]:
        """First window, count and length of a micro-batch, as `WindowSampler.windows` takes them."""
        stage = self.warmup.at(step)
        count = stage.windows // (self.micro_batches * self.world)
        return (micro_batch * self.world + rank) * count, count, stage.length


def nats_of_bases(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of the targets that are bases, renormalised over A, C, G, T, and their number.

    Parameters
    ----------
    logits : Tensor (B, L, 16)
    targets : Tensor (B, L)         IGNORE and SEP do not count

    Returns
    -------
    two Tensors ()                  nats and number, float64
    """
    base = torch.where(targets >= A, targets - A, IGNORE).flatten()
    losses = F.cross_entropy(logits[..., A : T + 1].flatten(0, 1), base, ignore_index=IGNORE, reduction="none")
    return losses.double().sum(), (base >= 0).sum().double()


class PretrainModule(pl.LightningModule):
    """Next-token prediction: the loss of a step is the mean over all scored targets of all ranks and micro-batches.

    Lightning averages gradients over ranks and micro-batches, which need not hold equally many scored targets (N is
    not scored): each micro-batch's loss is therefore divided by its number of positions, and the sum corrected at the
    end of the step by positions / targets over all ranks. The penalty on the gates of experts, of which each
    micro-batch has its own, is scaled alike, and so a mean in which a micro-batch weighs as much as its targets.

    Attributes
    ----------
    step : int                      optimizer steps done since the run began
    train_bits : float              bits per base of the last step, SEP left out
    gradient_norm : float           of the last step, before clipping
    sparsity : SparsityControl      what steers the penalty on the gates; None if the model has no experts
    expert_metrics : dict           what metrics.csv says of the experts in the last step, by `EXPERT_METRICS`
    busy : bool                     whether weights or files are being changed, so that a signal has to wait
    stop_requested : bool           set to end the run; the other ranks learn of it with the next step
    stop : bool                     whether any rank had asked for the end when the step was made: the same on all ranks
    """

    def __init__(
        self,
        model: HyenaDNA,
        config: PretrainConfig,
        sampler: WindowSampler,
        warmup: LengthWarmup,
        *,
        micro_batches: int,
    ) -> None:
        super().__init__()
        self.model, self.config, self.sampler, self.warmup = model, config, sampler, warmup
        self.micro_batches = micro_batches
        self.step, self.train_bits, self.gradient_norm = 0, math.nan, math.nan
        self.busy = self.stop_requested = self.stop = False
        self.optimizer: torch.optim.AdamW | None = None
        self.optimizer_state: dict[str, object] | None = None  # of the checkpoint that the run resumes from
        self.sparsity = SparsityControl.of(
            model, control=config.sparsity_control, factor=config.sparsity_factor, start=config.sparsity_start
        )
        self.expert_metrics: dict[str, float] = {}
        # scored targets, scored bases, nats of the bases, and the counts of gates
        self._sums = torch.zeros(7, dtype=torch.float64)
        self._not_finite: int | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with the state of the checkpoint when the run resumes."""
        config = self.config
        assert config.lr is not None and config.filter_lr is not None  # resolved before a run
        self.optimizer = adamw(
            self.model, lr=config.lr, filter_lr=config.filter_lr, weight_decay=config.weight_decay, betas=config.betas
        )
        if self.optimizer_state is not None:
            self.optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return self.optimizer

    def train_dataloader(self) -> DataLoader[MicroBatch]:
        """What remains of the run for this rank."""
        self.batches = MicroBatches(
            self.sampler,
            self.warmup,
            first_step=self.step,
            micro_batches=self.micro_batches,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(self.batches, batch_size=None)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch, divided by its number of positions."""
        inputs, targets = batch
        micro_batch = batch_idx % self.micro_batches
        # dropout depends on seed, step, micro-batch and rank alone, so that a resumed run draws the same
        torch.manual_seed(hash((self.config.seed, self.step, micro_batch, self.trainer.global_rank)) % 2**63)
        with gates_of(self.model) as gates:
            logits = self.model(inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        nats, bases = nats_of_bases(logits.detach(), targets)
        scored = (targets != IGNORE).sum()
        counts = nats.new_zeros(4)
        if self.sparsity is not None:
            opened = gates.all()
            loss = loss + scored * self.sparsity.penalty(opened)
            counts = gate_counts(opened)
        sums = torch.cat([torch.stack([scored, bases, nats]), counts])
        self._sums = sums if micro_batch == 0 else self._sums + sums
        if self._not_finite is None and not torch.isfinite(loss.detach()):
            self._not_finite = micro_batch
        return loss / targets.numel()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by the scored targets of all ranks, check, clip, and set the learning rate."""
        sums = torch.cat([self._sums, self._sums.new_tensor([self.stop_requested])])
        totals = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(totals, Tensor)
        targets, bases, nats, off, gates, without, tokens, stop = totals.tolist()
        self.stop = stop > 0
        stage = self.warmup.at(self.step)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        correction = stage.windows * stage.length / max(targets, 1)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(correction)
        self.gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.clip))
        self.train_bits = nats / max(bases, 1) / math.log(2)
        if not (math.isfinite(self.gradient_norm) and math.isfinite(nats)):
            raise NotFiniteError(self._blame(elsewhere=not math.isfinite(nats) and self._not_finite is None))
        if self.sparsity is not None:
            found = (off / gates, without / tokens, self.sparsity.state.coefficient)
            self.expert_metrics = dict(zip(EXPERT_METRICS, found, strict=True))
        share = cosine(
            self.step,
            self.warmup.steps,
            warmup_share=self.config.lr_warmup_share,
            final_share=self.config.lr_final_share,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        self.busy = True  # the optimizer changes the weights when this hook returns

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Forward and backward of the last micro-batch, the hook above, and the change of the weights."""
        super().optimizer_step(*args, **kwargs)
        self.step += 1
        if self.sparsity is not None:
            self.sparsity.update(self.expert_metrics["sparsity"])

    def _blame(self, *, elsewhere: bool) -> str:
        if elsewhere:
            return f"the loss of step {self.step + 1} is not finite on another rank, which names its windows"
        micro_batch = self._not_finite
        chosen = range(self.micro_batches) if micro_batch is None else [micro_batch]
        loci = [
            locus
            for index in chosen
            for locus in self.sampler.describe(
                self.step, *self.batches.window_range(self.step, index, self.batches.rank)
            )
        ]
        named = ", ".join(loci[:8]) + (f" and {len(loci) - 8} more" if len(loci) > 8 else "")
        what = "gradient" if micro_batch is None else "loss"
        return (
            f"the {what} of step {self.step + 1} is not finite; its windows on this rank: {named}. The state before "
            f"that step is saved. Start anew with --overwrite, and a lower --lr than {self.config.lr:g} or less --clip"
        )
