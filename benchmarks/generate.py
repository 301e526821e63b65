"""Token by token: the cost of going on from a state, against reading the whole sequence again at every token.

    python benchmarks/generate.py --threads 1 -o benchmarks/results/generate.json

One sequence, whose tokens are given, so that choosing them costs nothing. A prompt of 1,024 is read at once and then
each token by itself up to 65,536, without saying how many will come. Every step is timed. The window [n, 2 n) holds
exactly one epoch of the long convolution: its beginning, which transforms all n positions before, and all its tiles. So
a window's mean is the cost of a token with everything rare that belongs to it, and nothing is spread over more tokens
than it serves; its median is what most tokens take, its worst the longest pause in the stream.

The opponents read n tokens for one: ours by `forward`, whose filters' spectra are kept from call to call, and the
textbook. All must give the same logits before anything is timed. `extend` of the whole prompt and the bytes of the
state are measured at the same lengths. Where other processes disturb, up to 1,024 steps are done again from a branch of
the state; spectra that they made are then kept already, which is to their advantage.

On a GPU every step waits for its result. It pays for some hundred launches: positions are numbers of the program, so
that the step cannot be replayed as one CUDA graph yet. No bar is set there. Takes about 15 minutes on one CPU thread.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from side_by_side import Timer, arguments, check_same, run, spread, take_turns
from textbook import Textbook
from torch import Tensor

from hyenadna.model.config import Size, named_size
from hyenadna.model.language_model import HyenaDNA
from hyenadna.model.state import State
from hyenadna.progress import notice

BARS = {8_192: 20.0, 32_768: 60.0}
"""Times as many tokens a second as by our own forward pass, by the tokens before."""
FLAT = 2.0
"""The dearest window may cost so many times as much a token as the cheapest."""
TOLERANCE = 1e-4
"""Of the largest logit, as the package promises in float32."""
_TOGETHER = 1024


class Case(NamedTuple):
    size: Size
    prompt: int
    """Tokens that are read at once."""
    doublings: int
    """Windows of steps: the first as long as the prompt, each other one twice as long as the one before."""
    recomputed: tuple[int, ...]
    """Lengths at which the opponents are timed."""
    repetitions: int


CASES = (
    Case("tiny-1k", 1_024, 6, (1_024, 8_192, 32_768), 5),
    Case("small-32k", 1_024, 6, (1_024, 8_192, 32_768), 3),
)


class Stream:
    """A sequence that is read token by token from some length on, and what each step took."""

    def __init__(self, model: HyenaDNA, tokens: Tensor, prompt: int, timer: Timer) -> None:
        self.model, self.tokens, self.timer = model, tokens, timer
        self.state: State = model.extend(tokens[:, :prompt])[1]
        self.seconds: list[float] = []

    def read_to(self, end: int) -> list[float]:
        """Seconds of each step up to `end`."""
        before = len(self.seconds)
        while self.state.length < end:
            self._some(min(end, self.state.length + _TOGETHER))
        return self.seconds[before:]

    def _some(self, end: int) -> None:
        begin = self.state.length

        def steps() -> None:
            self.branch, self.times = self.state.repeat(1), []
            for t in range(begin, end):
                started = time.perf_counter()
                _, self.branch = self.model.extend(self.tokens[:, t : t + 1], self.branch)
                if self.tokens.is_cuda:
                    torch.cuda.synchronize()
                self.times.append(time.perf_counter() - started)

        self.timer.timed(steps)
        self.state = self.branch
        self.seconds += self.times


def check(model: HyenaDNA, textbook: Textbook, tokens: Tensor, case: Case) -> float:
    """The largest difference between the contenders, as a share of the largest logit; steps go over an epoch's end."""
    n, steps = case.prompt, min(case.prompt, 40)
    state = model.extend(tokens[:, : n - steps], ahead=steps)[1]
    given = []
    for t in range(n - steps, n + steps):
        logits, state = model.extend(tokens[:, t : t + 1], state)
        given.append(logits)
    ours, whole = torch.cat(given, dim=1), tokens[:, : n + steps]
    difference = 0.0
    for name, other in (("forward", model(whole).logits), ("textbook", textbook(whole))):
        difference = max(difference, check_same(f"{case.size}, {name}", ours, other[:, n - steps :], TOLERANCE))
    return difference


