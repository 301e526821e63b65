"""Training of a fine-tuned model: a plain loop over epochs, each of which can be continued from.

No Lightning here: its import takes seconds, and one device does all that fine-tuning asks for. What an epoch does is a
function of the state before it, of the seed and of its number alone, so that a run which was killed between epochs
ends with the same weights, bit for bit, as one that was not.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyenadna.data.tokenizer import reverse_complement_tokens
from hyenadna.errors import NotFiniteError
from hyenadna.finetune.apply import apply
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.examples import Examples, epoch_batches
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.validation import Validation
from hyenadna.inference.ragged import batches, padded
from hyenadna.pretrain.optimizer import cosine

CLIP = 1.0
"""Largest norm of the gradient."""
_WARMUP_SHARE, _FINAL_SHARE = 0.1, 0.02
"""Of the steps, over which the learning rate rises; of the highest rate, at which the cosine ends."""
_READ_OUT, _FILTER = ("head.", "pool."), "implicit_filter"
_KEPT_BYTES = 2 << 30
"""Features of a frozen model are kept up to this size; larger ones are computed in every epoch."""
_AVERAGED_STEPS = 100
"""What is validated and kept is a moving average of the weights over about so many steps, over fewer at first: on few
rows single states swing, and are certain of their errors."""
_STANDARDISE_ON = 65_536
"""Bases from whose features the head learns their mean and deviation."""
_FILTER_LR = 1e-3
"""Highest learning rate of the networks that generate the filters, whose sines jump at higher ones."""


@dataclasses.dataclass
class State:
    """A run after an epoch: all that the next epoch depends on, and the best so far."""

    epoch: int
    """Epochs done."""
    step: int
    """Optimizer steps done."""
    learnt: dict[str, Tensor]
    averaged: dict[str, Tensor]
    """Moving average of what is learnt."""
    optimizer: dict[str, Any]
    best: Validation | None
    best_epoch: int
    best_learnt: dict[str, Tensor]
    """The average after the best epoch."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run takes, in seconds."""

    once: float
    """Before the first epoch: features of a frozen model."""
    epoch: float
    """Of each epoch, with its validation."""

    def whole(self, config: FinetuneConfig) -> float:
        """Of a run that makes all its epochs."""
        assert config.epochs
        return self.once + config.epochs * self.epoch


