"""`hyena quantize`."""

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyenadna.cli import options
from hyenadna.errors import LossTooLarge, SequenceTooLong, UsageError
from hyenadna.progress import duration, notice, progress, quantity

if TYPE_CHECKING:
    from hyenadna.inference.quantization_cost import Costs, HeldOut
    from hyenadna.inference.quantization_report import Report
    from hyenadna.model.checkpoint import Checkpoint
    from hyenadna.model.config import Quantization
    from hyenadna.model.language_model import HyenaDNA

_LONGEST_WINDOW = 1 << 13
_MAX_LOSS_OF_AUTO = 0.01

_Model = Annotated[
    str, typer.Argument(help="Model folder, training run, published layout, or hub id.", show_default=False)
]
_Bits = Annotated[int | None, typer.Option(help="Bits of a weight: 8, 4, 3, 2 or 1. Default: 4.")]
_Group = Annotated[int, typer.Option(help="Neighbouring weights that share a scale and a zero point: 16 to 128.")]
_MetaBits = Annotated[int, typer.Option(help="Bits of a scale and of a zero point: 8 or 16.")]
_Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write. Default: the report alone, on stdout.")
]
_MaxLoss = Annotated[
    float | None,
    typer.Option(help="Write nothing that loses more bits per base, and say what does not. Default: any loss."),
]
_Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Take the smallest setting of 2 to 8 bits, in groups of any size, within --max-loss, which is 0.01 if "
        "not said.",
    ),
]
_Fasta = Annotated[
    Path | None,
    typer.Option(help="Genome to measure on, whose test part is read; or a pack. Default: the bundled E. coli genome."),
]
_Length = Annotated[int | None, typer.Option(min=4, help="Bases of a window. Default: the context, at most 8192.")]
_Tokens = Annotated[
    int, typer.Option(min=1, help="About how many tokens each setting reads for the loss, and again for substitutions.")
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that hyena wrote.")]


def quantize(
    model: _Model,
    *,
    bits: _Bits = None,
    group: _Group = 64,
    meta_bits: _MetaBits = 8,
    out: _Out = None,
    max_loss: _MaxLoss = None,
    auto: _Auto = False,
    fasta: _Fasta = None,
    length: _Length = None,
    tokens: _Tokens = 1 << 17,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """A model in few bits, and what that costs on held-out sequence. Example: hyena quantize run --bits 4 -o small

    The matrices of the blocks are quantised by half-quadratic quantisation (HQQ), which needs no data; embeddings,
    norms, filter networks and short filters are not. The report compares 8, 4, 3 and 2 bits with the model as it was.
    """
    if max_loss is not None and not 0 <= max_loss < math.inf:
        raise UsageError(f"--max-loss {max_loss:g}: it takes bits per base, 0 or more, such as 0.01")
    if auto and bits is not None:
        raise UsageError(f"--auto finds the bits itself: leave out --bits {bits}, or --auto")
    bits = 4 if bits is None else bits
    allowed = _MAX_LOSS_OF_AUTO if auto and max_loss is None else max_loss
    found, dense, setting = _read(model, bits, group, meta_bits, out, overwrite, device, threads)
    held_out, about = _held_out(model, dense, fasta, length, tokens)
    if dry_run:
        _say_what_it_takes(dense, setting, held_out, as_json)
        return
    report, chosen = _measured(dense, setting, held_out, about, allowed, auto)
    _show(report, as_json)
    if not report.passes:
        raise LossTooLarge(_refusal(report))
    if out is not None:
        _write(found, chosen, report, out, overwrite)


def _read(
    model: str, bits: int, group: int, meta_bits: int, out: Path | None, overwrite: bool, device: str,
    threads: int | None,
) -> "tuple[Checkpoint, HyenaDNA, Quantization]":  # fmt: skip
    """The model to quantise, once all that can be refused before any work was not.

    Raises
    ------
    UsageError              a setting that is not allowed, a model that is quantised already, or OUT is taken
    """
    import torch

    from hyenadna.inference.quantize import check_setting
    from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
    from hyenadna.model import checkpoint
    from hyenadna.model.config import Quantization
    from hyenadna.model.folder import check_replaceable

    setting = Quantization(bits, group, meta_bits)  # type: ignore[arg-type]  # which it checks
    if out is not None:
        check_replaceable(out, overwrite=overwrite)
    torch.set_num_threads(threads or available_cpus())
    keep_freed_memory()
    place = torch_device(device)
    found = checkpoint.read(model)
    check_setting(found.model, setting)
    if found.layout == "hyena":
        found.verify()
    return found, found.model.to(place), setting


def _held_out(
    model: str, dense: "HyenaDNA", fasta: Path | None, length: int | None, tokens: int
) -> "tuple[HeldOut, dict[str, Any]]":
    """What is read: the test part of the genome, by the split stored with the model if it knows the genome.

    Raises
    ------
    SequenceTooLong         the windows asked for are longer than the model takes
    IntervalError           no interval holds a window
    """
    from hyenadna import __version__
    from hyenadna.cli.evaluate import stored_split
    from hyenadna.data.genomes import ecoli
    from hyenadna.data.intervals import kept_contigs
    from hyenadna.data.packed import packed
    from hyenadna.data.splits import hashed_split
    from hyenadna.inference.quantization_cost import HeldOut
    from hyenadna.model.weights import base_sha256

    longest = dense.config.filter_length
    if length is not None and length > longest:
        raise SequenceTooLong(f"--length {length:,} is more than the {longest:,} bases that {model} takes")
    pack = packed(fasta or ecoli())
    split = stored_split(model, pack)
    origin = "stored with the model" if split is not None else "made for this report"
    if split is None:
        split = hashed_split(kept_contigs(pack.lengths, None).intervals, pack, max(2, longest - 2))
        notice(
            f"{model} stores no split of {pack.source}: the cost is measured on a part of that genome, and may be "
            "another on the one that the model was trained on; say by --fasta where that is"
        )
    window = length or max(2, min(longest - 2, _LONGEST_WINDOW, max(map(len, split.test))))
    held_out = HeldOut(pack, sorted(split.test), window, tokens)
    held_out.windows()
    return held_out, {
        "hyenadna": __version__,
        "model": model,
        "base_sha256": base_sha256(dense.state_dict()),
        "fasta": pack.source,
        "sequence_sha256": pack.sequence_sha256,
        "split": f"test part, {origin}: {split.rule}",
        "windows": f"{window:,} bases, half overlapping, scored in their second half; the model takes {longest:,}",
        "device": str(dense.device),
    }


def _measured(
    dense: "HyenaDNA",
    setting: "Quantization",
    held_out: "HeldOut",
    about: dict[str, Any],
    max_loss: float | None,
    auto: bool,
) -> "tuple[Report, HyenaDNA]":
    """The report, and the quantised model that it is about."""
    from hyenadna.inference.quantization_report import Report
    from hyenadna.inference.quantization_search import CURVE, smallest_within
    from hyenadna.model.config import Quantization

    start, models = time.perf_counter(), dict[Quantization, "HyenaDNA"]()
    curve = [Quantization(bits, setting.group, setting.meta_bits) for bits in CURVE]
    settings = list(dict.fromkeys([*curve, setting]))
    costs = _costs(dense, settings, held_out, models)
    asked, suggested = costs.of[settings.index(setting)], None
    if max_loss is not None and (auto or asked.loss.value > max_loss):
        found, further = smallest_within(
            max_loss,
            costs.of,
            lambda other: _costs(dense, [other], held_out, models).of[0],
            meta_bits=setting.meta_bits,
            largest_group=min(layer.in_features for layer in dense.projections.values()),
            above=None if auto else setting,
        )
        costs = dataclasses.replace(costs, of=(*costs.of, *further))
        if auto:
            asked = found or asked
        else:
            suggested = found
    about = {**about, "seconds": round(time.perf_counter() - start, 1)}
    return Report(about, costs, asked, max_loss, suggested), models[asked.setting]


def _costs(
    dense: "HyenaDNA", settings: "Sequence[Quantization]", held_out: "HeldOut", models: "dict[Quantization, HyenaDNA]"
) -> "Costs":
    """What these settings cost; their models are put with the others."""
    from hyenadna.inference.quantization_cost import measure

    made = _quantised(dense, settings)
    models.update(zip(settings, made, strict=True))
    return measure(dense, made, held_out, batch_tokens=options.BATCH_TOKENS[dense.device.type])


def _quantised(dense: "HyenaDNA", settings: "Sequence[Quantization]") -> "list[HyenaDNA]":
    from hyenadna.inference.quantize import quantize as quantised

    weights = sum(layer.in_features * layer.out_features for layer in dense.projections.values())
    with progress("quantising", len(settings) * weights, unit="weights") as job:
        return [quantised(dense, bits=one.bits, group=one.group, meta_bits=one.meta_bits, job=job) for one in settings]


def _say_what_it_takes(dense: "HyenaDNA", setting: "Quantization", held_out: "HeldOut", as_json: bool) -> None:
    """Quantise and read a little, and say what the whole will take."""
    from hyenadna.inference.quantization_cost import measure
    from hyenadna.inference.quantization_search import CURVE
    from hyenadna.machine import peak_memory

    settings = len({*CURVE, setting.bits})
    few = dataclasses.replace(held_out, tokens=min(held_out.tokens, max(held_out.length, 1 << 13)))
    start = time.perf_counter()
    made = _quantised(dense, [setting])
    quantising = settings * (time.perf_counter() - start)
    for _ in range(2):  # the first time loads libraries and computes what later ones keep
        start = time.perf_counter()
        measure(dense, made, few, batch_tokens=options.BATCH_TOKENS[dense.device.type])
        reading = time.perf_counter() - start
    # each model reads as many tokens for the loss as for substitutions
    rate, total = 2 * 2 * few.tokens / reading, (settings + 1) * 2 * held_out.tokens
    seconds = quantising + total / rate
    facts = {"settings": settings, "tokens": total, "tokens_per_s": rate, "seconds": seconds,
             "memory_bytes": peak_memory()}  # fmt: skip
    told = (
        f"{settings} settings and the model as it is read {total:,} tokens: {quantity(rate)}nt/s, "
        f"{duration(seconds)}, {facts['memory_bytes'] / 1e9:.2f} GB; longer if settings between these are tried"
    )
    typer.echo(json.dumps(facts, indent=2) if as_json else told)


def _show(report: "Report", as_json: bool) -> None:
    from hyenadna.inference import quantization_report

    typer.echo(json.dumps(_finite(report.to_json()), indent=2) if as_json else quantization_report.text(report))


def _refusal(report: "Report") -> str:
    lost, setting, other = report.chosen.loss, report.chosen.setting, report.suggested
    advice = "no setting of more bits, up to 8, loses so little: allow more, or keep the model as it is"
    if other is not None:
        advice = (
            f"--bits {other.setting.bits} --group {other.setting.group} loses {other.loss.value:+z.4f} at "
            f"{other.bits_per_weight:.3f} bits per weight"
        )
    return (
        f"{setting.bits} bits in groups of {setting.group} lose {lost} bits per base, --max-loss allows "
        f"{report.max_loss:g}: nothing was written; {advice}"
    )


def _write(found: "Checkpoint", chosen: "HyenaDNA", report: "Report", out: Path, overwrite: bool) -> None:
    from hyenadna.cli.convert import provenance
    from hyenadna.inference import quantization_report
    from hyenadna.model import checkpoint

    kept = provenance(found)
    command = shlex.join(["hyena", *sys.argv[1:]])
    files = {
        quantization_report.JSON: report.to_json(),
        quantization_report.PICTURE: quantization_report.picture(report),
    }
    card = (kept.get("card") or checkpoint.plain_card(found.model)).rstrip() + "\n"
    checkpoint.save(
        chosen,
        out,
        card=card + quantization_report.card_section(report, command),
        overwrite=overwrite,
        training=kept["training"],
        extra={**kept.get("extra", {}), **files},
    )
    notice(f"wrote {out}: the model, and the report as {', '.join(files)} and in README.md; hyena info {out} checks it")


def _finite(value: dict[str, Any]) -> Any:
    # JSON has no NaN
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
