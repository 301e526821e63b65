"""Small pretraining runs: in this process, or in one that can be killed."""

import csv
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner

from hyenadna.cli.main import app, main
from hyenadna.pretrain.run_folder import read_checkpoint

SMALL = (
    "--max-length", "64", "--warmup-from", "16", "--batch-tokens", "128", "--valid-tokens", "256", "--threads", "1",
    "--device", "cpu", "--lr", "3e-3",
)  # fmt: skip


def write_genome(path: Path, length: int = 30_000) -> Path:
    """Random bases with a little structure, and runs of N."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[rng.choice(4, length, p=(0.35, 0.15, 0.15, 0.35))].copy()
    for start in rng.integers(0, length, length // 100):
        letters[start : start + 2] = ord("N")
    path.write_text(f">chr1\n{letters.tobytes().decode()}\n")
    return path


def hyena(*arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


class Command:
    """A command in a process of its own: a new one, or a fork of this one, which has everything imported already."""

    def __init__(self, *arguments, fork: bool = False) -> None:
        self.output = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        words = ["hyena", *map(str, arguments)]
        if fork:
            self.process = multiprocessing.get_context("fork").Process(target=self._forked, args=(words,))
            self.process.start()
        else:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            out, err = self.output
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hyenadna.cli.main", *words[1:]], stdout=out, stderr=err, env=environment
            )

    def _forked(self, words: list[str]) -> None:
        for descriptor, file in enumerate(self.output, start=1):
            os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
        sys.argv = words
        try:
            main()
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(ended.code or 0)

    @property
    def running(self) -> bool:
        return (self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode) is None

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        if isinstance(self.process, subprocess.Popen):
            code = self.process.wait(timeout=120)
        else:
            self.process.join(timeout=120)
            code = self.process.exitcode
        texts = []
        for file in self.output:
            file.seek(0)
            texts.append(file.read())
        return code, *texts


def wait_for_step(run: Path, step: int, process: Command) -> None:
    """Until metrics.csv holds a line of that step."""
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.running, process.finish()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def last_step(run: Path) -> int:
    if not (run / "metrics.csv").exists():
        return 0
    whole = (run / "metrics.csv").read_text().split("\n")[1:-1]
    return int(whole[-1].split(",")[0]) if whole else 0


def metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the column that is never the same twice."""
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "nt_per_second"} for row in csv.DictReader(file)]


def final_state(run: Path):
    return read_checkpoint(max((run / "checkpoints").glob("*.ckpt")))


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, optimizer and metrics, bit for bit."""
    assert metrics(one) == metrics(other)
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    a, b = final_state(one), final_state(other)
    assert a.step == b.step and a.best == b.best and a.model.keys() == b.model.keys()
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    for key, moments in a.optimizer["state"].items():
        assert all(torch.equal(value, b.optimizer["state"][key][name]) for name, value in moments.items())
