"""Long sequences token by token, against one pass over all of what was written."""

import zlib

import numpy as np
import pytest
import torch
from checkpoints import small_model
from torch import Tensor

from hyenadna import HyenaDNA
from hyenadna.data.tokenizer import encode
from hyenadna.inference.generate import generate

pytestmark = pytest.mark.slow

BASES = slice(7, 11)


def stepped(model: HyenaDNA, tokens: Tensor, behind: int = 0) -> Tensor:
    """Logits (B, L - behind, V), a token at a time behind those that are read in one pass."""
    state, found = model.extend(tokens[:, :behind])[1] if behind else None, []
    for position in range(behind, tokens.shape[1]):
        logits, state = model.extend(tokens[:, position : position + 1], state)
        found.append(logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("pattern", ["HH", "LL", "HSL"])
def test_logits_of_every_length_to_8192(pattern):
    model = small_model(layers=pattern, filter_length=8_192)
    tokens = torch.randint(7, 11, (1, 8_192), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, whole = stepped(model, tokens), model.double()(tokens).logits
    torch.testing.assert_close(found.double(), whole, rtol=0, atol=1e-4)  # measured 2e-6, and 5e-5 of Lightning


def test_the_same_8192_tokens_by_the_same_seed():
    model = small_model(layers="HSL", filter_length=8_202).double()
    prompt, seed, row = "ACGTTGCA", 7, 0
    written = generate(model, prompt, length=8_192, seed=seed)[row].sequence
    with torch.inference_mode():
        logits = model(torch.from_numpy(encode(prompt + written))[None].long()).logits[0, len(prompt) - 1 : -1, BASES]
    chances = logits.softmax(dim=-1).numpy().cumsum(axis=1)
    draws = np.random.default_rng((seed, row, zlib.crc32(prompt.encode()))).random(len(written))
    bases = (int(np.searchsorted(chance, u, side="right")) for chance, u in zip(chances, draws, strict=True))
    assert written == "".join("ACGT"[base] for base in bases)


def test_logits_at_65536():
    model = small_model(layers="HSL", filter_length=65_536)
    tokens = torch.randint(7, 11, (1, 65_536), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found, whole = stepped(model, tokens, behind=65_536 - 600), model(tokens).logits[:, -600:]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)
