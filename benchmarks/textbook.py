"""The opponent: HyenaDNA written down from its equations, one PyTorch operation for each, as the reference computes it.

rfft of length 2 L for signal and filter at every call, the short filter by torch's grouped convolution, unfused. Its
parameter names are those of `HyenaDNA`, so both run on the same weights and are compared before they are timed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenadna.model.config import HyenaConfig


class Sine(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, config.filter_order), config.sine_frequency))


class Filter(nn.Module):
    z: Tensor
    t: Tensor
    deltas: Tensor

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        T, D, F_ = config.filter_length, config.d_model, config.filter_order
        self.shift = config.filter_shift
        self.bias = nn.Parameter(torch.randn(D))
        bands = (config.emb_dim - 1) // 2
        time = torch.linspace(0, 1, T)[:, None]
        phase = torch.linspace(1e-4, bands - 1, bands) * (2 * math.pi * torch.arange(T)[:, None] / T)
        self.register_buffer("t", time, persistent=False)
        self.register_buffer("z", torch.cat([time, phase.cos(), -phase.sin()], -1), persistent=False)
        deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, D).abs()
        self.register_buffer("deltas", deltas, persistent=False)
        linear = [nn.Linear(config.emb_dim, F_), nn.Linear(F_, F_), nn.Linear(F_, F_), nn.Linear(F_, D, bias=False)]
        self.implicit_filter = nn.ModuleDict(dict(zip("0246", linear, strict=True)) | {"1": Sine(config)})

    def forward(self, L: int) -> Tensor:
        x = self.z[:L]
        for index in "024":
            x = torch.sin(self.implicit_filter["1"].freq * self.implicit_filter[index](x))
        return self.implicit_filter["6"](x) * (torch.exp(-self.t[:L] * self.deltas) + self.shift)  # (L, D)


class Operator(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        D, M = config.d_model, config.short_filter_taps
        self.in_proj = nn.Linear(D, 3 * D)
        self.out_proj = nn.Linear(D, D)
        self.short_filter = nn.Conv1d(3 * D, 3 * D, M, groups=3 * D, padding=M - 1)
        self.filter_fn = Filter(config)

    def forward(self, x: Tensor) -> Tensor:
        L = x.shape[1]
        short = self.short_filter(self.in_proj(x).transpose(1, 2))[..., :L]
        x0, x1, v = short.chunk(3, dim=1)
        h = self.filter_fn(L).T
        u = (v * x1).to(h.dtype)  # under autocast v is bfloat16, which no FFT takes
        h_spectrum = torch.fft.rfft(h, n=2 * L) / (2 * L)
        u_spectrum = torch.fft.rfft(u, n=2 * L)
        y = torch.fft.irfft(u_spectrum * h_spectrum, n=2 * L, norm="forward")[..., :L]
        y = y + u * self.filter_fn.bias[:, None]
        return self.out_proj((y * x0).transpose(1, 2))


class Mlp(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_inner)
        self.fc2 = nn.Linear(config.d_inner, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.mixer, self.mlp = Operator(config), Mlp(config)
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Textbook(nn.Module):
    """Tokens (B, L) to logits (B, L, 16)."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.backbone = nn.Module()
        embedding = nn.Embedding(config.vocab_rows, config.d_model)
        self.backbone.embeddings = nn.ModuleDict({"word_embeddings": embedding})
        self.backbone.layers = nn.ModuleList(Block(config) for _ in config.layers)
        self.backbone.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        embedding = self.backbone.embeddings["word_embeddings"]
        x = embedding(tokens)
        for layer in self.backbone.layers:
            x = layer(x)
        return F.linear(self.backbone.ln_f(x), embedding.weight)
