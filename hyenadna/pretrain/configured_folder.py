"""A run's folder and the configuration in it: who may use the folder, and whether it is the same run."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hyenadna.errors import RunFolderError
from hyenadna.files import lock


class RunConfig(Protocol):
    """A dataclass that says what a run does."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    VERB: ClassVar[str]
    """Of the command that makes the run."""
    DOES_NOT_CHANGE_THE_MODEL: ClassVar[frozenset[str]]
    """Fields that may differ when a run is resumed."""


Config = TypeVar("Config", bound=RunConfig)


class ConfiguredFolder(Generic[Config]):
    """What the folders of all kinds of runs have in common.

    Parameters
    ----------
    path : Path
        The folder.
    config_name : str
        The file of the configuration, which says that the folder is a run's.
    kind : type
        Of the configuration.
    temporary : pattern
        Names of files that a killed process was writing.
    """

    def __init__(self, path: Path, config_name: str, kind: type[Config], temporary: re.Pattern[str]) -> None:
        self.path, self.config_file = path, path / config_name
        self._kind, self._temporary = kind, temporary

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the folder."""
        busy = RunFolderError(f"{self.path} is in use by another process; wait for it, or name another folder by --out")
        with lock(self.path / ".lock", busy):
            yield

    def check(self, config: Config, *, overwrite: bool) -> None:
        """Nothing, if the folder can take this run; changes nothing.

        Raises
        ------
        RunFolderError          it is a file, holds something else, or a run with another configuration
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"--out {self.path} is a file; name a folder")
        if not self.config_file.exists():
            foreign = sorted(
                p.name for p in self.path.iterdir() if p.name != ".lock" and not self._temporary.fullmatch(p.name)
            )
            if foreign:
                raise RunFolderError(
                    f"{self.path} holds {', '.join(foreign[:5])} and no run; name a new or an empty folder by --out"
                )
        elif not overwrite and (differing := differing_fields(config, read_yaml(self.config_file, self._kind))):
            named = ", ".join(f"{name} ({theirs} there, {ours} now)" for name, (ours, theirs) in differing.items())
            raise RunFolderError(
                f"{self.path} holds a run that differs in {named}; give the same, name another folder by --out, "
                "or start anew with --overwrite"
            )

    def stored(self) -> Config | None:
        """The configuration of the run that the folder holds, if any."""
        return read_yaml(self.config_file, self._kind) if self.config_file.exists() else None


def differing_fields(ours: Config, theirs: Config) -> dict[str, tuple[object, object]]:
    """The fields in which two runs would give different models: name to (ours, theirs)."""
    return {
        field.name: (getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(ours)
        if field.name not in ours.DOES_NOT_CHANGE_THE_MODEL and getattr(ours, field.name) != getattr(theirs, field.name)
    }


def command(config: RunConfig) -> str:
    """The command line that gives the same model, with what differs from the defaults; a field `data` has no flag."""
    words = ["hyena", config.VERB]
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default or value is None or field.name in config.DOES_NOT_CHANGE_THE_MODEL:
            continue
        if field.name == "data":
            words.insert(2, shlex.quote(value))
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [flag, *(shlex.quote(str(item)) for item in value)]
        else:
            words += [flag, shlex.quote(str(value))]
    return " ".join(words)


def to_yaml(config: RunConfig) -> str:
    """A configuration as YAML that `read_yaml` takes."""
    return yaml.safe_dump(TypeAdapter(type(config)).dump_python(config, mode="json"), sort_keys=False)


def read_yaml(path: Path, kind: type[Config]) -> Config:
    """The configuration in a YAML file.

    Raises
    ------
    RunFolderError          an unknown field or a value of another type
    """
    try:
        return TypeAdapter(kind).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise RunFolderError(
            f"{path} is no configuration of hyena {kind.VERB}: {' '.join(str(error).split())}"
        ) from error
