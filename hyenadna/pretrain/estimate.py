"""Memory and time of a run, counted from the architecture before anything is allocated."""

import dataclasses

from hyenadna.model.config import HyenaConfig

_BASE_BYTES = 400 << 20
"""What Python and torch hold before there is a model (measured on a CPU; a CUDA context takes as much on the GPU)."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the parts of a training step on one device."""

    weights: int
    """Weights, gradients and AdamW's two averages, float32."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    filters: int
    """Filter networks, filters and spectra at the input's length; the same whatever the batch."""
    base: int = _BASE_BYTES
    """The process itself."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.filters + self.base


def parameters(config: HyenaConfig) -> int:
    """Trainable numbers of a model.

    Examples
    --------
    >>> parameters(HyenaConfig())
    436096
    """
    D, F, E = config.d_model, config.filter_order, config.emb_dim
    long_filter = D + (E * F + F) + 2 * (F * F + F) + F + F * D
    operator = (D * 3 * D + 3 * D) + (D * D + D) + 3 * D * (config.short_filter_taps + 1)
    block = long_filter + operator + 4 * D + (2 * D * config.d_inner + config.d_inner + D)
    head = 0 if config.tie_head else config.vocab_rows * D
    return config.n_layer * block + config.vocab_rows * D + 2 * D + head


def training_memory(
    config: HyenaConfig, *, length: int, micro_batch_tokens: int, half: bool, checkpoint_activations: bool
) -> MemoryEstimate:
    """Memory of a training step.

    Parameters
    ----------
    config : HyenaConfig
    length : int
        Tokens of each sequence, L.
    micro_batch_tokens : int
        B L.
    half : bool
        Whether matrix products are in bfloat16.
    checkpoint_activations : bool
        Whether blocks are recomputed.
    """
    D, inner, tokens = config.d_model, config.d_inner, micro_batch_tokens
    product = 2 if half else 4
    # stream and norms (4 D), projections and short convolution (6 D), spectrum (2 D), y and gated y (2 D), output;
    # the feed-forward layer's input to and output of GELU
    block = 4 * 4 * D + product * (6 * D + 2 * D + 2 * inner) + 4 * 3 * D
    backward = 4 * (3 * inner + 8 * D)  # gradients that live beside the activations of one block
    kept = (config.n_layer * 4 * D + block) if checkpoint_activations else config.n_layer * block
    logits = 4 * 4 * config.vocab_rows
    one_filter = 8 * config.emb_dim + 4 * (7 * config.filter_order + 8 * D)
    filters = one_filter * (2 if checkpoint_activations else config.n_layer + 1)
    return MemoryEstimate(
        weights=16 * parameters(config), activations=tokens * (kept + backward + logits), filters=length * filters
    )


def training_flops(config: HyenaConfig, *, length: int) -> float:
    """Floating-point operations of training on one token: forward and twice as many backward.

    Matrix products count 2 a weight; a real transform of n points 2.5 n log2(n).
    """
    D, n = config.d_model, 2 * length
    weights = config.n_layer * (4 * D * D + 2 * D * config.d_inner) + config.vocab_rows * D
    transforms = config.n_layer * D * 2 * 2.5 * n * (n.bit_length() - 1) / length
    return 3 * (2 * weights + transforms)
