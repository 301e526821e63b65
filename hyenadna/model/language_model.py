"""HyenaDNA: a causal language model of nucleotides."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyenadna.errors import InputError, SequenceTooLong, ShapeError, UsageError
from hyenadna.kernels.mlp import gelu, mlp
from hyenadna.kernels.working_set import Workspace, bytes_to_keep, rows_at_once
from hyenadna.model.config import HyenaConfig, Quantization
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.hyena import HyenaOperator
from hyenadna.model.packed_linear import DenseLinear, Linear, linear_layers
from hyenadna.model.prefix import LayerState, Prefix
from hyenadna.model.spectra import KeptSpectra

QUANTIZED = ("mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2")
"""The layers of a block whose weights a quantised model packs; embeddings, norms and filters never are."""


class Output(NamedTuple):
    """What the model says of a batch of sequences."""

    logits: Tensor
    """(B, L, 16): at position t, of the token at t + 1. float32, or float64 for a float64 model."""
    hidden: Tensor
    """(B, L, D): the last hidden states, after the final norm."""


class Mlp(nn.Module):
    """fc2(GELU(fc1 x)) with the tanh form of GELU; (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_inner: int, linear: Callable[[int, int], Linear] = DenseLinear) -> None:
        super().__init__()
        self.fc1 = linear(d_model, d_inner)
        self.fc2 = linear(d_inner, d_model)
        self.d_inner = d_inner

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself."""
        if not torch.is_grad_enabled():
            return cast(Tensor, self.fc2(gelu(self.fc1(x))))
        if isinstance(self.fc1, DenseLinear) and isinstance(self.fc2, DenseLinear):
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        # as the fused layer does: GELU's input is kept for the backward pass if that takes little memory
        if x[..., 0].numel() * self.d_inner * x.itemsize > bytes_to_keep(x.device):
            return cast(Tensor, checkpoint(self._by_parts, x, use_reentrant=False))
        return self._by_parts(x)

    def _by_parts(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x); the stream x stays in float32 whatever the parts compute in."""

    def __init__(self, config: HyenaConfig, spectra: KeptSpectra, linear: Callable[[int, int], Linear]) -> None:
        super().__init__()
        long_filter = HyenaFilter(
            config.d_model,
            length=config.filter_length,
            width=config.filter_order,
            emb_dim=config.emb_dim,
            sine_frequency=config.sine_frequency,
            shift=config.filter_shift,
        )
        self.mixer = HyenaOperator(
            config.d_model, long_filter, short_filter_taps=config.short_filter_taps, spectra=spectra, linear=linear
        )
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.d_model, config.d_inner, linear)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor, workspace: Workspace | None = None, state: LayerState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), behind the prefix whose state is given."""
        if not torch.is_grad_enabled():
            return self._by_rows(x, workspace, state)
        x = x + cast(Tensor, self.dropout(self.mixer(_normed(self.norm1, x), state)))
        return x + cast(Tensor, self.dropout(self.mlp(_normed(self.norm2, x))))

    def prefix(self, x: Tensor, L: int, goes_on: bool) -> tuple[Tensor, LayerState]:
        """Of a row (1, n, D): the row after this block, or as it was where none follows, and its state for L tokens."""
        mixed, state = self.mixer.prefix(_normed(self.norm1, x), L)
        if goes_on:
            x = x + cast(Tensor, self.dropout(self.mixer.out_proj(mixed.T)[None]))
            x = x + cast(Tensor, self.dropout(self.mlp(_normed(self.norm2, x))))
        return x, state

    def _by_rows(self, x: Tensor, workspace: Workspace | None, state: LayerState | None) -> Tensor:
        """The same without gradients, some positions at a time wherever positions do not depend on each other."""
        B, L, _ = x.shape
        rows, size = x.reshape(B * L, -1), rows_at_once(x.device)
        mixed = self.mixer.mix((_normed(self.norm1, part) for part in rows.split(size)), B, L, workspace, state)
        out = torch.empty_like(rows)
        for x_part, y_part, out_part in zip(rows.split(size), mixed.T.split(size), out.split(size), strict=True):
            stream = x_part + self.dropout(self.mixer.out_proj(y_part))
            torch.add(stream, self.dropout(self.mlp(_normed(self.norm2, stream))), out=out_part)
        return out.view_as(x)


class Backbone(nn.Module):
    """Embedding, blocks and final norm; tokens (B, L) -> hidden states (B, L, D)."""

    def __init__(self, config: HyenaConfig, quantization: Quantization | None = None) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_rows, config.d_model)})
        self.dropout = nn.Dropout(config.embed_dropout)
        spectra, linear = KeptSpectra(), linear_layers(quantization)
        self.layers = nn.ModuleList(Block(config, spectra, linear) for _ in config.layers)
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.checkpoint_activations = False

    def forward(self, tokens: Tensor, prefix: Prefix | None = None, *, blocks: int | None = None) -> Tensor:
        """Hidden states of tokens, in the dtype of the final norm; those of a prefix are not among them.

        With fewer than all blocks, those after so many, before any norm.
        """
        x = _stream(self.dropout(self.embeddings["word_embeddings"](tokens)))
        workspace = None if torch.is_grad_enabled() else Workspace()
        states = (None,) * len(self.layers) if prefix is None else prefix.layers
        for layer, state in zip(self.layers[:blocks], states[:blocks], strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(layer, x, None, state, use_reentrant=False))
            else:
                x = layer(x, workspace, state)
        if blocks is not None and blocks < len(self.layers):
            return x
        return _normed(self.ln_f, x)

    def prefix(self, embeddings: Tensor, L: int) -> Prefix:
        """What the embeddings (n, D) leave in every layer for sequences of up to L tokens that follow them."""
        x, states = _stream(embeddings)[None], []
        for number, layer in enumerate(self.layers, 1):
            through, goes_on = cast(Block, layer).prefix, number < len(self.layers)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, state = checkpoint(through, x, L, goes_on, use_reentrant=False)
            else:
                x, state = through(x, L, goes_on)
            states.append(state)
        return Prefix(tuple(states))


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

    def forward(self, tokens: Tensor, *, prefix: Prefix | None = None) -> Output:
        """Logits and hidden states of a batch of right-padded sequences.

        Parameters
        ----------
        tokens : Tensor (B, L)          any integer dtype; ids of `hyenadna.data.tokenizer`
        prefix : Prefix, optional       what stands before every sequence, or before each its own, from `prefix`

        Returns
        -------
        Output

        Raises
        ------
        SequenceTooLong                 L is larger than config.filter_length, or than what the prefix was made for
        InputError                      not a batch of sequences, or one without tokens
        ShapeError, a ValueError        the prefix is neither of one row nor of B
        """
        self._check(tokens)
        if prefix is not None:
            prefix.check(*tokens.shape)
        hidden = self.backbone(tokens.long(), prefix)
        head = self.output_weight
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(head.dtype), head)
        return Output(logits.double() if logits.dtype == torch.float64 else logits.float(), hidden)

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

    def prefix(self, embeddings: Tensor, L: int) -> Prefix | None:
        """What embeddings leave to the sequences that they stand before; `hyenadna.model.prefix` says how.

        Without gradients it is made once and serves any number of batches; with them it is made anew for each.

        Parameters
        ----------
        embeddings : Tensor (n, D)      as the model embeds tokens: learnt, or `embedding(tokens)`
        L : int                         tokens of the longest sequence that will follow, 1 or more

        Returns
        -------
        Prefix, for `forward`; None if n is 0

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
            f"backbone.layers.{number}.{name}": cast(Linear, layer.get_submodule(name))
            for number, layer in enumerate(self.backbone.layers)
            for name in QUANTIZED
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

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the model folder; see `hyenadna.model.checkpoint.save`."""
        from hyenadna.model.checkpoint import save  # checkpoint builds on this module

        save(self, folder, **options)

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


def _stream(x: Tensor) -> Tensor:
    return x.double() if x.dtype == torch.float64 else x.float()


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return cast(Tensor, norm(x.to(norm.weight.dtype)))
