"""The probe of a model folder: fixed sequences, and the logits that the weights must give for them."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyenadna.errors import CheckpointError, NotFiniteError, ProbeError
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import read_json

_TOLERANCE = 1e-3
"""Of the largest absolute logit."""
_PROBES = ((64, 1), (512, 16))
"""Tokens of each sequence, and of how many positions one keeps its logits."""
_FIRST_TOKEN = 7
"""The token of A; C, G, T and N follow."""


def probe(model: HyenaDNA) -> dict[str, Any]:
    """What probe.json holds for a float32 model on the CPU.

    Raises
    ------
    NotFiniteError          the weights give logits that are not numbers
    """
    probes = []
    for length, every in _PROBES:
        sequence = fixed_sequence(min(length, model.config.filter_length))
        logits = _logits(model, sequence, every)
        if not torch.isfinite(logits).all():
            raise NotFiniteError("the model gives logits that are not finite; it was not saved")
        rows = [[float(f"{value:.9g}") for value in row] for row in logits.tolist()]
        probes.append({"sequence": sequence, "every": every, "logits": rows})
    return {"format_version": 1, "computed": "in float32 on the CPU", "tolerance": _TOLERANCE, "probes": probes}


def check_probe(model: HyenaDNA, path: Path) -> float:
    """The largest difference from the logits in probe.json, as a share of the largest absolute logit.

    Parameters
    ----------
    model : HyenaDNA
        In float32 on the CPU.
    path : Path
        Of probe.json.

    Raises
    ------
    ProbeError              probe.json is missing or damaged, or the difference is larger than 1e-3
    """
    try:
        probes = read_json(path)["probes"]
        expected = [
            (str(p["sequence"]), int(p["every"]), torch.tensor(p["logits"], dtype=torch.float32)) for p in probes
        ]
    except CheckpointError as error:
        raise ProbeError(f"{error}; without it the weights cannot be checked") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(f"{path} is not a probe of this format") from error
    wanted = [(fixed_sequence(min(length, model.config.filter_length)), every) for length, every in _PROBES]
    if [(sequence, every) for sequence, every, _ in expected] != wanted:
        raise ProbeError(f"{path} holds other sequences than this version's; the weights cannot be checked")
    worst = max(_difference(_logits(model, sequence, every), logits) for sequence, every, logits in expected)
    if not worst <= _TOLERANCE:
        raise ProbeError(
            f"{path.parent}: the weights do not give the logits in probe.json; they differ by {worst:.2g} of the "
            f"largest, {_TOLERANCE:g} is allowed: the files are damaged or do not belong together"
        )
    return worst


def fixed_sequence(length: int) -> str:
    """The first letters of a fixed sequence: one N in sixteen, else A, C, G, T alike."""
    state, letters = 20230627, []
    for _ in range(length):
        state = (1103515245 * state + 12345) % (1 << 31)  # the constants of ISO C's rand
        draw = state >> 16
        letters.append("N" if draw % 16 == 0 else "ACGT"[draw // 16 % 4])
    return "".join(letters)


def _logits(model: HyenaDNA, sequence: str, every: int) -> Tensor:
    tokens = torch.tensor([[_FIRST_TOKEN + "ACGTN".index(letter) for letter in sequence]])
    with torch.no_grad():
        logits: Tensor = model(tokens).logits
    return logits[0, every - 1 :: every]


def _difference(given: Tensor, expected: Tensor) -> float:
    if given.shape != expected.shape:
        return math.inf
    largest = expected.abs().max()
    return float((given - expected).abs().max() / largest) if largest > 0 else float(given.abs().max())
