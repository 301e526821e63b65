"""What an evaluation measured, and how it follows from sums over blocks of the genome."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import InputError
from hyenadna.inference.bootstrap import Bootstrap, Estimate


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One Markov model on all scored bases."""

    name: str
    order: int | None
    """None for the interpolated model."""
    bits_per_base: Estimate
    difference: Estimate
    """Bits per base of the language model minus those of this one: below zero, the language model is better."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The language model and the interpolated Markov model on some of the bases."""

    bases: int
    """Number of bases, each strand's counted."""
    model: Estimate
    interpolated: Estimate
    difference: Estimate
    """Model minus interpolated, in bits per base."""


@dataclasses.dataclass(frozen=True)
class ContextBin:
    """Bases that have at least `start` and less than `end` bases of their window before them."""

    start: int
    end: int
    comparison: Comparison


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Scored bases that lie inside of some regions, and all others."""

    name: str
    inside: Comparison
    outside: Comparison


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured. Bits per base throughout, with 95 % block-bootstrap intervals."""

    length: int
    """Bases of a window."""
    bases: int
    """Number of bases scored, each strand's counted."""
    blocks: int
    """Number of 10-kb blocks that hold them, which the bootstrap draws from."""
    model: Estimate
    mass_elsewhere: float
    """Mean probability that the model gives to tokens other than A, C, G, T, before it is renormalised."""
    baselines: tuple[Baseline, ...]
    """Interpolated first, then plain orders from 0."""
    contexts: tuple[ContextBin, ...]
    """By number of bases before a base in its window; all bases of windows that score any, scored or not."""
    annotations: tuple[Annotation, ...]

    @property
    def interpolated(self) -> Baseline:
        """The interpolated Markov model."""
        return self.baselines[0]

    @property
    def best_plain(self) -> Baseline:
        """The plain Markov model with the fewest bits."""
        return min(self.baselines[1:], key=lambda baseline: baseline.bits_per_base.value)

    def to_json(self) -> dict[str, Any]:
        """All of this with perplexities, as JSON holds it: NaN is null."""
        value = dataclasses.asdict(self)
        value["perplexity"] = 2**self.model.value
        for baseline in value["baselines"]:
            baseline["perplexity"] = 2 ** baseline["bits_per_base"]["value"]
        return dict(json.loads(json.dumps(value), parse_constant=lambda _: None))


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a block's row of sums are.

    The mass elsewhere, the bits of each plain order, and then groups of three: bases, bits of the language model, bits
    of the interpolated model. The first group is of all scored bases; then come, for each annotation, the scored bases
    inside and those outside of it; then, for each bin of context, the bases of all windows, scored or not.
    """

    order: int
    annotations: Sequence[str]
    bins: int

    def plain(self, order: int) -> int:
        """The column with the bits of a plain order."""
        return 1 + order

    def group(self, number: int) -> int:
        """The first column of a group."""
        return 2 + self.order + 3 * number

    def inside(self, annotation: int) -> int:
        """The group inside of an annotation; the next one is outside."""
        return 1 + 2 * annotation

    def context(self, number: int) -> int:
        """The group of a bin of context."""
        return 1 + 2 * len(self.annotations) + number


def evaluation_of(rows: NDArray[np.float64], columns: Columns, length: int) -> Evaluation:
    """The evaluation that follows from sums over blocks.

    Parameters
    ----------
    rows : float64 array (blocks, columns)
        What each block adds to each sum.
    columns : Columns
        What the columns are.
    length : int
        Bases of a window.

    Raises
    ------
    InputError              no base was scored
    """
    bases, model, interpolated = range(columns.group(0), columns.group(1))
    total = rows.sum(axis=0)
    if not len(rows) or not total[bases]:
        raise InputError("nothing to score: no A, C, G or T lies in the second half of any window")
    bootstrap = Bootstrap.of(rows)
    contexts = (
        ContextBin(2**i, min(2 ** (i + 1), length), _compare(bootstrap, columns.group(columns.context(i))))
        for i in range(columns.bins)
    )

    def baseline(name: str, order: int | None, column: int) -> Baseline:
        difference = _bits_per_base(bootstrap, bases, model, minus=column)
        return Baseline(name, order, _bits_per_base(bootstrap, bases, column), difference)

    return Evaluation(
        length=length,
        bases=int(total[bases]),
        blocks=int(np.count_nonzero(rows[:, bases])),
        model=_bits_per_base(bootstrap, bases, model),
        mass_elsewhere=float(total[0] / total[bases]),
        baselines=(
            baseline("interpolated", None, interpolated),
            *(baseline(f"order {k}", k, columns.plain(k)) for k in range(columns.order + 1)),
        ),
        contexts=tuple(context for context in contexts if context.comparison.bases),
        annotations=tuple(
            Annotation(
                name,
                _compare(bootstrap, columns.group(columns.inside(i))),
                _compare(bootstrap, columns.group(columns.inside(i) + 1)),
            )
            for i, name in enumerate(columns.annotations)
        ),
    )


def _bits_per_base(bootstrap: Bootstrap, bases: int, bits: int, minus: int | None = None) -> Estimate:
    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        less = 0.0 if minus is None else sums[:, minus]
        return np.asarray((sums[:, bits] - less) / sums[:, bases], dtype=np.float64)

    return bootstrap.estimate(ratio, bases)


def _compare(bootstrap: Bootstrap, bases: int) -> Comparison:
    return Comparison(
        int(bootstrap.blocks[:, bases].sum()),
        _bits_per_base(bootstrap, bases, bases + 1),
        _bits_per_base(bootstrap, bases, bases + 2),
        _bits_per_base(bootstrap, bases, bases + 1, minus=bases + 2),
    )
