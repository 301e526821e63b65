"""`hyena serve`."""

from typing import Annotated

import typer

from hyenadna.cli.config_flags import takes_config
from hyenadna.errors import MissingExtra
from hyenadna.serve.config import ServeConfig

_EXTRA = ("fastapi", "starlette", "uvicorn", "prometheus_client")


@takes_config(ServeConfig)
def serve(
    config: ServeConfig,
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, run of hyena pretrain or finetune, or hub id.")
    ] = "starter",
) -> None:
    """An HTTP API and a web page for a model, until Ctrl-C. Example: hyena serve run --adapter promoters=fit"""
    try:
        from hyenadna.serve import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRA:
            raise
        raise MissingExtra("hyena serve needs the 'serve' extra: pip install hyenadna[serve]") from error
    server.serve(model, config)
