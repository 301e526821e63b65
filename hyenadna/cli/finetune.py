"""`hyena finetune`."""

import json
from typing import Annotated

import typer

from hyenadna.cli.config_flags import takes_config
from hyenadna.finetune.config import FinetuneConfig


@takes_config(FinetuneConfig)
def finetune(
    config: FinetuneConfig,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop the run in the folder and start anew.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data, train for seconds, say rate, time and memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a model to labelled sequences, and measure it on a test part. Example: hyena finetune my.csv --method lora"""
    from hyenadna.finetune import diversity, in_context, plan
    from hyenadna.finetune import finetune as command

    if config.objective == "diversity":
        if dry_run:
            result = diversity.dry_run(config, overwrite=overwrite)
        else:
            result = diversity.finetune(config, overwrite=overwrite).result()
    elif config.objective == "in-context":
        if dry_run:
            result = in_context.dry_run(config, overwrite=overwrite)
        else:
            result = in_context.finetune(config, overwrite=overwrite).result()
    elif dry_run:
        result = plan.dry_run(config, overwrite=overwrite)
    else:
        result = command.finetune(config, overwrite=overwrite).result()
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else result["text"])
