"""The gated causal long convolution by itself: ours against the textbook and others, at published and friendly lengths.

    python benchmarks/fft_conv.py -o benchmarks/results/fft_conv.json

Inference computes y from v, the filters and two gates; ours keeps the filters' spectra from call to call, as the model
does, and they are made before the clock starts. Training computes y and the gradients of all five inputs. The others
transform the filters at every call, as they are written:

- textbook: rfft of length 2 L of input and filters, gates and skip as operations of their own;
- friendly: the same at the length that ours takes on a CPU instead of 2 L, where that is another: its prime factors are
  2, 3 and 5;
- on a GPU also `torch.compile` of the textbook, in bfloat16 at the friendly lengths, and, where they can be imported,
  FlashFFTConv (powers of two, half precision) and NVIDIA's subquadratic-ops.

`exact` is float32 in and out. `fast`, on a GPU, is bfloat16 in and out with float16 inside; the textbook then
transforms in float32, as under autocast. Before anything is timed every output is compared with float64; if ours is
farther off than its precision promises, the case is refused and gets no times. Next to each time stand the bytes that
must move at least, and the time that copying so many takes on this machine: no bound where they fit into a cache.

Takes about eight minutes on two cores; --lengths measures some alone.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from convolution_opponents import FRIENDLY, OPPONENTS, Forward, Opponent, opponents
from side_by_side import Timer, arguments, run, spread, take_turns
from torch import Tensor

from hyenadna import plots
from hyenadna.errors import KernelError
from hyenadna.kernels.backend import Precision
from hyenadna.kernels.fft_conv import (
    fft_conv,
    fft_conv_reference,
    fft_conv_spectrum,
    filter_spectrum,
    transform_of,
)
from hyenadna.progress import notice

Kind = Literal["inference", "training"]
PUBLISHED = (32_770, 160_002, 450_002, 1_000_002)
"""The filter lengths of the published models, of which the larger ones double to numbers with large prime factors."""
LENGTHS = sorted(FRIENDLY + PUBLISHED)
PROMISED: dict[Precision, float] = {"exact": 1e-6, "fast": 1e-3}
"""Relative L2 error; exact may be as much as twice the textbook's own error in float32, where that is more."""
CHECKED = 1 << 22
"""Elements of each output that are compared with float64."""
CPU_CHANNELS = {450_002: 16, 1_000_002: 16, 1_048_576: 16}
"""For every contender alike: with 256 the textbook would need more than ten gigabytes and minutes; elsewhere 256."""


class Case(NamedTuple):
    kind: Kind
    precision: Precision
    length: int
    """Bases."""
    batch: int
    channels: int
    repetitions: int
    bar: float | None = None
    """How many times faster than the textbook ours must be."""
    stretch: float | None = None
    """And how many times it is meant to be."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "exact" else torch.bfloat16

    @property
    def bytes_to_move(self) -> int:
        """Each input once and each output once, by a computation that keeps everything else on the chip.

        Inference: v and two gates in, y out, and one spectrum of L complex numbers a channel. Training: forward the
        same with the filters themselves; backward these and the gradient in, and five gradients out.
        """
        elements, taps = self.batch * self.channels * self.length, self.channels * self.length
        if self.kind == "inference":
            return 4 * elements * self.dtype.itemsize + 8 * taps
        return 11 * elements * self.dtype.itemsize + 3 * 4 * taps


class Inputs(NamedTuple):
    """Of one case; all but the last are differentiated in training."""

    v: Tensor
    h: Tensor
    skip: Tensor
    pre_gate: Tensor
    post_gate: Tensor
    gradient: Tensor
    """Of the output."""

    @classmethod
    def of(cls, case: Case, device: torch.device) -> "Inputs":
        generator = torch.Generator(device).manual_seed(0)
        B, D, L = case.batch, case.channels, case.length
        v, pre, post, gradient = (
            torch.randn(B, D, L, generator=generator, device=device).to(case.dtype) for _ in range(4)
        )
        # a decaying window over noise, as long filters have at initialisation
        decay = torch.outer(torch.linspace(3, 15, D, device=device), torch.linspace(0, 1, L, device=device))
        h = torch.randn(D, L, generator=generator, device=device).mul_(decay.neg_().exp_().add_(0.05)) / math.sqrt(L)
        return cls(v, h, torch.randn(D, generator=generator, device=device), pre, post, gradient)

    def channels(self, count: int) -> "Inputs":
        """The same in float64 for the first channels; they do not depend on each other."""
        v, h, skip, *rest = self
        return Inputs(v[:, :count].double(), h[:count].double(), skip[:count].double(),
                      *(x[:, :count].double() for x in rest))  # fmt: skip


Work = Callable[[], tuple[Tensor, ...]]


def step(forward: Forward, inputs: Inputs, kind: Kind) -> Work:
    """What is timed: the output, in training with all gradients."""
    *operands, gradient = inputs
    if kind == "training":
        leaves = [operand.detach().requires_grad_() for operand in operands]

        def training() -> tuple[Tensor, ...]:
            y = forward(*leaves)
            return y.detach(), *torch.autograd.grad(y, leaves, gradient)

        return training

    def inference() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (forward(*operands),)

    return inference


def ours(inputs: Inputs, kind: Kind) -> Work:
    """In inference as the model calls it: with spectra that are kept."""
    if kind == "training":
        return step(fft_conv, inputs, kind)
    v, h, skip, pre, post, _ = inputs
    transform = transform_of(v.shape[-1], v)
    spectrum = filter_spectrum(h, transform)

    def inference() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (fft_conv_spectrum(v, spectrum, skip, pre, post, transform),)

    return inference


def errors(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Relative L2 error of each output in the channels that `exact` has."""
    found = []
    for output, reference in zip(outputs, exact, strict=True):
        channels = output[:, : reference.shape[1]] if output.dim() == 3 else output[: reference.shape[0]]
        found.append(float((channels.double() - reference).norm() / reference.norm()))
    return found


