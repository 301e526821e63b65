"""`hyena likelihood`."""

import json
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.cli import options
from hyenadna.errors import UsageError
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.inference.likelihood_files import Placed
    from hyenadna.inference.likelihood_stretches import LikelihoodReader

Strand = Literal["forward", "reverse", "both"]
Track = Literal["bedgraph"]

_Out = Annotated[str, typer.Option("--out", "-o", help="File to write, or '-' for stdout.")]
_Strand = Annotated[
    Strand, typer.Option(help="Which strand is read, of the sequence as given; both: the mean of both log-likelihoods.")
]
_Track = Annotated[
    Track | None,
    typer.Option(
        help="Write ln p of every base of a FASTA file, or of the regions of a BED file, instead of a line a sequence."
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT, and drop what a stopped run left.")]
_Json = Annotated[bool, typer.Option("--json", help="Lines of JSON instead of a TSV; the plan of --dry-run as JSON.")]


def likelihood(
    source: options.Source,
    *,
    out: _Out = "-",
    model: options.Model = "starter",
    fasta: options.Fasta = None,
    seq_col: options.SeqCol = None,
    id_col: options.IdCol = None,
    strand: _Strand = "forward",
    track: _Track = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: _Json = False,
) -> None:
    """How likely a model finds sequences: nats and bits per base. Example: hyena likelihood my.fa -o my.tsv

    Scored are A, C, G, T but for the first base of a strand; longer sequences than the model's context are read in half
    overlapping windows, as hyena evaluate does. A file is continued by the same command after an interruption.
    """
    if dry_run and source == "-":
        raise UsageError("--dry-run reads the input twice, which standard input does not allow; give a file")
    if track is not None:
        _check_track(seq_col, id_col, as_json and not dry_run)
    from hyenadna.inference.sequence_chunks import origin

    about = origin(source, fasta)
    path = options.out_file(out, (source, fasta), overwrite=overwrite or dry_run)
    reader = _reader(model, strand, device, "float32" if dtype == "auto" else dtype, threads, batch_tokens)

    from hyenadna.data.sequence_files import stream
    from hyenadna.inference.likelihood_files import TotalLines, TrackLines, placed_sequences, write_totals, write_track
    from hyenadna.inference.line_file import LineFile

    def placed() -> "Iterator[Placed]":
        return placed_sequences(source, fasta)

    def sequences() -> Iterator[tuple[str, str]]:
        if track is not None:
            return ((str(interval), sequence) for interval, _, sequence in placed())
        return stream(source, fasta=fasta, seq_col=seq_col, id_col=id_col)

    if dry_run:
        from hyenadna.inference.likelihood_plan import likelihood_plan

        plan = likelihood_plan(reader, sequences(), sequences())
        typer.echo(json.dumps(plan, indent=2) if as_json else plan["text"])
        return
    about = _settings(model, reader) | about | {"command": shlex.join(["hyena", *sys.argv[1:]])}
    lines = TotalLines(as_json=as_json) if track is None else TrackLines()
    file: LineFile[Any] = LineFile(path, lines, about, overwrite=overwrite, resume=options.can_resume(source, path))
    if track is None:
        written = f"{write_totals(reader, sequences(), file):,} sequences: their likelihoods"
    else:
        written = f"{write_track(reader, placed(), file):,} bases: their log-likelihoods"
    notice(written + ("" if path is None else f" are in {path}"))


def _check_track(seq_col: str | None, id_col: str | None, as_json: bool) -> None:
    from hyenadna.data.sequence_files import refuse_columns

    refuse_columns("a track is of a FASTA or BED file", {"--seq-col": seq_col, "--id-col": id_col})
    if as_json:
        raise UsageError("--json: a track is bedGraph and nothing else; leave out --json or --track")


def _reader(
    model: str, strand: Strand, device: str, dtype: str, threads: int | None, batch_tokens: int | None
) -> "LikelihoodReader":
    import torch

    from hyenadna.inference.likelihood_stretches import LikelihoodReader

    network = options.network(model, device, threads)
    tokens = batch_tokens or options.BATCH_TOKENS[network.device.type]
    return LikelihoodReader(network, strand=strand, batch_tokens=tokens, dtype=getattr(torch, dtype))


def _settings(model: str, reader: "LikelihoodReader") -> dict[str, Any]:
    """What decides the numbers, besides the input."""
    from hyenadna import __version__
    from hyenadna.model.weights import base_sha256

    return {
        "hyenadna": __version__,
        "model": model,
        "base_sha256": base_sha256(reader.model.state_dict()),
        "context": reader.context,
        "stride": reader.stride,
        "strands": "mean of both" if reader.strand == "both" else reader.strand,
        "dtype": str(reader.dtype).removeprefix("torch."),
    }
