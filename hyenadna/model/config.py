"""The architecture of a model; the published sizes and our hybrids by name."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

from hyenadna.errors import UsageError

Size = Literal[
    "tiny-1k", "tiny-1k-d256", "tiny-16k", "small-32k", "medium-160k", "medium-450k", "large-1m",
    "tiny-1k-hs", "tiny-1k-remoe", "small-32k-hhhs", "small-32k-llls", "medium-160k-hls",
]  # fmt: skip
"""The published models, and hybrids of our own, which are no one's published weights."""

Slopes = Literal["context", "alibi", "linear"]
FeedForward = Literal["mlp", "remoe"]
MIXERS = {"H": "Hyena", "L": "Lightning Attention-2", "S": "softmax attention"}
"""The mixers by their letters."""
_LARGEST_BASE = 1e12
_LIMITS = {"d_model": 65_536, "d_inner": 1 << 20, "filter_length": 1 << 26, "filter_order": 65_536, "emb_dim": 1025}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Everything that decides a HyenaDNA's tensors and its function.

    Raises
    ------
    UsageError              a value outside of what the field allows
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    d_model: int = 128
    """Width of the residual stream, D."""
    d_inner: int = 512
    """Width of the feed-forward layer."""
    layers: str = "HH"
    """The mixer of each block, one letter a block: H Hyena, L Lightning Attention-2, S softmax attention."""
    heads: int = 4
    """Heads of L and S mixers, of d_model / heads channels each."""
    kv_heads: int = 4
    """Heads of keys and values in S mixers, each shared by heads / kv_heads heads."""
    rotary_base: float = 10_000.0
    """Base of the rotary positions of S mixers: the slowest wave turns once in about 2 pi times so many tokens."""
    slopes: Slopes = "context"
    """Decays of the heads of L mixers: from 2 bp to the whole context, or as two families of published models."""
    feed_forward: FeedForward = "mlp"
    """The feed-forward part of each block: one network, or experts that a ReLU router switches on."""
    experts: int = 8
    """Experts of a remoe block."""
    active_experts: int = 1
    """Experts that are on at the target sparsity; each is d_inner / active_experts wide."""
    filter_length: int = 1026
    """Taps of the long filters, and so the longest input in tokens; 2 more than the context a size is named for."""
    filter_order: int = 64
    """Width of the network that generates the long filters."""
    emb_dim: int = 5
    """Positional features that the filter network sees: time, and (emb_dim - 1) / 2 complex waves."""
    sine_frequency: float = 10.0
    """Initial frequency of the filter network's sine activations."""
    short_filter_taps: int = 3
    """Taps of the short depthwise filter after the input projection, M."""
    filter_shift: float = 0.05
    """Added to the filters' exponential decay, which then never ends at zero; some code bases use 0."""
    embed_dropout: float = 0.1
    """Dropout of the embedded tokens in training."""
    resid_dropout: float = 0.0
    """Dropout of what each later block adds to the residual stream."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norms."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    n_token: Literal["n", "pad"] = "n"
    """What the base N is in the model's input: its own token, or PAD as published weights saw it."""
    tie_head: bool = True
    """Whether the output head is the embedding matrix itself, as in all published models."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not 0 < value <= _LIMITS.get(field.name, 1024):
                raise UsageError(f"{field.name} is {value}; allowed are 1 to {_LIMITS.get(field.name, 1024)}")
        if not self.layers or len(self.layers) > 1024 or set(self.layers) - set(MIXERS):
            raise UsageError(
                f"layers is {self.layers[:80]!r}; allowed are 1 to 1024 letters out of {''.join(MIXERS)!r}"
            )
        if self.emb_dim < 3 or self.emb_dim % 2 == 0:
            raise UsageError(f"emb_dim is {self.emb_dim}; it must be odd and at least 3")
        for name in ("embed_dropout", "resid_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed are 0 up to but not including 1")

        for name, kind in (("slopes", Slopes), ("feed_forward", FeedForward)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(get_args(kind))}")
        self._check_mixers()
        if self.feed_forward == "remoe" and (self.active_experts > self.experts or self.d_inner % self.active_experts):
            raise UsageError(
                f"active_experts is {self.active_experts}; it may be up to experts, {self.experts}, and must divide "
                f"d_inner, {self.d_inner}"
            )

    def _check_mixers(self) -> None:
        if set(self.layers) & set("LS") and self.d_model % self.heads:
            raise UsageError(f"heads is {self.heads}; it must divide d_model, {self.d_model}")
        if "S" not in self.layers:
            return
        if self.heads % self.kv_heads:
            raise UsageError(f"kv_heads is {self.kv_heads}; it must divide heads, {self.heads}")
        if self.d_model // self.heads % 2:
            raise UsageError(
                f"heads is {self.heads}, so that each has {self.d_model // self.heads} of {self.d_model} channels; "
                "rotary positions need an even number"
            )
        if not 1 < self.rotary_base <= _LARGEST_BASE:
            raise UsageError(f"rotary_base is {self.rotary_base}; allowed is over 1 to {_LARGEST_BASE:g}")

    @property
    def n_layer(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def blocks(self) -> str:
        """The mixers' letters, and what the feed-forward parts are if not dense: such as 'HHLS, remoe 1 of 8'."""
        experts = f", remoe {self.active_experts} of {self.experts}" if self.feed_forward == "remoe" else ""
        return self.layers + experts

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding: the vocabulary of 12 tokens, padded to a multiple of 8."""
        return 16


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How the matrices of a model's blocks are stored in a few bits a weight.

    Raises
    ------
    UsageError              a value that the field does not allow
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    bits: Literal[1, 2, 3, 4, 8] = 4
    """Of a weight's code."""
    group: int = 64
    """Neighbouring weights that share a scale and a zero point, 16 to 128."""
    meta_bits: Literal[8, 16] = 8
    """Of a scale and of a zero point."""

    def __post_init__(self) -> None:
        for name, allowed in (("bits", (1, 2, 3, 4, 8)), ("meta_bits", (8, 16))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed are {', '.join(map(str, allowed))}")
        if not 16 <= self.group <= 128:
            raise UsageError(f"group is {self.group}; allowed are 16 to 128")


class _Named(NamedTuple):
    """What a name stands for; d_inner is 4 d_model, and all else as by default."""

    layers: str
    d_model: int
    context: int
    own: dict[str, Any] = {}
    """What else differs from the defaults."""
    reason: str = ""
    """Why a hybrid is mixed so."""


_SIZES: dict[Size, _Named] = {
    "tiny-1k": _Named("HH", 128, 1024),
    "tiny-1k-d256": _Named("HH", 256, 1024),
    "tiny-16k": _Named("HH", 128, 16_384),
    "small-32k": _Named("HHHH", 256, 32_768),
    "medium-160k": _Named("HHHHHHHH", 256, 160_000),
    "medium-450k": _Named("HHHHHHHH", 256, 450_000),
    "large-1m": _Named("HHHHHHHH", 256, 1_000_000),
    "tiny-1k-hs": _Named(
        "HS", 128, 1024, {"kv_heads": 2},
        "a softmax layer last can look up and copy what was seen once, which fixed filters cannot",
    ),
    "tiny-1k-remoe": _Named(
        "HH", 128, 1024, {"feed_forward": "remoe"},
        "experts give eight times the feed-forward weights at the arithmetic of one on each base",
    ),
    "small-32k-hhhs": _Named(
        "HHHS", 256, 32_768, {"kv_heads": 1},
        "one softmax layer in four, with one head of keys, recalls with a sixteenth of the cache of four full ones",
    ),
    "small-32k-llls": _Named(
        "LLLS", 256, 32_768, {"kv_heads": 1},
        "Lightning layers carry one matrix a head, so that generation costs the same at every length but in one layer",
    ),
    "medium-160k-hls": _Named(
        "HHHLHHHS", 256, 160_000, {"kv_heads": 1},
        "Hyena reads motifs and spacings, Lightning sums up by content in linear time, softmax recalls in one layer",
    ),
}  # fmt: skip


def hybrid_reason(size: Size) -> str:
    """Why a named hybrid is mixed as it is, in a sentence; empty for a published size."""
    return _SIZES[size].reason


def named_size(size: Size, *, max_length: int | None = None) -> HyenaConfig:
    """The configuration of a published size or a hybrid, at its own context or at another.

    Parameters
    ----------
    size : Size
        A name such as 'tiny-1k'.
    max_length : int, optional
        The context in bases; the filters get two taps more. Default: that of the size.

    Raises
    ------
    UsageError              there is no such name

    Examples
    --------
    >>> named_size("small-32k").filter_length
    32770
    """
    if size not in _SIZES:
        raise UsageError(f"{size!r} is no size; allowed are {', '.join(get_args(Size))}")
    named = _SIZES[size]
    length = named.context if max_length is None else max_length
    return HyenaConfig(
        d_model=named.d_model, d_inner=4 * named.d_model, layers=named.layers, filter_length=length + 2, **named.own
    )
