"""The entry of `hyena`: finds the verb, and turns every failure into one line and an exit code."""

import functools
import importlib
import inspect
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from hyenadna import __version__
from hyenadna.cli.config_flags import ManyValues
from hyenadna.errors import HyenaError, HyenaWarning, Interrupted, OutOfMemory
from hyenadna.progress import notice, set_quiet

VERBS = {
    "pretrain": "hyenadna.cli.pretrain:pretrain",
    "evaluate": "hyenadna.cli.evaluate:evaluate",
    "finetune": "hyenadna.cli.finetune:finetune",
    "predict": "hyenadna.cli.predict:predict",
    "embed": "hyenadna.cli.embed:embed",
    "likelihood": "hyenadna.cli.likelihood:likelihood",
    "score": "hyenadna.cli.score:score",
    "generate": "hyenadna.cli.generate:generate",
    "probe": "hyenadna.cli.probe:probe",
    "quantize": "hyenadna.cli.quantize:quantize",
    "bench": "hyenadna.cli.bench:bench",
    "serve": "hyenadna.cli.serve:serve",
    "convert": "hyenadna.cli.convert:convert",
    "info": "hyenadna.cli.info:info",
    "estimate": "hyenadna.cli.estimate:estimate",
    "doctor": "hyenadna.cli.doctor:doctor",
    "data": "hyenadna.cli.data:app",
}
"""Verb to module and object: a typed function, or a typer application where the verb has verbs of its own."""


class _Verbs(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(VERBS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name].split(":")
        target = getattr(importlib.import_module(module), name)
        if isinstance(target, typer.Typer):
            verb = typer.Typer(no_args_is_help=True, add_completion=False, help=target.info.help, rich_markup_mode=None)
            for registered in target.registered_commands:
                assert registered.callback is not None
                verb.command(registered.name, cls=ManyValues)(guarded(registered.callback))
        else:
            verb = typer.Typer(add_completion=False, rich_markup_mode=None)
            verb.command(cmd_name, cls=ManyValues)(guarded(target))
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the flags that every verb has, and its failures told in one line."""

    @functools.wraps(function)
    def command(*, quiet: bool, debug: bool, **given: Any) -> None:
        set_quiet(quiet)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            function(**given)
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader of stdout has gone; the interpreter must not complain about it while it shuts down
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (HyenaError, Interrupted) as error:
            _fail(error, error.exit_code, debug)
        except Exception as error:
            if _out_of_memory(error):
                lacking = OutOfMemory(
                    "out of memory; take a shorter length or smaller batches (hyena estimate says how much)"
                )
                _fail(lacking, lacking.exit_code, debug)
            _fail(f"{type(error).__name__}: {error} (this is a defect; --debug shows where)", 1, debug)

    flags = (("quiet", "No progress and no notices."), ("debug", "A traceback when something fails."))
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--{name}", help=text)],
        )
        for name, text in flags
    ]
    signature = inspect.signature(function)
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *parameters])  # type: ignore[attr-defined]
    return command


def _out_of_memory(error: Exception) -> bool:
    # torch says it in its own class on a GPU and in words on a CPU
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def _fail(error: BaseException | str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(f"hyena: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    # those of other packages are for developers
    if issubclass(category, HyenaWarning):
        notice(f"hyena: warning: {message}")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number, "interrupted")


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyena {__version__}")
        raise typer.Exit()


@app.callback()
def _hyena(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """DNA language models at single-nucleotide resolution: pretrain, fine-tune, predict, score, generate, serve.

    Results go to stdout or to -o, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 bad input data,
    137 out of memory, 130 and 143 ended by SIGINT and SIGTERM.
    """


def main() -> None:
    """The console script; ends the process with the exit code."""
    # Python's own KeyboardInterrupt would end as a plain failure, and a signal's default without a word or an exit code
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app(prog_name="hyena")
    except Interrupted as error:  # while the verb's own modules were loaded
        print(f"hyena: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
