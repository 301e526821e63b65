"""A report on generated sequences as text for people, as tables for programs, and as plots."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyenadna import plots
from hyenadna.files import write_json
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.generation_plots import distributions, spectrum_distances
from hyenadna.inference.longest_match import chance_match
from hyenadna.inference.sequence_statistics import SPECTRA

if TYPE_CHECKING:
    from hyenadna.inference.generation_report import GenerationReport, Sample

FILES = ("generation.json", "spectrum.png", "spectrum.tsv", "sequences.png", "sequences.tsv")
"""What `write` may write."""
_NAME, _CELL = 40, 27


def text(report: "GenerationReport") -> str:
    """All numbers that people look at, each with what it is."""
    generated, reference = report.generated, report.reference
    lines = [f"# generated: {len(generated.lengths):,} sequences, {sum(generated.lengths):,} bases"]
    if reference is None:
        lines.append("# no reference was given: there is nothing to say how far this is from real sequence")
    else:
        lines += [
            f"# held-out: as many windows of the same lengths on either strand, of {reference['held_out_bases']:,} "
            f"held-out bases of {reference['genome']}",
            f"# split: {reference['split']}",
        ]
    samples = [sample for sample in (generated, report.held_out, report.markov) if sample is not None]
    lines += ["", *_table(samples, report.as_written)]
    if report.yardstick is not None:
        lines += ["", *_distance_lines(report)]
    if report.beyond_held_out is not None:
        lines += ["", *_match_lines(report)]
    return "\n".join(lines)


def write(report: "GenerationReport", folder: Path) -> None:
    """Write generation.json, and each table as TSV beside its plot.

    Raises
    ------
    WriteError              the disk is full or the folder read-only
    """
    write_json(folder / "generation.json", report.json())
    for name in FILES[1:3]:
        (folder / name).unlink(missing_ok=True)  # of an earlier report that had a reference
    if report.yardstick is not None:
        rows = _distances(report)
        drawn, ax = plots.figure()
        columns = np.array(rows).T
        spectrum_distances(ax, columns[0].astype(np.int64), *columns[1:])
        plots.save(
            drawn, folder / "spectrum.png", ("k", "generated", "markov", "held_out_mean", "held_out_largest"), rows
        )

    samples = [sample for sample in (report.generated, report.held_out, report.markov) if sample is not None]
    drawn, panels = plots.side_by_side(height=4.0)
    bits = {sample.name: np.array(sample.nats_of_each) / math.log(2) for sample in samples}
    distributions(panels[0], bits, "bits per base under the model")
    matched = {s.name: np.array([match.length for match in s.matches], np.float64) for s in samples if s.matches}
    if matched:
        distributions(panels[1], matched, "longest match in the training part (bp)", log=True)
    else:
        distributions(panels[1], {s.name: np.array(s.gc) for s in samples}, "share of G and C")
    header = (
        "sample", "sequence", "bases", "gc", "nats_per_base", "match_length", "match_start", "match_contig",
        "match_position", "match_strand", "match_identity",
    )  # fmt: skip
    plots.save(drawn, folder / "sequences.png", header, [row for sample in samples for row in _rows(sample)])


def _distances(report: "GenerationReport") -> list[tuple[int, float, float, float, float]]:
    """By k: of the generated sequences, of the Markov samples, of held-out ones the mean and the largest."""
    assert report.yardstick is not None and report.markov is not None
    generated, markov = report.generated.distances, report.markov.distances
    assert generated is not None and markov is not None
    return [(k, generated[k], markov[k], *report.yardstick[k]) for k in SPECTRA]


def _rows(sample: "Sample") -> list[tuple[Any, ...]]:
    matches = sample.matches or (None,) * len(sample.lengths)
    rows: list[tuple[Any, ...]] = []
    for number, (length, gc, nats, match) in enumerate(
        zip(sample.lengths, sample.gc, sample.nats_of_each, matches, strict=True), 1
    ):
        found = (None,) * 6 if match is None else match if match.length else (0, *(None,) * 5)
        rows.append((sample.name, number, length, gc, nats, *found))
    return rows


def _table(samples: list["Sample"], as_written: Estimate) -> list[str]:
    lines = [f"{'':<{_NAME}}" + "".join(f"{sample.name:<{_CELL}}" for sample in samples)]
    for name in samples[0].shares:
        lines.append(f"{name:<{_NAME}}" + "".join(f"{_estimate(sample.shares[name]):<{_CELL}}" for sample in samples))
    deviations = [f"{np.nanstd(sample.gc):.4f}" for sample in samples]
    lines.append(f"{'GC, deviation between sequences':<{_NAME}}" + "".join(f"{cell:<{_CELL}}" for cell in deviations))
    for name, unit in (("nats per base under the model", 1.0), ("bits per base under the model", math.log(2))):
        cells = [_estimate(sample.nats_per_base, unit) for sample in samples]
        lines.append(f"{name:<{_NAME}}" + "".join(f"{cell:<{_CELL}}" for cell in cells))
    lines.append(f"{'nats per base behind its prompt':<{_NAME}}{_estimate(as_written)}")
    lines.append("shares of all bases or words, with 95 % bootstrap intervals over sequences; each sequence is scored")
    lines.append("alone, from its second base on, or as it was written; by -ln p or -log2 p over A, C, G, T")
    return [line.rstrip() for line in lines]


def _distance_lines(report: "GenerationReport") -> list[str]:
    lines = [
        "distance of k-mer spectra from those of held-out sequence (Jensen-Shannon, bits)",
        f"{'k':<4}{'generated':>12}{'Markov':>12}{'held-out, mean':>18}{'largest of 8':>15}",
    ]
    for k, generated, markov, mean, largest in _distances(report):
        lines.append(f"{k:<4}{generated:>12.6f}{markov:>12.6f}{mean:>18.6f}{largest:>15.6f}")
    lines.append(
        "held-out: other windows of the held-out part, as many and as long; a sample that is below the largest"
    )
    lines.append("of them cannot be told from real sequence by these words at this size")
    return lines


def _match_lines(report: "GenerationReport") -> list[str]:
    generated, held_out, beyond = report.generated, report.held_out, report.beyond_held_out
    assert generated.matches and held_out and held_out.matches and report.reference and beyond is not None
    bases = report.reference["train_bases"]
    lines = [
        f"longest exact match in the training part ({bases:,} bases, either strand), bp",
        f"{'':<12}{'median':>8}{'largest':>9}",
    ]
    for sample in (generated, held_out):
        lengths = [match.length for match in sample.matches or ()]
        lines.append(f"{sample.name:<12}{np.median(lengths):>8.0f}{max(lengths):>9}")
    chance = chance_match(int(np.median(generated.lengths)), bases)
    lines.append(
        f"random letters would match over about {chance:.0f} bp; what is repeated in the genome matches longer"
    )
    lines.append(
        f"{len(beyond)} of {len(generated.lengths)} generated sequences match over more than any held-out window does; "
        "about 1 would by chance"
    )
    row = int(np.argmax([match.length for match in generated.matches]))
    best = generated.matches[row]
    if best.length:
        lines.append(
            f"the longest: sequence {row + 1}, {best.length:,} bp from base {best.start + 1:,} on = {best.contig}:"
            f"{best.position + 1:,}-{best.position + best.length:,} ({best.strand}); laid along it without gaps, "
            f"{best.identity:.0%} of the whole sequence is the genome's"
        )
    return lines


def _estimate(estimate: Estimate, unit: float = 1.0) -> str:
    value, low, high = (number / unit for number in (estimate.value, estimate.low, estimate.high))
    if value != value:
        return "nothing to measure"
    return f"{value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low == low else "")
