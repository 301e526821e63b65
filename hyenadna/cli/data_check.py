"""`hyena data check`."""

import json
from typing import Annotated

import typer

from hyenadna.cli.config_flags import takes_config
from hyenadna.data.data_config import DataConfig


@takes_config(DataConfig)
def check_command(
    config: DataConfig,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what to know before training: balance, duplicates across parts, what alone gives the class away.

    Example: hyena data check my.csv
    """
    from hyenadna.data.label_check import check
    from hyenadna.data.tables import read_labelled

    result = check(read_labelled(config))
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else result.text())
