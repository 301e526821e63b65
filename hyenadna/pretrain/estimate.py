"""Memory and time of a run, counted from the architecture before anything is allocated."""

import dataclasses
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenadna.kernels.working_set import bytes_to_keep, spectra_bytes
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA

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
    D, F, E = config.d_model, config.filter_order, config.emb_dim
    long_filter = D + (E * F + F) + 2 * (F * F + F) + F + F * D
    operator = (D * 3 * D + 3 * D) + (D * D + D) + 3 * D * (config.short_filter_taps + 1)
    block = long_filter + operator + 4 * D + (2 * D * config.d_inner + config.d_inner + D)
    head = 0 if config.tie_head else config.vocab_rows * D
    return config.n_layer * block + config.vocab_rows * D + 2 * D + head


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
    limit = bytes_to_keep(device)
    # the stream before and after the mixer (2 D); both norms, the projection, u, gate and y (8 D)
    inputs = 4 * 2 * D + product * 8 * D
    # spectra of signal and filters, and the ungated y as long as a transform; what goes into GELU
    extra = [4 * D * (4 * tokens + 2 * length), product * config.d_inner * tokens]
    block = tokens * inputs + sum(size for size in extra if size <= limit)
    # of a recomputed block the input is there already
    blocks = tokens * (config.n_layer - 1) * 4 * D + block if checkpoint_activations else config.n_layer * block
    # gradients that live beside what one block keeps: of the stream, u, gate and y
    backward = 4 * D + product * 3 * D
    logits = 4 * 4 * config.vocab_rows
    # each layer's filters, on a GPU their spectra, and the gradient of one layer's with the last hidden layer
    layers = 1 if checkpoint_activations else config.n_layer
    kept = 2 if device.type == "cuda" else 1
    filters = length * 4 * (D * (kept * layers + 1) + 2 * config.filter_order)
    return MemoryEstimate(
        weights=16 * parameters(config),
        activations=blocks + tokens * (backward + logits) + _WORKING_BYTES,
        filters=filters,
    )


def training_flops(config: HyenaConfig, *, length: int) -> float:
    """Floating-point operations of training on one token: forward and twice as many backward.

    Matrix products count 2 a weight; a real transform of n points 2.5 n log2(n).
    """
    D, n = config.d_model, 2 * length
    weights = config.n_layer * (4 * D * D + 2 * D * config.d_inner) + config.vocab_rows * D
    transforms = config.n_layer * D * 2 * 2.5 * n * (n.bit_length() - 1) / length
    return 3 * (2 * weights + transforms)


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
    stream = 4 * (4 * config.d_model + config.vocab_rows)
    filters = length * (4 * 4 * config.filter_order + 8 * config.emb_dim)
    spectra = min(8 * config.n_layer * config.d_model * length, spectra_bytes(device))
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
