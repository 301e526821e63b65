"""Adapted models as small files, apart from their base.

A folder holds adapter.safetensors (what was learnt, nothing of the base), adapter.json (the base's name and the SHA-256
of its weights, the adaptation, the task, how it was trained, and a probe: the answer to a fixed sequence, which loading
must give again) and README.md. A model that was fine-tuned as a whole lies beside them as the model folder `model/`:
it is the base of its own head.

A quantised base is known by the SHA-256 of its parent, and of the weights that it has as the parent has them: so an
adapter works on a model and on its quantised children alike, and on none of these that was changed since. Its probe is
asked on the one of them that it was trained on; elsewhere the SHA-256 of what was learnt is compared.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyenadna.data.tokenizer import encode
from hyenadna.errors import CheckpointError, HubError, NotFiniteError, ProbeError, UsageError
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.lora import base_state
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.inference.ragged import padded
from hyenadna.model import checkpoint
from hyenadna.model.folder import place
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.probe import fixed_sequence
from hyenadna.model.weights import base_sha256, build, check_shapes, own_float32, read_json, read_safetensors, stored

FORMAT_VERSION = 1
_PROBE_BASES = 64
_TOLERANCE = 1e-3
"""Of the largest answer to the probe, or of 1 if all are smaller."""


def identity(base: HyenaDNA) -> str:
    """What an adapter knows its base by: the SHA-256 of its weights, or of its parent's, whatever updates it carries.

    Raises
    ------
    UsageError              a base in half precision, whose weights are not those that it was saved with any more
    """
    if base.embedding.weight.dtype not in (torch.float32, torch.float64):
        raise UsageError(
            f"the base is in {base.embedding.weight.dtype}, in which it cannot be told from others: "
            "take it in float32, and cast it with its adapter"
        )
    parent = base.parent_sha256 if base.quantization is not None else None
    return parent or base_sha256(base_state(base))


def save(
    model: SequenceModel, folder: str | Path, *, base: str, card: str, training: dict[str, Any], overwrite: bool = False
) -> None:
    """Write the adapter's folder: complete beside its place, read back and probed, then put there in one step.

    Parameters
    ----------
    model : SequenceModel
        On any device; stored in float32.
    folder : str or Path
        Where to. May not exist yet, or be empty, or (with `overwrite`) an adapter's folder.
    base : str
        The base as it can be found again: 'starter', a hub id, or a folder, absolute or seen from the working directory
        or from the adapter's folder. With method `full` the base is the trained model, which is written with it.
    card : str
        The text of README.md.
    training : dict
        What it was trained on and how; anything that JSON holds.
    overwrite : bool
        Replace an adapter's folder; nothing is replaced that holds a file which hyenadna did not write.

    Raises
    ------
    UsageError              the folder holds something
    NotFiniteError          the model gives answers that are not numbers
    WriteError              no space, or read-only; what was there before is unchanged
    """
    files: dict[str, bytes] = {}
    if not model.adaptation.frozen:
        of_model = checkpoint.model_files(model.base, card=card, training=training | {"from": base})
        files, base = {f"model/{name}": contents for name, contents in of_model.items()}, "model"
    whole, state = model.base, stored(model.base, base_state(model.base))
    plain = build(whole.config, state, Path(folder), whole.quantization, whole.parent_sha256)
    written, own = SequenceModel(plain, model.task, model.adaptation).eval(), _on_disk(model)
    _restore(written, own)
    digest = identity(plain)
    description = {
        "format_version": FORMAT_VERSION,
        "base": base,
        "base_sha256": digest,
        "never_packed_sha256": _never_packed(plain),
        "adaptation": model.adaptation.to_json(),
        "task": model.task.to_json(),
        "training": training,
        "learnt_sha256": base_sha256(own),
        "probe": _probe(written) | {"base_sha256": base_sha256(state)},
    }
    files |= {
        "adapter.json": checkpoint.json_bytes(description),
        "adapter.safetensors": checkpoint.safetensors_bytes(own, digest),
        "README.md": card.encode(),
    }

    def verify(staging: Path) -> None:
        load(staging, base=plain)
        if not model.adaptation.frozen:
            checkpoint.read(staging / "model").verify()

    place(Path(folder), files, overwrite=overwrite, verify=verify)


def load(folder: str | Path, *, base: HyenaDNA | None = None, device: str | torch.device = "cpu") -> SequenceModel:
    """The adapted model of a folder, or of a run's folder with `adapter` in it, in eval mode and probed.

    Parameters
    ----------
    folder : str or Path
    base : HyenaDNA, optional
        The base, of which several adapters may be loaded; by default the one that the adapter names.
    device : str or torch.device
        Where a base that is loaded here goes, and the adapter with it; a given one stays where it is.

    Raises
    ------
    CheckpointError         no adapter; damaged files; another base, or one that cannot be found
    ProbeError              the adapter does not give the answer that it was saved with, on the base of that answer
    HubError                the base is on the hub, and could not be had
    UsageError              a device that does not exist, or a base in half precision
    """
    folder = find(folder)
    description = _description(folder / "adapter.json")
    adaptation, task = _parsed(description, folder / "adapter.json")
    name = "the model that was given"
    if base is None:
        base, name = _find_base(str(description["base"]), folder, adaptation, device)
    digest = identity(base)
    if digest != description["base_sha256"]:
        raise CheckpointError(
            f"{folder} adapts {description['base']!r} with SHA-256 {str(description['base_sha256'])[:16]}…, but {name} "
            f"has {digest[:16]}…: an adapter works on the very model that it was trained on"
        )
    kept = _never_packed(base)
    if description.get("never_packed_sha256", kept) != kept:
        raise CheckpointError(
            f"{folder} adapts {description['base']!r}, of which {name} was quantised, but its embedding, norms, biases "
            "or filters were changed since: quantise that model again"
        )
    model = SequenceModel(base, task, adaptation).eval()
    tensors = own_float32(read_safetensors(folder / "adapter.safetensors"), folder / "adapter.safetensors")
    check_shapes(tensors, model.own_state(), folder / "adapter.safetensors", "adapter.json")
    _restore(model, tensors)
    probe, weights = description["probe"], digest if base.quantization is None else base_sha256(base_state(base))
    if isinstance(probe, dict) and probe.get("base_sha256", digest) != weights:
        _check_numbers(tensors, description, folder)  # the answer is that of the parent, or of another of its children
    else:
        _check_probe(model, probe, folder)
    return model


def base_of(folder: str | Path, *, device: str | torch.device = "cpu") -> HyenaDNA:
    """The model that a folder's adapter adapts, where the adapter says it is; `load` may take it for several.

    Raises
    ------
    CheckpointError, HubError, UsageError, ProbeError   as `load`
    """
    folder = find(folder)
    description = _description(folder / "adapter.json")
    adaptation, _ = _parsed(description, folder / "adapter.json")
    return _find_base(str(description["base"]), folder, adaptation, device)[0]


def find(folder: str | Path) -> Path:
    """The folder that holds the adapter's files.

    Raises
    ------
    CheckpointError         there is none
    """
    path = Path(folder).expanduser()
    # the second and the last as replace_folder leaves them if the process dies between its two renames
    places = (path, path.with_name(f".{path.name}.old"), path / "adapter", path / ".adapter.old")
    for place_ in places:
        if (place_ / "adapter.json").is_file():
            return place_
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}; an adapter is a folder with an adapter.json")
    found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
    raise CheckpointError(f"{path} is no adapter: it has no adapter.json (it holds {found})")


def _on_disk(model: SequenceModel) -> dict[str, Tensor]:
    return {name: x.detach().to("cpu", torch.float32).contiguous() for name, x in model.own_state().items()}


@torch.no_grad()
def _restore(model: SequenceModel, tensors: dict[str, Tensor]) -> None:
    for name, tensor in model.own_state().items():
        tensor.copy_(tensors[name])


def _answer(model: SequenceModel) -> tuple[str, Tensor]:
    """The probe's sequence, and the model's answer to it."""
    sequence = fixed_sequence(min(_PROBE_BASES, model.longest))
    tokens, lengths = padded([encode(sequence, model.base.config.n_token)])
    with torch.no_grad():
        return sequence, model(tokens.to(model.base.device), lengths)[0].flatten().float().cpu()


def _probe(model: SequenceModel) -> dict[str, Any]:
    sequence, answer = _answer(model)
    if not torch.isfinite(answer).all():
        raise NotFiniteError("the adapted model gives answers that are not finite; it was not saved")
    return {"sequence": sequence, "tolerance": _TOLERANCE, "outputs": [float(f"{x:.9g}") for x in answer.tolist()]}


def _never_packed(base: HyenaDNA) -> str:
    """The SHA-256 of the weights that a model and its quantised children share: all but the matrices of the blocks."""
    matrices = base.projections
    state = base_state(base).items()
    return base_sha256(
        {name: x for name, x in state if name.endswith("bias") or name.rpartition(".")[0] not in matrices}
    )


def _check_numbers(tensors: dict[str, Tensor], description: dict[str, Any], folder: Path) -> None:
    digest = base_sha256(tensors)
    if description.get("learnt_sha256", digest) != digest:
        raise CheckpointError(
            f"{folder}: adapter.safetensors holds numbers with SHA-256 {digest[:16]}…, but adapter.json says "
            f"{str(description['learnt_sha256'])[:16]}…: the files are damaged, or do not belong together"
        )


def _check_probe(model: SequenceModel, probe: dict[str, Any], folder: Path) -> None:
    sequence, answer = _answer(model)
    try:
        promised, expected = probe["sequence"], torch.tensor(probe["outputs"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(f"{folder}: adapter.json holds no probe of this format") from error
    if sequence != promised or answer.shape != expected.shape:
        raise ProbeError(f"{folder}: adapter.json holds another probe than this version's; it cannot be checked")
    worst = float((answer - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not worst <= _TOLERANCE:
        raise ProbeError(
            f"{folder}: the adapter does not give the answer in adapter.json; it differs by {worst:.2g} of the "
            f"largest, {_TOLERANCE:g} is allowed: the files are damaged, or the base's configuration is another"
        )


def _description(path: Path) -> dict[str, Any]:
    description = read_json(path)
    if description.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {description.get('format_version')!r}; this hyenadna reads {FORMAT_VERSION}: "
            "install a newer one"
        )
    missing = [key for key in ("base", "base_sha256", "adaptation", "task", "probe") if key not in description]
    if missing:
        raise CheckpointError(f"{path} does not describe an adapter; missing: {', '.join(missing)}")
    return description


def _parsed(description: dict[str, Any], path: Path) -> tuple[Adaptation, Task]:
    import pydantic

    try:
        adaptation = pydantic.TypeAdapter(Adaptation).validate_json(json.dumps(description["adaptation"]))
        task = pydantic.TypeAdapter(Task).validate_json(json.dumps(description["task"]))
    except (pydantic.ValidationError, UsageError) as error:
        what = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"msg": str(error), "loc": ()}
        raise CheckpointError(
            f"{path} does not describe an adapter: {'.'.join(map(str, what['loc']))} {what['msg']}"
        ) from error
    return adaptation, task


def _find_base(base: str, folder: Path, adaptation: Adaptation, device: str | torch.device) -> tuple[HyenaDNA, str]:
    """The base that an adapter names, and where it was found."""
    beside = folder / base
    if not adaptation.frozen:
        return checkpoint.load(beside, device=device), str(beside)
    places = (beside, Path(base).expanduser())
    for place_ in places:
        if place_.exists():
            return checkpoint.load(place_, device=device), str(place_)
    try:
        return checkpoint.load(base, device=device), base
    except (CheckpointError, HubError) as error:
        looked = " and ".join(str(place_) for place_ in places)
        raise type(error)(f"the base of {folder} was not found; looked for {looked}: {error}") from error
