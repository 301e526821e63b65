"""Options that several verbs take, said once."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hyenadna.errors import UsageError
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.model.language_model import HyenaDNA

Source = Annotated[str, typer.Argument(metavar="INPUT", help="FASTA, table (CSV, TSV, JSONL, Parquet), BED, or '-'.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Model folder, training run or hub id.")]
Fasta = Annotated[Path | None, typer.Option(help="The genome of a BED file.")]
SeqCol = Annotated[str | None, typer.Option(help="Column of a table that holds the sequences. Default: by its name.")]
IdCol = Annotated[str | None, typer.Option(help="Column that holds the ids. Default: by its name, else row numbers.")]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a batch. Default: 8192, on a GPU 131072; changes no result.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="What the model computes in; auto is float32."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: the CPUs this process may use.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the input; say rate, time and memory of the whole.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

BATCH_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 17}
"""What `BatchTokens` is where it was not given, by the type of the device."""


def network(model: str, device: str, threads: int | None) -> "HyenaDNA":
    """The model on its device, in eval mode, and torch set up for reading with it."""
    import torch

    from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
    from hyenadna.model.language_model import HyenaDNA

    torch.set_num_threads(threads or available_cpus())
    keep_freed_memory()
    loaded: HyenaDNA = HyenaDNA.from_pretrained(model, device=torch_device(device))
    return loaded


def out_file(out: str, inputs: Iterable[str | Path | None], *, overwrite: bool) -> Path | None:
    """The file that -o names; None for '-', which is stdout.

    Raises
    ------
    UsageError              it is a folder, or an input itself; it exists and may not be replaced
    """
    if out == "-":
        return None
    path = Path(out)
    if path.is_dir():
        raise UsageError(f"-o {out} is a folder; name a file in it")
    # an input may be a sequence too long for a name, where a Path raises
    there = [given for given in inputs if given is not None and os.path.exists(given)]  # noqa: PTH110
    if path.exists() and any(path.samefile(given) for given in there):
        raise UsageError(f"-o {out} is an input itself; give another name")
    if path.exists() and not overwrite:
        raise UsageError(f"-o {out} exists; give another name, or --overwrite to replace it")
    return path


def can_resume(source: str, path: Path | None) -> bool:
    """Whether an interrupted job can be continued; says so where its input, stdin, may be another the next time."""
    if source == "-" and path is not None:
        notice("standard input cannot be read again: a run that is stopped starts anew")
    return source != "-"