def windows(model: HyenaDNA, tokens: Tensor, case: Case, timer: Timer) -> Iterator[dict[str, Any]]:
    """Of each window its seconds a token, and the bytes of the state at its end."""
    stream, n = Stream(model, tokens, case.prompt, timer), case.prompt
    for _ in range(case.doublings):
        seconds = stream.read_to(2 * n)
        mean = statistics.fmean(seconds)
        yield {
            "from": n,
            "seconds_per_token": {"mean": mean, "median": statistics.median(seconds), "worst": max(seconds)},
            "tokens_per_s": 1 / mean,
            "state_mb_at_its_end": stream.state.nbytes / 1e6,
            "kept_spectra_mb": kept_bytes(model) / 1e6,
        }
        n *= 2


def kept_bytes(model: HyenaDNA) -> int:
    """Of the filters' spectra that the model keeps for all its states and forward passes."""
    stores = {id(spectra): spectra for layer in model.backbone.layers if (spectra := layer.mixer.spectra)}
    return sum(kept.spectra.nbytes for store in stores.values() for kept in store.kept.values())


def recomputed(model: HyenaDNA, textbook: Textbook, tokens: Tensor, case: Case, timer: Timer) -> Iterator[Any]:
    """Seconds for one token where all n are read again, and of a prompt of n."""
    for n in case.recomputed:
        prompt = tokens[:, :n]
        works = {
            "forward": functools.partial(model, prompt),
            "textbook": functools.partial(textbook, prompt),
            "prefill": functools.partial(model.extend, prompt),
        }
        for work in works.values():
            work()  # spectra are made, memory is had
        seconds = take_turns(works, case.repetitions, timer)
        yield n, {name: spread(values) for name, values in seconds.items()}


def measured(case: Case, device: torch.device, timer: Timer) -> dict[str, Any]:
    torch.manual_seed(0)
    end = case.prompt << case.doublings
    config = dataclasses.replace(named_size(case.size, max_length=end), embed_dropout=0.0)
    model = HyenaDNA(config).eval().to(device)
    textbook = Textbook(config).eval().to(device)
    textbook.load_state_dict(model.state_dict())
    tokens = torch.randint(7, 11, (1, end)).to(device)
    difference = check(model, textbook, tokens, case)
    steps = []
    for window in windows(model, tokens, case, timer):
        steps.append(window)
        notice(described(case, window))
    facts: dict[str, Any] = {"size": case.size, "layers": config.layers, "filter_length": config.filter_length}
    facts |= {"largest_difference": difference, "windows": steps, "against": []}
    of_window = {window["from"]: window for window in steps}
    for n, seconds in recomputed(model, textbook, tokens, case, timer):
        step = of_window[n]["seconds_per_token"]["mean"]
        ratios = {name: seconds[name]["median"] / step for name in ("forward", "textbook")}
        bar = BARS.get(n) if device.type == "cpu" else None
        against = {"from": n, "seconds": seconds, "times_as_fast_as": ratios, "bar": bar}
        facts["against"].append(against | {"bar_met": bar is None or ratios["forward"] >= bar})
        notice(
            f"{case.size} behind {n:,}: {ratios['forward']:.0f} times as fast as forward passes, "
            f"{ratios['textbook']:.0f} times as the textbook; the prompt took {seconds['prefill']['median']:.2f} s, "
            f"a forward pass {seconds['forward']['median']:.2f} s"
        )
    means = [window["seconds_per_token"]["mean"] for window in steps]
    flat = max(means) / min(means)
    return facts | {"dearest_over_cheapest": flat, "flat_bar": FLAT, "flat": flat <= FLAT}


def described(case: Case, window: dict[str, Any]) -> str:
    seconds = window["seconds_per_token"]
    times = ", ".join(f"{name} {1e3 * seconds[name]:.2f}" for name in ("mean", "median", "worst"))
    return (
        f"{case.size}, {window['from']:>6,} to {2 * window['from']:>6,} tokens: {window['tokens_per_s']:>6,.0f} "
        f"tokens/s; ms a token: {times}; the state is {window['state_mb_at_its_end']:.1f} MB"
    )


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    flags = arguments(argv, "Token by token against reading all again.", ("cpu", "cuda"))
    device = torch.device(flags.device)

    def benchmark(timer: Timer) -> Iterator[dict[str, Any]]:
        for case in cases:
            with torch.no_grad():
                facts = measured(case, device, timer)
            yield facts

    return run(flags, benchmark)


if __name__ == "__main__":
    sys.exit(main())
