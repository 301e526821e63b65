"""`hyena data`: pack genomes, show how they are split, and check labelled data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from hyenadna.cli import options
from hyenadna.cli.config_flags import takes_config
from hyenadna.data.data_config import DataConfig, Kind
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.data.intervals import Contigs
    from hyenadna.data.packed import Pack
    from hyenadna.data.splits import Split

app = typer.Typer(no_args_is_help=True, help="Pack genomes, show how they are split, check labelled data.")

_Fasta = Annotated[Path, typer.Argument(help="FASTA file, plain, gzip or BGZF; or a pack.", show_default=False)]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]


@app.command("pack")
def pack_command(
    fasta: _Fasta,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The pack. Default: beside the FASTA, or in the user's cache."),
    ] = None,
    overwrite: _Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Pack a FASTA file into HDF5, as training reads it. Example: hyena data pack hg38.fa.gz"""
    from hyenadna.data.packed import Pack, pack, packed

    if out is not None:
        _refuse_to_replace(out, overwrite)
        pack(fasta, out)
    result = Pack.open(out) if out is not None else packed(fasta)
    contents = {
        "path": str(result.path),
        "contigs": len(result.names),
        "bases": int(result.offsets[-1]),
        "counts": dict(zip(("A", "C", "G", "T", "N"), result.counts.sum(axis=0).tolist(), strict=True)),
        "sequence_sha256": result.sequence_sha256,
    }
    if as_json:
        typer.echo(json.dumps(contents, indent=2))
    else:
        typer.echo(f"{result.path}: {contents['contigs']} contigs, {contents['bases']:,} bases")


@app.command("split")
def split_command(
    fasta: _Fasta,
    max_length: Annotated[int, typer.Option(min=2, help="The longest window in bases.")] = 1024,
    contigs: Annotated[
        str | None,
        typer.Option(help="Regular expression of contigs to keep, or 'all'. Default: no copies, nothing unplaced."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the split as JSON to this file.")] = None,
    overwrite: _Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Show which parts of a genome train or are held out. Example: hyena data split hg38.fa --max-length 32768"""
    from hyenadna.data.intervals import kept_contigs
    from hyenadna.data.packed import packed
    from hyenadna.data.splits import hashed_split
    from hyenadna.files import write_json

    if out is not None:
        _refuse_to_replace(out, overwrite)
    pack = packed(fasta)
    kept = kept_contigs(pack.lengths, contigs)
    split = hashed_split(kept.intervals, pack, max_length)
    result = split.to_json() | {"left_out": kept.left_out}
    if out is not None:
        write_json(out, result)
        notice(f"the split is in {out}")
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(_report(pack, kept, split)))


@app.command("check")
@takes_config(DataConfig)
def check_command(
    config: DataConfig,
    *,
    task: Annotated[
        Kind | None, typer.Option(help="What the labels are, as for hyena finetune. Default: by their look.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what to know before training: balance, duplicates across parts, what alone gives the class away.

    Example: hyena data check my.csv
    """
    from hyenadna.data.label_check import check
    from hyenadna.data.tables import read_labelled

    result = check(read_labelled(config), kind=task)
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else result.text())


def _report(pack: "Pack", kept: "Contigs", split: "Split") -> list[str]:
    from hyenadna.data.splits import Part

    names: dict[str, Any] = dict.fromkeys(interval.contig for interval in kept.intervals)
    shown = list(names)
    lines = [f"kept {len(shown)} of {len(pack.names)} contigs: {_some(shown)}"]
    for reason in dict.fromkeys(kept.left_out.values()):
        lines.append(f"left out, {reason}: {_some([name for name in kept.left_out if kept.left_out[name] == reason])}")
    lines.append(split.rule)
    lines.append("part\tintervals\tbases\tshare\tGC")
    total = sum(split.bases(name) for name in get_args(Part))
    for name in get_args(Part):
        gc = split.gc[name]
        lines.append(
            f"{name}\t{len(split.part(name))}\t{split.bases(name)}\t{split.bases(name) / total:.4f}\t"
            + ("-" if gc is None else f"{gc:.4f}")
        )
    return lines


def _refuse_to_replace(out: Path, overwrite: bool) -> None:
    from hyenadna.errors import UsageError

    if out.exists() and not overwrite:
        raise UsageError(f"-o {out} exists; give another name, or --overwrite to replace it")


def _some(names: list[str]) -> str:
    return ", ".join(names[:25]) + (f" and {len(names) - 25} more" if len(names) > 25 else "")
