"""What the files of a checkpoint hold, read with care: JSON, safetensors and foreign pickles; and a model around it."""

import copy
import dataclasses
import functools
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyenadna.errors import CheckpointError, HyenaError, UsageError
from hyenadna.model.config import HyenaConfig, Quantization
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import PackedLinear

_JSON_BYTES = 16 << 20
_Parsed = TypeVar("_Parsed", HyenaConfig, Quantization)
_LISTED = 10
"""So many names of each kind an error lists before it counts."""


class _Inert:
    """Stands for every class of a foreign pickle that is not needed: takes anything, keeps and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _plain_dict(*_: Any) -> dict[Any, Any]:
    # torch's unpickler fills plain dicts only, and omegaconf's state holds defaultdicts
    return {}


_STUBS = [
    *((_Inert, f"omegaconf.{name}") for name in (
        "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode", "dictconfig.DictConfig", "listconfig.ListConfig",
    )),
    *((_Inert, name) for name in ("typing.Any", "builtins.dict", "builtins.list", "builtins.int", "__builtin__.long")),
    (_plain_dict, "collections.defaultdict"),
]  # fmt: skip
"""What the published training checkpoints name beside tensors and OrderedDict, and what stands in for it."""


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises
    ------
    CheckpointError         missing, unreadable, too large, not JSON, or not an object
    """
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise CheckpointError(f"{path} has more than {_JSON_BYTES >> 20} MB; that is no description of a model")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; an object is expected")
    return value


def parse_config(values: Mapping[str, Any], path: Path) -> HyenaConfig:
    """The configuration with these fields; `path` is the file that they were read from.

    Raises
    ------
    CheckpointError         an unknown field, a value of another type, or one that HyenaConfig refuses
    """
    return _parsed(HyenaConfig, values, path, "a model")


def parse_quantization(description: Mapping[str, Any], path: Path) -> tuple[Quantization | None, str | None]:
    """How the model that config.json describes is quantised, and the SHA-256 of its parent; None for a dense one.

    Raises
    ------
    CheckpointError         settings that are not known, or no parent
    """
    values, parent = description.get("quantization"), description.get("parent_sha256")
    if values is None:
        return None, None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: quantization is {values!r}; an object with bits, group and meta_bits is needed")
    absent = [field.name for field in dataclasses.fields(Quantization) if field.name not in values]
    if absent:
        raise CheckpointError(f"{path}: quantization does not say {', '.join(absent)}")
    if not isinstance(parent, str) or not re.fullmatch("[0-9a-f]{64}", parent):
        raise CheckpointError(f"{path}: parent_sha256 is {parent!r}; a quantised model names its parent by SHA-256")
    return _parsed(Quantization, values, path, "a quantised model"), parent


