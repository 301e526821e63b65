"""`hyena generate`."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyenadna.cli import options
from hyenadna.cli.config_flags import takes_config
from hyenadna.errors import InputError, UsageError
from hyenadna.inference.generation_config import GenerateConfig
from hyenadna.progress import notice

if TYPE_CHECKING:
    from hyenadna.inference.generate import Generated, Generation
    from hyenadna.inference.pyramid_kv import CacheBudget
    from hyenadna.model.language_model import HyenaDNA

_LINE = 80
_TRIED_S = 2.0

_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT, and an earlier report.")]


@takes_config(GenerateConfig)
def generate(
    config: GenerateConfig,
    *,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: _Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Sequences that a model writes, as FASTA. Example: hyena generate --prompt my.fa --length 500 --count 8 -o new.fa

    Headers hold seed and row, the log-likelihood of what was written in nats, of how many bases it is, and in bits per
    base, the method, and what stopped the sequence.
    """
    _check_places(config, overwrite=overwrite)
    prompts = _prompts(config)
    network = options.network(config.model, device, threads)
    parts = list(_parts(config, network, prompts))
    if config.reference is not None:
        from hyenadna.inference.generation_report import reference_of

        # what is wrong with it is said before anything is written; a stop motif may leave sequences of any length
        reference_of(config.reference, _folder(config.model), 1 if config.stop else config.length)
    if dry_run:
        plan = _plan(config, parts)
        typer.echo(json.dumps(plan, indent=2) if as_json else plan["text"])
        return
    start = time.perf_counter()
    written = _written(config, parts, quiet_stdout=as_json)
    result = _result(config, network, written, time.perf_counter() - start)
    if config.report is not None:
        result |= _report(config, config.report, network, [one for _, _, one in written])
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    elif config.out != "-":
        typer.echo(result["text"])
    else:
        notice(result["text"])


