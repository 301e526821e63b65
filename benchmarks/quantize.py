"""Half-quadratic quantisation: ours, the authors' package `hqq`, and round-to-nearest, on the same matrices in one run.

    pip install hqq==0.2.8.post1
    python benchmarks/quantize.py

The matrices are those of the starter model, and those of one block of large-1m as it is initialised. Each is quantised
to 8, 4, 3, 2 and 1 bits in groups of 16 to 128; codes are not packed. Compared are the mean absolute error, which the
search is after, and the relative root mean square error, before scales and zero points are rounded. Times are of this
process's CPU, contenders in turns, and the least of the repetitions counts: other processes disturb that least. Writes
JSON and a plot beside it.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import commit
from torch import Tensor

from hyenadna import HyenaDNA, machine, plots
from hyenadna.errors import MissingExtra
from hyenadna.files import write_json
from hyenadna.inference.quantize import solve
from hyenadna.model.config import named_size
from hyenadna.progress import notice, progress

BITS = (8, 4, 3, 2, 1)
GROUPS = (16, 32, 64, 128)
REPETITIONS = 3
RESULTS = Path(__file__).parent / "results" / "quantize.json"


def matrices() -> dict[str, list[Tensor]]:
    """By name of the set; float32."""
    config = named_size("large-1m")
    shapes = ((3 * config.d_model, config.d_model), (config.d_model, config.d_model),
              (config.d_inner, config.d_model), (config.d_model, config.d_inner))  # fmt: skip
    random = torch.Generator().manual_seed(0)
    starter = HyenaDNA.from_pretrained("starter")
    return {
        "starter": [layer.weight.detach() for layer in starter.projections.values()],
        "large-1m, random": [config.initializer_range * torch.randn(shape, generator=random) for shape in shapes],
    }


def ours(weight: Tensor, bits: int, group: int) -> Tensor:
    return solve(weight, bits=bits, group=group).dequantized()


def rounding(weight: Tensor, bits: int, group: int) -> Tensor:
    return solve(weight, bits=bits, group=group, iterations=1).dequantized()


def theirs(weight: Tensor, bits: int, group: int) -> Tensor:
    """By the authors' package, with its defaults: the zero point is rounded at 4 bits.

    Raises
    ------
    MissingExtra            it is not installed
    """
    try:
        from hqq.core.quantize import Quantizer
    except ImportError as error:
        raise MissingExtra("the package to compare with is missing: pip install hqq==0.2.8.post1") from error
    codes, meta = Quantizer.quantize(
        weight, nbits=bits, group_size=group, axis=1, round_zero=bits == 4, device="cpu", compute_dtype=torch.float32,
        bitpack=False,
    )  # fmt: skip
    return ((codes.view(-1, group) - meta["zero"]) * meta["scale"]).view(weight.shape)


CONTENDERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {"ours": ours, "hqq": theirs, "rounding": rounding}


def measure(weights: list[Tensor], bits: int, group: int) -> dict[str, Any]:
    """Errors over all matrices of a set, and the least CPU seconds for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    found = {}
    for _ in range(REPETITIONS):
        for name, work in CONTENDERS.items():
            start = time.process_time()
            found[name] = [work(weight, bits, group) for weight in weights]
            seconds[name].append(time.process_time() - start)
    count = sum(weight.numel() for weight in weights)
    squares = sum(float(weight.double().square().sum()) for weight in weights)
    case: dict[str, Any] = {}
    for name, given in found.items():
        differences = [(one.double() - weight.double()) for one, weight in zip(given, weights, strict=True)]
        case[name] = {
            "mean_absolute_error": sum(float(part.abs().sum()) for part in differences) / count,
            "relative_rmse": (sum(float(part.square().sum()) for part in differences) / squares) ** 0.5,
            "cpu_seconds_per_million": min(seconds[name]) / count * 1e6,
        }
    return case


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Errors beside those of rounding, and times, of groups of 64."""
    drawn, (top, bottom) = plots.stacked_figure((1, 1), 6.4, 6.0)
    colours = iter(plots.SERIES)
    x = np.arange(len(BITS))
    for name in dict.fromkeys(case["matrices"] for case in cases):
        of_set = {case["bits"]: case for case in cases if case["matrices"] == name and case["group"] == 64}
        for contender, style in (("ours", "o-"), ("hqq", "x--")):
            colour, label = next(colours), f"{contender}, {name}"
            errors = [
                of_set[bits][contender]["mean_absolute_error"] / of_set[bits]["rounding"]["mean_absolute_error"]
                for bits in BITS
            ]
            top.plot(x, errors, style, color=colour, label=label)
            times = [of_set[bits][contender]["cpu_seconds_per_million"] for bits in BITS]
            bottom.plot(x, times, style, color=colour, label=label)
    top.axhline(1, color="0.6", linewidth=1)
    top.set_ylabel("mean error / round-to-nearest")
    bottom.set_ylabel("CPU seconds a million weights")
    bottom.set_ylim(bottom=0)
    bottom.set_xticks(x, [str(bits) for bits in BITS])
    bottom.set_xlabel("bits of a weight, groups of 64")
    top.legend(frameon=False, fontsize="small")
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    plots.write_png(drawn, path)


def table(cases: list[dict[str, Any]]) -> None:
    notice(f"{'':18}{'bits':>5}{'group':>6}{'mean error: rounding':>22}{'hqq':>10}{'ours':>10}{'of rounding':>12}"
           f"{'seconds: hqq':>14}{'ours':>7}")  # fmt: skip
    for case in cases:
        error, seconds = (
            {name: case[name][what] for name in CONTENDERS}
            for what in ("mean_absolute_error", "cpu_seconds_per_million")
        )
        notice(f"{case['matrices']:18}{case['bits']:>5}{case['group']:>6}{error['rounding']:>22.6f}{error['hqq']:>10.6f}"
               f"{error['ours']:>10.6f}{error['ours'] / error['rounding']:>12.3f}{seconds['hqq']:>14.2f}"
               f"{seconds['ours']:>7.2f}")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="JSON file to write (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    cases = []
    with progress("quantising", len(BITS) * len(GROUPS) * 2, unit="settings") as job:
        for name, weights in matrices().items():
            for bits in BITS:
                for group in GROUPS:
                    cases.append({"matrices": name, "bits": bits, "group": group, **measure(weights, bits, group)})
                    job.advance(1)
    table(cases)
    about = {"benchmark": "quantize", "commit": commit(), "machine": machine.describe(), "threads": flags.threads}
    write_json(flags.out, {**about, "hqq": _version(), "repetitions": REPETITIONS, "cases": cases})
    draw(cases, flags.out.with_suffix(".png"))


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("hqq")


if __name__ == "__main__":
    main()
