"""`hyena estimate`."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.model.config import Size

if TYPE_CHECKING:
    import torch

    from hyenadna.pretrain.config import PretrainConfig

_MEASURED_LENGTH = 8192


def estimate(
    size: Annotated[
        Size, typer.Option(help="Depth, width and mixers, by the name of a published model or of a hybrid.")
    ] = "tiny-1k",
    layers: Annotated[
        str | None,
        typer.Option(help="Mixer of each block instead of the size's: letters of H, L and S.", show_default=False),
    ] = None,
    feed_forward: Annotated[
        Literal["mlp", "remoe"] | None, typer.Option(help="Instead of the size's.", show_default=False)
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts of a remoe block (default: those of the size).", show_default=False)
    ] = None,
    active_experts: Annotated[
        int | None,
        typer.Option(
            help="Experts that are on at the target sparsity (default: those of the size).", show_default=False
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Context in bases (default: that of the size).", show_default=False)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that a device works on at once (default: one window).", show_default=False),
    ] = None,
    tokens: Annotated[float, typer.Option(help="Tokens of the whole run.")] = 1e9,
    dtype: Annotated[str, typer.Option(help="Of the matrix products: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="Device to measure: auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what memory and time a run needs, before it starts. Example: hyena estimate --size large-1m"""
    from hyenadna.machine import torch_device
    from hyenadna.pretrain import estimate as counted
    from hyenadna.pretrain.config import PretrainConfig
    from hyenadna.pretrain.plan import architecture

    _check(dtype, {"--max-length": max_length, "--batch-tokens": batch_tokens, "--tokens": tokens})
    run = PretrainConfig(
        size=size, max_length=max_length, layers=layers, feed_forward=feed_forward, experts=experts,
        active_experts=active_experts,
    )  # fmt: skip
    config, where = architecture(run), torch_device(device)
    length, half = config.filter_length - 2, dtype == "bfloat16"
    batch = max(batch_tokens or length, length)
    rate = _rate(run, batch, half, where)
    memory = {
        name: counted.training_memory(
            config, length=length, micro_batch_tokens=batch, half=half, device=where,
            checkpoint_activations=checkpoint,
        ).total
        for name, checkpoint in (("training", False), ("training, recomputing blocks", True))
    }  # fmt: skip
    memory["inference"] = counted.inference_memory(config, length=length, batch_tokens=batch, device=where)
    report = {
        "size": size,
        "blocks": config.blocks,
        "length": length,
        "batch_tokens": batch,
        "parameters": counted.parameters(config),
        "memory_bytes": memory,
        "device": str(where),
        "training_nt_per_second": rate,
        "seconds": tokens / rate,
        "tokens": tokens,
    }
    typer.echo(json.dumps(report, indent=2) if as_json else _text(report))


def _rate(run: "PretrainConfig", batch: int, half: bool, device: "torch.device") -> float:
    """Tokens a second of training, measured at a length that takes seconds, and scaled by the operations of a token."""
    import torch

    from hyenadna.model.language_model import HyenaDNA
    from hyenadna.pretrain import estimate as counted
    from hyenadna.pretrain.plan import architecture

    config = architecture(run)
    length = config.filter_length - 2
    short = min(length, _MEASURED_LENGTH)
    model = HyenaDNA(architecture(dataclasses.replace(run, max_length=short))).to(device)
    inputs = torch.randint(7, 11, (max(1, min(batch, _MEASURED_LENGTH) // short), short), device=device)
    rate = counted.training_rate(model, inputs, inputs, half=half, seconds=2.0)
    return rate * counted.training_flops(config, length=short) / counted.training_flops(config, length=length)


def _check(dtype: str, numbers: dict[str, float | None]) -> None:
    from hyenadna.errors import UsageError

    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: allowed are float32 and bfloat16")
    for flag, value in numbers.items():
        if value is not None and not 1 <= value < float("inf"):
            raise UsageError(f"{flag} is {value}; it must be at least 1, and finite")


def _text(report: dict[str, Any]) -> str:
    from hyenadna.progress import duration, quantity

    rows = {
        "model": f"{report['size']} ({report['blocks']}), {report['parameters']:,} parameters, "
        f"{report['length']:,} bases of context",
        "batch": f"{report['batch_tokens']:,} tokens at once on one device",
    }
    rows |= {f"memory, {name}": f"{value / 1e9:.2f} GB" for name, value in report["memory_bytes"].items()}
    rows["speed"] = f"about {quantity(report['training_nt_per_second'])}nt/s of training on {report['device']}"
    rows["time"] = f"about {duration(report['seconds'])} for {report['tokens']:,.0f} tokens on one device"
    width = max(map(len, rows)) + 2
    lines = [f"{name:<{width}}{value}" for name, value in rows.items()]
    if "remoe" in report["blocks"]:
        lines.append(
            "Memory and speed are those of half of the experts on, as training begins; at the target it is less."
        )
    return "\n".join([*lines, "These are estimates; hyena pretrain --dry-run measures."])
