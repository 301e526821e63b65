"""Command-line flags out of a configuration's fields: their names, types, defaults, and docstrings as help."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand

from hyenadna.errors import UsageError

Config = TypeVar("Config")

_ARGUMENT = "data"
"""The field that is given without a flag, as what a verb is about."""
_SHORT = {"out": ("-o",), "model": ("-m",)}
"""Flags of one letter, the same ones in every verb."""


class ManyValues(TyperCommand):
    """A command whose list options take several values after one flag: --fasta a.fa b.fa."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values, as the parser wants it."""
        many = {flag for option in self.params if getattr(option, "multiple", False) for flag in option.opts}
        expanded: list[str] = []
        current: str | None = None
        for word in args:
            if word.startswith("-") and word != "-":
                current = word if word in many else None
                if current is None:
                    expanded.append(word)
            elif current is not None:
                expanded += [current, word]
            else:
                expanded.append(word)
        return super().parse_args(ctx, expanded)


def takes_config(config: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate `function(config, *, ...)`: it becomes a command with one flag for each field of `config`.

    A field named `data` becomes the command's argument instead, which may be left out where the field has a default.
    Values come from the defaults, then the YAML file of --config, then HYENA_<FIELD> in the environment, then flags.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        fields = dataclasses.fields(config)  # type: ignore[arg-type]

        def command(context: typer.Context, **given: Any) -> None:
            names = {parameter.name for parameter in own}
            flags = {field.name: given[field.name] for field in fields if _was_given(context, field.name)}
            file = given.pop("config")
            function(parse(config, file, flags), **{name: given[name] for name in names})

        parameters = [_flag(field, text) for field, text in zip(fields, _helps(config), strict=True)]
        file = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=typing.Annotated[Path | None, typer.Option(help="YAML file with any of these settings.")],
        )
        keyword_own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        signature = inspect.Signature([context, *parameters, file, *keyword_own])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__doc__, command.__name__ = function.__doc__, function.__name__
        return command

    return decorate


def parse(config: type[Config], file: Path | None, flags: dict[str, Any]) -> Config:
    """A configuration from a YAML file and flags; the flags win.

    Raises
    ------
    UsageError              the file cannot be read, or a value is not of its field's type
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise UsageError(f"--config {file} must hold names and values, like `lr: 0.001`")
    for one, other in getattr(config, "ALTERNATIVES", ()):
        if one in flags:
            values.pop(other, None)
        if other in flags:
            values.pop(one, None)
    try:
        return TypeAdapter(config).validate_python(values | flags)
    except ValidationError as error:
        known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "the configuration"
        allowed = f"; known are {', '.join(sorted(known))}" if name not in known else ""
        given = f" is {first['input']!r}" if name in known else ""
        raise UsageError(f"{name}{given}: {first['msg']}{allowed}") from error


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _flag(field: "dataclasses.Field[Any]", text: str) -> inspect.Parameter:
    kind: Any = field.type
    many = get_origin(kind) is tuple and get_args(kind)[1:] == (...,)
    flag = field.name.replace("_", "-")
    said: Any = {"help": text, "envvar": f"HYENA_{field.name.upper()}", "show_envvar": False}
    if field.name == _ARGUMENT:
        option = typer.Argument(metavar="DATA", **said)
    else:
        names = [f"--{flag}/--no-{flag}" if kind is bool or bool in get_args(kind) else f"--{flag}"]
        option = typer.Option(*names, *_SHORT.get(field.name, ()), metavar="VALUE..." if many else None, **said)
    if many:
        element = get_args(kind)[0]
        # typer takes no list of choices; `parse` refuses what is none of them
        kind = list[str if get_origin(element) is typing.Literal else element] | None  # type: ignore[misc]
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default or None if many else field.default,
        annotation=typing.Annotated[kind, option],
    )


def _helps(config: type[Any]) -> list[str]:
    """The docstring under each field, in order; those of inherited fields stand in the class that has them."""
    helps = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]).body
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                helps[statement.target.id] = " ".join(str(following.value.value).split())
    return [helps[field.name] for field in dataclasses.fields(config)]
