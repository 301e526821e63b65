"""`hyena convert`: a model from one layout to another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.model.checkpoint import Checkpoint


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Model folder, training run, folder of the original or the Hugging Face layout, or hub id.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)],
    to: Annotated[
        Literal["hyena", "hf", "original"],
        typer.Option(help="The layout: our model folder, the Hugging Face port's, or the original weights.ckpt."),
    ] = "hyena",
    filter_shift: Annotated[
        float | None,
        typer.Option(help="Shift of the filters of a published model, which records none. Default: 0.05."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that hyena wrote.")] = False,
) -> None:
    """Write a model in another layout. Example: hyena convert LongSafari/hyenadna-tiny-1k-seqlen -o tiny-1k"""
    from hyenadna.model import checkpoint

    found = checkpoint.read(source, filter_shift=filter_shift)
    if found.layout == "hyena":
        found.verify()
    if to == "hyena":
        checkpoint.save(found.model, out, overwrite=overwrite, **provenance(found))
    else:
        checkpoint.export(found.model, out, to, card=found.card, overwrite=overwrite)
    notice(f"wrote {out} in the layout {to}; base_sha256 {found.base_sha256}")
    if found.layout != "hyena" and filter_shift is None:
        notice(shift_question(found.model.config.filter_shift))
    if to != "hyena" and found.model.config.n_token == "n":
        notice("this model reads N as N, which the layout cannot say; a loader of published models may take it for PAD")


def shift_question(shift: float) -> str:
    """What a user of published weights should know of their filters' shift."""
    other = 0.05 if shift == 0 else 0
    return (
        f"the filters' shift is taken as {shift:g}: published weights do not record it and the authors' code bases "
        f"disagree (0.05 and 0); convert with --filter-shift {other:g} as well, run hyena evaluate on both, and keep "
        "the one with fewer bits per base"
    )


def provenance(found: "Checkpoint") -> dict[str, Any]:
    """What a model folder made of this model should say of where it comes from, as `checkpoint.save` takes it."""
    if found.layout == "hyena":
        return {"card": found.card, "training": found.description.get("training"), "extra": found.extra}
    origin = {"layout": found.layout, "name": found.name, "weights_sha256": found.weights_sha256}
    return {"training": {"converted_from": origin}}
