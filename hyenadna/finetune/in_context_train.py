"""Tuning on prompts: the training of `hyenadna.finetune.train`, with other prompts in every epoch."""

from collections.abc import Callable

import numpy as np

from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.in_context_prompts import PromptSource
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.train import Trainer
from hyenadna.finetune.validation import Validation

EPOCHS, PATIENCE, BATCH_SIZE, LR = 20, 5, 8, 1e-3
"""Epochs and rate are those of Nguyen et al. 2023 for soft prompts; their 1e-4 for all weights, or 32 prompts a step,
teach a tiny model little or nothing in so many epochs."""
TRAIN, VALID, TEST = 0, 1, 2
"""What a seed is for."""


class InContextTrainer(Trainer):
    """Fits a model to the labels of prompts, the loss being the mean over the tokens of all labels of all prompts.

    What follows at a label is asked of all tokens: this teaches which of them are labels, too. Departs from Nguyen et
    al. 2023, besides what `Trainer` does: (1) sequences are not padded; (2) labels are drawn one by one, where theirs
    are as many of each class, so that the last could be told by counting; (3) words change their meaning from prompt to
    prompt, unless the configuration says no; (4) weight decay is that of the configuration, where theirs is 0.

    Parameters
    ----------
    model : SequenceModel           of `in_context_model.next_token_model`
    train, valid : PromptSource
    config : FinetuneConfig         with objective in-context, resolved
    seed, batch_tokens : int        as `Trainer` takes them; the seed decides the prompts as well
    """

    def __init__(
        self,
        model: SequenceModel,
        train: PromptSource,
        valid: PromptSource,
        config: FinetuneConfig,
        *,
        seed: int,
        batch_tokens: int,
    ) -> None:
        self.source = train
        chosen = valid.draw(max(1, config.prompts // 4), np.random.default_rng((seed, VALID)))
        first = train.draw(config.prompts, np.random.default_rng((seed, TRAIN, 1)))
        super().__init__(model, first, chosen, config, seed=seed, batch_tokens=batch_tokens)

    def epoch(self, advance: Callable[[int], None] = lambda bases: None) -> dict[str, float]:
        """As `Trainer.epoch`, on prompts that seed and number of the epoch alone decide."""
        random = np.random.default_rng((self.seed, TRAIN, self.state.epoch + 1))
        self.train = self.source.draw(self.config.prompts, random)
        return super().epoch(advance)

    def better(self, found: Validation, best: Validation) -> bool:
        """Whether its loss is lower.

        The metric is at chance for many epochs, and its noise would end the run, while the loss already falls: the
        model learns which tokens are labels before it learns which of them is right.
        """
        return found.loss < best.loss
