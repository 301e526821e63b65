"""`hyena doctor`."""

import json
import os
from typing import Annotated, Any

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Say what this machine has, what runs on it, and whether it computes right. Example: hyena doctor"""
    from hyenadna.machine import describe, torch_device

    report = describe() | {
        "device": str(torch_device("auto")),
        "kernels": _kernels(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("HYENA_")},
        "self_test": _self_test(),
    }
    typer.echo(json.dumps(report, indent=2) if as_json else _text(report))
    if not all(_passed(test) for test in report["self_test"].values()):
        raise typer.Exit(1)


def _kernels() -> dict[str, Any]:
    """Which implementation the operators take here and why, and how exact it is for each dtype."""
    import torch

    from hyenadna.kernels import backend
    from hyenadna.machine import torch_device

    here = torch.empty(0, device=torch_device("auto"))
    chosen = backend.chosen(here)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {
        "run": chosen,
        "because": backend.reason(here),
        "HYENA_KERNELS": backend.asked_for(),
        "precision": {"float64": "by torch"}
        | {_name(dtype): backend.precision_of(dtype) if chosen == "triton" else "exact" for dtype in dtypes},
    }


def _self_test() -> dict[str, dict[str, float]]:
    """Errors on this device, by what runs there, against float64 on the CPU."""
    import torch

    from hyenadna.kernels.backend import precision_of

    tests = {"model in float32": {"relative_error": _model_error(), "allowed": 1e-5}}
    for dtype in (torch.float32, torch.bfloat16):
        # 1,000 bases fit on a multiprocessor, 40,000 go through it in several passes
        error = max(_convolution_error(length, dtype) for length in (1_000, 40_000))
        rounding = torch.finfo(dtype).eps / 2
        allowed = (1e-6 if precision_of(dtype) == "exact" else 1e-3) + rounding
        tests[f"convolution in {_name(dtype)}"] = {"relative_error": error, "allowed": allowed}
    return tests


def _model_error() -> float:
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
    return float((found - exact).norm() / exact.norm())


def _convolution_error(length: int, dtype: Any) -> float:
    import torch

    from hyenadna.kernels.fft_conv import fft_conv, fft_conv_reference
    from hyenadna.machine import torch_device

    generator, channels = torch.Generator().manual_seed(0), 4
    v, pre_gate, post_gate = (torch.randn(1, channels, length, generator=generator).to(dtype) for _ in range(3))
    h, skip = torch.randn(channels, length, generator=generator), torch.randn(channels, generator=generator)
    operands = (v, h, skip, pre_gate, post_gate)
    exact = fft_conv_reference(*(operand.double() for operand in operands))
    with torch.no_grad():
        found = fft_conv(*(operand.to(torch_device("auto")) for operand in operands))
    return float((found.cpu().double() - exact).norm() / exact.norm())


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _passed(test: dict[str, float]) -> bool:
    return test["relative_error"] <= test["allowed"]


def _text(report: dict[str, Any]) -> str:
    versions = "  ".join(f"{name} {version or 'missing'}" for name, version in report["packages"].items())
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in report["gpus"]) or "none that torch can use"
    tests, kernels = report["self_test"], report["kernels"]
    verdict = "ok" if all(map(_passed, tests.values())) else "FAILED: do not trust results of this machine"
    errors = [f"{name} {test['relative_error']:.1e} (allowed {test['allowed']:.1e})" for name, test in tests.items()]
    precision = ", ".join(f"{dtype} {how}" for dtype, how in kernels["precision"].items())
    rows = {
        "processor": f"{report['cpu']}, {report['cpus_available']} CPUs for this process, {report['cpu_capability']}",
        "memory": f"{report['memory_gb']} GB",
        "GPU": gpus,
        "runs on": f"{report['device']} (change with --device)",
        "kernels": f"{kernels['run']}, because {kernels['because']} (HYENA_KERNELS={kernels['HYENA_KERNELS']})",
        "precision": f"{precision} (exact: as torch in float32; fast: relative error up to 1e-3)",
        "versions": f"python {report['python']}  {versions}",
        "environment": ", ".join(f"{name}={value}" for name, value in report["environment"].items())
        or "no HYENA_ variables",
        "self-test": f"{verdict}: relative error of {', '.join(errors)}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
