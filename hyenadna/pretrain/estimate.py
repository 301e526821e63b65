"""Memory and time of a run, counted from the architecture before anything is allocated."""

import dataclasses
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.kernels.lightning_attention import BLOCK as LIGHTNING_BLOCK
from hyenadna.kernels.working_set import bytes_to_keep, spectra_bytes
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import blank_model

_BASE_BYTES = 400 << 20
"""What Python and torch hold before there is a model (measured on a CPU; a CUDA context takes as much on the GPU)."""
_WORKING_BYTES = 256 << 20
"""Arrays that are filled again and again, group by group of channels or positions."""


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
    return sum(parameter.numel() for parameter in blank_model(config).parameters())


def training_memory(
    config: HyenaConfig,
    *,
    length: int,
    micro_batch_tokens: int,
    half: bool,
    checkpoint_activations: bool,
    device: torch.device,
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
    device : torch.device
        What it is trained on: this decides what an operator keeps beside its inputs.
    """
    D, tokens, product = config.d_model, micro_batch_tokens, 2 if half else 4
    blocks = [
        _kept_by_block(config, letter, length=length, tokens=tokens, product=product, limit=bytes_to_keep(device))
        for letter in config.layers
    ]
    # of a recomputed block the input is there already
    activations = tokens * (config.n_layer - 1) * 4 * D + max(blocks) if checkpoint_activations else sum(blocks)
    # gradients that live beside what one block keeps: of the stream, u, gate and y
    backward = 4 * D + product * 3 * D
    logits = 4 * 4 * config.vocab_rows
    # each layer's filters, on a GPU their spectra, and the gradient of one layer's with the last hidden layer
    hyena = config.layers.count("H")
    layers = min(1, hyena) if checkpoint_activations else hyena
    kept = 2 if device.type == "cuda" else 1
    filters = length * 4 * (D * (kept * layers + 1) + 2 * config.filter_order) if hyena else 0
    return MemoryEstimate(
        weights=16 * parameters(config),
        activations=activations + tokens * (backward + logits) + _WORKING_BYTES,
        filters=filters,
    )


def _kept_by_block(config: HyenaConfig, letter: str, *, length: int, tokens: int, product: int, limit: int) -> int:
    """Bytes that a block keeps for the backward pass."""
    D = config.d_model
    # the stream before and after the mixer (2 D), and both norms
    width = 4 * 2 * D + product * 2 * D
    extra = []
    match letter:
        case "H":
            width += product * 6 * D  # the projection, u, gate and y
            # spectra of signal and filters, and the ungated y as long as a transform
            extra.append(4 * D * (4 * tokens + 2 * length))
        case "L":
            width += product * 8 * D + 4 * 4 * D  # the projection, before and after SiLU; what is summed and normed
        case _:
            # the projection, queries and keys turned, keys and values once for each head, y
            width += product * (5 * D + 3 * _key_width(config))
    if config.feed_forward == "mlp":
        extra.append(product * config.d_inner * tokens)  # what goes into GELU
        return tokens * width + sum(size for size in extra if size <= limit)
    # a ReLU router begins with half of its experts on, and training ends with active_experts of them
    on = max(config.active_experts, config.experts / 2)
    inner = config.d_inner // config.active_experts
    # the gates; of each expert that is on its tokens, what goes into GELU, and what comes out before and after the gate
    width += 4 * 3 * config.experts + round(on * (product * (2 * D + inner) + 4 * D))
    return tokens * width + sum(size for size in extra if size <= limit)


def _key_width(config: HyenaConfig) -> int:
    return config.d_model // config.heads * config.kv_heads


def training_flops(config: HyenaConfig, *, length: int) -> float:
    """Floating-point operations of training on one token: forward and twice as many backward.

    Matrix products count 2 a weight; a real transform of n points 2.5 n log2(n); softmax attention 4 D for each of the
    (L + 1) / 2 tokens that a token sees on average; Lightning 4 D for each token of its block, of which it sees half,
    and for each row of the matrix that stands for those before. Experts count at their target sparsity.
    """
    D, n = config.d_model, 2 * length
    feed_forward = 2 * D * config.d_inner + (D * config.experts if config.feed_forward == "remoe" else 0)
    count = {letter: config.layers.count(letter) for letter in "HLS"}
    weights = count["H"] * 4 * D * D + count["L"] * 5 * D * D + config.n_layer * feed_forward + config.vocab_rows * D
    mixing = count["H"] * D * 2 * 2.5 * n * (n.bit_length() - 1) / length
    mixing += count["L"] * 4 * D * (min(length, LIGHTNING_BLOCK) / 2 + D / config.heads)
    if count["S"]:
        weights += count["S"] * (2 * D * D + 2 * D * _key_width(config))
        mixing += count["S"] * 4 * D * (length + 1) / 2
    return 3 * (2 * weights + mixing)


def inference_memory(config: HyenaConfig, *, length: int, batch_tokens: int, device: torch.device) -> int:
    """Bytes of a forward pass without gradients in float32.

    Parameters
    ----------
    config : HyenaConfig
    length : int
        Tokens of each sequence, L.
    batch_tokens : int
        B L.
    device : torch.device
        What it runs on: this decides how many of the filters' spectra are kept.
    """
    D, hyena = config.d_model, config.layers.count("H")
    # the stream before and after a block, beside the widest mixer: its projection, and what a mixer makes of that
    mixers = {"H": 2 * D, "L": 9 * D, "S": 3 * D + 4 * _key_width(config)}
    stream = 4 * (2 * D + max(mixers[letter] for letter in config.layers) + config.vocab_rows)
    filters = length * (4 * 4 * config.filter_order + 8 * config.emb_dim) if hyena else 0
    spectra = min(8 * hyena * D * length, spectra_bytes(device))
    return 4 * parameters(config) + batch_tokens * stream + filters + spectra + _BASE_BYTES + _WORKING_BYTES


def training_rate(model: HyenaDNA, inputs: Tensor, targets: Tensor, *, half: bool, seconds: float) -> float:
    """Tokens a second of forward, backward and AdamW on one batch, measured; the weights do not change.

    Parameters
    ----------
    model : HyenaDNA                on the device to measure
    inputs, targets : Tensor (B, L)
    half : bool                     whether matrix products are in bfloat16
    seconds : float                 how long to measure, after a first step that warms up
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    steps, start = -1, 0.0
    while steps < 1 or time.monotonic() - start < seconds:
        if steps == 0:
            start = time.monotonic()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            logits = model(inputs).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        steps += 1
    return steps * inputs.numel() / (time.monotonic() - start)