class Trainer:
    """Fits a model to training rows and chooses the epoch by validation rows.

    Parameters
    ----------
    model : SequenceModel           on its device; `learnt()` is what changes
    train, valid : Examples
    config : FinetuneConfig         resolved: no field is None that training reads
    seed : int                      decides the order of rows, the strands and the dropout
    batch_tokens : int              most tokens, pads included, that the device works on at once
    """

    def __init__(
        self,
        model: SequenceModel,
        train: Examples,
        valid: Examples,
        config: FinetuneConfig,
        *,
        seed: int,
        batch_tokens: int,
    ) -> None:
        assert config.epochs and config.patience and config.batch_size
        self.model, self.train, self.valid, self.config = model, train, valid, config
        self.batch_size = config.batch_size
        self.seed, self.batch_tokens = seed, batch_tokens
        self.device = next(model.parameters()).device
        self.steps = config.epochs * math.ceil(len(train) / config.batch_size)
        self._features: dict[str, Tensor] | None = None
        self._prepare()
        self.optimizer = _adamw(model.learnt(), config)
        self.state = State(0, 0, self._learnt(), self._learnt(), self.optimizer.state_dict(), None, 0, self._learnt())
        self._averaged = {name: parameter.detach().clone() for name, parameter in model.learnt().items()}

    @property
    def done(self) -> bool:
        """Whether all epochs are made, or the last ones brought nothing better."""
        assert self.config.epochs and self.config.patience
        stale = self.state.epoch - self.state.best_epoch
        return self.state.epoch >= self.config.epochs or stale >= self.config.patience

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self.state = state
        self._load(state.learnt)
        for name, value in state.averaged.items():
            self._averaged[name].copy_(value)
        self.optimizer.load_state_dict(state.optimizer)

    def take_best(self) -> None:
        """Bring the model to the best epoch."""
        self._load(self.state.best_learnt)
        self.model.eval()

    def epoch(self, advance: Callable[[int], None] = lambda bases: None) -> dict[str, float]:
        """Train for an epoch, validate, and make it the state; what metrics.csv says of it.

        Parameters
        ----------
        advance : callable
            Called with the bases of each batch when it is done.

        Raises
        ------
        NotFiniteError          a loss or a gradient that is not a number; the rows are named
        """
        start, number, step = time.monotonic(), self.state.epoch + 1, self.state.step
        # dropout then depends on seed and epoch alone, wherever a run was continued
        torch.manual_seed(int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        self.model.train()
        lengths, total, rate = self.train.lengths, 0.0, 0.0
        order = epoch_batches(
            lengths,
            self.batch_size,
            reverse_complement=self.config.reverse_complement,
            seed=self.seed,
            epoch=number,
        )
        for rows, flipped in order:
            rate = cosine(step, self.steps, warmup_share=_WARMUP_SHARE, final_share=_FINAL_SHARE)
            total += self._step(rows, flipped, rate) * len(rows)
            self._average(step)
            step += 1
            advance(int(lengths[rows].sum()))
        seconds = time.monotonic() - start
        learnt = self._learnt()
        self._load(self._averaged)
        found = self.validate()
        self._keep(number, step, found, learnt)
        self._load(learnt)
        return {
            "epoch": number,
            "step": step,
            "train_loss": total / len(self.train),
            "valid_loss": found.loss,
            f"valid_{found.name}": found.metric,
            "learning_rate": rate * self.optimizer.param_groups[0]["initial_lr"],
            "nt_per_second": int(lengths.sum()) / max(seconds, 1e-9),
            "seconds": time.monotonic() - start,
        }

    def validate(self) -> Validation:
        """Loss and metric of the validation rows."""
        return Validation.of(self.model.task, self.valid.targets, self._valid_predictions())

    def better(self, found: Validation, best: Validation) -> bool:
        """Whether an epoch takes the place of the best one before it."""
        return found.better_than(best)

    def cost(self, measured: int = 3) -> "Cost":
        """About what the run takes, measured on a few batches; changes no weight."""
        config, lengths = self.config, self.train.lengths
        order = epoch_batches(lengths, self.batch_size, reverse_complement=False, seed=self.seed, epoch=0)
        chosen = (order * (measured + 1))[: measured + 1]
        bases = sum(int(lengths[rows].sum()) for rows, _ in chosen[1:])
        strands = 2 if config.reverse_complement else 1
        valid = strands * int(self.valid.lengths.sum())
        if self._keeps_features:
            some = [self.train.tokens[row] for rows, _ in chosen for row in rows]
            start = time.monotonic()
            features = self._features_of(some, flipped=False)
            each = (time.monotonic() - start) / sum(map(len, some))
            start = time.monotonic()
            for _ in range(measured):
                self.model.read(features[: self.batch_size]).sum().backward()
            self.optimizer.zero_grad()
            step = (time.monotonic() - start) / measured
            return Cost(each * (strands * int(lengths.sum()) + valid), step * len(order))
        self._backward(*chosen[0])  # warms up
        start = time.monotonic()
        for rows, flipped in chosen[1:]:
            self._backward(rows, flipped)
        each = (time.monotonic() - start) / bases
        self.optimizer.zero_grad()
        # without gradients a pass costs about a third
        return Cost(0.0, each * (int(lengths.sum()) + valid / 3))

    def _average(self, step: int) -> None:
        share = max(1 / _AVERAGED_STEPS, 9 / (10 + step))
        for name, parameter in self.model.learnt().items():
            self._averaged[name].lerp_(parameter.detach(), share)

    def _keep(self, epoch: int, step: int, found: Validation, learnt: dict[str, Tensor]) -> None:
        averaged, before = self._learnt(), self.state
        better = before.best is None or self.better(found, before.best)
        self.state = State(
            epoch,
            step,
            learnt,
            averaged,
            self.optimizer.state_dict(),
            found if better else before.best,
            epoch if better else before.best_epoch,
            averaged if better else before.best_learnt,
        )

    def _step(self, rows: NDArray[np.int64], flipped: NDArray[np.bool_], rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]
        loss = self._backward(rows, flipped)
        norm = nn.utils.clip_grad_norm_([p for p in self.model.learnt().values() if p.grad is not None], CLIP)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            named = ", ".join(self.train.ids[row] for row in rows[:5]) + (" ..." if len(rows) > 5 else "")
            raise NotFiniteError(
                f"the loss of the rows {named} is {loss:g}, its gradient's norm {float(norm):g} in epoch "
                f"{self.state.epoch + 1}; the epochs before are kept: take a lower --lr, or look at these rows"
            )
        self.optimizer.step()
        return loss

    def _backward(self, rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> float:
        """Gradients of the mean loss of a batch, some rows at a time if it is too long to go at once; the loss."""
        self.optimizer.zero_grad()
        whole, loss = self.train.weight(rows), 0.0
        for part in batches(self.train.lengths[rows], self.batch_tokens):
            outputs, targets = self._outputs(rows[part], flipped[part])
            share = self.model.task.loss(outputs, targets) * (self.train.weight(rows[part]) / max(whole, 1))
            share.backward()
            loss += float(share.detach())
        return loss

    def _outputs(self, rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        if not self._keeps_features:
            tokens, lengths, targets = self.train.batch(rows, flipped, self.device)
            with self._autocast():
                return self.model(tokens, lengths), targets
        kept = self._feature_table()["train"][flipped.astype(np.int64), rows]
        return self.model.read(kept), torch.from_numpy(self.train.targets[rows]).to(self.device)

    def _valid_predictions(self) -> NDArray[np.float64]:
        if not self._keeps_features:
            with self._autocast():
                return apply(
                    self.model,
                    self.valid.tokens,
                    batch_tokens=self.batch_tokens,
                    reverse_complement=self.config.reverse_complement,
                )
        self.model.eval()
        with torch.inference_mode():
            strands = [
                self.model.task.predictions(self.model.read(kept)).cpu().numpy()
                for kept in self._feature_table()["valid"]
            ]
        return np.asarray(np.mean(strands, axis=0))

    def _prepare(self) -> None:
        """Fit to the training rows what is not learnt by gradients; the same each time, so that no state keeps it."""
        model, lengths = self.model, self.train.lengths
        rows = np.random.default_rng(self.seed).permutation(len(lengths))
        if model.prompt is not None and self.config.prompt_init == "sequence":
            model.initialise_from(torch.from_numpy(self.train.tokens[rows[0]]))
        if model.head is not None and len(lengths) > 1:
            enough = max(2, int(np.searchsorted(lengths[rows].cumsum(), _STANDARDISE_ON)))
            model.head.standardise(self._features_of([self.train.tokens[row] for row in rows[:enough]], flipped=False))

    @property
    def _keeps_features(self) -> bool:
        """Whether features do not change while the head learns, and are few enough to be kept."""
        if not self.model.fixed_features or self.model.head is None:
            return False
        bases = int(max(self.train.lengths.max(), self.valid.lengths.max()))
        each = self.model.head.linear.in_features * (bases if self.model.task.kind == "nucleotide" else 1)
        strands = 2 if self.config.reverse_complement else 1
        return 4 * strands * (len(self.train) + len(self.valid)) * each <= _KEPT_BYTES

    def _feature_table(self) -> dict[str, Tensor]:
        """Features (strands, n, F) of the training and validation rows; two strands if both are shown."""
        if self._features is None:
            strands = (False, True) if self.config.reverse_complement else (False,)
            self._features = {
                name: torch.stack([self._features_of(part.tokens, flipped) for flipped in strands])
                for name, part in (("train", self.train), ("valid", self.valid))
            }
        return self._features

    def _features_of(self, sequences: Sequence[NDArray[np.uint8]], flipped: bool) -> Tensor:
        """Of each sequence (n, D), in the order given; of nucleotides those of all bases, in any order."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        order, found = batches(lengths, self.batch_tokens), []
        was_training = self.model.training
        self.model.eval()
        for rows in order:
            chosen = [reverse_complement_tokens(sequences[row]) if flipped else sequences[row] for row in rows]
            tokens, sizes = (tensor.to(self.device) for tensor in padded(chosen))
            # no inference mode: the head's backward pass takes these tensors
            with torch.no_grad(), self._autocast():
                features = self.model.features(tokens, sizes).float()
            if features.dim() == 3:
                features = features[torch.arange(tokens.shape[1], device=self.device) < sizes[:, None]]
            found.append(features)
        self.model.train(was_training)
        features = torch.cat(found)
        if len(features) != len(sequences):
            return features
        back = np.empty(len(sequences), dtype=np.int64)
        back[np.concatenate(order)] = np.arange(len(sequences))
        return features[torch.from_numpy(back).to(self.device)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def _learnt(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.model.learnt().items()}

    def _load(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.learnt().items():
                parameter.copy_(values[name])


def _adamw(learnt: dict[str, nn.Parameter], config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW over the head, the networks that generate filters, and everything else."""
    assert config.lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learnt.items():
        if _FILTER in name:
            rate, decay = min(config.lr, _FILTER_LR), 0.0
        elif name.startswith(_READ_OUT):
            rate, decay = config.head_lr or config.lr, config.weight_decay
        else:
            rate, decay = config.lr, 0.0 if config.method == "soft-prompt" else config.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ]
    )
