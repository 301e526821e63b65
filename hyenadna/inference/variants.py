"""What a change of sequence does to its likelihood: the log-likelihood ratio of the alternative to the reference.

The ratio is ln p(alternative) - ln p(reference) in nats, over all bases of the sequence that `likelihood` scores, the
changed one among them: positive where the model finds the alternative likelier.

A causal model gives both the same up to the change. So changes that lie near each other are read together, as one
batch of what stands at and after the first of them, behind a prefix that is computed once (`hyenadna.model.state`):
for all single-base changes of L bases about 3 L^2 / 2 tokens, where whole sequences would take 3 L^2. The reference is
a row of every batch, because two rows of one batch are rounded alike, and their difference is the smaller for it.

The work comes in units, so that a server can do them in any order and among others: `substitution_units` cuts,
`unit_ratios` reads one, and `ratios_of` puts one sequence together.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyenadna.data.tokenizer import A, encode
from hyenadna.errors import SequenceTooLong
from hyenadna.inference.likelihood import Strand, context_of, in_reading_direction, is_base, next_base_nats, not_finite
from hyenadna.model.language_model import HyenaDNA

_LEAST = 3
"""Changes of the smallest unit: those of one base."""


class SubstitutionUnit(NamedTuple):
    """Some single-base changes of one strand, read together; positions count from where that strand begins."""

    reference: NDArray[np.uint8]
    """(L,): the strand's tokens in reading direction."""
    strand: Literal["+", "-"]
    positions: NDArray[np.int64]
    """(n,): of each change, ascending."""
    bases: NDArray[np.int64]
    """(n,): what each puts there, 0 to 3 for A, C, G, T."""

    @property
    def start(self) -> int:
        """Tokens before the batch. It begins one before the first change, where the model says how likely that is."""
        return max(0, int(self.positions[0]) - 1)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads: the prefix once, then the reference and every alternative."""
        return self.start + (len(self.positions) + 1) * (len(self.reference) - self.start)


def substitutions(
    model: HyenaDNA,
    sequence: str,
    *,
    strand: Strand = "forward",
    batch_tokens: int = 1 << 13,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.float64]:
    """The log-likelihood ratio of every single-base change of a sequence.

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    sequence : str
        At least one letter; IUPAC codes in either case.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read; of both, the mean.
    batch_tokens : int
        Most tokens of a unit of work, but at least the changes of one base; changes speed and memory, not the result.
    dtype : torch.dtype
        What the model computes in; sums are in float64 always.

    Returns
    -------
    float64 array (L, 4)
        Nats, alternative minus reference, for A, C, G, T on the forward strand whichever is read; 0 for the
        reference's own base, NaN where the reference is not A, C, G or T.

    Raises
    ------
    InputError              the sequence is empty, or holds a letter that is no nucleotide
    SequenceTooLong         it is longer than the model's context
    NotFiniteError          the model gives something that is not a number
    """
    tokens = encode(sequence, model.config.n_token)
    units = list(substitution_units(tokens, context_of(model), strand, batch_tokens=batch_tokens))
    return ratios_of(tokens, units, [unit_ratios(model, unit, dtype=dtype) for unit in units])


def substitution_units(
    tokens: NDArray[np.uint8], context: int, strand: Strand = "forward", *, batch_tokens: int = 1 << 13
) -> Iterator[SubstitutionUnit]:
    """The units of work of all single-base changes of a sequence; none where no base is A, C, G or T.

    Parameters
    ----------
    tokens : uint8 array (L,)
        Of the forward strand.
    context : int
        Most bases of a sequence; `context_of`.
    strand : {'forward', 'reverse', 'both'}
        Which strand is read.
    batch_tokens : int
        Most tokens of a unit, but at least the changes of one base.

    Raises
    ------
    InputError              there are no tokens
    SequenceTooLong         there are more than the context
    """
    if len(tokens) > context:
        raise SequenceTooLong(
            f"the sequence has {len(tokens):,} bases; all its substitutions can be scored up to the {context:,} that "
            "this model reads at once: cut out the part that matters, or take a model with a longer context"
        )
    for sign, reference in in_reading_direction(tokens, strand):
        places = np.flatnonzero(is_base(reference))
        own = reference[places].astype(np.int64) - A
        positions = np.repeat(places, 3)
        bases = ((own[:, None] + np.arange(1, 4)) % 4).ravel()
        first = 0
        while first < len(positions):
            start = max(0, int(positions[first]) - 1)
            room = (batch_tokens - start) // (len(reference) - start) - 1
            last = first + max(_LEAST, room)
            yield SubstitutionUnit(reference, sign, positions[first:last], bases[first:last])
            first = last


def unit_ratios(model: HyenaDNA, unit: SubstitutionUnit, *, dtype: torch.dtype = torch.float32) -> NDArray[np.float64]:
    """The log-likelihood ratio of each change of a unit, (n,).

    Parameters
    ----------
    model : HyenaDNA
        On the device to use, in eval mode.
    unit : SubstitutionUnit
        Of a sequence within the model's context.
    dtype : torch.dtype
        What the model computes in.

    Raises
    ------
    NotFiniteError          the model gives something that is not a number
    """
    shared, suffix = unit.reference[: unit.start], unit.reference[unit.start :]
    rows = np.tile(suffix, (len(unit.positions) + 1, 1))
    changed = unit.positions - unit.start
    rows[np.arange(1, len(rows)), changed] = unit.bases + A
    nats = next_base_nats(model, torch.from_numpy(rows), behind=shared, dtype=dtype)
    # before a change nothing differs but by rounding
    counts = is_base(suffix[1:]) & (np.arange(1, len(suffix)) >= changed[:, None])
    ratios: NDArray[np.float64] = np.where(counts, nats[1:] - nats[0], 0.0).sum(axis=1)
    if not np.isfinite(ratios).all():
        raise not_finite(len(unit.reference))
    return ratios


def ratios_of(
    tokens: NDArray[np.uint8], units: Iterable[SubstitutionUnit], ratios: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """All substitutions of a sequence, from what its units give.

    Parameters
    ----------
    tokens : uint8 array (L,)
        Of the forward strand.
    units : iterable of SubstitutionUnit
        All of `substitution_units`, in any order.
    ratios : sequence of float64 arrays
        Of each, as `unit_ratios` gives it.

    Returns
    -------
    float64 array (L, 4)
        As `substitutions` returns it.
    """
    L = len(tokens)
    by_strand: dict[str, NDArray[np.float64]] = {}
    for unit, values in zip(units, ratios, strict=True):
        found = by_strand.setdefault(unit.strand, np.zeros((L, 4)))
        if unit.strand == "+":
            found[unit.positions, unit.bases] = values
        else:
            found[L - 1 - unit.positions, 3 - unit.bases] = values
    mean = sum(by_strand.values(), np.zeros((L, 4))) / max(1, len(by_strand))
    mean[~is_base(tokens)] = math.nan
    return mean