class Contenders(NamedTuple):
    """Of one case; all have run once."""

    works: dict[str, Work]
    errors: dict[str, list[float]]
    """Of each output, also that of rounding exact outputs to the dtype they are asked for in."""
    left_out: dict[str, str]
    """Why other opponents cannot run this case."""


def contenders(case: Case, inputs: Inputs, which: dict[str, Opponent]) -> Contenders:
    checked = max(1, min(case.channels, CHECKED // (case.batch * case.length)))
    exact = step(fft_conv_reference, inputs.channels(checked), case.kind)()
    works: dict[str, Work] = {"ours": ours(inputs, case.kind)}
    outputs = works["ours"]()
    found = {"ours": errors(outputs, exact)}
    found["rounding"] = errors([x.to(y.dtype) for x, y in zip(exact, outputs, strict=True)], exact)
    del outputs
    left_out = {}
    for name, opponent in which.items():
        try:
            forward = opponent(case.length, case.dtype)
            if forward is not None:
                work = step(forward, inputs, case.kind)
                found[name] = errors(work(), exact)
                works[name] = work
        except Exception as error:
            if name in OPPONENTS:
                raise
            # the limits of another project must not end our run
            left_out[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            notice(f"{name} is left out at {case.length:,}: {left_out[name]}")
    return Contenders(works, found, left_out)


def broken_promise(case: Case, found: dict[str, list[float]]) -> str | None:
    """What ours computes worse than its precision promises, or None."""
    names = ("y", "gradient of v", "gradient of h", "gradient of skip", "gradient of pre_gate", "gradient of post_gate")
    for name, error, rounding, theirs in zip(
        names, *(found[x] for x in ("ours", "rounding", "textbook")), strict=False
    ):
        promised = max(PROMISED["exact"], 2 * theirs) if case.precision == "exact" else PROMISED["fast"]
        if not error <= promised + rounding:
            return f"relative error {error:.2g} of {name}; {case.precision} promises {promised + rounding:.2g}"
    return None


def copy_rate(device: torch.device, timer: Timer) -> float:
    """Bytes that a plain copy reads and writes in a second, out of the caches' reach."""
    source = torch.ones((1 << 26) if device.type == "cpu" else (1 << 29), device=device)
    target = torch.zeros_like(source)
    times = 4 if device.type == "cpu" else 1

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    copy()
    return 2 * times * source.nbytes / median(take_turns({"copy": copy}, 7, timer)["copy"])


def measured(
    case: Case, device: torch.device, which: dict[str, Opponent], timer: Timer, copied: float
) -> dict[str, Any]:
    """One case of the report: agreement with float64 first, then the times, in turns."""
    moved = case.bytes_to_move
    facts = case._asdict() | {"gb_to_move": moved / 1e9, "copy_gb_per_s": copied / 1e9, "floor_s": moved / copied}
    try:
        works, found, left_out = contenders(case, Inputs.of(case, device), which)
    except KernelError as error:
        return facts | {"refused": str(error)}
    refused = broken_promise(case, found)
    if refused is not None:
        return facts | {"refused": refused}
    # on a CPU long enough to see who else uses the machine; on a GPU once, with a cold cache
    calls = {
        name: max(1, round(0.2 / timer.timed(work))) if device.type == "cpu" else 1 for name, work in works.items()
    }
    repeated = {name: _repeated(work, calls[name]) for name, work in works.items()}
    report = {}
    for name, values in take_turns(repeated, case.repetitions, timer).items():
        seconds = spread([value / calls[name] for value in values])
        report[name] = {"seconds": seconds, "gb_per_s": moved / seconds["median"] / 1e9, "error": max(found[name])}
    ratios = {
        name: fact["seconds"]["median"] / report["ours"]["seconds"]["median"]
        for name, fact in report.items()
        if name != "ours"
    }
    return facts | {
        "contenders": report,
        "left_out": left_out,
        "error_of_rounding": max(found["rounding"]),
        "ratios": ratios,
        "bar_met": None if case.bar is None else ratios["textbook"] >= case.bar,
        "stretch_met": None if case.stretch is None else ratios["textbook"] >= case.stretch,
    }


def _repeated(work: Work, calls: int) -> Callable[[], None]:
    def repetition() -> None:
        for _ in range(calls):
            work()

    return repetition


def show(facts: dict[str, Any]) -> None:
    what = (
        f"{facts['kind']:<10}{facts['precision']:<6}{facts['length']:>10,} x {facts['batch'] * facts['channels']:<7,}"
    )
    if "refused" in facts:
        notice(f"{what} REFUSED: {facts['refused']}")
        return
    ours = facts["contenders"]["ours"]
    ratios = "".join(f"  {name} {ratio:.2f}x" for name, ratio in facts["ratios"].items())
    bar = "" if facts["bar"] is None else f"  bar {facts['bar']:g} {'met' if facts['bar_met'] else 'MISSED'}"
    notice(
        f"{what}{1e3 * ours['seconds']['median']:>10.3f} ms{ours['gb_per_s']:>9.1f} GB/s "
        f"({facts['floor_s'] / ours['seconds']['median']:.0%} of a copy) error {ours['error']:.1e}{ratios}{bar}"
    )


def cases_of(device: torch.device, lengths: Sequence[int] = LENGTHS) -> list[Case]:
    if device.type == "cpu":
        bars = {1_024: 1.8, 8_192: 1.8, 32_768: 1.8, 160_002: 4.0, 1_000_002: 3.0}
        return [
            Case(kind, "exact", L, 1, CPU_CHANNELS.get(L, 256), 7 if L < 100_000 else 3,
                 bars.get(L) if kind == "inference" else None)
            for kind in ("inference", "training") for L in lengths
        ]  # fmt: skip
    # 1,024 also with a batch that fills the GPU; alone it measures launches
    shapes = [(1_024, 256)] * (1_024 in lengths) + [(L, 1) for L in lengths]
    return [
        Case(kind, precision, L, B, 256, 20, *_targets(kind, precision, L))
        for precision in ("fast", "exact") for kind in ("inference", "training") for L, B in shapes
    ]  # fmt: skip


def _targets(kind: Kind, precision: Precision, L: int) -> tuple[float, float | None]:
    if precision == "exact":
        return 3.0, None
    if kind == "training":
        return 3.5, 9.0
    if L in PUBLISHED:
        return 8.0, 20.0
    return (6.0 if L <= 32_768 else 4.0), 12.0


def draw(path: Path, cases: Sequence[dict[str, Any]]) -> None:
    """One figure for each precision, inference above training; the numbers are in the JSON beside it."""
    single = [case for case in cases if case["batch"] == 1 and "refused" not in case]
    for precision in dict.fromkeys(case["precision"] for case in single):
        figure, panels = plots.stacked_figure((1, 1))
        for ax, kind in zip(panels, get_args(Kind), strict=True):
            shown = [case for case in single if (case["precision"], case["kind"]) == (precision, kind)]
            if not shown:
                continue
            # of 256 channels, though long ones may be measured with fewer
            scale = np.array([256 / case["channels"] for case in shown])
            names = dict.fromkeys(name for case in shown for name in case["contenders"])
            median_of = {name: scale * [_median(case, name) for case in shown] for name in names}
            lengths = [case["length"] for case in shown]
            plots.time_by_length(ax, lengths, median_of, scale * [case["floor_s"] for case in shown])
            ax.set_title(f"{kind}, {precision}, 256 channels", fontsize="medium")
        plots.write_png(figure, path.with_name(f"{path.stem}_{precision}.png"))


def _median(case: dict[str, Any], name: str) -> float:
    """Seconds; where 2 L is friendly itself, the textbook is both."""
    contenders = case["contenders"]
    contender = contenders.get(name, contenders["textbook"] if name == "friendly" else None)
    return math.nan if contender is None else contender["seconds"]["median"]


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    flags = arguments(argv, "Long convolution: ours against others.", ("cpu", "cuda"), LENGTHS)
    device, done = torch.device(flags.device), []

    def benchmark(timer: Timer) -> Iterator[dict[str, Any]]:
        which, copied = opponents(device), copy_rate(device, timer)
        for case in cases_of(device, flags.lengths) if cases is None else cases:
            done.append(measured(case, device, which, timer, copied))
            show(done[-1])
            yield done[-1]

    exit_code = run(flags, benchmark)
    if flags.out is not None and importlib.util.find_spec("matplotlib") is None:
        notice("the plots are left out: matplotlib is not installed")
    elif flags.out is not None:
        draw(flags.out, done)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
