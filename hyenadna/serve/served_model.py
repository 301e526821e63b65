"""A model with its adapters, loaded to answer requests."""

import bisect
import contextlib
import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna.errors import CheckpointError, UsageError
from hyenadna.finetune import adapter as adapter_folder
from hyenadna.finetune.adapter_batch import AdapterBatch
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.inference.likelihood import context_of
from hyenadna.kernels.fft_conv import good_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.packed_linear import bits_per_weight, weight_count
from hyenadna.model.weights import read_json

SHORTEST = 32
"""Tokens that a sequence costs at least; a shorter one is padded to so many."""


@dataclasses.dataclass(frozen=True)
class ServedAdapter:
    """An adapter of a served model."""

    model: SequenceModel
    reverse_complement: bool = False
    """Whether its prediction is the mean of both strands, as it was validated and as `hyena predict` makes it."""

    @property
    def description(self) -> dict[str, Any]:
        """Its task, its labels and how much it reads at once; what JSON holds."""
        task, adaptation = self.model.task, self.model.adaptation
        return {
            "task": task.kind,
            "labels": list(task.labels),
            "method": adaptation.method,
            "context": self.model.longest,
            "windows": adaptation.pool != "positions",
            "reverse_complement": self.reverse_complement,
        }


class ServedModel:
    """A language model and the adapters that predict with it, on the device to use.

    Parameters
    ----------
    network : HyenaDNA
    name : str
        What clients see.
    adapters : mapping of str to ServedAdapter
        All of them on `network`.
    dtype : torch.dtype
        What the model computes in.

    Attributes
    ----------
    context : int           bases that are read at once: two fewer than the filters have taps

    Raises
    ------
    UsageError              an adapter of another model in memory
    """

    def __init__(
        self,
        network: HyenaDNA,
        *,
        name: str,
        adapters: Mapping[str, ServedAdapter] = MappingProxyType({}),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network, self.name, self.adapters, self.dtype = network.eval(), name, dict(adapters), dtype
        self.context = context_of(network)
        self._lengths = padded_lengths(self.context)
        self._numbers = {adapter: number for number, adapter in enumerate(self.adapters)}
        models = [adapter.model for adapter in self.adapters.values()]
        if any(model.base.embedding.weight is not network.embedding.weight for model in models):
            raise UsageError("the adapters of a served model must be loaded with base= that model")
        self._adapters = AdapterBatch(models) if models else None

    @classmethod
    def load(
        cls,
        source: str | Path,
        adapters: Mapping[str, Path] = MappingProxyType({}),
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "ServedModel":
        """The model of a folder or hub id, with its adapters, each checked against its probe.

        A run of `hyena finetune`, or an adapter's folder, is taken with the model that it adapts, and predicts under
        the folder's name; so is a model that was fine-tuned as a whole, which is the base of its own head.

        Parameters
        ----------
        source : str or Path
            Model folder, run of `hyena pretrain` or `hyena finetune`, adapter's folder, hub id or 'starter'.
        adapters : mapping of str to Path
            Folders of further adapters, or of the runs that made them, by the names that clients use.

        Raises
        ------
        CheckpointError         no model or no adapter there; damaged files; an adapter of another model
        ProbeError              weights that do not give the answers that they were saved with
        HubError                a hub id that could not be had
        UsageError              a device that does not exist, or a name that is taken
        """
        path = Path(source).expanduser()
        name = path.resolve().name if path.exists() else str(source)
        folders = dict(adapters)
        if _holds_adapter(source):
            network = adapter_folder.base_of(source, device=device)
            if name in folders:
                raise UsageError(f"--adapter {name}={folders[name]}: the head of {source} has this name; take another")
            folders = {name: path} | folders
        else:
            network = HyenaDNA.from_pretrained(source, device=device)
        served = {adapter: _adapter(folder, network) for adapter, folder in folders.items()}
        return cls(network, name=name, adapters=served, dtype=dtype)

    @property
    def batch_overhead(self) -> int:
        """Tokens, about, that could be read in the time that a batch takes besides its tokens."""
        # measured on a CPU: 2 ms a batch and 15 us a token
        return 128 if self.network.device.type == "cpu" else 1 << 14

    def padded_length(self, length: int) -> int:
        """Tokens to which a sequence of `length`, at most `context`, is padded; see `padded_lengths`."""
        return self._lengths[bisect.bisect_left(self._lengths, length)]

    def adapter_number(self, name: str) -> int:
        """The number by which `predict` knows an adapter."""
        return self._numbers[name]

    def predict(self, tokens: Tensor, lengths: Tensor, which: Tensor) -> list[NDArray[np.float64]]:
        """What adapters say of right-padded sequences, each its own; (K,), or (length, K) for nucleotides.

        Parameters
        ----------
        tokens : Tensor (B, L)
        lengths : int64 Tensor (B,)
        which : int64 Tensor (B,)       numbers of their adapters
        """
        assert self._adapters is not None  # the adapters that have numbers
        device = self.network.device
        outputs = self._adapters(tokens.to(device), lengths.to(device), which.to(device))
        found: dict[int, NDArray[np.float64]] = {}
        for number, adapter in enumerate(self.adapters.values()):
            rows, task = (which == number).nonzero()[:, 0].tolist(), adapter.model.task
            if not rows:
                continue
            if task.kind == "nucleotide":
                values = task.predictions(torch.cat([outputs[row] for row in rows])).cpu()
                parts = values.split([len(outputs[row]) for row in rows])
                found |= {row: part.numpy() for row, part in zip(rows, parts, strict=True)}
            else:
                values = task.predictions(torch.stack([outputs[row] for row in rows])).cpu()
                found |= dict(zip(rows, values.numpy(), strict=True))
        return [found[row] for row in range(len(tokens))]

    def computing(self) -> AbstractContextManager[Any]:
        """Within, the model computes without gradients in its dtype."""
        stack = contextlib.ExitStack()
        stack.enter_context(torch.inference_mode())
        half = self.dtype in (torch.bfloat16, torch.float16)
        stack.enter_context(torch.autocast(self.network.device.type, dtype=self.dtype, enabled=half))
        return stack

    @property
    def description(self) -> dict[str, Any]:
        """The model and its adapters for clients; what JSON holds."""
        config, quantization = self.network.config, self.network.quantization
        return {
            "name": self.name,
            "parameters": weight_count(self.network),
            "layers": config.n_layer,
            "width": config.d_model,
            "context": self.context,
            "bits": 32 if quantization is None else quantization.bits,
            "bits_per_weight": 32.0 if quantization is None else bits_per_weight(self.network),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.network.device),
            "adapters": {name: adapter.description for name, adapter in self.adapters.items()},
        }


def padded_lengths(longest: int) -> list[int]:
    """The lengths to which sequences are padded, up to `longest`, each at most an eighth above the one before.

    Where it can be, twice a length is the size of a quick transform. So a server's batches have nine lengths an octave
    at most, whatever comes, and the filters' spectra are kept for no more; of what it computes less than an eighth are
    pads, and a sixteenth by the mean. From `SHORTEST` on: below it a sequence costs what the shortest does.

    Examples
    --------
    >>> padded_lengths(130)
    [32, 36, 40, 45, 48, 54, 60, 64, 72, 80, 90, 96, 108, 120, 128, 130]
    """
    found = [min(SHORTEST, longest)]
    while found[-1] < longest:
        most = found[-1] + found[-1] // 8
        size, larger = most, good_size(2 * found[-1] + 1) // 2
        while larger <= most:
            size, larger = larger, good_size(2 * larger + 1) // 2
        found.append(min(size, longest))
    return found


def _holds_adapter(source: str | Path) -> bool:
    try:
        adapter_folder.find(source)
    except CheckpointError:
        return False
    return True


def _adapter(folder: Path, network: HyenaDNA) -> ServedAdapter:
    training = read_json(adapter_folder.find(folder) / "adapter.json").get("training", {})
    model = adapter_folder.load(folder, base=network)
    return ServedAdapter(model, reverse_complement=bool(training.get("reverse_complement", False)))
