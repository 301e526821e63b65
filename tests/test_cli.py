"""`hyena` itself: verbs, help, exit codes, and failures in one line."""

import importlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
import typer
from pretraining import write_genome
from typer.testing import CliRunner

import hyenadna
from hyenadna import errors
from hyenadna.cli import main as cli
from hyenadna.errors import HyenaError, HyenaWarning, Interrupted

FAILURES = [
    member for _, member in inspect.getmembers(errors, inspect.isclass) if issubclass(member, HyenaError)
]  # fmt: skip
CODES = {
    "HyenaError": 1, "UsageError": 2, "InputError": 3, "FastaError": 3, "IntervalError": 3, "StaleIndexError": 3,
    "CheckpointError": 3, "ProbeError": 3, "SequenceTooLong": 3, "HubError": 1, "RunFolderError": 2, "WriteError": 1,
    "DownloadError": 1, "MissingExtra": 1, "LossTooLarge": 1, "NotFiniteError": 1, "OutOfMemory": 137, "ShapeError": 2,
    "KernelError": 1,
}  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments), terminal_width=120)


@pytest.fixture
def failing(monkeypatch):
    """A verb `fail` that raises what it is told."""

    def make(error):
        def fail() -> None:
            """Fail."""
            raise error

        monkeypatch.setattr(cli, "fail", fail, raising=False)
        monkeypatch.setitem(cli.VERBS, "fail", "hyenadna.cli.main:fail")

    return make


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("loading", [True, False])
def test_signals_end_with_a_word_and_a_code(failing, monkeypatch, capsys, number, code, loading):
    """While a verb works, and while its module is loaded."""

    def fail() -> None:
        """Be ended."""
        signal.raise_signal(number)

    failing(HyenaError("nothing ended it"))
    if loading:
        monkeypatch.setattr(cli._Verbs, "get_command", lambda *_: fail())
    else:
        monkeypatch.setattr(cli, "fail", fail)
    monkeypatch.setattr(sys, "argv", ["hyena", "fail"])
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for one, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(one, handler)
    assert ended.value.code == code and capsys.readouterr().err == "hyena: interrupted\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_resolves(verb):
    module, name = cli.VERBS[verb].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def pages(verb):
    """The help of a verb, and of each of its own verbs."""
    module, name = cli.VERBS[verb].split(":")
    target = getattr(importlib.import_module(module), name)
    if isinstance(target, typer.Typer):
        names = [command.name or command.callback.__name__ for command in target.registered_commands]
        return [run(verb, sub, "--help") for sub in names]
    return [run(verb, "--help")]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb(verb):
    for page in pages(verb):
        text = " ".join(page.stdout.split())
        assert page.exit_code == 0 and "Example: hyena " in text
        example = text.split("Example: hyena ")[1].split()[0]
        assert example == verb
        assert "--quiet" in text and "--debug" in text
        # whose results are files or answers
        assert "--json" in text or verb in ("convert", "serve")


def test_numbers_in_help_say_their_default():
    text = run("pretrain", "--help").stdout
    lines = " ".join(text.split("Options:")[1].split()).split(" --")
    numbers = [line for line in lines if {*line.split()} & {"<int>", "<float>", "INTEGER", "FLOAT"}]
    assert len(numbers) > 15
    silent = [line.split()[0] for line in numbers if "default" not in line]
    assert set(silent) <= {"steps", "warmup-steps"}  # given instead of another flag, which says its default


def test_help_is_light_and_whole():
    program = (
        "import sys\nfrom hyenadna.cli.main import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = 'torch lightning matplotlib transformers pydantic numpy h5py sklearn fastapi yaml'.split()\n"
        "print('LOADED', [name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.rstrip().endswith("LOADED []")
    listed = [line.split()[0] for line in ran.stdout.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert [word for word in listed if word in cli.VERBS] == list(cli.VERBS)


def test_version():
    assert run("--version").stdout == f"hyena {hyenadna.__version__}\n"


@pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.__name__)
def test_every_failure_has_its_code_and_one_line(failing, kind):
    failing(kind("what was given\n  and what to do"))
    ended = run("fail")
    assert ended.exit_code == CODES[kind.__name__] == kind.exit_code
    assert ended.stderr == "hyena: what was given and what to do\n" and ended.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 137, "hyena: out of memory; take a shorter length or smaller batches"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 137, "hyena: out of memory;"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 137, "hyena: out of memory;"),
        (Interrupted(15, "saved at step 3"), 143, "hyena: saved at step 3"),
        (Interrupted(2, "interrupted"), 130, "hyena: interrupted"),
        (KeyError("x"), 1, "hyena: KeyError: 'x' (this is a defect; --debug shows where)"),
    ],
)
def test_other_ends(failing, error, code, said):
    failing(error)
    ended = run("fail")
    assert ended.exit_code == code and ended.stderr.startswith(said) and ended.stderr.count("\n") == 1


