"""HyenaDNA: a causal language model of nucleotides."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.errors import InputError, SequenceTooLong, ShapeError, UsageError
from hyenadna.model.backbone import Backbone
from hyenadna.model.config import HyenaConfig, Quantization
from hyenadna.model.packed_linear import Linear
from hyenadna.model.state import State

if TYPE_CHECKING:
    from hyenadna.inference.generation import Generated

QUANTIZED = ("mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2")
"""The layers of a block whose weights a quantised model packs, the last two of every expert if the block has experts.

Embeddings, norms, filters and routers never are."""


class Output(NamedTuple):
    """What the model says of a batch of sequences."""

    logits: Tensor
    """(B, L, 16): at position t, of the token at t + 1. float32, or float64 for a float64 model."""
    hidden: Tensor
    """(B, L, D): the last hidden states, after the final norm."""


class HyenaDNA(nn.Module):
    """A HyenaDNA language model.

    Nguyen et al. 2023. Tensor names are those of the Hugging Face port without its `hyena.` prefix; nothing that can be
    computed from the configuration is stored.

    Parameters
    ----------
    config : HyenaConfig
        The architecture. Weights are drawn from torch's global generator.
    quantization : Quantization, optional
        How the matrices of the blocks (`QUANTIZED`) are stored, with all codes 0 until they are loaded. Default: dense.

    Attributes
    ----------
    parent_sha256 : str or None
        Of the dense model that a quantised one was made from, by which its adapters know it.

    Examples
    --------
    >>> from hyenadna.model.config import named_size
    >>> model = HyenaDNA(named_size("tiny-1k"))
    >>> model(torch.tensor([[7, 8, 9, 10]])).logits.shape
    torch.Size([1, 4, 16])
    """

    def __init__(self, config: HyenaConfig, quantization: Quantization | None = None) -> None:
        super().__init__()
        self.config, self.quantization = config, quantization
        self.parent_sha256: str | None = None
        self.backbone = Backbone(config, quantization)
        if not config.tie_head:
            self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)
        self._initialize()

    def forward(self, tokens: Tensor, *, prefix: State | None = None) -> Output:
        """Logits and hidden states of a batch of right-padded sequences.

        Parameters
        ----------
        tokens : Tensor (B, L)          any integer dtype; ids of `hyenadna.data.tokenizer`
        prefix : State, optional
            What stands before every sequence, or before each its own, from `prefix` or `extend`; it is left as it is.

        Returns
        -------
        Output

        Raises
        ------
        SequenceTooLong                 prefix and sequence are longer than config.filter_length
        InputError                      not a batch of sequences, or one without tokens
        ShapeError, a ValueError        the prefix is neither of one row nor of B
        UsageError                      the prefix is spent
        """
        self._check(tokens)
        if prefix is not None:
            prefix.check(len(tokens), tokens.shape[1], self.config.filter_length)
        hidden = self.backbone(tokens.long(), prefix)
        return Output(self.logits(hidden), hidden)

    def extend(self, tokens: Tensor, state: State | None = None, *, ahead: int = 0) -> tuple[Tensor, State]:
        """Logits of tokens that go on where a state ends, and the state behind them.

        Reading a sequence in pieces of any lengths gives what `forward` gives of the whole. The state that was given is
        spent: what it holds goes into the new one. To go on from it twice, take a branch with `state.repeat` before. A
        state that was made in `torch.inference_mode` goes on in that mode alone.

        Parameters
        ----------
        tokens : Tensor (B, m)          any integer dtype, m >= 1
        state : State, optional         of B rows, or of one that all sequences share; None is the beginning
        ahead : int
            Tokens that will follow, as far as that is known: what they need of these is then computed at once. It
            changes speed and memory, never the result.

        Returns
        -------
        logits : Tensor (B, m, 16)      as those of `forward`
        state : State                   of B rows

        Raises
        ------
        SequenceTooLong                 more tokens in all than config.filter_length
        InputError                      not a batch of sequences, or one without tokens
        ShapeError, a ValueError        the state is neither of one row nor of B
        UsageError                      the state is spent, or ahead is under 0
        """
        self._check(tokens)
        if ahead < 0:
            raise UsageError(f"ahead is {ahead}; allowed are 0 tokens and more")
        hidden, after = self.backbone.extend(tokens, state, ahead=ahead)
        return self.logits(hidden), after

    def hidden_states(self, tokens: Tensor, layer: int = -1) -> Tensor:
        """The hidden states after some block, (B, L, D); no later block and no logits are computed.

        Parameters
        ----------
        tokens : Tensor (B, L)
            As `forward` takes them.
        layer : int
            As `block_of` reads it.

        Raises
        ------
        SequenceTooLong, InputError     as `forward`
        UsageError                      there is no such layer
        """
        self._check(tokens)
        return cast(Tensor, self.backbone(tokens.long(), blocks=self.block_of(layer)))

    def block_of(self, layer: int) -> int:
        """How many blocks lie before the hidden states of a layer.

        0 is the embedding, k what the k-th block gives, and n_layer the last block's after the final norm, which is
        what the head sees; negative numbers count from the end, so that -1 is that one.

        Raises
        ------
        UsageError                      there is no such layer
        """
        n_layer = self.config.n_layer
        if not -n_layer - 1 <= layer <= n_layer:
            raise UsageError(
                f"layer is {layer}; this model of {n_layer} blocks has 0 (the embedding) to {n_layer} (the last block, "
                f"after the final norm), or {-n_layer - 1} to -1 counted from the end"
            )
        return layer % (n_layer + 1)

    def prefix(self, embeddings: Tensor, L: int) -> State | None:
        """What embeddings leave to the sequences that they stand before; `hyenadna.model.state` says how.

        Without gradients it is made once and serves any number of batches; with them it is made anew for each.

        Parameters
        ----------
        embeddings : Tensor (n, D)      as the model embeds tokens: learnt, or `embedding(tokens)`
        L : int                         tokens of the longest sequence that will follow, 1 or more

        Returns
        -------
        State of one row, for `forward`; None if n is 0

        Raises
        ------
        SequenceTooLong                 n + L is larger than config.filter_length
        ShapeError, a ValueError        embeddings of another width, or L under 1
        """
        n, longest = len(embeddings), self.config.filter_length
        if embeddings.dim() != 2 or embeddings.shape[1] != self.config.d_model or L < 1:
            raise ShapeError(
                f"a prefix was asked for of embeddings {tuple(embeddings.shape)} before {L} tokens; "
                f"it takes (n, {self.config.d_model}) before 1 token or more"
            )
        if n + L > longest:
            raise SequenceTooLong(
                f"a prefix of {n:,} before {L:,} tokens is {n + L:,}; this model takes up to {longest:,}: "
                "shorten one of them, or take a model with a longer context"
            )
        return self.backbone.prefix(embeddings, L) if n else None

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding, (16, D)."""
        return cast(nn.Embedding, self.backbone.embeddings["word_embeddings"])

    @property
    def output_weight(self) -> Tensor:
        """What turns hidden states into logits, (16, D): the embedding, or a head of its own."""
        return self.embedding.weight if self.config.tie_head else self.lm_head.weight

    @property
    def projections(self) -> dict[str, Linear]:
        """The layers of all blocks that `QUANTIZED` names, by the names of their modules."""
        return {
            f"backbone.layers.{number}.{name}": cast(Linear, module)
            for number, layer in enumerate(self.backbone.layers)
            for name, module in layer.named_modules()
            if f"{name.partition('.')[0]}.{name.rpartition('.')[2]}" in QUANTIZED
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "HyenaDNA":
        """The model of a folder or a hub id; see `hyenadna.model.checkpoint.load`."""
        from hyenadna.model.checkpoint import load  # checkpoint builds on this module

        return load(source, **options)

    def generate(self, prompt: str = "", *, length: int, **options: Any) -> "list[Generated]":
        """Sequences that the model writes behind a prompt or from nothing; see `hyenadna.inference.generate`."""
        from hyenadna.inference.generate import generate  # what the model is used for builds on it

        return generate(self, prompt, length=length, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the model folder; see `hyenadna.model.checkpoint.save`."""
        from hyenadna.model.checkpoint import save  # checkpoint builds on this module

        save(self, folder, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head says of last hidden states, (..., D) -> (..., 16); `forward` tells in which dtype."""
        head = self.output_weight
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(head.dtype), head)
        return logits.double() if logits.dtype == torch.float64 else logits.float()

    def _check(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise InputError(
                f"the model was given tokens of shape {tuple(tokens.shape)}; it takes (B, L), neither of them 0"
            )
        if tokens.shape[1] > self.config.filter_length:
            raise SequenceTooLong(
                f"the sequence has {tokens.shape[1]:,} tokens; this model takes up to {self.config.filter_length:,}: "
                "cut it into windows, or take a model with a longer context"
            )

    def _initialize(self) -> None:
        """Draw the weights as Nguyen et al. 2023 do.

        Linear layers and the embedding N(0, 0.02), biases 0, and the two layers that write to the residual stream
        N(0, 0.02 / sqrt(2 n_layer)); convolutions and norms as torch makes them, the direct path's gain N(0, 1).
        """
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                scale = 1 / math.sqrt(2 * self.config.n_layer) if name.endswith(("out_proj", "fc2")) else 1.0
                nn.init.normal_(module.weight, std=std * scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
