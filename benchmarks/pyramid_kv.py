"""What a cache budget costs a hybrid, and whether its softmax layers have the funnel that PyramidKV rests on.

    hyena pretrain --layers HSHSHSHS -o run
    python benchmarks/pyramid_kv.py -m run                      minutes on a CPU; with --quick under one

Windows of held-out sequence, both strands. The first half of each is read at once, the caches are compressed, and the
second half is read in pieces of 32 bases, between which the caches are kept within the budget, as when a sequence is
generated. Bits per base are those of the second half; the difference to the full caches is paired, window by window,
and its 95 % interval is from a bootstrap over windows. Bytes are those of keys and values of one sequence, scales of
packed ones included, right behind the first half.

The funnel: of the last 128 queries of the first halves, layer by layer, the entropy of what they attend to, and how
many tokens hold 90 % of it. PyramidKV supposes that both fall from the first softmax layer to the last. Writes JSON and
a plot beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import commit
from torch import Tensor

from hyenadna import HyenaDNA, machine, plots
from hyenadna.cli.evaluate import stored_split
from hyenadna.data.genomes import ecoli
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import Pack, packed
from hyenadna.data.splits import hashed_split
from hyenadna.data.tokenizer import encode
from hyenadna.errors import HyenaError, InputError
from hyenadna.files import write_json
from hyenadna.inference.bootstrap import Bootstrap
from hyenadna.inference.evaluate import base_bits
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.inference.pyramid_kv import CacheBudget, Schedule, cache_bytes, compress, keep_within, window_attention
from hyenadna.inference.windows import WindowPlan
from hyenadna.model.attention_state import QUERIES_KEPT, AttentionState
from hyenadna.model.state import State
from hyenadna.progress import notice, progress

PIECE, BATCH, SHARES = 32, 8, (2, 4, 8, 16)
RESULTS = Path(__file__).parent / "results" / "pyramid_kv.json"


def settings(context: int, window: int, *, quick: bool) -> list[CacheBudget]:
    """Fractions of the tokens by both schedules, and fewer bits at all tokens and at a quarter."""
    schedules: tuple[Schedule, ...] = ("arithmetic", "uniform")
    shares = [context // share for share in (SHARES[1:3] if quick else SHARES) if context // share >= window]
    chosen = [CacheBudget(tokens, window, schedule) for tokens in shares for schedule in schedules]
    whole = [CacheBudget(tokens, window, bits=bits) for tokens in (context, context // 4) for bits in (8, 4, 2)]
    return chosen + [budget for budget in whole if budget.tokens >= window and (not quick or budget.tokens == context)]


def read_windows(pack: Pack, intervals: Sequence[Interval], length: int, windows: int) -> NDArray[Any]:
    """Letters of about so many whole windows without other letters than bases, (windows, length).

    Raises
    ------
    InputError              there is none
    """
    plan = WindowPlan(intervals, length, windows // 2 * (length // 2))
    letters = [window.letters(pack) for window in plan if window.length == length]
    whole = [one for one in letters if (CODE_OF_BYTE[one] != NO_BASE).all()]
    if not whole:
        raise InputError(
            f"{pack.source}: of {len(letters)} windows of {length:,} none is without N; give a smaller --length"
        )
    return np.stack(whole)


def second_half(model: HyenaDNA, tokens: Tensor, first: Tensor, state: State, budget: CacheBudget | None) -> Tensor:
    """Logits of each base behind the first half, (B, L - n, 16), whose last logits and state are given."""
    logits = [first[:, -1:]]
    for piece in tokens.split(PIECE, dim=1):
        of_piece, state = model.extend(piece, state)
        logits.append(of_piece)
        if budget is not None:
            state = keep_within(state, budget)
    return torch.cat(logits, dim=1)[:, :-1]


def attended(state: State) -> NDArray[np.float64]:
    """What the last queries attend to, their means: (softmax layers, 3, B).

    Entropy in nats, its share of that of equal attention, and how many tokens hold 90 %.
    """
    found = []
    for cache in state.layers:
        if isinstance(cache, AttentionState):
            queries = min(QUERIES_KEPT, cache.tokens // 2)
            weights = window_attention(cache.last_queries(queries), cache.dense(cache.rows)[0]).double()
            entropy = -torch.special.xlogy(weights, weights).sum(dim=-1)
            seen = torch.arange(cache.tokens - queries, cache.tokens, device=entropy.device) + 1.0
            mass = weights.sort(dim=-1, descending=True).values.cumsum(dim=-1)
            most = (mass < 0.9).sum(dim=-1) + 1.0
            found.append(torch.stack([x.mean(dim=(1, 2)) for x in (entropy, entropy / seen.log(), most)]))
    return torch.stack(found).cpu().numpy()


def measure(model: HyenaDNA, letters: NDArray[Any], budgets: Sequence[CacheBudget]) -> dict[str, Any]:
    """Bits of each window, (1 + budgets, windows), bytes of one sequence, and what its layers attend to."""
    n, bits, size, attention = letters.shape[1] // 2, [], [0.0] * (1 + len(budgets)), []
    with torch.inference_mode(), progress("reading", letters.size * (1 + len(budgets))) as job:
        for batch in np.array_split(letters, -(-len(letters) // BATCH)):
            tokens = torch.from_numpy(encode(batch.reshape(-1), model.config.n_token)).long().view(batch.shape)
            code = torch.from_numpy(CODE_OF_BYTE[batch]).long()[:, n:]
            tokens = tokens.to(model.device)
            first, state = model.extend(tokens[:, :n], ahead=n)
            of_batch = []
            for number, budget in enumerate((None, *budgets)):
                branch = state.repeat(1)
                held = branch if budget is None else compress(branch, budget)
                size[number] = cache_bytes(held) / len(batch)
                logits = second_half(model, tokens[:, n:], first, held, budget)
                of_batch.append(base_bits(logits.float().cpu(), code)[0].double().sum(dim=1).numpy())
                job.advance(batch.size)
            bits.append(np.stack(of_batch))
            attention.append(attended(state))
    return {"bits": np.concatenate(bits, axis=1), "bytes": size, "attention": np.concatenate(attention, axis=2)}


def report(found: dict[str, Any], budgets: Sequence[CacheBudget], length: int, layers: str) -> dict[str, Any]:
    """The cases and the softmax layers, as JSON holds them."""
    n, bits, cases = length // 2, found["bits"], []
    sums = Bootstrap.of(np.concatenate([np.full((1, bits.shape[1]), float(length - n)), bits]).T)
    for number, budget in enumerate((None, *budgets)):
        per_base = sums.estimate(lambda s, column=1 + number: s[:, column] / s[:, 0])
        more = sums.estimate(lambda s, column=1 + number: (s[:, column] - s[:, 1]) / s[:, 0])
        about = {"tokens": n, "schedule": "full", "bits": None}
        if budget is not None:
            about = {"tokens": budget.tokens, "schedule": budget.schedule, "bits": budget.bits}
        cases.append(about | {
            "bits_per_base": vars(per_base), "more_than_full": vars(more), "cache_bytes": found["bytes"][number],
            "share_of_full": found["bytes"][number] / found["bytes"][0],
        })  # fmt: skip
    names = ("entropy_nats", "share_of_equal_attention", "tokens_of_90_percent")
    places = [number for number, letter in enumerate(layers) if letter == "S"]
    means = found["attention"].mean(axis=2)
    attention = [
        {"layer": place} | dict(zip(names, map(float, of_layer), strict=True))
        for place, of_layer in zip(places, means, strict=True)
    ]
    fall = found["attention"][0, 0] - found["attention"][-1, 0]
    fallen = Bootstrap.of(np.stack([np.ones_like(fall), fall], axis=1)).estimate(lambda s: s[:, 1] / s[:, 0])
    return {"cases": cases, "attention": attention, "entropy_of_first_minus_last_layer": vars(fallen)}


def table(result: dict[str, Any]) -> None:
    notice(f"{'tokens':>8}  {'schedule':<12}{'bits':>5}{'bytes':>12}{'of full':>9}{'bits per base':>15}{'more':>30}")
    for case in result["cases"]:
        more = "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**case["more_than_full"])
        notice(
            f"{case['tokens']:>8,}  {case['schedule']:<12}{case['bits'] or '':>5}{case['cache_bytes']:>12,.0f}"
            f"{case['share_of_full']:>9.3f}{case['bits_per_base']['value']:>15.4f}{more:>30}"
        )
    for layer in result["attention"]:
        notice(
            f"layer {layer['layer']}: entropy {layer['entropy_nats']:.2f} nats, "
            f"{layer['share_of_equal_attention']:.0%} of that of equal attention; "
            f"{layer['tokens_of_90_percent']:.0f} tokens hold 90 %"
        )
    fallen = "{value:+.2f} nats [{low:+.2f}, {high:+.2f}]".format(**result["entropy_of_first_minus_last_layer"])
    notice(f"from the first softmax layer to the last the entropy falls by {fallen}")


def draw(result: dict[str, Any], path: Path) -> None:
    """Bits per base against bytes, and the entropy of each layer."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1))
    full, *cases = result["cases"]
    kinds = {
        "arithmetic": lambda case: case["schedule"] == "arithmetic" and case["bits"] is None,
        "uniform": lambda case: case["schedule"] == "uniform",
        "8, 4 and 2 bits, all tokens": lambda case: case["bits"] and case["tokens"] == full["tokens"],
        "8, 4 and 2 bits, a quarter": lambda case: case["bits"] and case["tokens"] < full["tokens"],
    }
    for (label, of_kind), colour in zip(kinds.items(), plots.SERIES, strict=False):
        chosen = sorted(filter(of_kind, cases), key=lambda case: case["cache_bytes"])
        x, more = [case["share_of_full"] for case in chosen], [case["more_than_full"] for case in chosen]
        value, low, high = (np.array([one[name] for one in more]) for name in ("value", "low", "high"))
        if chosen:
            left.errorbar(
                x, value, yerr=plots.errors(value, low, high), fmt="o-", color=colour, markersize=4, label=label
            )
    left.axhline(0, color="0.6", linewidth=1)
    left.set_xscale("log", base=2)
    left.set_xlabel("bytes of the caches, of those of the full ones")
    left.set_ylabel("bits per base more than with full caches")
    left.legend(frameon=False, fontsize="small")
    names = [str(layer["layer"]) for layer in result["attention"]]
    right.bar(names, [layer["share_of_equal_attention"] for layer in result["attention"]], color=plots.MODEL)
    right.set_ylim(0, 1)
    right.set_xlabel("softmax layer")
    right.set_ylabel("entropy of attention / that of equal attention")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    plots.write_png(drawn, path)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="folder of a model with softmax layers")
    parser.add_argument("--fasta", type=Path, help="what it is measured on (default: the bundled genome)")
    parser.add_argument("--length", type=int, help="bases of a window (default: the model's context)")
    parser.add_argument("--windows", type=int, default=64, help="windows of both strands (default: %(default)s)")
    parser.add_argument(
        "--window", type=int, default=32, help="last tokens that are always kept (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="8 windows and fewer budgets, to see that it runs")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="JSON file to write (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    flags = arguments(argv)
    torch.set_num_threads(flags.threads)
    try:
        model, pack = HyenaDNA.from_pretrained(flags.model).eval(), packed(flags.fasta or ecoli())
        length = flags.length or context_of(model)
        split = stored_split(flags.model, pack)
        split = split or hashed_split(kept_contigs(pack.lengths, None).intervals, pack, length)
        letters = read_windows(pack, sorted(split.test), length, 8 if flags.quick else flags.windows)
        budgets = settings(length // 2, flags.window, quick=flags.quick)
        result = report(measure(model, letters, budgets), budgets, length, model.config.layers)
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    table(result)
    about = {"benchmark": "pyramid_kv", "commit": commit(), "machine": machine.describe(), "model": flags.model,
             "layers": model.config.layers, "context": length // 2, "scored": length - length // 2,
             "windows": len(letters), "window": flags.window, "quick": flags.quick}  # fmt: skip
    write_json(flags.out, about | result)
    draw(result, flags.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
