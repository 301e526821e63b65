"""Options that several verbs take, said once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
