"""`hyena evaluate`."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyenadna.cli import options
from hyenadna.errors import SequenceTooLong, UsageError
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.data.intervals import Interval
    from hyenadna.data.packed import Pack
    from hyenadna.data.splits import Split
    from hyenadna.inference.evaluation import Evaluation
    from hyenadna.inference.expert_usage import ExpertUsage
    from hyenadna.model.language_model import HyenaDNA

Part = Literal["test", "valid", "train", "all"]

_BATCH_TOKENS = {"cpu": 1 << 15, "cuda": 1 << 17}

_Fasta = Annotated[
    Path | None, typer.Option(help="FASTA file, plain, gzip or BGZF; or a pack. Default: the bundled E. coli genome.")
]
_Part = Annotated[
    Part, typer.Option(help="Part of the genome, by the split stored with the model if it knows the genome.")
]
_Length = Annotated[int | None, typer.Option(min=2, help="Bases of a window. Default: the model's context.")]
_MaxBases = Annotated[
    int | None, typer.Option(min=1, help="About how many bases to score on each strand, evenly spread. Default: all.")
]
_Regions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=BED", help="Regions to report inside and outside of; may be given several times."),
]
_Contigs = Annotated[
    str | None,
    typer.Option(help="Regular expression of contigs to use, or 'all'. Default: no copies and no unplaced pieces."),
]
_Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for tables (TSV), evaluation.json and plots (PNG).")
]
_Experts = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=1,
        max=8,
        help="Also write experts.tsv: which experts are on after each K-mer, in regions and in soft-masked bases.",
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an evaluation in the output folder.")]


def evaluate(
    *,
    model: options.Model = "starter",
    fasta: _Fasta = None,
    split: _Part = "test",
    length: _Length = None,
    max_bases: _MaxBases = None,
    regions: _Regions = None,
    experts: _Experts = None,
    contigs: _Contigs = None,
    out: _Out = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
) -> None:
    """Bits per base next to Markov models on the same bases. Example: hyena evaluate -m run/model -o report"""
    beds = _named_regions(regions or [])
    _check_out(out, overwrite)
    if experts is not None and out is None:
        raise UsageError("--experts writes a table; say by -o into which folder")
    import torch

    from hyenadna.data.genomes import ecoli
    from hyenadna.data.packed import packed
    from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
    from hyenadna.model.language_model import HyenaDNA

    torch.set_num_threads(threads or available_cpus())
    keep_freed_memory()
    place = torch_device(device)
    pack = packed(fasta or ecoli())
    if fasta is None:
        _refuse_the_bundled(model, pack)
    network = HyenaDNA.from_pretrained(model, device=place)
    if experts is not None and network.config.feed_forward != "remoe":
        raise UsageError(f"--experts: {model} has none; models pretrained with --feed-forward remoe have")
    data = _data(model, network.config.filter_length, pack, split, contigs, length)
    # first, since it is what may be asked for in vain: k-mers that fit into no window
    usage = None if experts is None else _expert_usage(network, data, beds, max_bases, experts)
    result, markov_provenance = _measure(network, data, beds, max_bases, "float32" if dtype == "auto" else dtype)
    provenance = data.provenance() | markov_provenance | _model_provenance(model, network) | {"device": str(place)}
    _report(result, provenance, out, as_json)
    if usage is not None and out is not None:
        usage.write(out / "experts.tsv")


def _expert_usage(
    network: "HyenaDNA", data: "_Data", beds: dict[str, Path], max_bases: int | None, k: int
) -> "ExpertUsage":
    from hyenadna.inference.expert_usage import expert_usage

    return expert_usage(
        network.eval(),
        data.pack,
        data.intervals,
        length=data.length,
        k=k,
        regions=_regions(data, beds),
        max_bases=max_bases,
        batch_tokens=_BATCH_TOKENS[network.device.type],
    )


def _regions(data: "_Data", beds: dict[str, Path]) -> "dict[str, list[Interval]]":
    from hyenadna.data.intervals import read_bed

    return {name: [region.interval for region in read_bed(path, data.pack.lengths)] for name, path in beds.items()}


def _measure(
    network: "HyenaDNA", data: "_Data", beds: dict[str, Path], max_bases: int | None, dtype: str
) -> "tuple[Evaluation, dict[str, Any]]":
    """Train the Markov models, and measure all models."""
    import torch

    from hyenadna.inference import markov
    from hyenadna.inference.evaluate import evaluate as measure

    regions = _regions(data, beds)
    baselines, chosen = markov.fit(data.pack, data.split.train, data.split.valid)
    result = measure(
        network,
        data.pack,
        data.intervals,
        baselines,
        length=data.length,
        regions=regions,
        max_bases=max_bases,
        batch_tokens=_BATCH_TOKENS[network.device.type],
        dtype=getattr(torch, dtype),
    )
    return result, {
        "markov_prior_weight": baselines.prior_weight,
        "markov_prior_weight_chosen_on": "valid" if chosen else "nothing: the default, as valid holds no base",
        "dtype": dtype,
    }


def _report(result: "Evaluation", provenance: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from hyenadna.inference import evaluation_report

    if out is not None:
        evaluation_report.write(result, provenance, out)
        notice(f"tables and plots are in {out}")
    if as_json:
        typer.echo(json.dumps(provenance | result.to_json(), indent=2))
    else:
        typer.echo(evaluation_report.text(result, provenance))


@dataclasses.dataclass(frozen=True)
class _Data:
    """What is evaluated on, and what the baselines are trained on."""

    pack: "Pack"
    split: "Split"
    is_stored: bool
    """Whether the split is the one that the model was trained with."""
    part: Part
    intervals: "list[Interval]"
    length: int

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        origin = "stored with the model" if self.is_stored else "made for this evaluation"
        return {
            "fasta": self.pack.source,
            "sequence_sha256": self.pack.sequence_sha256,
            "split": f"{origin}: {self.split.rule}",
            "split_stored_with_model": self.is_stored,
            "part": self.part,
            "intervals": len(self.intervals),
            "markov_trained_on": (
                f"both strands of the train part of {self.pack.source}: {self.split.bases('train'):,} bases in "
                f"{len(self.split.train)} intervals"
            ),
        }


def _data(model: str, filter_length: int, pack: "Pack", part: Part, contigs: str | None, length: int | None) -> _Data:
    """The intervals to evaluate on.

    Raises
    ------
    UsageError              no interval of the part lies on the contigs asked for
    SequenceTooLong         the windows asked for are longer than the model takes
    """
    from hyenadna.data.intervals import kept_contigs
    from hyenadna.data.splits import hashed_split

    if length is not None and length > filter_length:
        raise SequenceTooLong(f"--length {length:,} is more than the {filter_length:,} bases that {model} takes")
    window = length or max(2, filter_length - 2)
    split = stored_split(model, pack)
    is_stored = split is not None
    if split is None:
        split = hashed_split(kept_contigs(pack.lengths, contigs).intervals, pack, window)
        notice(
            f"{model} stores no split of this genome, and may have been trained on any of it: {pack.source} is split "
            f"anew, the Markov models are counted on its train part, and all are scored on {part}"
        )
    intervals = [*split.train, *split.valid, *split.test] if part == "all" else list(split.part(part))
    if is_stored and contigs is not None:
        names = {interval.contig for interval in kept_contigs(pack.lengths, contigs).intervals}
        intervals = [interval for interval in intervals if interval.contig in names]
        if not intervals:
            raise UsageError(f"--contigs {contigs!r}: the {part} part of the model's split has nothing there")
    if part in ("train", "all"):
        notice(f"the {part} part holds what the Markov models were counted on, and what the model was trained on")
    longest = max(map(len, intervals))
    if length is None and longest < window:
        notice(f"windows of {longest:,} bases, the longest interval, instead of the model's context of {window:,}")
        window = max(2, longest)
    return _Data(pack, split, is_stored, part, sorted(intervals), window)


def stored_split(model: str, pack: "Pack") -> "Split | None":
    """The split that the model was trained with, if it is one of this genome: same contigs, same lengths."""
    from hyenadna.data.splits import matching_split, read_splits
    from hyenadna.model.hub import find_model

    path = find_model(model) / "split.json"
    split = matching_split(read_splits(path), pack) if path.exists() else None
    if split is not None and split.sequence_sha256 != pack.sequence_sha256:
        notice(
            f"{pack.source} has the contigs of {split.source}, which the model was trained on, but not its sequence "
            f"(SHA-256 {pack.sequence_sha256[:12]}, not {split.sequence_sha256[:12]}): the stored split is used"
        )
    return split


def _refuse_the_bundled(model: str, pack: "Pack") -> None:
    """Without --fasta the bundled genome is taken, which must not happen to a model of another genome unnoticed.

    Raises
    ------
    UsageError              the model stores splits, and none of them is of the bundled genome
    """
    from hyenadna.data.splits import read_splits
    from hyenadna.model.hub import find_model

    path = find_model(model) / "split.json"
    sources = [split.source for split in read_splits(path)] if path.exists() else []
    if sources and stored_split(model, pack) is None:
        raise UsageError(
            f"{model} was trained on {', '.join(sources)}; say by --fasta where that, or another genome, is"
        )


def _model_provenance(model: str, network: "HyenaDNA") -> dict[str, Any]:
    from hyenadna import __version__
    from hyenadna.model.weights import base_sha256

    return {"hyenadna": __version__, "model": model, "base_sha256": base_sha256(network.state_dict())}


def _named_regions(arguments: list[str]) -> dict[str, Path]:
    """The BED file of each name, of arguments NAME=BED.

    Raises
    ------
    UsageError              an argument of another form, or a name given twice or taken
    """
    from hyenadna.inference.block_sums import SOFT_MASKED

    beds: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--regions {argument!r}: it takes NAME=BED, such as exons=exons.bed")
        if name in beds or name == SOFT_MASKED:
            raise UsageError(f"--regions {argument!r}: the name {name!r} is taken already; give it another one")
        beds[name] = Path(path)
    return beds


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Before the work rather than after it: refuse to replace an earlier evaluation without being told to."""
    from hyenadna.inference.evaluation_report import FILES

    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file; give a folder")
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{out} holds an evaluation already ({there[0]}); --overwrite replaces it")
