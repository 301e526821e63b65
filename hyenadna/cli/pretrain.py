"""`hyena pretrain`."""

import json
from typing import Annotated

import typer

from hyenadna.cli.config_flags import takes_config
from hyenadna.pretrain.config import PretrainConfig


@takes_config(PretrainConfig)
def pretrain(
    config: PretrainConfig,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop the run in the folder and start anew.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the inputs, train for seconds, say rate, time and memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pretrain a model on FASTA files, or continue a run that stopped. Example: hyena pretrain --tokens 1e6"""
    from hyenadna.pretrain import plan, train

    if dry_run:
        report = plan.dry_run(config, overwrite=overwrite)
        typer.echo(json.dumps(report, indent=2) if as_json else report["text"])
        return
    folder = train.pretrain(config, overwrite=overwrite)
    if train.is_main_process():
        result = folder.result()
        typer.echo(json.dumps(result, indent=2) if as_json else result["text"])
