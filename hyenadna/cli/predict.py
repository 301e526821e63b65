"""`hyena predict`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.cli import options
from hyenadna.errors import CheckpointError
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.finetune.predict import Predictor
    from hyenadna.finetune.sequence_model import SequenceModel

Aggregate = Literal["mean", "max"]

_Model = Annotated[
    str, typer.Option("--model", "-m", help="Run of hyena finetune, or its adapter.", show_default=False)
]
_Out = Annotated[str, typer.Option("--out", "-o", help="File to write, or '-' for stdout.")]
_Base = Annotated[
    str | None, typer.Option(help="The model that the adapter belongs to. Default: where the adapter says it is.")
]
_Stride = Annotated[
    int | None,
    typer.Option(
        min=1, help="Bases from window to window of sequences longer than the model takes. Default: half of that."
    ),
]
_Aggregate = Annotated[Aggregate, typer.Option(help="How the predictions of a sequence's windows become one.")]
_Both = Annotated[
    bool | None,
    typer.Option("--reverse-complement/--no-reverse-complement", help="Mean of both strands. Default: as in training."),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT, and drop what a stopped run left.")]
_Json = Annotated[bool, typer.Option("--json", help="Lines of JSON instead of a TSV.")]


def predict(
    source: options.Source,
    *,
    model: _Model,
    out: _Out = "-",
    base: _Base = None,
    fasta: options.Fasta = None,
    seq_col: options.SeqCol = None,
    id_col: options.IdCol = None,
    stride: _Stride = None,
    aggregate: _Aggregate = "mean",
    reverse_complement: _Both = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
) -> None:
    """Predictions of a fine-tuned model, a line for each sequence. Example: hyena predict my.csv -m run -o my.tsv

    Written to a file, they are continued by the same command after an interruption.
    """
    from hyenadna.inference.sequence_chunks import origin

    about = origin(source, fasta)
    path = options.out_file(out, (source, fasta), overwrite=overwrite)
    description = _description(model)
    adapted = _adapted(model, base, device, threads)

    from hyenadna.data.sequence_files import stream
    from hyenadna.finetune.predict import Predictor
    from hyenadna.finetune.predict import predict as predict_stream
    from hyenadna.finetune.prediction_file import PredictionLines
    from hyenadna.inference.line_file import LineFile

    as_trained = bool(description.get("training", {}).get("reverse_complement", False))
    predictor = Predictor(
        adapted,
        stride=stride,
        aggregate=aggregate,
        reverse_complement=as_trained if reverse_complement is None else reverse_complement,
        batch_tokens=batch_tokens or options.BATCH_TOKENS[adapted.base.device.type],
    )
    sequences = stream(source, fasta=fasta, seq_col=seq_col, id_col=id_col)
    about = _settings(model, description, predictor) | about | {"command": shlex.join(["hyena", *sys.argv[1:]])}
    lines = PredictionLines(adapted.task, as_json=as_json)
    file = LineFile(path, lines, about, overwrite=overwrite, resume=options.can_resume(source, path))
    number = predict_stream(predictor, sequences, file)
    notice(f"{number:,} sequences" + ("" if path is None else f": their predictions are in {path}"))


def _description(model: str) -> dict[str, Any]:
    """What the adapter's folder says of it.

    Raises
    ------
    CheckpointError         there is no adapter; says so where there is a model to make one of
    """
    from hyenadna.files import sha256
    from hyenadna.finetune.adapter import find
    from hyenadna.model.hub import STARTER
    from hyenadna.model.weights import read_json

    try:
        folder = find(model)
    except CheckpointError as error:
        places = (Path(model), Path(model) / "model")
        if str(model) == STARTER or any((place / "config.json").is_file() for place in places):
            raise CheckpointError(
                f"{model} is a language model and predicts no labels; fine-tune it first: "
                f"hyena finetune DATA -m {model} -o run, then hyena predict INPUT -m run"
            ) from error
        raise
    return read_json(folder / "adapter.json") | {"adapter_sha256": sha256(folder / "adapter.safetensors")}


def _adapted(model: str, base: str | None, device: str, threads: int | None) -> "SequenceModel":
    import torch

    from hyenadna.finetune.adapter import load
    from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
    from hyenadna.model.language_model import HyenaDNA

    torch.set_num_threads(threads or available_cpus())
    keep_freed_memory()
    place = torch_device(device)
    network = None if base is None else HyenaDNA.from_pretrained(base, device=place)
    adapted = load(model, base=network, device=place)
    if adapted.adaptation.read_out == "next-token":
        raise CheckpointError(
            f"{model} was tuned in context: it predicts by the examples of a prompt; hyena probe DATA -m {model}"
        )
    return adapted


def _settings(model: str, description: dict[str, Any], predictor: "Predictor") -> dict[str, Any]:
    """What decides the predictions, besides the input."""
    from hyenadna import __version__
    from hyenadna.finetune.lora import base_state
    from hyenadna.model.weights import base_sha256

    return {
        "hyenadna": __version__,
        "adapter": model,
        "adapter_sha256": description["adapter_sha256"],
        "base_sha256": base_sha256(base_state(predictor.model.base)),
        "context": predictor.context,
        "stride": predictor.stride,
        "aggregate": predictor.aggregate,
        "strands": "mean of both" if predictor.reverse_complement else "as given",
    }
