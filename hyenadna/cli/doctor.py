"""`hyena doctor`."""

import json
import os
from typing import Annotated, Any

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Say what this machine has, what runs on it, and whether it computes right. Example: hyena doctor"""
    from hyenadna.machine import describe

    report = describe() | {
        "device": _device(),
        "long_convolution": "torch FFT, float32, on 5-smooth lengths",
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("HYENA_")},
        "self_test": _self_test(),
    }
    typer.echo(json.dumps(report, indent=2) if as_json else _text(report))
    if report["self_test"]["relative_error"] > report["self_test"]["allowed"]:
        raise typer.Exit(1)


def _device() -> str:
    from hyenadna.machine import torch_device

    return str(torch_device("auto"))


def _self_test() -> dict[str, float]:
    """Error of a small model in float32 on this device against the same model in float64 on the CPU."""
    import torch

    from hyenadna.machine import torch_device
    from hyenadna.model.config import named_size
    from hyenadna.model.language_model import HyenaDNA

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HyenaDNA(named_size("tiny-1k")).eval()
        tokens = torch.randint(7, 11, (2, 1024))
    with torch.no_grad():
        exact = model.double()(tokens).logits
        here = model.float().to(torch_device("auto"))
        found = here(tokens.to(here.device)).logits.cpu().double()
    return {"relative_error": float((found - exact).norm() / exact.norm()), "allowed": 1e-5}


def _text(report: dict[str, Any]) -> str:
    versions = "  ".join(f"{name} {version or 'missing'}" for name, version in report["packages"].items())
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in report["gpus"]) or "none that torch can use"
    test = report["self_test"]
    verdict = "ok" if test["relative_error"] <= test["allowed"] else "FAILED: do not trust results of this machine"
    rows = {
        "processor": f"{report['cpu']}, {report['cpus_available']} CPUs for this process, {report['cpu_capability']}",
        "memory": f"{report['memory_gb']} GB",
        "GPU": gpus,
        "runs on": f"{report['device']} (change with --device)",
        "convolution": report["long_convolution"],
        "versions": f"python {report['python']}  {versions}",
        "environment": ", ".join(f"{name}={value}" for name, value in report["environment"].items())
        or "no HYENA_ variables",
        "self-test": f"{verdict}: relative error {test['relative_error']:.1e}, allowed {test['allowed']:.0e}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