@functools.cache
def _adapter(kind: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(kind)


def _parsed(kind: type[_Parsed], values: Mapping[str, Any], path: Path, what: str) -> _Parsed:
    import pydantic  # a third of a second that a model built in memory does not need

    of_class: Any = kind  # mypy takes the classes of hashable dataclasses for things without a hash
    try:
        return cast(_Parsed, _adapter(of_class).validate_json(json.dumps(dict(values)), strict=True))
    except pydantic.ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise CheckpointError(f"{path} does not describe {what}: {_some(problems)}") from error
    except HyenaError as error:
        raise CheckpointError(f"{path} does not describe {what}: {error}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which is checked to hold exactly the bytes that its header promises.

    Raises
    ------
    CheckpointError         missing, truncated or damaged
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} could not be read as safetensors: {_one_line(error)}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that torch wrote: of its `state_dict`, or of the file itself.

    Nothing is called but torch's own functions that rebuild tensors: the file is read by torch's weights-only
    unpickler, to which the classes of OmegaConf are known as stubs that do nothing.

    Raises
    ------
    CheckpointError         damaged, compressed, without tensors, or with anything but tensors and plain containers
    """
    try:
        is_zip = _check_zip(path)
        with torch.serialization.safe_globals(_STUBS):  # type: ignore[arg-type]  # tuples are allowed, says torch
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {found[1]}, which is no tensor" if found else "is more than tensors and plain containers"
        raise CheckpointError(
            f"{path} {what} and could run code, so it was not loaded; only checkpoints of tensors are read"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} could not be read as a torch checkpoint: {_one_line(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no state_dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims more elements, {tuple(tensor.shape)}, than the file holds")
    return tensors


def own_float32(
    tensors: Mapping[str, Tensor], path: Path, packed: Mapping[str, torch.dtype] | None = None
) -> dict[str, Tensor]:
    """The tensors in float32, in memory of their own: the file may be replaced while the model lives.

    Parameters
    ----------
    tensors : mapping
    path : Path
        The file that holds them.
    packed : mapping, optional
        Names of tensors that stay what they are, and what that must be: codes and scales, from `packed_dtypes`.

    Raises
    ------
    CheckpointError         a tensor of integers, or packed otherwise than said; or a value that is not finite
    """
    packed, owned = packed or {}, {}
    for name, tensor in tensors.items():
        dtype = packed.get(name, torch.float32)
        if name in packed and tensor.dtype != dtype:
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}; in a quantised model it is {dtype}")
        if name not in packed and not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}; weights are floating-point numbers")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
        owned[name] = tensor.detach().to(dtype, copy=True).contiguous()
    return owned


class _Uninitialized(TorchFunctionMode):
    """Leaves new weights as they are: on the meta device drawing them does nothing but load all of torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def blank_model(config: HyenaConfig, quantization: Quantization | None = None) -> HyenaDNA:
    """The model without memory for its weights: names, shapes and dtypes only, on the meta device."""
    with torch.device("meta"), _Uninitialized():
        return HyenaDNA(config, quantization)


def build(
    config: HyenaConfig,
    tensors: Mapping[str, Tensor],
    path: Path,
    quantization: Quantization | None = None,
    parent_sha256: str | None = None,
) -> HyenaDNA:
    """The model around these very tensors, in eval mode; nothing is drawn at random, nor anything allocated.

    Raises
    ------
    CheckpointError         names and shapes of what is missing, not expected or mis-shaped
    """
    model = blank_model(config, quantization)
    check_shapes(tensors, model.state_dict(), path)
    model.load_state_dict(dict(tensors), assign=True)
    model.parent_sha256 = parent_sha256
    return model.eval()


def packed_model(model: HyenaDNA, layers: Mapping[str, PackedLinear], quantization: Quantization) -> HyenaDNA:
    """The quantised child of a dense model, with tensors of its own; the parent stays as it is.

    Parameters
    ----------
    model : HyenaDNA
        In float32, as it was saved, or float64: the child's adapters are known by its SHA-256.
    layers : mapping
        What stands in the place of every one of `model.projections`, by the same names.
    quantization : Quantization
        How all of them are packed.

    Raises
    ------
    UsageError              the model is quantised already, or in half precision; other layers, or packed otherwise
    """
    if model.quantization is not None:
        raise UsageError(f"the model is quantised already, to {model.quantization.bits} bits: take its parent")
    if model.embedding.weight.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"the model is in {model.embedding.weight.dtype}; take it in float32, as it was saved")
    how = {(layer.bits, layer.group, layer.meta_bits) for layer in layers.values()}
    if layers.keys() != model.projections.keys() or how != {dataclasses.astuple(quantization)}:
        raise UsageError(
            f"{len(layers)} layers packed as {sorted(how)} were given for a model quantised as {quantization}; "
            f"each of its {len(model.projections)} projections needs one, packed so"
        )
    child = copy.deepcopy(model, {id(model.projections[name]): layer for name, layer in layers.items()})
    child.quantization, child.parent_sha256 = quantization, base_sha256(model.state_dict())
    return child.eval()


def packed_dtypes(config: HyenaConfig, quantization: Quantization | None) -> dict[str, torch.dtype]:
    """The dtypes of what a quantised model's layers store, by name; all else is stored in float32."""
    if quantization is None:
        return {}
    return {name: buffer.dtype for name, buffer in blank_model(config, quantization).named_buffers()}


def stored(model: HyenaDNA, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the model as files hold it: on the CPU, in float32, or packed as it is."""
    kept = packed_dtypes(model.config, model.quantization)
    return {name: x.detach().to("cpu", kept.get(name, torch.float32)).contiguous() for name, x in state.items()}


def check_shapes(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, described: str = "config.json"
) -> None:
    """Nothing, if both hold the same names and shapes; `described` is the file that says what is expected.

    Raises
    ------
    CheckpointError         names and shapes of what is missing, not expected or mis-shaped
    """
    missing = _some(f"{name} {tuple(expected[name].shape)}" for name in expected if name not in given)
    extra = _some(f"{name} {tuple(given[name].shape)}" for name in given if name not in expected)
    other = _some(
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    )
    listed = (("mis-shaped", other), ("missing", missing), ("not expected", extra))
    problems = "; ".join(f"{kind}: {names}" for kind, names in listed if names)
    if problems:
        raise CheckpointError(f"{path} does not hold the tensors that its {described} describes; {problems}")


def base_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a model's weights: of names, shapes and bytes, in the order of the names.

    Floating-point numbers count as float32, little-endian, whatever they are held in; codes as the bytes that they are.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        numbers = tensor.float().numpy().astype("<f4", copy=False) if tensor.is_floating_point() else tensor.numpy()
        digest.update(numbers.data)
    return digest.hexdigest()


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip, as torch's are since 2020; torch compresses no entry, and none is inflated here."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise CheckpointError(f"{path} is a compressed archive; torch writes its checkpoints uncompressed")
    return True


def _some(items: Iterable[str]) -> str:
    every = list(items)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
