"""Model folders: written whole or not at all, checked when read; and models of the published layouts.

A model folder holds config.json, model.safetensors (parameters only, under the names of the Hugging Face port without
its `hyena.`; for a quantised model what its packed layers hold in the place of their weights), probe.json and
README.md. `HyenaDNA.from_pretrained` and `HyenaDNA.save_pretrained` are `load` and
`save`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hyenadna.errors import CheckpointError, UsageError
from hyenadna.files import sha256
from hyenadna.model.folder import MARK, MODEL_FILES, place
from hyenadna.model.foreign import hugging_face_files, original_files, read_foreign
from hyenadna.model.hub import find_model
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import bits_per_weight, weight_count
from hyenadna.model.probe import check_probe, probe
from hyenadna.model.weights import (
    base_sha256,
    build,
    own_float32,
    packed_dtypes,
    parse_config,
    parse_quantization,
    read_json,
    read_safetensors,
    stored,
)

FORMAT_VERSION = 1
Layout = Literal["hyena", "hf", "original"]

_BESIDE_CONFIG = ("format_version", "quantization", "parent_sha256", "base_sha256", "training", "extra")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model as its files hold it."""

    folder: Path
    """Where the files are."""
    layout: Layout
    """Whose files they are."""
    description: dict[str, Any]
    """All of config.json."""
    model: HyenaDNA
    """In float32 on the CPU, in eval mode; not checked against the probe."""

    name: str
    """What was asked for: the folder's own name, or the hub id."""

    @property
    def card(self) -> str | None:
        """The text of README.md, if there is one."""
        path = self.folder / "README.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the file of the weights; of the index, if they are in several."""
        names = ("model.safetensors", "model.safetensors.index.json", "weights.ckpt")
        return sha256(next(self.folder / name for name in names if (self.folder / name).exists()))

    def json(self, name: str) -> dict[str, Any]:
        """The object in one of the further files, such as split.json."""
        return read_json(self.folder / name)

    @property
    def extra(self) -> dict[str, Any]:
        """The further files of our own layout, as `save` takes them."""
        return {name: self._further(name) for name in map(str, self.description.get("extra", ()))}

    @property
    def base_sha256(self) -> str:
        """The SHA-256 of the weights."""
        return base_sha256(self.model.state_dict())

    def _further(self, name: str) -> Any:
        if not name.endswith(".png"):
            return self.json(name)
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.folder / name} could not be read: {error.strerror}") from error

    def verify(self) -> float:
        """The probe's largest difference, as a share of the largest logit; for our own layout only.

        Raises
        ------
        ProbeError              the probe is missing or fails
        CheckpointError         the weights are not those that config.json names by their SHA-256
        """
        worst = check_probe(self.model, self.folder / "probe.json")
        if self.description.get("base_sha256") != self.base_sha256:
            raise CheckpointError(
                f"{self.folder}: the weights have SHA-256 {self.base_sha256}, but config.json says "
                f"{self.description.get('base_sha256')}: the files do not belong together"
            )
        return worst


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    filter_shift: float | None = None,
) -> HyenaDNA:
    """The model of a folder or a hub id, in eval mode.

    Reads our own model folders (or a training run that holds one), the original layout (weights.ckpt) and the Hugging
    Face layout. Our own are checked against their probe before anything is cast or moved.

    Parameters
    ----------
    source : str or Path
        A folder, or a hub id such as 'LongSafari/hyenadna-tiny-1k-seqlen-hf'. A folder that exists comes first.
    revision : str, optional
        Branch, tag or commit of a hub id.
    local_files_only : bool
        Take a hub id from the local cache only.
    device : str or torch.device
        Where the model goes.
    dtype : torch.dtype, optional
        float32, float64, bfloat16 or float16. Default: float32.
    filter_shift : float, optional
        For the published layouts, which do not record it: the filters' shift. Default: 0.05.

    Raises
    ------
    CheckpointError         not a model; damaged files; missing, extra or mis-shaped tensors; another architecture
    ProbeError              our own folder whose weights do not give the logits of its probe.json
    HubError                neither a folder, nor in the cache, nor to be had from the network
    UsageError              a device or dtype that does not exist; a filter_shift for a model that says its own
    """
    place = _device(device)
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"dtype is {dtype}; allowed are {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}")
    checkpoint = read(source, revision=revision, local_files_only=local_files_only, filter_shift=filter_shift)
    if checkpoint.layout == "hyena":
        checkpoint.verify()
    return checkpoint.model.to(device=place, dtype=dtype)


def read(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    filter_shift: float | None = None,
) -> Checkpoint:
    """The files of a model, whatever their layout; takes and raises what `load` does, but does not verify."""
    folder = find_model(source, revision=revision, local_files_only=local_files_only)
    name = Path(source).resolve().name if Path(source).exists() else str(source)
    description = read_json(folder / "config.json")
    if "format_version" not in description:
        config, tensors = read_foreign(folder, filter_shift)
        layout: Layout = "hf" if any(folder.glob("model.safetensors*")) else "original"
        return Checkpoint(folder, layout, description, build(config, tensors, folder), name)
    if filter_shift is not None:
        raise UsageError(f"{folder} records its own filter shift; --filter-shift is for the published layouts")
    if description["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format_version {description['format_version']!r}; this hyenadna reads {FORMAT_VERSION}: "
            "install a newer one"
        )
    fields = {name: value for name, value in description.items() if name not in _BESIDE_CONFIG}
    config = parse_config(fields, folder / "config.json")
    quantization, parent = parse_quantization(description, folder / "config.json")
    weights = folder / "model.safetensors"
    tensors = own_float32(read_safetensors(weights), weights, packed_dtypes(config, quantization))
    model = build(config, tensors, folder, quantization, parent)
    return Checkpoint(folder, "hyena", description, model, name)


