"""What quantisation saved and cost, as text for people, as JSON for programs, and as a picture."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyenadna import plots
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.quantization_cost import Cost, Costs
from hyenadna.model.config import Quantization
from hyenadna.model.language_model import QUANTIZED

JSON, PICTURE = "quantization.json", "quantization.png"
"""What lies in the quantised folder beside the model."""
NEVER = "embedding, output head, norms, biases, routers, filter networks, short filters"
"""What is not quantised: little, and all that the model computes goes through it."""

_AGREEMENT = (
    ("cosine", "embedding cosine, mean", "o"),
    ("worst_cosine", "embedding cosine, worst window", "s"),
    ("substitutions", "Spearman, single-base changes", "D"),
)
"""Fields of a cost that are 1 where nothing was lost, how the picture calls them, and their markers."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that `hyena quantize` found."""

    provenance: Mapping[str, Any]
    """Where the numbers come from."""
    costs: Costs
    """Of every setting that was tried."""
    chosen: Cost
    """Of the setting that was asked for, or found."""
    max_loss: float | None
    """Bits per base that the model may lose; None if nothing was said."""
    suggested: Cost | None = None
    """If the chosen one loses more: the next that does not, of those that take more bits, if there is one."""

    @property
    def curve(self) -> list[Cost]:
        """Those of the group size of which most settings were tried, and the chosen one; most bits a weight first."""
        groups = Counter(cost.setting.group for cost in self.costs.of)
        commonest, _ = groups.most_common(1)[0]
        return [cost for cost in by_bits(self.costs.of) if cost.setting.group == commonest or cost is self.chosen]

    @property
    def passes(self) -> bool:
        """Whether the chosen setting loses no more than it may."""
        return self.max_loss is None or self.chosen.loss.value <= self.max_loss

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            **self.provenance,
            "setting": dataclasses.asdict(self.chosen.setting),
            "bytes_before": self.costs.bytes,
            "bytes_after": self.chosen.bytes,
            "bits_per_weight": self.chosen.bits_per_weight,
            "quantised": [matrix.name for matrix in self.chosen.matrices],
            "never_quantised": NEVER.split(", "),
            "max_loss": self.max_loss,
            "passes": self.passes,
            "suggested": None if self.suggested is None else dataclasses.asdict(self.suggested.setting),
            "dense": {"bits_per_base": dataclasses.asdict(self.costs.bits_per_base)},
            "read": {
                name: getattr(self.costs, name) for name in ("bases", "windows", "genome_blocks", "changes")
            },
            "settings": [dataclasses.asdict(cost) for cost in by_bits(self.costs.of)],
        }  # fmt: skip


def by_bits(costs: Sequence[Cost]) -> list[Cost]:
    """The costs, those with the most bits a weight first."""
    return sorted(costs, key=lambda cost: -cost.bits_per_weight)


def text(report: Report) -> str:
    """The whole report, for people to read."""
    lines = [f"# {name}: {value}" for name, value in report.provenance.items()]
    return "\n".join([*lines, "", *_sizes(report), "", *_cost_lines(report), "", *_error_lines(report)])


def card_section(report: Report, command: str) -> str:
    """What the card of a quantised model says of it, in Markdown."""
    matrices = ", ".join(f"`{name}`" for name in QUANTIZED)
    return f"""
## Quantised

This is the model above with the matrices {matrices}
of its blocks in {_named(report.chosen.setting)},
by half-quadratic quantisation (Badri and Shaji 2023). As they were: {NEVER}.

    {command}

What that cost, beside the model in float32 ({JSON} holds all numbers):

{_indented(text(report))}

![bits per base lost, by bits a weight]({PICTURE})
"""


