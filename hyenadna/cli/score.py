"""`hyena score`."""

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyenadna.cli import options
from hyenadna.cli.config_flags import takes_config
from hyenadna.errors import UsageError
from hyenadna.inference.score_config import ScoreConfig
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.data.intervals import Interval
    from hyenadna.data.reference_check import Genome
    from hyenadna.inference.score_vcf import Scorable, Scored
    from hyenadna.inference.variant_scores import VariantScorer

_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT, and what a stopped run of another job has kept.")
]


@takes_config(ScoreConfig)
def score(
    config: ScoreConfig,
    *,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Variant effects into a VCF's INFO. Example: hyena score my.vcf.gz --fasta ref.fa -o scored.vcf.gz

    HYENA_LLR is ln p(alternative) - ln p(reference) in nats: positive where the model finds the alternative likelier.
    Most of it is mutability, so read it beside HYENA_LLR_MARKOV, the same from a Markov model, and HYENA_PCT, the
    percentile among SNVs of the same trinucleotide change; indels have none, and are never ranked with SNVs. HYENA_FLAG
    says what to mind, or why there is no score. No score says that a variant is harmful.

    Nothing but INFO changes, records keep their order, and the same command goes on where it was stopped.
    """
    _check_places(config, overwrite=overwrite, dry_run=dry_run, as_json=as_json)
    from hyenadna.data.reference_check import Genome

    assert config.fasta is not None
    genome = Genome(config.fasta)
    settings = {"device": device, "dtype": "float32" if dtype == "auto" else dtype}
    if config.bed is not None:
        result = _saturated(config, genome, settings, threads, overwrite=overwrite, dry_run=dry_run)
    else:
        result = _scored(config, genome, settings, threads, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    elif config.out != "-" or dry_run:
        typer.echo(result["text"])
    else:
        notice(result["text"])


def _check_places(config: ScoreConfig, *, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    if config.out == "-" and as_json and not dry_run:
        raise UsageError("--json and the scores would both go to stdout; name a file for the scores by -o")
    if config.data == "-" and dry_run:
        raise UsageError("--dry-run reads the input twice, which standard input does not allow; give a file")
    options.out_file(config.out, (config.data, config.bed, config.fasta), overwrite=overwrite)


def _scored(
    config: ScoreConfig,
    genome: "Genome",
    settings: dict[str, Any],
    threads: int | None,
    *,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Score a VCF file, or say what that would take."""
    from hyenadna.inference.score_journal import check_journal
    from hyenadna.inference.score_plan import vcf_plan
    from hyenadna.inference.score_vcf import scorable, score_vcf, state_folder

    if config.data == "-":
        notice("standard input cannot be read again: a run that is stopped starts anew")
    with scorable(config, genome) as source:
        scorer = _scorer(config, genome, settings, threads)
        if dry_run:
            return vcf_plan(source, scorer, before=_before(config))
        about, test = _about(config, scorer), _held_out(config, genome)
        notice(f"{about['model']} on variants: {about['performance']}")
        job = about | _origin(config, genome) | settings | {"device": str(scorer.model.device.type)}
        job |= {"region": config.region, "ref_mismatch": config.ref_mismatch, "percentiles": config.percentiles}
        job["background"] = hashlib.sha256(repr(test).encode()).hexdigest()[:16]
        if (folder := state_folder(config)) is not None and not overwrite:
            check_journal(folder, job)
        about |= _prepare(scorer, config, genome)
        start = time.perf_counter()
        done = score_vcf(config, source, scorer, genome, about, job, overwrite=overwrite)
        return _result(config, source, done, time.perf_counter() - start) | about


def _saturated(
    config: ScoreConfig,
    genome: "Genome",
    settings: dict[str, Any],
    threads: int | None,
    *,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Score all substitutions of the regions of a BED file, or say what that would take."""
    from hyenadna.data.intervals import read_bed
    from hyenadna.inference.saturation import check_places, saturate
    from hyenadna.inference.score_plan import regions_plan
    from hyenadna.progress import duration

    assert config.bed is not None
    regions = read_bed(config.bed, genome.lengths)
    out = None if config.out == "-" else Path(config.out)
    check_places(regions, out, config.plot, overwrite=overwrite)
    scorer = _scorer(config, genome, settings, threads)
    if dry_run:
        return regions_plan(regions, scorer, genome, before=_before(config))
    about = _about(config, scorer) | _origin(config, genome) | {"command": config.command}
    notice(f"{about['model']} on variants: {about['performance']}")
    about |= _prepare(scorer, config, genome)
    start = time.perf_counter()
    done = saturate(scorer, regions, out, about, plot=config.plot, overwrite=overwrite)
    seconds = time.perf_counter() - start
    earlier = f", {done.earlier:,} of them by an earlier run" if done.earlier else ""
    text = f"{config.out}: {done.regions:,} regions, {done.substitutions:,} substitutions{earlier}; {duration(seconds)}"
    return {"out": config.out, **done._asdict(), "seconds": round(seconds, 3), "text": text} | about


def _scorer(config: ScoreConfig, genome: "Genome", settings: dict[str, Any], threads: int | None) -> "VariantScorer":
    """The scorer, which gives neither Markov ratios nor percentiles before `_prepare`."""
    import torch

    from hyenadna.inference.variant_scores import VariantScorer

    network = options.network(config.model, settings["device"], threads)
    dtype = getattr(torch, settings["dtype"])
    return VariantScorer(network, genome, window=config.window, strand=config.strand, dtype=dtype)


def _prepare(scorer: "VariantScorer", config: ScoreConfig, genome: "Genome") -> dict[str, str]:
    """Give the scorer its Markov models and percentiles, which takes a while; what the percentiles are of."""
    from hyenadna.inference.variant_background import background_of
    from hyenadna.inference.variant_markov import fitted

    scorer.markov = fitted(genome, genome.fingerprint)
    if config.percentiles:
        scorer.background = background_of(scorer, _held_out(config, genome), fingerprint=genome.fingerprint)
    return {"background": "none" if scorer.background is None else scorer.background.where}


def _held_out(config: ScoreConfig, genome: "Genome") -> "tuple[Interval, ...] | None":
    from hyenadna.inference.variant_background import held_out
    from hyenadna.model.hub import find_model

    return held_out(find_model(config.model) / "split.json", genome.lengths)


def _before(config: ScoreConfig) -> int:
    """Variants that are scored for the percentiles."""
    from hyenadna.inference.variant_background import PER_CLASS

    changes = 96 if config.strand == "both" else 192
    return changes * PER_CLASS if config.percentiles else 0


def _about(config: ScoreConfig, scorer: "VariantScorer") -> dict[str, str | int]:
    """What the numbers come from, for the output's header; `_prepare` says what the background is."""
    from hyenadna import __version__
    from hyenadna.model.hub import find_model
    from hyenadna.model.weights import base_sha256

    assert config.fasta is not None
    return {
        "model": config.model_name,
        "sha256": base_sha256(scorer.model.state_dict()),
        "window": config.window,
        "strand": config.strand,
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "genome": config.fasta.name,
        "background": "none",
        "performance": performance(find_model(config.model)),
        "hyenadna": __version__,
    }


def performance(folder: Path) -> str:
    """How a model did on variants whose effects are known, as the variants.json in its folder says it in a sentence."""
    from hyenadna.model.weights import read_json

    file = folder / "variants.json"
    return str(read_json(file).get("performance", "not measured")) if file.exists() else "not measured"


def _origin(config: ScoreConfig, genome: "Genome") -> dict[str, str | int]:
    """Which input this is: names, sizes, and checksums of what files begin and end with."""
    from hyenadna.inference.sequence_chunks import origin

    source = str(config.data if config.bed is None else config.bed)
    return origin(source) | {"fasta": genome.path.name, "fasta_fingerprint": genome.fingerprint}


def _result(config: ScoreConfig, source: "Scorable", done: "Scored", seconds: float) -> dict[str, Any]:
    from hyenadna.progress import duration, quantity

    source.names.report_missing()
    rate = done.scored / seconds
    said = [f"{done.records:,} records", f"{done.scored:,} of {done.alleles:,} alleles scored"]
    said += [f"{done.earlier:,} records by an earlier run"] if done.earlier else []
    said += [f"{done.left_out:,} records left out, as the genome does not hold their REF"] if done.left_out else []
    flags = ", ".join(f"{flag} {number:,}" for flag, number in done.flags.items())
    text = f"{', '.join(said)}; {flags or 'no flags'}; {duration(seconds)}, {quantity(rate)}variants/s"
    return {
        "out": config.out,
        **done._asdict(),
        "seconds": round(seconds, 3),
        "variants_per_s": round(rate, 1),
        "missing_contigs": dict(source.names.missing),
        "text": text if config.out == "-" else f"{config.out}: {text}",
    }
