"""Cells of a many-shot probe, kept as lines of JSON while they are made, so that a probe that stopped goes on.

The first line says what all cells depend on; a later line is a cell, or says where a sweep ended. Numbers of seeds and
arms are no part of it, so that more of either continue the same file. A line that a killed process left half-written is
dropped.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import InputError, RunFolderError
from hyenadna.files import write_text
from hyenadna.inference.many_shot import Answers
from hyenadna.inference.many_shot_arms import Ended, Step

NONE = "none"
"""The arm of what is asked without any example, which all others begin at."""


class Key(NamedTuple):
    """Which cell it is."""

    arm: str
    seed: int
    shots: int
    """Examples of each class."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a model answered behind one prompt, with what is kept of it."""

    key: Key
    answers: Answers
    about: dict[str, Any]
    """As of a `Step`."""

    @classmethod
    def of(cls, step: Step, seed: int) -> "Cell":
        """What a step of a seed answered."""
        return cls(Key(step.arm, seed, step.shots), step.answers, step.about)

    def line(self) -> str:
        """One line of JSON; no number is rounded, so that resumed or not, all that is made of it is the same."""
        said = self.answers
        return json.dumps(
            {
                **self.key._asdict(),
                "prompt_tokens": said.prompt_tokens,
                "tokens_read": said.tokens_read,
                "prior": said.prior.tolist(),
                "about": self.about,
                "log_likelihoods": said.log_likelihoods.tolist(),
            }
        )

    @classmethod
    def parsed(cls, found: dict[str, Any]) -> "Cell":
        """What `line` wrote."""
        answers = Answers(
            _array(found["log_likelihoods"]), _array(found["prior"]), found["prompt_tokens"], found["tokens_read"]
        )
        return cls(Key(found["arm"], found["seed"], found["shots"]), answers, found["about"])


class Journal:
    """The file of cells of a run folder; one process at a time.

    Parameters
    ----------
    path : Path
    settings : dict
        What the cells depend on, of JSON's own types.
    overwrite : bool
        Drop what is there.

    Attributes
    ----------
    cells : dict of Key to Cell
    ended : dict of seed to Ended
        Where reinforced sweeps could not go on.

    Raises
    ------
    RunFolderError          the file was made with other settings
    InputError              it is no such file
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.cells: dict[Key, Cell] = {}
        self.ended: dict[int, Ended] = {}
        if path.exists() and not overwrite:
            self._read(settings)
        else:
            write_text(path, json.dumps({"settings": settings}) + "\n")

    def add(self, cell: Cell) -> None:
        """Keep a cell, on the disk too."""
        self._append(cell.line())
        self.cells[cell.key] = cell

    def end(self, seed: int, ended: Ended) -> None:
        """Keep where the reinforced sweep of a seed ended."""
        self._append(json.dumps({"ended": seed, **ended._asdict()}))
        self.ended[seed] = ended

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, settings: dict[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        try:
            first, *lines = map(json.loads, whole.splitlines())
            stored = first["settings"]
            for found in lines:
                if "ended" in found:
                    self.ended[found["ended"]] = Ended(found["shots"], found["why"])
                else:
                    cell = Cell.parsed(found)
                    self.cells[cell.key] = cell
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is no file of a probe; name another folder, or give --overwrite") from error
        if other := sorted(name for name in {*stored, *settings} if stored.get(name) != settings.get(name)):
            raise RunFolderError(
                f"{self.path.parent} holds a probe with another {', '.join(other)}; name another folder by -o, or give "
                "--overwrite to drop it"
            )
        if whole != text:
            write_text(self.path, whole)


def _array(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
