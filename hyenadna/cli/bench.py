"""`hyena bench`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hyenadna.cli.config_flags import takes_config
from hyenadna.finetune.bench import BenchConfig
from hyenadna.finetune.recipe import Recipe, Suite


@takes_config(BenchConfig)
def bench(
    config: BenchConfig,
    *,
    suite: Annotated[Suite, typer.Argument(help="The benchmark.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train everything anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune on every set of a suite, beside simple models and published numbers. Example: hyena bench gue"""
    from hyenadna.finetune import bench_report
    from hyenadna.finetune.bench import bench as measure

    recipe = Recipe.read(suite)
    entries = measure(recipe, config, overwrite=overwrite)
    typer.echo(json.dumps([asdict(e) for e in entries], indent=2) if as_json else bench_report.text(recipe, entries))
