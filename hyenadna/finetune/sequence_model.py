"""A pretrained model adapted to a task: sequences in, one answer each, or one a base."""

import re
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.heads import LinearHead, Pool, label_tokens, last, next_token
from hyenadna.finetune.lora import attach, held
from hyenadna.finetune.soft_prompt import SoftPrompt
from hyenadna.finetune.task import Task
from hyenadna.model.language_model import HyenaDNA, Output

_UPDATE = re.compile(r"base\.(.+)\.(?:parametrizations\.weight\.0|update)\.(\w+)")


class SequenceModel(nn.Module):
    """A base model, what the adaptation adds to it, and a read-out for the task.

    The read-out is a linear head on pooled hidden states (on every hidden state, for a class of every nucleotide: the
    model being causal, it then sees what lies before the nucleotide, and the nucleotide); or, as `label-tokens`, the
    logits at the sequence's last base of the nucleotides that stand for the classes: the language model is asked for
    the next token, and the prompt teaches it what to say. Nguyen et al. 2023 read this after
    `[sequence][SEP]`, and take the largest of all 16 logits. Departs from it: (1) no SEP, which our pretraining has in
    its targets but never in its input; (2) only the classes' own logits compete. As `next-token`, the task is that of
    the language model itself, the class of every position being the token that follows (`heads.NEXT_TOKEN`).

    Parameters
    ----------
    base : HyenaDNA
        Becomes part of this model: with method `full` it is trained, with the others frozen and kept in eval mode, so
        that several models may share it.
    task : Task
    adaptation : Adaptation
    seed : int
        Of everything that is new.

    Raises
    ------
    UsageError              the prompt leaves no room for a sequence; pool positions without their number; a quantised
                            base that would be trained itself
    InputError              the task cannot be read from label tokens
    """

    def __init__(self, base: HyenaDNA, task: Task, adaptation: Adaptation, *, seed: int = 0) -> None:
        super().__init__()
        self.task, self.adaptation = task, adaptation
        _check_trainable(base, adaptation)
        base.requires_grad_(not adaptation.frozen)
        if not adaptation.frozen:
            base.backbone.dropout.p = adaptation.dropout
        D, dropout, pooled = base.config.d_model, adaptation.dropout, task.kind != "nucleotide"
        self.prompt: SoftPrompt | None = None
        self.pool: Pool | None = None
        self.head: LinearHead | None = None
        self.label_tokens: tuple[int, ...] = ()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if adaptation.read_out != "head":
                self.label_tokens = _answering(task, adaptation)
            else:
                if pooled and adaptation.pool == "positions" and adaptation.positions is None:
                    raise UsageError("pool positions needs the bases of the longest sequence as positions")
                self.pool = Pool(adaptation.pool, D, adaptation.positions) if pooled else None
                features = D if self.pool is None else self.pool.features
                self.head = LinearHead(features, task.outputs, d_model=D, dropout=dropout)
            if adaptation.method == "soft-prompt":
                self.prompt = SoftPrompt(adaptation.prompt_length, D, dropout=dropout)
            dtype = torch.promote_types(base.embedding.weight.dtype, torch.float32)  # never half
            self.to(base.device, dtype)
            if adaptation.method == "lora":
                base = attach(
                    base,
                    rank=adaptation.lora_rank,
                    alpha=adaptation.lora_alpha,
                    projections=adaptation.lora_projections,
                )
        self.base = base
        if self.longest < 1:
            raise UsageError(
                f"a prompt of {adaptation.prompt_length:,} leaves no room for a sequence in a context of "
                f"{base.config.filter_length:,} tokens: take a shorter one, or a model with a longer context"
            )
        self.train(self.training)

    @property
    def longest(self) -> int:
        """Bases of the longest sequence that fits: prompt + sequence + 2 are at most the model's context."""
        n = 0 if self.prompt is None else len(self.prompt.embeddings)
        return min(self.base.config.filter_length - n - 2, self.adaptation.positions or self.base.config.filter_length)

    @property
    def fixed_features(self) -> bool:
        """Whether `features` stay the same while the model learns, and may be computed once: `read` is all of it."""
        fixed_pool = self.pool is not None and self.pool.query is None
        return self.adaptation.method == "head" and fixed_pool

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The answers to a batch of right-padded sequences; what they mean says `Task.predictions`.

        Parameters
        ----------
        tokens : Tensor (B, L)          any integer dtype
        lengths : int64 Tensor (B,)     1 to L each

        Returns
        -------
        Tensor (B, K); (B, L, K) for a class of every nucleotide, where what lies behind a sequence means nothing

        Raises
        ------
        SequenceTooLong                 L is more than `longest`
        InputError                      lengths that do not fit the tokens
        """
        return self.read(self.features(tokens, lengths))

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What `read` answers from: pooled hidden states (B, F), or all of them (B, L, D) for nucleotides."""
        return self.pooled(self.hidden(tokens, lengths), lengths)

    def hidden(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The last hidden states of the sequences' positions, (B, L, D); without gradients if nothing in it learns."""
        self.check(tokens, lengths)
        n = 0 if self.prompt is None else len(self.prompt.embeddings)
        learns = self.adaptation.method in ("full", "lora") or n > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            prefix = None if self.prompt is None else self.prompt.before(self.base, tokens.shape[1])
            evaluating = self.adaptation.method == "lora" and not torch.is_grad_enabled()
            with held(self.base) if evaluating else nullcontext():
                return cast(Output, self.base(tokens, prefix=prefix)).hidden

    def pooled(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (B, L, D) -> features: (B, F), or as they are for nucleotides."""
        if self.adaptation.read_out == "label-tokens":
            return last(hidden, lengths.to(hidden.device))
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden if self.pool is None else self.pool(hidden, lengths.to(hidden.device))

    def read(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K), in float32, or float64 for a float64 model."""
        with torch.autocast(features.device.type, enabled=False):
            if self.head is not None:
                return cast(Tensor, self.head(features))
            weight = self.base.output_weight
            answer = F.linear(features.to(weight.dtype), weight[list(self.label_tokens)])
            return answer.to(torch.promote_types(answer.dtype, torch.float32))

    def check(self, tokens: Tensor, lengths: Tensor) -> None:
        """Nothing, if the batch fits; raises what `forward` does."""
        if tokens.dim() != 2 or lengths.shape != tokens.shape[:1]:
            raise InputError(
                f"the model was given tokens {tuple(tokens.shape)} and lengths {tuple(lengths.shape)}; "
                "it takes (B, L) and (B,)"
            )
        if tokens.shape[1] > self.longest:
            prompt = "" if self.prompt is None else f" behind a prompt of {len(self.prompt.embeddings):,}"
            raise SequenceTooLong(
                f"the sequence has {tokens.shape[1]:,} bases; this model takes up to {self.longest:,}{prompt}: "
                "cut it into windows, or take a model with a longer context"
            )
        if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= tokens.shape[1]:
            raise InputError(
                f"lengths from {int(lengths.min())} to {int(lengths.max())} were given for {tokens.shape[1]} tokens; "
                "every sequence needs a base, and has no more than the batch is long"
            )

    def initialise_from(self, tokens: Tensor) -> None:
        """Begin the soft prompt with a sequence (L,) as the model embeds it, repeated or cut to the prompt's length."""
        if self.prompt is None:
            raise UsageError(f"the method {self.adaptation.method} has no prompt to begin with a sequence")
        self.prompt.initialise_from(self.base.embedding(tokens.long().to(self.base.device)))

    def learnt(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: `head.`, `pool.`, `prompt.`, `lora.LAYER.A` and `.B`, or `base.` in full."""
        return {_short(name): parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def own_state(self) -> dict[str, Tensor]:
        """All tensors that are not the base's, by the same names: what an adapter's file holds."""
        return {
            _short(name): tensor
            for name, tensor in self.state_dict(keep_vars=True).items()
            if not name.startswith("base.") or _UPDATE.fullmatch(name)
        }

    def train(self, mode: bool = True) -> "SequenceModel":
        """As for every module; a frozen base stays in eval mode."""
        super().train(mode)
        if self.adaptation.frozen:
            self.base.eval()
        return self


def _answering(task: Task, adaptation: Adaptation) -> tuple[int, ...]:
    """The tokens whose logits answer."""
    if adaptation.read_out == "next-token":
        return next_token(task.kind, task.labels)
    return label_tokens(task.kind, task.outputs)


def _short(name: str) -> str:
    return _UPDATE.sub(r"lora.\1.\2", name)


def _check_trainable(base: HyenaDNA, adaptation: Adaptation) -> None:
    if base.quantization is not None and not adaptation.frozen:
        raise UsageError(
            f"the model is quantised to {base.quantization.bits} bits and cannot be trained as a whole: take the "
            "method lora, soft-prompt or head, or fine-tune its parent and quantise what comes of it"
        )
