"""The product with packed weights against dequantise-then-multiply and against dense weights, at the models' shapes.

    python benchmarks/packed_matmul.py -o benchmarks/results/packed_matmul.json        one to two minutes on a CPU
    python benchmarks/packed_matmul.py --device cuda -o FOLDER/packed_matmul.json

On a CPU in float32, on a GPU in bfloat16; 4 bits in groups of 64. All three must agree before anything is timed. A bar
of 1 says that ours is to be no slower than dequantise-then-multiply; nothing is promised against dense weights.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from side_by_side import Timer, arguments, check_same, run, spread, take_turns
from torch import Tensor

from hyenadna.kernels.packed_matmul import packed_matmul, packed_matmul_reference
from hyenadna.kernels.packed_weight import Bits, dequantize, pack
from hyenadna.progress import notice

REPETITIONS, GROUP = 7, 64
FLOPS_OF_A_REPETITION = {"cpu": 4e9, "cuda": 1e11}
"""As many calls are timed together."""


class Case(NamedTuple):
    """x (n, K) times W (R, K)."""

    n: int
    K: int
    R: int
    bits: Bits = 4


SHAPES = ((128, 384), (128, 512), (512, 128), (256, 768), (256, 1024), (1024, 256))
"""K and R of the projection and the feed-forward layer of tiny-1k and large-1m."""


def cases_of(device: torch.device) -> list[Case]:
    rows = (16, 256, 1024) if device.type == "cpu" else (256, 65_536)
    return [Case(n, K, R) for K, R in SHAPES for n in rows]


def contenders(case: Case, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    torch.manual_seed(0)
    n, K, R, bits = case
    dtype, groups = torch.float32 if device.type == "cpu" else torch.bfloat16, -(-K // GROUP)
    x, bias = torch.randn(n, K).to(device, dtype), torch.randn(R).to(device, dtype)
    scale, zero = torch.rand(R, groups).half() / K, torch.rand(R, groups).half() * (1 << bits)
    weight = [part.to(device) for part in (pack(torch.randint(0, 1 << bits, (R, K)).byte(), bits), scale, zero)]
    dense = dequantize(*weight, bits=bits, group=GROUP, columns=K, dtype=dtype)
    return {
        "ours": lambda: packed_matmul(x, *weight, bits=bits, group=GROUP, bias=bias),
        "dequantized": lambda: packed_matmul_reference(x, *weight, bits=bits, group=GROUP, bias=bias),
        "dense": lambda: torch.addmm(bias, x, dense.T),
    }


def measured(case: Case, device: torch.device, timer: Timer) -> dict[str, Any]:
    """One case: agreement, then the seconds of one call of each."""
    n, K, R, bits = case
    works = contenders(case, device)
    outputs = {name: work() for name, work in works.items()}
    tolerance = 1e-5 if device.type == "cpu" else 2 * torch.finfo(torch.bfloat16).eps
    for name in ("dequantized", "dense"):
        check_same(f"{n} x {K} x {R}, {name}", outputs["ours"].float(), outputs[name].float(), tolerance)
    calls = min(1000, max(1, round(FLOPS_OF_A_REPETITION[device.type] / (2 * n * K * R))))

    def repeated(work: Callable[[], Tensor]) -> Callable[[], None]:
        def calls_of_it() -> None:
            for _ in range(calls):
                work()

        return calls_of_it

    seconds = take_turns({name: repeated(work) for name, work in works.items()}, REPETITIONS, timer)
    times = {name: spread([value / calls for value in values]) for name, values in seconds.items()}
    ratios = {f"{name}_over_ours": times[name]["median"] / times["ours"]["median"] for name in ("dequantized", "dense")}
    notice(
        f"{n:>7,} x {K:>4} x {R:>4}: ours {1e6 * times['ours']['median']:>8,.0f} us, "
        f"dequantised {ratios['dequantized_over_ours']:.2f}, dense {ratios['dense_over_ours']:.2f} of that"
    )
    met = ratios["dequantized_over_ours"] >= 1
    return {"n": n, "K": K, "R": R, "bits": bits, "group": GROUP, "seconds": times, "bar_met": met} | ratios


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    flags = arguments(argv, "The product with packed weights.", ("cpu", "cuda"))
    device = torch.device(flags.device)

    def benchmark(timer: Timer) -> Iterator[dict[str, Any]]:
        for case in cases_of(device) if cases is None else cases:
            with torch.no_grad():
                facts = measured(case, device, timer)
            yield facts

    return run(flags, benchmark)


if __name__ == "__main__":
    sys.exit(main())
