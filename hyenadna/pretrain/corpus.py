"""The genomes of a pretraining run: packed, split, and ready to draw windows from."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

from hyenadna.data.genomes import ecoli
from hyenadna.data.intervals import kept_contigs, read_bed
from hyenadna.data.packed import Pack, packed
from hyenadna.data.sampler import Source, Windows, WindowSampler, validation_windows
from hyenadna.data.splits import Part, Split, bed_split, contig_split, hashed_split, splits_to_json
from hyenadna.data.tokenizer import A
from hyenadna.errors import InputError, UsageError
from hyenadna.pretrain.config import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Genome:
    """One FASTA file of a run."""

    pack: Pack
    split: Split
    weight: float
    """Share of the windows, relative to the other genomes' weights."""
    left_out: dict[str, str]
    """Contigs that are not used, and why."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All genomes of a run."""

    genomes: tuple[Genome, ...]

    @classmethod
    def of(cls, config: PretrainConfig, max_length: int) -> "Corpus":
        """Pack the FASTA files of a run if need be, choose their contigs and split them.

        Raises
        ------
        FastaError, IntervalError, InputError       a file that cannot be used; see `hyenadna.data`
        UsageError                                  a weight that is no positive number, or files with and without
        """
        genomes = []
        given = [_path_and_weight(argument) for argument in config.fasta or (str(ecoli()),)]
        if len({weight is None for _, weight in given}) > 1:
            raise UsageError("--fasta has files with a weight and files without; give all of them one, or none")
        for path, weight in given:
            pack = packed(path)
            contigs = kept_contigs(pack.lengths, config.contigs)
            if config.split_bed is not None:
                split = bed_split(read_bed(config.split_bed, pack.lengths), pack)
            elif config.valid_contigs or config.test_contigs:
                split = contig_split(contigs.intervals, config.valid_contigs, config.test_contigs, pack)
            else:
                split = hashed_split(contigs.intervals, pack, max_length)
            genomes.append(Genome(pack, split, weight or split.bases("train"), dict(contigs.left_out)))
        return cls(tuple(genomes))

    @property
    def sequences(self) -> tuple[str, ...]:
        """SHA-256 of each genome's sequence: what a run may not change while it lasts."""
        return tuple(genome.pack.sequence_sha256 for genome in self.genomes)

    def sampler(self, config: PretrainConfig) -> WindowSampler:
        """Draws the training windows."""
        return WindowSampler(
            [Source(genome.pack, genome.split.train, genome.weight) for genome in self.genomes],
            config.seed,
            n_token="n",
            soft_mask=config.soft_mask,
            reverse_complement=config.reverse_complement,
            max_n_share=config.max_n_share,
        )

    def validation(self, config: PretrainConfig, max_length: int) -> Windows:
        """The windows of a validation, the same throughout the run."""
        sources = [Source(genome.pack, genome.split.valid, genome.weight) for genome in self.genomes]
        count = max(1, config.valid_tokens // max_length)
        windows = validation_windows(sources, max_length, count, n_token="n", soft_mask=config.soft_mask)
        if not (windows.targets >= A).any():
            raise InputError("no base of the valid part can be scored; hold out other contigs or another BED")
        return windows

    def split_json(self) -> dict[str, Any]:
        """The splits, as they are stored with the model."""
        return splits_to_json([genome.split for genome in self.genomes])

    def describe(self) -> str:
        """What is used of the genomes, in words."""
        lines = []
        for genome in self.genomes:
            split = genome.split
            used = {interval.contig for part in get_args(Part) for interval in split.part(part)}
            kept = [name for name in genome.pack.names if name in used]
            named = ", ".join(kept[:8]) + (f" and {len(kept) - 8} more" if len(kept) > 8 else "")
            lines.append(f"{genome.pack.source}: {len(kept)} of {len(genome.pack.names)} contigs: {named}")
            for part in get_args(Part):
                gc = split.gc[part]
                share = "" if gc is None else f", GC {gc:.1%}"
                lines.append(f"  {part:<6}{split.bases(part):>15,} bases in {len(split.part(part))} intervals{share}")
            if genome.left_out:
                named = ", ".join(f"{name} ({why})" for name, why in list(genome.left_out.items())[:8])
                more = f" and {len(genome.left_out) - 8} more" if len(genome.left_out) > 8 else ""
                lines.append(f"  left out: {named}{more}; --contigs all uses every contig")
        return "\n".join(lines)


def _path_and_weight(argument: str) -> tuple[Path, float | None]:
    path, colon, weight = argument.rpartition(":")
    if not colon or Path(argument).exists():
        return Path(argument), None
    try:
        value = float(weight)
    except ValueError:
        return Path(argument), None
    if not 0 < value < float("inf"):
        raise UsageError(f"--fasta {argument}: the weight must be a positive number")
    return Path(path), value
