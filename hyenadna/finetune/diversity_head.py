"""A small head that says from a hidden state how differently the model would go on from there.

The dynamic decoding strategy of arXiv 2406.07850 predicts from the context how diverse answers may be,
and sets the temperature by it. Departs from it: (1) similarity is the cosine of 4-mer counts, not BERTScore; (2) the
language model is never trained with the head, which reads detached hidden states.

A folder holds diversity.safetensors, diversity.json (the base's SHA-256, settings, what was measured, and the SHA-256
of the head's numbers) and README.md.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyenadna.errors import CheckpointError
from hyenadna.finetune.adapter import identity
from hyenadna.model import checkpoint
from hyenadna.model.folder import place
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import base_sha256, check_shapes, own_float32, read_json, read_safetensors

FORMAT_VERSION = 1
_WIDTH = 64


class DiversityHead(nn.Module):
    """Hidden states (B, D) -> scores (B,) from 0 to 1, without any gradient to the hidden states.

    0 is as little diversity as the least 2.5 % of the contexts that it learnt from have, 1 as much as the largest
    2.5 %: what the model writes differs so little in most of a genome that the bare number would hardly move.

    Parameters
    ----------
    d_model : int
    """

    center: Tensor
    deviation: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(d_model))
        self.register_buffer("deviation", torch.ones(d_model))
        self.fc1 = nn.Linear(d_model, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, 1)

    @torch.no_grad()
    def standardise(self, hidden: Tensor) -> None:
        """From now on bring every channel to the mean 0 and the deviation 1 that it has in these, (n, D), n > 1."""
        self.center.copy_(hidden.mean(0))
        deviation = hidden.std(0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), in float32."""
        standard = (hidden.detach().to(self.center.dtype) - self.center) / self.deviation
        return torch.sigmoid(self.fc2(nn.functional.gelu(self.fc1(standard)))[..., 0])


def save(
    head: DiversityHead,
    folder: Path,
    *,
    base: HyenaDNA,
    description: dict[str, Any],
    card: str,
    further: dict[str, bytes],
    overwrite: bool,
) -> None:
    """Write the head's folder, whole or not at all; it is read back before.

    Parameters
    ----------
    head : DiversityHead
    folder : Path
    base : HyenaDNA
        Whose hidden states it reads.
    description : dict
        What it was trained on and how, and what was measured; anything that JSON holds.
    card : str
        The text of README.md.
    further : dict
        Contents of diversity.png and diversity.tsv.
    overwrite : bool
        Replace such a folder.

    Raises
    ------
    UsageError              the folder holds something
    WriteError              no space, or read-only
    """
    own = {name: x.detach().to("cpu", torch.float32).contiguous() for name, x in head.state_dict().items()}
    digest = identity(base)
    whole = {"format_version": FORMAT_VERSION, "base_sha256": digest, "learnt_sha256": base_sha256(own)}
    files = {
        "diversity.json": checkpoint.json_bytes(whole | description),
        "diversity.safetensors": checkpoint.safetensors_bytes(own, digest),
        "README.md": card.encode(),
    }
    place(folder, files | further, overwrite=overwrite, verify=lambda staging: load(staging, base=base))


def load(folder: str | Path, *, base: HyenaDNA) -> DiversityHead:
    """The head of a folder, in eval mode, on the device of the model whose hidden states it is to read.

    Raises
    ------
    CheckpointError         no head, damaged files, or another base
    """
    path = Path(folder).expanduser()
    if not (path / "diversity.json").is_file():
        raise CheckpointError(
            f"{path} is no diversity head: it has no diversity.json; hyena finetune --objective diversity makes one"
        )
    description = read_json(path / "diversity.json")
    if description.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {description.get('format_version')!r}; this hyenadna reads {FORMAT_VERSION}: "
            "install a newer one"
        )
    digest = identity(base)
    if description.get("base_sha256") != digest:
        raise CheckpointError(
            f"{path} reads the hidden states of a model with SHA-256 {str(description.get('base_sha256'))[:16]}…, but "
            f"this one has {digest[:16]}…: a head works on the very model that it was trained on"
        )
    tensors = own_float32(read_safetensors(path / "diversity.safetensors"), path / "diversity.safetensors")
    head = DiversityHead(base.config.d_model)
    check_shapes(tensors, head.state_dict(), path / "diversity.safetensors", "diversity.json")
    if base_sha256(tensors) != description.get("learnt_sha256"):
        raise CheckpointError(
            f"{path}: diversity.safetensors and diversity.json do not belong together, or are damaged"
        )
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False).to(base.device)
