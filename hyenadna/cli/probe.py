"""`hyena probe`."""

import json
from typing import Annotated

import typer

from hyenadna.cli import options
from hyenadna.cli.config_flags import takes_config
from hyenadna.inference.many_shot_config import ProbeConfig


@takes_config(ProbeConfig)
def probe(
    config: ProbeConfig,
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the probe in the folder and start anew.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Many-shot in-context probing: answers by labelled examples in the prompt. Example: hyena probe my.csv -m run

    The model is not changed. Accuracy by number of examples is told beside majority, nearest neighbours and a k-mer
    regression that learn from the same examples.
    """
    from hyenadna.finetune.in_context_model import load
    from hyenadna.inference import many_shot_probe
    from hyenadna.machine import torch_device

    model, training = load(config.model, device=torch_device(config.device))
    tuned_on = training.get("layout")
    if dry_run:
        result = many_shot_probe.dry_run(config, model=model, tuned_on=tuned_on)
    else:
        result = many_shot_probe.probe_data(config, overwrite=overwrite, model=model, tuned_on=tuned_on)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else result["text"])
