"""Benchmark suites as files of the package: their sets, published numbers, and how they are trained here."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from hyenadna.errors import UsageError

Suite = Literal["genomic-benchmarks", "gue"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A suite of labelled sets."""

    suite: Suite
    """As `hyena finetune SUITE/SET` takes it."""
    title: str
    """The suite's own name."""
    metric: str
    """What the published numbers are; the table has it first."""
    settings: dict[str, Any]
    """Settings of `hyena finetune` that differ from its defaults, of all sets."""
    settings_of: dict[str, dict[str, Any]]
    """Further ones of single sets."""
    sets: dict[str, dict[str, float]]
    """Set to its published numbers in percent, by the name of the model."""

    @classmethod
    def read(cls, suite: Suite) -> "Recipe":
        """The recipe of a suite."""
        import yaml  # which the command's help does not need

        path = Path(__file__).parent / "recipes" / f"{suite}.yaml"
        return cls(suite, **yaml.safe_load(path.read_text(encoding="utf-8")))

    def chosen(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The sets with these names, or all of the suite.

        Raises
        ------
        UsageError              a name that the suite does not have
        """
        for name in names:
            if name not in self.sets:
                raise UsageError(f"{self.title} has no set {name!r}; it has {', '.join(self.sets)}")
        return names or tuple(self.sets)