def test_debug_shows_the_traceback(failing):
    failing(errors.FastaError("bad"))
    assert "Traceback" not in run("fail").stderr
    debugged = run("fail", "--debug")
    assert "Traceback" in debugged.stderr and debugged.stderr.endswith("hyena: bad\n") and debugged.exit_code == 3


def test_warnings_are_lines(monkeypatch):
    def warn() -> None:
        """Warn."""
        warnings.warn("mind the gap", HyenaWarning, stacklevel=1)
        warnings.warn("for developers", UserWarning, stacklevel=1)

    monkeypatch.setattr(cli, "warn", warn, raising=False)
    monkeypatch.setitem(cli.VERBS, "warn", "hyenadna.cli.main:warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        try:
            assert run("warn").stderr == "hyena: warning: mind the gap\n"
            assert run("warn", "--quiet").stderr == ""
        finally:
            warnings.showwarning = shown
            cli.set_quiet(False)


@pytest.mark.parametrize("arguments", [["bogus"], ["estimate", "--bogus"], ["estimate", "--size", "huge"], ["info"]])
def test_usage_ends_with_2(arguments):
    ended = run(*arguments)
    assert ended.exit_code == 2 and ended.stdout == "" and "Traceback" not in ended.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
    genome = write_genome(tmp_path / "a.fa")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        command = [sys.executable, "-m", "hyenadna.cli.main", "data", "split", genome, "--max-length", "64", "--quiet"]
        ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == "" and ended.returncode == 0


def test_estimate():
    given = ("--max-length", "256", "--batch-tokens", "512", "--tokens", "1e6")
    counted = json.loads(run("estimate", *given, "--json").stdout)
    assert counted["parameters"] == 436_096 and counted["length"] == 256 and counted["batch_tokens"] == 512
    assert counted["seconds"] == pytest.approx(1e6 / counted["training_nt_per_second"])
    assert set(counted["memory_bytes"]) == {"training", "training, recomputing blocks", "inference"}
    for flag, value in (("--max-length", "0"), ("--tokens", "nan"), ("--batch-tokens", "-5"), ("--dtype", "int8")):
        ended = run("estimate", flag, value)
        assert ended.exit_code == 2 and ended.stderr.startswith(f"hyena: {flag}") and ended.stderr.count("\n") == 1


def test_doctor_finds_this_machine_sound(monkeypatch):
    monkeypatch.setenv("HYENA_SOMETHING", "7")
    ended = run("doctor")
    assert ended.exit_code == 0 and "self-test   ok: relative error" in ended.stdout
    assert "HYENA_SOMETHING=7" in ended.stdout
    assert "model in float32" in ended.stdout and "convolution in bfloat16" in ended.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what runs without a GPU")
@pytest.mark.parametrize(
    ("asked", "why"), [("auto", "the tensors are on cpu, not on a GPU"), ("torch", "HYENA_KERNELS is torch")]
)
def test_doctor_says_which_kernels_run_and_why(monkeypatch, asked, why):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("HYENA_KERNELS", asked)
    assert f"kernels     torch, because {why} (HYENA_KERNELS={asked})" in run("doctor").stdout
    kernels = json.loads(run("doctor", "--json").stdout)["kernels"]
    assert (kernels["run"], kernels["because"], kernels["HYENA_KERNELS"]) == ("torch", why, asked)
    assert kernels["precision"]["bfloat16"] == "exact"


def test_doctor_with_kernels_that_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("HYENA_KERNELS", "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = run("doctor")
    assert ended.exit_code == 2 and ended.stderr.startswith("hyena: HYENA_KERNELS=triton cannot run here: ")


def test_doctor_fails_where_results_are_wrong(monkeypatch):
    from hyenadna.cli import doctor

    monkeypatch.setattr(doctor, "_self_test", lambda: {"model": {"relative_error": math.nan, "allowed": 1e-5}})
    ended = run("doctor")
    assert ended.exit_code == 1 and "FAILED: do not trust results of this machine" in ended.stdout