def _check_places(config: GenerateConfig, *, overwrite: bool) -> None:
    options.out_file(config.out, (config.prompt, config.reference), overwrite=overwrite)
    if config.report is None:
        return
    from hyenadna.inference.generation_report_files import FILES

    if config.report.exists() and not config.report.is_dir():
        raise UsageError(f"--report {config.report} is a file; give a folder")
    there = [name for name in FILES if (config.report / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{config.report} holds a report already ({there[0]}); --overwrite replaces it")


Part = tuple[str, int, Callable[[], "Generation"]]
"""Name of the prompt, number of the first row, and what begins to write: some sequences side by side."""
Written = tuple[str, int, "Generated"]
"""Name and row of a sequence, and itself."""


def _prompts(config: GenerateConfig) -> list[tuple[str, str]]:
    """Names and sequences of the prompts, checked.

    Raises
    ------
    InputError              there is no such file and it is no sequence; a letter that is not A, C, G or T
    """
    from hyenadna.data.alphabet import IUPAC
    from hyenadna.data.sequence_files import stream
    from hyenadna.inference.generate import checked_prompt

    given = config.prompt
    if not given:
        return [("generated", "")]
    # a Path raises where a sequence is too long for a name
    if given != "-" and not os.path.isfile(given):  # noqa: PTH113
        if set(given.upper()) - set(IUPAC):
            raise InputError(f"--prompt {given[:80]}: there is no such file, and it is no sequence of nucleotides")
        return [("generated", checked_prompt(given))]
    found = []
    for name, sequence in stream(given):
        try:
            found.append((name, checked_prompt(sequence)))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return found


def _parts(config: GenerateConfig, network: "HyenaDNA", prompts: list[tuple[str, str]]) -> Iterator[Part]:
    """All there is to write, of which the longest prompt is checked before anything is."""
    from functools import partial

    from hyenadna.inference.generate import stream

    head = None
    if config.diversity_head is not None:
        from hyenadna.finetune.diversity_head import load

        head = load(config.diversity_head, base=network)

    def begin(prompt: str, first: int, count: int) -> "Generation":
        return stream(
            network, prompt, length=config.length, count=count, decoding=config.decoding, seed=config.seed,
            constraints=config.constraints, stop=config.stop, diversity=head, cache=_budget(config),
            first_row=first,
        )  # fmt: skip

    begin(max((prompt for _, prompt in prompts), key=len), 0, 1)
    for name, prompt in prompts:
        for first in range(0, config.count, config.side_by_side):
            yield name, first, partial(begin, prompt, first, min(config.side_by_side, config.count - first))


def _budget(config: GenerateConfig) -> "CacheBudget | None":
    if config.cache_tokens is None:
        return None
    from hyenadna.inference.pyramid_kv import CacheBudget

    return CacheBudget(
        tokens=config.cache_tokens, window=config.cache_window, schedule=config.cache_schedule, bits=config.cache_bits
    )


def _plan(config: GenerateConfig, parts: list[Part]) -> dict[str, Any]:
    """Write for some seconds, and say what the whole would take."""
    from hyenadna.machine import peak_memory
    from hyenadna.progress import duration, quantity

    start, bases = time.perf_counter(), 0
    for bases, _ in enumerate(parts[0][2](), 1):  # noqa: B007
        if time.perf_counter() - start > _TRIED_S:
            break
    rate = bases / (time.perf_counter() - start)
    memory = peak_memory()
    sequences = len([part for part in parts if part[1] == 0]) * config.count
    total = sequences * config.length
    text = (
        f"{sequences:,} sequences, {total:,} bases at most. At {quantity(rate)}nt/s: "
        f"{duration(total / rate)}, and {quantity(memory)}B of memory so far. Nothing was written"
    )
    numbers = {"sequences": sequences, "bases": total, "nt_per_s": round(rate, 1), "seconds": round(total / rate, 1)}
    return numbers | {"memory_bytes": memory, "text": text}


def _written(config: GenerateConfig, parts: list[Part], *, quiet_stdout: bool) -> list[Written]:
    """Write everything, and give it back."""
    from hyenadna.files import atomic_write
    from hyenadna.progress import progress

    found: list[Written] = []
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if config.out != "-":
            temporary = stack.enter_context(atomic_write(Path(config.out)))
            file = stack.enter_context(temporary.open("w", encoding="ascii"))
        total = config.length * config.count * len([part for part in parts if part[1] == 0])
        job = stack.enter_context(progress("generating", total))
        for name, first, begin in parts:
            generation, since = begin(), 0
            for since, _ in enumerate(generation, 1):
                if since % 64 == 0:
                    job.advance(64)
            job.advance(len(generation.sequences) * config.length - since // 64 * 64)
            for row, one in enumerate(generation.sequences, first):
                found.append((f"{name}_{row + 1}", row, one))
                if config.out != "-" or not quiet_stdout:
                    file.write(_record(config, *found[-1]))
    return found


def _record(config: GenerateConfig, name: str, row: int, one: "Generated") -> str:
    facts = _facts(config, row, one)
    header = " ".join([f">{name}", *(f"{key}={'none' if value is None else value}" for key, value in facts.items())])
    lines = (one.sequence[start : start + _LINE] for start in range(0, len(one.sequence), _LINE))
    return "\n".join([header, *lines]) + "\n"


def _facts(config: GenerateConfig, row: int, one: "Generated") -> dict[str, Any]:
    return {
        "seed": one.seed, "row": row, "nats": round(one.nats, 6), "scored": one.scored,
        "bits_per_base": round(one.bits_per_base, 6) if one.scored else None,
        "method": config.decoding.method, "stopped": one.stopped,
    }  # fmt: skip


def _result(config: GenerateConfig, network: "HyenaDNA", written: list[Written], seconds: float) -> dict[str, Any]:
    from hyenadna import __version__
    from hyenadna.model.weights import base_sha256
    from hyenadna.progress import duration, quantity

    bases = sum(len(one.sequence) for _, _, one in written)
    scored, nats = sum(one.scored for _, _, one in written), sum(one.nats for _, _, one in written)
    likelihood = f" of {-nats / scored / math.log(2):.4f} bits per base" if scored else ""
    text = (
        f"{len(written):,} sequences, {bases:,} bases{likelihood}; {duration(seconds)}, {quantity(bases / seconds)}nt/s"
    )
    sequences = [{"id": name, "sequence": one.sequence} | _facts(config, row, one) for name, row, one in written]
    return {
        "out": config.out,
        "hyenadna": __version__,
        "model": config.model,
        "base_sha256": base_sha256(network.state_dict()),
        "seconds": round(seconds, 3),
        "nt_per_s": round(bases / seconds, 1),
        "sequences": sequences,
        "text": text if config.out == "-" else f"{config.out}: {text}",
    }


def _folder(model: str) -> Path:
    from hyenadna.model.hub import find_model

    return find_model(model)


def _report(config: GenerateConfig, folder: Path, network: "HyenaDNA", sequences: list["Generated"]) -> dict[str, Any]:
    from hyenadna.inference.generation_report import report
    from hyenadna.inference.generation_report_files import text, write

    found = report(sequences, model=network, reference=config.reference, model_folder=_folder(config.model))
    write(found, folder)
    notice(text(found))
    return {"report": found.json()}
