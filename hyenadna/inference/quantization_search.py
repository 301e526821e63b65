"""The smallest setting of quantisation that loses little enough."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from hyenadna.inference.quantization_cost import Cost
from hyenadna.kernels.packed_weight import Bits
from hyenadna.model.config import Quantization

CURVE: tuple[Bits, ...] = (8, 4, 3, 2)
"""Bits that are always measured; 1 bit only if it was asked for."""
GROUPS = (16, 32, 64, 128)


def smallest_within(
    max_loss: float,
    known: Sequence[Cost],
    measure: Callable[[Quantization], Cost],
    *,
    meta_bits: Literal[8, 16],
    largest_group: int,
    above: Quantization | None = None,
) -> tuple[Cost | None, tuple[Cost, ...]]:
    """The setting that takes the fewest bits among those that lose no more, and the settings that were measured for it.

    Settings of 2, 3, 4 and 8 bits are tried from small to large. One that is coarser in bits and in groups than one
    that is known to lose too much is not tried.

    Parameters
    ----------
    max_loss : float
        In bits per base.
    known : Cost, ...
        What was measured before.
    measure : callable
        The cost of a setting.
    meta_bits : 8 or 16
        Of scales and zero points, in all settings.
    largest_group : int
        Weights in a row of the model's smallest matrix.
    above : Quantization, optional
        Only settings that take more bits than this one.

    Returns
    -------
    Cost, or None if every setting loses more; and a tuple of Cost
    """
    measured: list[Cost] = []
    for setting in _by_size(meta_bits, largest_group):
        if above is not None and nominal_bits(setting) <= nominal_bits(above):
            continue
        tried = [*known, *measured]
        if any(cost.loss.value > max_loss and _coarser(setting, cost.setting) for cost in tried):
            continue
        found = next((cost for cost in tried if cost.setting == setting), None)
        if found is None:
            found = measure(setting)
            measured.append(found)
        if found.loss.value <= max_loss:
            return found, tuple(measured)
    return None, tuple(measured)


def nominal_bits(setting: Quantization) -> float:
    """Bits of a weight with its share of a scale and a zero point, rows in whole groups; ends are not counted.

    Examples
    --------
    >>> nominal_bits(Quantization(4, 64, 8))
    4.25
    """
    return setting.bits + 2 * setting.meta_bits / setting.group


def _by_size(meta_bits: Literal[8, 16], largest_group: int) -> Iterator[Quantization]:
    groups = [group for group in GROUPS if group <= largest_group]
    settings = (Quantization(bits, group, meta_bits) for bits, group in itertools.product(CURVE, groups))
    yield from sorted(settings, key=nominal_bits)


def _coarser(one: Quantization, other: Quantization) -> bool:
    """Whether one can be no better than the other, which it may be."""
    return one != other and one.bits <= other.bits and one.group >= other.group
