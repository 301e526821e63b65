"""The blocks of a HyenaDNA: each a mixer along the sequence and a feed-forward layer, both on one residual stream."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyenadna.kernels.working_set import Workspace, rows_at_once
from hyenadna.model.attention import AttentionMixer
from hyenadna.model.config import HyenaConfig, Quantization
from hyenadna.model.experts import Experts
from hyenadna.model.filter import HyenaFilter
from hyenadna.model.hyena import HyenaOperator
from hyenadna.model.lightning import LightningMixer, slopes
from hyenadna.model.mlp import Mlp
from hyenadna.model.packed_linear import Linear, linear_layers
from hyenadna.model.spectra import KeptSpectra
from hyenadna.model.state import LayerState, State

Mixer = HyenaOperator | LightningMixer | AttentionMixer


def _mixer(config: HyenaConfig, number: int, spectra: KeptSpectra, linear: Callable[[int, int], Linear]) -> Mixer:
    """The mixer of a block, by its letter."""
    match config.layers[number]:
        case "H":
            long_filter = HyenaFilter(
                config.d_model,
                length=config.filter_length,
                width=config.filter_order,
                emb_dim=config.emb_dim,
                sine_frequency=config.sine_frequency,
                shift=config.filter_shift,
            )
            taps = config.short_filter_taps
            return HyenaOperator(config.d_model, long_filter, short_filter_taps=taps, spectra=spectra, linear=linear)
        case "L":
            decay = slopes(
                config.slopes, config.heads, layer=number, n_layer=config.n_layer, context=config.filter_length
            )
            return LightningMixer(config.d_model, heads=config.heads, decay=decay, linear=linear)
        case _:
            return AttentionMixer(
                config.d_model,
                heads=config.heads,
                kv_heads=config.kv_heads,
                rotary_base=config.rotary_base,
                linear=linear,
            )


def _feed_forward(config: HyenaConfig, linear: Callable[[int, int], Linear]) -> Mlp | Experts:
    if config.feed_forward == "mlp":
        return Mlp(config.d_model, config.d_inner, linear)
    return Experts(
        config.d_model, config.d_inner, experts=config.experts, active_experts=config.active_experts, linear=linear
    )


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x); the stream x stays in float32 whatever the parts compute in."""

    def __init__(
        self, config: HyenaConfig, number: int, spectra: KeptSpectra, linear: Callable[[int, int], Linear]
    ) -> None:
        super().__init__()
        self.mixer = _mixer(config, number, spectra, linear)
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.mlp = _feed_forward(config, linear)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor, workspace: Workspace | None = None, state: LayerState | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), behind the tokens whose state is given, which is left as it is."""
        if not torch.is_grad_enabled():
            return self._by_rows(x, workspace, state)
        x = x + cast(Tensor, self.dropout(self.mixer(_normed(self.norm1, x), state)))
        return x + cast(Tensor, self.dropout(self.mlp(_normed(self.norm2, x))))

    def extend(
        self, x: Tensor, state: LayerState | None, ahead: int = 0, goes_on: bool = True
    ) -> tuple[Tensor, LayerState]:
        """(B, m, D) after this block, or as it was where nothing goes on from it, and the state behind it."""
        mixed, state = self.mixer.extend(_normed(self.norm1, x), state, ahead=ahead)  # type: ignore[arg-type]
        if goes_on and torch.is_grad_enabled():
            x = x + cast(Tensor, self.dropout(self.mixer.out_proj(mixed)))
            x = x + cast(Tensor, self.dropout(self.mlp(_normed(self.norm2, x))))
        elif goes_on:
            x = self._onwards(x.flatten(0, 1), mixed.flatten(0, 1)).view_as(x)
        return x, state

    def _by_rows(self, x: Tensor, workspace: Workspace | None, state: LayerState | None) -> Tensor:
        """The same without gradients, some positions at a time wherever positions do not depend on each other."""
        B, L, _ = x.shape
        rows = x.reshape(B * L, -1)
        blocks = (_normed(self.norm1, part) for part in rows.split(rows_at_once(x.device)))
        mixed = self.mixer.mix(blocks, B, L, workspace, state)  # type: ignore[arg-type]
        return self._onwards(rows, mixed.T).view_as(x)

    def _onwards(self, rows: Tensor, mixed: Tensor, out: Tensor | None = None) -> Tensor:
        """What follows the mixer, without gradients: the stream and what is mixed, (n, D) each -> (n, D)."""
        size = rows_at_once(rows.device)
        if len(rows) <= size:
            stream = rows + self.dropout(self.mixer.out_proj(mixed))
            return torch.add(stream, self.dropout(self.mlp(_normed(self.norm2, stream))), out=out)
        out = torch.empty_like(rows)
        for parts in zip(rows.split(size), mixed.split(size), out.split(size), strict=True):
            self._onwards(*parts)
        return out


class Backbone(nn.Module):
    """Embedding, blocks and final norm; tokens (B, L) -> hidden states (B, L, D)."""

    def __init__(self, config: HyenaConfig, quantization: Quantization | None = None) -> None:
        super().__init__()
        self.longest = config.filter_length
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_rows, config.d_model)})
        self.dropout = nn.Dropout(config.embed_dropout)
        spectra, linear = KeptSpectra(), linear_layers(quantization)
        self.layers = nn.ModuleList(Block(config, number, spectra, linear) for number in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.checkpoint_activations = False

    def forward(self, tokens: Tensor, prefix: State | None = None, *, blocks: int | None = None) -> Tensor:
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

    def extend(self, tokens: Tensor, state: State | None = None, *, ahead: int = 0) -> tuple[Tensor, State]:
        """Hidden states (B, m, D) of tokens that go on where a state ends, and the state behind them.

        As `HyenaDNA.extend`, which says more.
        """
        B, m = tokens.shape
        before = state
        if state is not None:
            state.check(B, m, self.longest)
            before = state if state.rows == B else state.repeat(B)
            state.spent = True  # from here on, also if this fails halfway
        x = _stream(self.dropout(self.embeddings["word_embeddings"](tokens.long())))
        x, after = self._through(x, before, ahead, to_the_end=True)
        return _normed(self.ln_f, x), after

    def prefix(self, embeddings: Tensor, L: int) -> State:
        """What the embeddings (n, D) leave in every layer to sequences of about L tokens that follow them."""
        return self._through(_stream(embeddings)[None], None, L, to_the_end=False)[1]

    def _through(self, x: Tensor, state: State | None, ahead: int, *, to_the_end: bool) -> tuple[Tensor, State]:
        """The stream through all blocks, of the last one its state alone if the stream ends there."""
        before = (None,) * len(self.layers) if state is None else state.layers
        length, after = x.shape[1] + (0 if state is None else state.length), []
        for number, (layer, of_layer) in enumerate(zip(self.layers, before, strict=True), 1):
            through, goes_on = cast(Block, layer).extend, to_the_end or number < len(self.layers)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, carried = checkpoint(through, x, of_layer, ahead, goes_on, use_reentrant=False)
            else:
                x, carried = through(x, of_layer, ahead, goes_on)
            after.append(carried)
        return x, State(tuple(after), length)


def _stream(x: Tensor) -> Tensor:
    return x.double() if x.dtype == torch.float64 else x.float()


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return cast(Tensor, norm(x.to(norm.weight.dtype)))
