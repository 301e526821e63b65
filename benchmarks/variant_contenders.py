"""The models that are compared, and their raw numbers: kept in a folder as they come, so that a killed run goes on.

What is kept is named by what it depends on: the weights, the variants or sequences, the window and the strand.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from starter import TEST
from variant_sets import CHR20, Sequences

from hyenadna.data.alleles import Variant, normalized
from hyenadna.data.fasta import read_records
from hyenadna.errors import UsageError
from hyenadna.files import atomic_write, sha256
from hyenadna.inference.likelihood import Strand, likelihoods
from hyenadna.inference.markov import MarkovModels, count_both_strands
from hyenadna.inference.variant_background import background_of
from hyenadna.inference.variant_markov import VariantMarkov, fitted
from hyenadna.inference.variant_scores import VariantScorer
from hyenadna.inference.variant_windows import longest_allele, place
from hyenadna.model import checkpoint
from hyenadna.model.hub import find_model
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.weights import base_sha256
from hyenadna.progress import progress

Floats = NDArray[np.float64]
ORDER = 10
"""Of the Markov models that are counted here."""
_AT_ONCE = 512
_SAVE_EVERY_S = 20.0


class Contender(NamedTuple):
    """A model under the name that it has in the report."""

    name: str
    model: HyenaDNA
    sha256: str
    """Of its weights."""
    random: bool = False
    """Whether its weights are as they were initialised."""


class Scored(NamedTuple):
    """What the scorer says of variants, in their order."""

    llr: Floats
    markov: Floats
    percentile: Floats
    flags: NDArray[np.str_]
    """Comma-separated."""

    def flagged(self, flag: str) -> NDArray[np.bool_]:
        """Which variants have the flag."""
        return np.array([flag in flags.split(",") for flags in self.flags.tolist()], dtype=bool)


def contenders(sources: Sequence[str], random_weights: int, device: torch.device) -> list[Contender]:
    """The models, and the first one's configuration with weights as they are initialised by seeds 0, 1, ...

    Raises
    ------
    UsageError              two models of the same name
    """
    found = []
    for source in sources:
        read = checkpoint.read(find_model(source))
        name = source if source.count("/") == 1 and not Path(source).exists() else Path(source).name
        found.append(Contender(name, read.model.eval().to(device), read.base_sha256))
    for seed in range(random_weights):
        torch.manual_seed(seed)
        model = HyenaDNA(found[0].model.config).eval()
        found.append(Contender(f"random weights {seed}", model.to(device), base_sha256(model.state_dict()), True))
    names = [contender.name for contender in found]
    if len(set(names)) < len(names):
        raise UsageError(f"the models are called {', '.join(names)}: give folders whose own names differ")
    return found


class Scores:
    """Raw numbers of contenders, from the folder `keep` or computed now.

    Parameters
    ----------
    keep : Path
        Folder of the .npz files.
    window : int
        In which variants are scored.
    dtype : torch.dtype
        What the models compute in.
    """

    def __init__(self, keep: Path, window: int, dtype: torch.dtype = torch.float32) -> None:
        self.keep, self.window, self.dtype = keep, window, dtype
        self.seconds: dict[str, float] = {}
        self._markov: dict[Path, VariantMarkov] = {}
        self._human: MarkovModels | None = None

    def of_variants(
        self,
        contender: Contender,
        genome: Sequences,
        variants: Sequence[Variant],
        strand: Strand = "both",
        percentiles: bool = False,
    ) -> Scored:
        """The scores of the variants, in their order.

        Parameters
        ----------
        contender : Contender
        genome : Sequences
        variants : sequence of Variant
        strand : {'forward', 'reverse', 'both'}
        percentiles : bool
            Also those among all SNVs of the same change, for which thousands of other SNVs are scored.
        """
        digest = sha256(genome.path)
        about = f"{contender.sha256} {digest} {self.window} {strand} {self.dtype} {percentiles} {list(variants)}"
        path = self._path(f"{contender.name}-{strand}", about)
        order = sorted(range(len(variants)), key=lambda number: variants[number])
        columns = _read(path) or {
            "done": np.zeros(len(variants), dtype=bool),
            **{name: np.full(len(variants), np.nan) for name in ("llr", "markov", "percentile", "seconds")},
            "flags": np.full(len(variants), "", dtype="<U64"),
        }
        left = [number for number in order if not columns["done"][number]]
        if left:
            scorer = VariantScorer(
                contender.model,
                genome,
                window=self.window,
                strand=strand,
                dtype=self.dtype,
                markov=self._markov_of(genome, digest),
            )
            if percentiles:
                scorer.background = background_of(scorer, fingerprint=digest)
            with progress(f"{contender.name}, {strand}", len(order), " variants", len(order) - len(left)) as job:
                for numbers in _saving(path, columns, left, _AT_ONCE):
                    started = time.perf_counter()
                    for number, score in zip(numbers, scorer.score([variants[n] for n in numbers]), strict=True):
                        columns["llr"][number], columns["markov"][number] = score.llr, score.markov
                        columns["percentile"][number] = score.percentile
                        columns["flags"][number] = ",".join(score.flags)
                    columns["done"][numbers] = True
                    columns["seconds"][numbers] = (time.perf_counter() - started) / len(numbers)
                    job.advance(len(numbers))
        self.seconds[f"{contender.name}, {strand}, {len(order):,} variants"] = float(columns["seconds"].sum())
        return Scored(*(columns[name] for name in ("llr", "markov", "percentile", "flags")))

    def of_bases(self, contender: Contender, sequences: Sequence[str], strand: Strand = "forward") -> list[Floats]:
        """Nats of every base of the sequences, as `likelihoods` gives them; NaN where a base is not scored."""
        path = self._path(f"{contender.name}-bases", f"{contender.sha256} {strand} {self.dtype} {list(sequences)}")
        lengths = [len(sequence) for sequence in sequences]
        ends = np.cumsum(lengths)
        columns = _read(path) or {
            "done": np.zeros(len(sequences), dtype=bool),
            "nats": np.full(int(ends[-1]), np.nan),
            "seconds": np.full(len(sequences), np.nan),
        }
        left = [number for number in range(len(sequences)) if not columns["done"][number]]
        with progress(f"{contender.name}, likelihood", sum(lengths[number] for number in left)) as job:
            for numbers in _saving(path, columns, left, max(1, len(left) * 65_536 // max(1, sum(lengths)))):
                started = time.perf_counter()
                given = likelihoods(contender.model, [sequences[n] for n in numbers], strand=strand, dtype=self.dtype)
                for number, found in zip(numbers, given, strict=True):
                    columns["nats"][ends[number] - lengths[number] : ends[number]] = found.per_base
                columns["done"][numbers] = True
                columns["seconds"][numbers] = (time.perf_counter() - started) / len(numbers)
                job.advance(sum(lengths[number] for number in numbers))
        self.seconds[f"{contender.name}, {strand}, {int(ends[-1]):,} bases"] = float(columns["seconds"].sum())
        return np.split(columns["nats"], ends[:-1])

    def human_markov(self, data: Path) -> MarkovModels:
        """Counted on what the starter model was trained on: chr20 but for the pieces held out from it. Kept, too."""
        if self._human is None:
            kept = self.keep / f"markov-{ORDER}-{sha256(data / CHR20)[:12]}.npz"
            if not kept.exists():
                (record,) = read_records(data / CHR20)
                edges = [0, *(edge for piece in TEST for edge in piece), len(record.sequence)]
                stretches = [record.sequence[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
                _save(kept, {str(k): counts for k, counts in enumerate(count_both_strands(stretches, ORDER))})
            with np.load(kept) as file:
                self._human = MarkovModels(tuple(file[str(k)] for k in range(ORDER + 1)))
        return self._human

    def by_human_markov(self, data: Path, genome: Sequences, variants: Sequence[Variant]) -> Floats:
        """The LLR of variants, mean of both strands, by that model; NaN for alleles that no window holds."""
        model = self.human_markov(data)
        fold = {contig: np.zeros(1, dtype=np.int64) for contig in genome.lengths}
        markov = VariantMarkov((model, model), max(genome.lengths.values()), fold)
        spelt = [normalized(variant, genome) for variant in variants]
        longest = longest_allele(self.window)
        known = [n for n, (_, _, ref, alt) in enumerate(spelt) if max(len(ref), len(alt)) <= longest]
        found = np.full(len(variants), np.nan)
        signs: tuple[Literal["+"], Literal["-"]] = ("+", "-")
        found[known] = sum(
            markov.ratios(
                [(spelt[n], place(spelt[n], sign, self.window, genome.lengths[spelt[n].contig])) for n in known], genome
            )
            for sign in signs
        ) / len(signs)
        return found

    def _markov_of(self, genome: Sequences, digest: str) -> VariantMarkov:
        if genome.path not in self._markov:
            self._markov[genome.path] = fitted(genome, digest)
        return self._markov[genome.path]

    def _path(self, name: str, about: str) -> Path:
        digest = hashlib.sha256(about.encode()).hexdigest()[:12]
        return self.keep / f"{name.replace('/', '-').replace(' ', '-')}-{digest}.npz"


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        return dict(file)


def _save(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]


def _saving(path: Path, columns: dict[str, NDArray[Any]], left: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Pieces of what is left; what they filled in is written from time to time, and at the end."""
    saved = time.monotonic()
    for first in range(0, len(left), at_once):
        yield list(left[first : first + at_once])
        if time.monotonic() - saved > _SAVE_EVERY_S or first + at_once >= len(left):
            _save(path, columns)
            saved = time.monotonic()