def save(
    model: HyenaDNA,
    folder: str | Path,
    *,
    card: str | None = None,
    overwrite: bool = False,
    training: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the model folder: complete beside its place, read back and probed, then put there in one step.

    The weights are stored in float32, whatever the model computes in; those of a quantised model packed as they are.

    Parameters
    ----------
    model : HyenaDNA
        On any device, in any dtype.
    folder : str or Path
        Where to. May not exist yet, or be empty, or (with `overwrite`) a folder that hyenadna wrote.
    card : str, optional
        The text of README.md. Default: a plain card of the architecture.
    overwrite : bool
        Replace a model folder; nothing is replaced that holds a file which hyenadna did not write.
    training : mapping, optional
        What the model was trained on and how, for config.json; anything that JSON holds.
    extra : mapping, optional
        Further files by name, such as {'split.json': ...}: anything that JSON holds, or the bytes of a PNG.

    Raises
    ------
    UsageError              the folder holds something, or an extra file's name is not NAME.json or NAME.png
    NotFiniteError          the weights give logits that are not numbers
    WriteError              no space, or read-only; what was there before is unchanged
    """
    files = model_files(model, card=card, training=training, extra=extra)
    place(Path(folder), files, overwrite=overwrite, verify=lambda written: read(written).verify())


def model_files(
    model: HyenaDNA,
    *,
    card: str | None = None,
    training: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The contents of a model folder by name; takes and raises what `save` does."""
    extra = dict(extra or {})
    for name in extra:
        if Path(name).name != name or not name.endswith((".json", ".png")) or name in MODEL_FILES:
            raise UsageError(f"{name!r} cannot be a further file of a model folder; it takes names such as split.json")
    tensors = stored(model, model.state_dict())
    digest = base_sha256(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(model.config),
        "quantization": None if model.quantization is None else dataclasses.asdict(model.quantization),
        "parent_sha256": model.parent_sha256,
        "base_sha256": digest,
        "training": dict(training or {}),
        "extra": sorted(extra),
    }
    return {
        "config.json": json_bytes(description),
        "model.safetensors": safetensors_bytes(tensors, digest),
        "probe.json": json_bytes(probe(build(model.config, tensors, Path(), model.quantization))),
        "README.md": (card or plain_card(model)).encode(),
        **{name: value if isinstance(value, bytes) else json_bytes(value) for name, value in extra.items()},
    }


def export(
    model: HyenaDNA,
    folder: str | Path,
    layout: Literal["hf", "original"],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the model in one of the published layouts; the rest is as in `save`.

    Raises
    ------
    UsageError              a quantised model; the folder holds something; the layout cannot say what this model is
    WriteError              no space, or read-only; what was there before is unchanged
    """
    if model.quantization is not None:
        raise UsageError(
            f"the model is quantised to {model.quantization.bits} bits, which the layout {layout} cannot hold; "
            f"export its parent, with base_sha256 {model.parent_sha256}"
        )
    tensors = stored(model, model.state_dict())
    files = hugging_face_files(model, tensors) if layout == "hf" else original_files(model, tensors)
    text = (card or plain_card(model)).replace(MARK, "").rstrip()
    files["README.md"] = f"{text}\n\n{MARK}\n".encode()
    digest = base_sha256(tensors)

    def verify(written: Path) -> None:
        if read(written).base_sha256 != digest:
            raise CheckpointError(f"{folder}: the weights did not read back as they were written")

    place(Path(folder), files, overwrite=overwrite, verify=verify)


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device; allowed are cpu, cuda and cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{device} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; take cpu")
    return place


def safetensors_bytes(tensors: Mapping[str, Tensor], digest: str) -> bytes:
    """The contents of a safetensors file; in its header stands the SHA-256 of the model that the tensors belong to."""
    import safetensors.torch

    # one key: safetensors writes several in random order, and equal models would be different files
    about = json.dumps({"format": "pt", "format_version": FORMAT_VERSION, "base_sha256": digest})
    return safetensors.torch.save(dict(tensors), metadata={"hyenadna": about})


def json_bytes(value: Any) -> bytes:
    """The contents of a JSON file."""
    # twice: JSON has no NaN and no infinity, which a metric may be; they become null
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2, ensure_ascii=False) + "\n").encode()


def plain_card(model: HyenaDNA) -> str:
    """The card of a model about which nothing else is known."""
    config, parameters = model.config, weight_count(model)
    return f"""---
library_name: hyenadna
tags: [dna, genomics, hyena]
---
# HyenaDNA, {parameters:,} parameters

A causal language model of DNA at single-nucleotide resolution: {config.n_layer} blocks ({config.blocks}) of width
{config.d_model}, context up to {config.filter_length:,} tokens, filter shift {config.filter_shift:g}, N read as
{config.n_token.upper()}.

{_packed_in_words(model)}How it was trained is not recorded here: neither the data, nor the split, nor metrics.

    from hyenadna import HyenaDNA
    model = HyenaDNA.from_pretrained("path/to/this/folder")
"""


def _packed_in_words(model: HyenaDNA) -> str:
    if model.quantization is None:
        return ""
    return (
        f"The matrices of its blocks are quantised to {model.quantization.bits} bits, {bits_per_weight(model):.2f} a "
        f"weight\nwith scales and zero points, from the model with base_sha256 `{model.parent_sha256}`.\n\n"
    )
