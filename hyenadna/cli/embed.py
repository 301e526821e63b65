"""`hyena embed`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.cli import options
from hyenadna.errors import UsageError

if TYPE_CHECKING:
    from hyenadna.inference.embed import Embedded, Embedder

Pool = Literal["mean", "max", "last", "none"]

_Out = Annotated[Path, typer.Option("--out", "-o", help="NAME.h5, NAME.parquet or NAME.npy.", show_default=False)]
_Layer = Annotated[
    int,
    typer.Option(
        help="Block whose output is taken: 0 is the embedding, the last is taken after the final norm; negative "
        "numbers count from the end."
    ),
]
_Pool = Annotated[Pool, typer.Option(help="Over the bases of a sequence; none keeps a row for every base.")]
_Bins = Annotated[int | None, typer.Option(min=1, help="A row for the mean of every so many bases. Default: one row.")]
_Both = Annotated[bool, typer.Option("--reverse-complement", help="Mean of the embeddings of both strands.")]
_Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Bases from window to window of sequences longer than the context; every base counts once, by the first "
        "window that holds it. Default: half the context.",
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT rather than continue it.")]


def embed(
    source: options.Source,
    *,
    out: _Out,
    model: options.Model = "starter",
    fasta: options.Fasta = None,
    seq_col: options.SeqCol = None,
    id_col: options.IdCol = None,
    layer: _Layer = -1,
    pool: _Pool = "mean",
    bins: _Bins = None,
    reverse_complement: _Both = False,
    stride: _Stride = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Embeddings of sequences into HDF5, Parquet or NPY. Example: hyena embed my.fa -o my.h5

    HDF5 can be read while it grows, and the same command continues it after an interruption.
    """
    if dry_run and source == "-":
        raise UsageError("--dry-run reads the input twice, which standard input does not allow; give a file")
    from hyenadna.data.sequence_files import stream
    from hyenadna.inference.embed import EmbedConfig
    from hyenadna.inference.embedding_files import check_suffix
    from hyenadna.inference.sequence_chunks import origin

    config = EmbedConfig(layer=layer, pool=pool, bins=bins, reverse_complement=reverse_complement, stride=stride)
    check_suffix(out)
    about = origin(source, fasta)

    def sequences() -> Iterator[tuple[str, str]]:
        return stream(source, fasta=fasta, seq_col=seq_col, id_col=id_col)

    embedder = _embedder(model, config, device, "float32" if dtype == "auto" else dtype, threads, batch_tokens)
    if dry_run:
        from hyenadna.inference.embedding_plan import embedding_plan

        plan = embedding_plan(embedder, sequences(), sequences())
        typer.echo(json.dumps(plan, indent=2) if as_json else plan["text"])
        return
    about |= _settings(model, embedder)
    done, seconds = _embedded(embedder, sequences(), out, about, overwrite)
    result = {"out": str(out), **done._asdict(), "seconds": round(seconds, 3)} | about
    typer.echo(json.dumps(result, indent=2) if as_json else _text(out, embedder, done, seconds))


def _embedder(
    model: str, config: Any, device: str, dtype: str, threads: int | None, batch_tokens: int | None
) -> "Embedder":
    import torch

    from hyenadna.inference.embed import Embedder

    network = options.network(model, device, threads)
    tokens = batch_tokens or options.BATCH_TOKENS[network.device.type]
    return Embedder(network, config, batch_tokens=tokens, dtype=getattr(torch, dtype))


def _settings(model: str, embedder: "Embedder") -> dict[str, str | int]:
    """What decides the numbers, besides the input."""
    from hyenadna import __version__
    from hyenadna.model.weights import base_sha256

    config = embedder.config
    return {
        "hyenadna": __version__,
        "model": model,
        "base_sha256": base_sha256(embedder.model.state_dict()),
        "layer": embedder.layer,
        "pool": config.pool,
        "bins": config.bins or 0,
        "strands": "mean of both" if config.reverse_complement else "as given",
        "context": embedder.context,
        "stride": embedder.stride,
        "dtype": str(embedder.dtype).removeprefix("torch."),
    }


def _embedded(
    embedder: "Embedder", sequences: Iterator[tuple[str, str]], out: Path, about: dict[str, Any], overwrite: bool
) -> "tuple[Embedded, float]":
    import time

    from hyenadna.files import lock
    from hyenadna.inference.embed import embed as embed_stream
    from hyenadna.inference.embedding_files import embedding_file

    lock_file, start = out.with_name(f".{out.name}.lock"), time.perf_counter()
    with lock(lock_file, UsageError(f"-o {out} is being written by another process; wait for it, or name another")):
        for left_behind in out.parent.glob(f".{out.name}.*.tmp"):
            left_behind.unlink(missing_ok=True)  # of a process that was killed: only the holder of the lock writes here
        try:
            file = embedding_file(out, about, width=embedder.width, ragged=embedder.config.ragged, overwrite=overwrite)
            done = embed_stream(embedder, sequences, file)
        finally:
            lock_file.unlink(missing_ok=True)
    return done, time.perf_counter() - start


def _text(out: Path, embedder: "Embedder", done: "Embedded", seconds: float) -> str:
    from hyenadna.progress import duration, quantity

    earlier = f", {done.earlier:,} of them by an earlier run" if done.earlier else ""
    what = "one row" if not embedder.config.ragged else "several rows"
    return (
        f"{out}: {done.sequences:,} sequences{earlier}, {what} of {embedder.width} numbers each; "
        f"{duration(seconds)}, {quantity(done.bases / seconds)}nt/s"
    )
