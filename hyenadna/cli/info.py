"""`hyena info`: what a checkpoint is."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyenadna.errors import CheckpointError

if TYPE_CHECKING:
    from hyenadna.model.checkpoint import Checkpoint
    from hyenadna.model.language_model import HyenaDNA

_PARTS = (
    ("embedding", "embeddings"),
    ("filter networks", "filter_fn"),
    ("short filters", "short_filter"),
    ("norms", "norm"),
    ("projections", "mixer"),
    ("routers", "mlp.router"),
    ("feed-forward", "mlp"),
    ("norms", ""),
)
"""Part of a model, and what its tensors' names contain; the first that fits counts."""


def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, training run, published layout, or hub id.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a model is, and whether its weights give what they promise. Example: hyena info run/model"""
    from hyenadna.model import checkpoint

    found = checkpoint.read(model)
    facts = describe(found)
    failure = None
    if found.layout == "hyena":
        try:
            facts["probe"] = {"passes": True, "difference": found.verify()}
        except CheckpointError as error:
            facts["probe"], failure = {"passes": False, "reason": str(error)}, error
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))
    if failure is not None:
        raise failure


def describe(found: "Checkpoint") -> dict[str, Any]:
    """Everything that the files say of a model, as JSON holds it; the probe is not run."""
    from hyenadna.model.config import MIXERS
    from hyenadna.model.packed_linear import weight_count

    config = found.model.config
    mixers, remoe = set(config.layers), config.feed_forward == "remoe"
    split = found.json("split.json") if (found.folder / "split.json").is_file() else None
    return {
        "model": str(found.folder),
        "layout": found.layout,
        "format_version": found.description.get("format_version"),
        "layers": config.layers,
        "blocks_by_mixer": {name: config.layers.count(letter) for letter, name in MIXERS.items() if letter in mixers},
        "heads": config.heads if mixers & set("LS") else None,
        "kv_heads": config.kv_heads if "S" in mixers else None,
        "slopes": config.slopes if "L" in mixers else None,
        "d_model": config.d_model,
        "feed_forward": config.feed_forward,
        "d_inner": config.d_inner,
        "experts": config.experts if remoe else None,
        "active_experts": config.active_experts if remoe else None,
        "filter_length": config.filter_length,
        "context": config.filter_length - 2,
        "filter_shift": config.filter_shift,
        "n_token": config.n_token,
        "tie_head": config.tie_head,
        "parameters": weight_count(found.model),
        "parameters_by_part": parameters_by_part(found.model),
        "quantization": _quantization(found.model),
        "parent_sha256": found.model.parent_sha256,
        "bytes_on_disk": sum(file.stat().st_size for file in found.folder.iterdir() if file.is_file()),
        "base_sha256": found.base_sha256,
        "training": found.description.get("training") or None,
        "split": None if split is None else _split_summary(split),
        "probe": None,
    }


def parameters_by_part(model: "HyenaDNA") -> dict[str, int]:
    """How many parameters each part of a model has, packed weights among them."""
    from hyenadna.model.packed_linear import PackedLinear

    numbers = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    for name, layer in model.projections.items():
        if isinstance(layer, PackedLinear):
            numbers.append((name, layer.in_features * layer.out_features))
    counts = dict.fromkeys([part for part, _ in _PARTS] + ["head"], 0)
    for name, count in numbers:
        part = "head" if name.startswith("lm_head") else next(part for part, word in _PARTS if word in name)
        counts[part] += count
    return {part: count for part, count in counts.items() if count}


def _quantization(model: "HyenaDNA") -> dict[str, Any] | None:
    from hyenadna.model.packed_linear import bits_per_weight, packed_layers

    if model.quantization is None:
        return None
    layers = packed_layers(model)
    return dataclasses.asdict(model.quantization) | {
        "weights": sum(layer.in_features * layer.out_features for layer in layers),
        "bytes": sum(buffer.nbytes for layer in layers for buffer in layer.buffers()),
        "bits_per_weight": bits_per_weight(model),
    }


def _split_summary(split: dict[str, Any]) -> list[dict[str, Any]] | None:
    genomes = split.get("genomes")
    if not isinstance(genomes, list) or not all(isinstance(genome, dict) for genome in genomes):
        return None
    return [{name: genome.get(name) for name in ("source", "rule", "bases", "gc")} for genome in genomes]


def _lines(facts: dict[str, Any]) -> list[str]:
    blocks, version = len(facts["layers"]), facts["format_version"]
    rows: list[tuple[str, str]] = [
        ("model", facts["model"]),
        ("layout", facts["layout"] + (f", format {version}" if version else "")),
        ("blocks", f"{blocks} ({facts['layers']}), width {facts['d_model']}, feed-forward {facts['d_inner']}"),
        *_hybrid_lines(facts),
        ("context", f"{facts['context']:,} bases (filters of {facts['filter_length']:,} taps)"),
        ("filter shift", f"{facts['filter_shift']:g}" + _if_published(facts, " (not recorded in the files)")),
        ("N", {"n": "read as N", "pad": "read as PAD"}[facts["n_token"]]),
        ("parameters", f"{facts['parameters']:,}"),
        *((f"  {part}", f"{count:,}") for part, count in facts["parameters_by_part"].items()),
        *_quantization_lines(facts),
        ("output head", "the embedding" if facts["tie_head"] else "its own"),
        ("on disk", f"{facts['bytes_on_disk'] / 1e6:.1f} MB"),
        ("base_sha256", facts["base_sha256"]),
        ("training", "not recorded" if facts["training"] is None else ""),
        *((f"  {name}", _text(value)) for name, value in (facts["training"] or {}).items()),
        *(("split", line) for genome in facts["split"] or () for line in _split_lines(genome)),
        ("probe", _probe_text(facts)),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:<{width}}{value}".rstrip() for name, value in rows]


def _hybrid_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What only models have that are not Hyena and dense throughout."""
    lines = []
    if facts["heads"]:
        keys = f", {facts['kv_heads']} of keys and values" if facts["kv_heads"] else ""
        decays = f", decays {facts['slopes']}" if facts["slopes"] else ""
        lines += [("  " + name, str(count)) for name, count in facts["blocks_by_mixer"].items()]
        lines.append(("  heads", f"{facts['heads']}{keys}{decays}"))
    if facts["experts"]:
        wide = facts["d_inner"] // facts["active_experts"]
        of = f"{facts['experts']} a block, each {wide} wide, of which {facts['active_experts']} on at the target"
        lines.append(("experts", of))
    return lines


def _quantization_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    found = facts["quantization"]
    if found is None:
        return []
    how = f"{found['bits']} bits in groups of {found['group']}, whose scale and zero point have {found['meta_bits']}"
    measured = f"{found['weights']:,} weights in {found['bytes']:,} bytes: {found['bits_per_weight']:.3f} bits a weight"
    return [("quantised", how), ("", measured), ("parent", facts["parent_sha256"])]


def _split_lines(genome: dict[str, Any]) -> list[str]:
    bases, gc = genome["bases"] or {}, genome["gc"] or {}
    parts = ", ".join(f"{part} {count:,}" + _percent(gc.get(part)) for part, count in bases.items())
    return [f"{genome['source']}: {parts} bases", str(genome["rule"])]


def _percent(share: float | None) -> str:
    return "" if share is None else f" ({share:.1%} GC)"


def _probe_text(facts: dict[str, Any]) -> str:
    probe = facts["probe"]
    if probe is None:
        return "none, as in all published models"
    return f"passes, difference {probe['difference']:.1g}" if probe["passes"] else f"FAILS: {probe['reason']}"


def _if_published(facts: dict[str, Any], text: str) -> str:
    return text if facts["layout"] != "hyena" else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
