"""What scores of variants are worth: measured function, allele frequency, real indels, and biology without labels.

    python benchmarks/variants.py --data ../shared/data --random-weights -o benchmarks/results/variants.json

Every model is asked about the same variants as the interpolated Markov model of `hyena score`, as the same model with
weights as they are initialised, and as what else is known of them. Parts, each by itself with --parts:

    brca1        saturation genome editing of BRCA1: loss of function against function, by stratum and strand
    1000g        1000 Genomes chr22: common against rare alleles within a class of mutation
    indels       1000 Genomes chr22: real insertions and deletions against random ones in like repeats
    periodicity  E. coli: the rhythm of three of per-base likelihoods in open reading frames
    lambda       bits per base of a phage, as something out of the distribution

A part is written when it is done, and not measured again while models and settings stay the same; raw scores are kept
in --keep as they come, so that a run that was stopped goes on. The result is reported whatever it is. For the starter
model and three seeds of random weights, some two hours on one CPU thread, most of them for 1000g and indels.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import commit
from variant_bases import of_lambda, of_periodicity
from variant_contenders import Scores, contenders
from variant_parts import Work, of_brca1, of_indels, of_thousand_genomes
from variant_report import card, draw, table

from hyenadna import machine
from hyenadna.errors import HyenaError, InputError
from hyenadna.files import write_json
from hyenadna.inference.bootstrap import RESAMPLES
from hyenadna.progress import notice

PARTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "brca1": of_brca1,
    "1000g": of_thousand_genomes,
    "indels": of_indels,
    "periodicity": of_periodicity,
    "lambda": of_lambda,
}
RESULTS = Path(__file__).parent / "results" / "variants.json"


def measured(flags: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The report with the parts that were asked for, each from its file or measured now."""
    device = machine.torch_device(flags.device)
    models = contenders(flags.model or ["starter"], flags.random_weights, device)
    report = _earlier(flags.out)
    for name in flags.parts:
        settings = {
            "models": {model.name: model.sha256 for model in models},
            "window": flags.window,
            "dtype": "float32",
            "limit": flags.limit,
            "percentiles": flags.percentiles if name == "1000g" else None,
            "resamples": RESAMPLES,
        }
        if report["parts"].get(name, {}).get("settings") == settings:
            notice(f"{name}: as it stands in {flags.out}")
            continue
        scores, started = Scores(flags.keep, flags.window), time.perf_counter()
        found = PARTS[name](Work(flags.data, models, scores, flags.limit, flags.percentiles))
        took = {"seconds": time.perf_counter() - started, "seconds_of_models": scores.seconds}
        report["parts"][name] = {"settings": settings, "commit": commit(), "threads": flags.threads, **took, **found}
        about = {"benchmark": "variants", "commit": commit(), "machine": machine.describe(), "command": _command(argv)}
        report = about | {"parts": report["parts"]}
        write_json(flags.out, report)
    return report


def _earlier(path: Path) -> dict[str, Any]:
    """The report that stands there, or one without parts.

    Raises
    ------
    InputError              it is the report of something else
    """
    if not path.exists():
        return {"parts": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["benchmark"] == "variants":
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is no report of this benchmark; move it away or give another -o")


def _command(argv: Sequence[str]) -> str:
    """The command line with paths as seen from here: what is above or elsewhere is no reader's business."""
    shown = []
    for word in argv:
        flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        if Path(value).is_absolute():
            relative = os.path.relpath(value)
            value = relative if not relative.startswith("../..") else Path(value).name
        shown.append(flag + equals + value)
    return shlex.join(["python", "benchmarks/variants.py", *shown])


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/ and variants/")
    parser.add_argument(
        "-m", "--model", action="append", help="as every verb takes it; several times (default: starter)"
    )
    parser.add_argument("--random-weights", type=int, nargs="?", const=3, default=0, metavar="SEEDS",
                        help="also the first model as it is initialised, by so many seeds (3)")  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
                        help="which of %(choices)s (default: all)")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="PNG file, and its numbers as TSV beside it")
    parser.add_argument("--card", type=Path, help="JSON file: what hyena score says of the first model")
    parser.add_argument("--keep", type=Path, default=Path("hyena-variant-scores"),
                        help="folder of raw scores (default: %(default)s)")  # fmt: skip
    parser.add_argument("--window", type=int, default=1024, help="bases (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most so many variants or sequences of a part, for a try"
    )
    parser.add_argument("--no-percentiles", dest="percentiles", action="store_false",
                        help="leave HYENA_PCT out, which takes the longest")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=machine.available_cpus(), help="torch threads (default: all)")
    flags = parser.parse_args(argv)
    if flags.card and flags.limit is not None:
        parser.error("--card is for numbers of whole sets: leave --limit out")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    flags = arguments(argv)
    torch.set_num_threads(flags.threads)
    try:
        report = measured(flags, argv)
        shown = {name: report["parts"][name] for name in flags.parts}
        print(table(shown))
        if flags.plot:
            draw(shown, flags.plot)
        if flags.card:
            write_json(flags.card, card(report))
    except HyenaError as error:
        notice(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