def picture(report: Report) -> bytes:
    """The curve as PNG: what is lost, and how alike the answers are, by the bits that a weight takes."""
    drawn, (top, bottom) = plots.stacked_figure((1, 1), 6.4, 6.8)
    chosen, costs = report.chosen, by_bits(report.costs.of)
    bits = np.array([cost.bits_per_weight for cost in costs])
    # what else was tried stands beside the curve
    curve = np.array([cost in report.curve for cost in costs])
    value, low, high = np.array([dataclasses.astuple(cost.loss) for cost in costs]).T
    top.errorbar(bits, value, yerr=plots.errors(value, low, high), fmt="o", color=plots.MODEL, markersize=4)
    top.plot(bits[curve], value[curve], color=plots.MODEL)
    top.axhline(0, color="0.6", linewidth=1)
    if report.max_loss is not None:
        top.axhline(report.max_loss, color=plots.BASELINE, linestyle="--", label=f"--max-loss {report.max_loss:g}")
    top.plot(chosen.bits_per_weight, chosen.loss.value, "o", markersize=11, fillstyle="none", color=plots.EXTRA,
             label=f"{_short(chosen.setting)}: {_bytes(chosen.bytes)} of {_bytes(report.costs.bytes)}")  # fmt: skip
    for x, y in zip(bits[curve], value[curve], strict=True):
        top.annotate(f"{y:+z.4f}", (x, y), (6, 6), textcoords="offset points", fontsize="small")
    top.set_ylabel("bits per base lost")
    top.set_title(f"{report.costs.bases:,} held-out bases, 95 % paired block bootstrap", fontsize="medium")
    for (name, label, marker), colour in zip(_AGREEMENT, plots.SERIES, strict=False):
        values = np.array([getattr(cost, name) for cost in costs])
        bottom.plot(bits, values, marker, color=colour, markersize=4)
        bottom.plot(bits[curve], values[curve], f"{marker}-", color=colour, markersize=4, label=label)
    bottom.set_ylabel("agreement with the dense model")
    bottom.set_xlabel("bits per weight, scales and zero points counted")
    labels = [f"{cost.bits_per_weight:.2f}: {_short(cost.setting)}" for cost in costs]
    bottom.set_xticks(bits, labels, fontsize="x-small", rotation=90)
    for axis in (top, bottom):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return plots.png(drawn)


def _sizes(report: Report) -> list[str]:
    chosen, before = report.chosen, report.costs.bytes
    dense = sum(matrix.bytes_dense for matrix in chosen.matrices)
    packed = sum(matrix.bytes_packed for matrix in chosen.matrices)
    return [
        f"{_named(chosen.setting)}: {chosen.bits_per_weight:.3f} bits per weight, all counted",
        "",
        f"{'bytes':<20}{'before':>14}{'after':>14}",
        f"{'quantised matrices':<20}{dense:>14,}{packed:>14,}   {packed / dense:.1%}: {', '.join(QUANTIZED)} "
        f"of {len(chosen.blocks)} blocks",
        f"{'never quantised':<20}{before - dense:>14,}{chosen.bytes - packed:>14,}   {NEVER}",
        f"{'all tensors':<20}{before:>14,}{chosen.bytes:>14,}   {chosen.bytes / before:.1%}",
    ]


def _cost_lines(report: Report) -> Iterator[str]:
    costs = report.costs
    yield f"{'':<14}{'bits per':>9}{'':>35}{'':<20}{'embedding cosine':>18}{'Spearman of':>14}"
    yield (
        f"{'':<14}{'weight':>9}{'bytes':>13}{'bits/base':>11}{'lost':>9}  {'95 % interval':<20}{'mean':>9}{'worst':>9}"
        f"{'changes':>14}"
    )
    yield f"{'float32':<14}{'32':>9}{costs.bytes:>13,}{costs.bits_per_base.value:>11.4f}"
    for cost in by_bits(costs.of):
        mark = " *" if cost.setting == report.chosen.setting else ""
        yield (
            f"{_short(cost.setting) + mark:<14}{cost.bits_per_weight:>9.3f}{cost.bytes:>13,}"
            f"{cost.bits_per_base.value:>11.4f}{cost.loss.value:>+z9.4f}  {_range(cost.loss):<20}"
            f"{cost.cosine:>9.5f}{cost.worst_cosine:>9.5f}{cost.substitutions:>14.4f}"
        )
    yield (
        f"* the setting of this report. {costs.bases:,} bases in {costs.windows:,} windows of both strands; the "
        f"interval is from {costs.genome_blocks:,} blocks of 10 kb; {costs.changes:,} random single-base changes"
    )


def _error_lines(report: Report) -> Iterator[str]:
    every = report.curve
    yield f"{'relative error':<36}" + "".join(f"{_short(cost.setting):>10}" for cost in every)
    for number, matrix in enumerate(report.chosen.matrices):
        yield f"{matrix.name:<36}" + "".join(f"{cost.matrices[number].relative_error:>10.4f}" for cost in every)
    for block in range(len(report.chosen.blocks)):
        yield f"{f'what block {block} gives':<36}" + "".join(f"{cost.blocks[block]:>10.4f}" for cost in every)


def _named(setting: Quantization) -> str:
    bits = f"{setting.bits} bit" + "s" * (setting.bits > 1)
    return f"{bits}, groups of {setting.group}, scales and zero points in {setting.meta_bits} bits"


def _short(setting: Quantization) -> str:
    return f"{setting.bits}b g{setting.group}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def _range(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    return f"[{low:+z.4f}, {high:+z.4f}]" if low == low else "one block only"


def _indented(block: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in block.splitlines())
