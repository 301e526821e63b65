"""Whole runs: exact resumption after every kind of death, and what a run refuses."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml
from pretraining import (
    SMALL,
    Command,
    assert_same_run,
    final_state,
    hyena,
    last_step,
    metrics,
    wait_for_step,
    write_genome,
)

from hyenadna import HyenaDNA, files
from hyenadna.model.language_model import Output
from hyenadna.pretrain import monitor, plan, train
from hyenadna.pretrain.module import PretrainModule
from hyenadna.pretrain.optimizer import cosine
from hyenadna.pretrain.run_folder import RunFolder

STEPS = 80
EXACT = (
    *SMALL, "--steps", STEPS, "--warmup-share", "0.5", "--dropout", "0.1", "--checkpoint-every", "7", "--valid-every",
    "20",
)  # fmt: skip


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    return write_genome(tmp_path_factory.mktemp("genome") / "a.fa")


@pytest.fixture(scope="module")
def whole(fasta, tmp_path_factory):
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = Command("pretrain", "--fasta", fasta, *EXACT, "--out", run, fork=True).finish()
    assert code == 0, err
    return run, out, err


def test_what_a_run_leaves(whole, fasta):
    run, out, err = whole
    assert {path.name for path in run.iterdir()} == {
        ".lock", "training.yaml", "metrics.csv", "curves.png", "model", "checkpoints",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000077.ckpt", "step-00000080.ckpt"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [int(row["length"]) for row in rows] == [16] * 20 + [32] * 20 + [64] * 40
    assert [int(row["tokens"]) for row in rows] == [128 * step for step in range(1, STEPS + 1)]
    for step, row in enumerate(rows):
        expected = 3e-3 * cosine(step, STEPS, warmup_share=0.05, final_share=0.05)
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-8)
    validated = {int(row["step"]): float(row["valid_bits_per_base"]) for row in rows if row["valid_bits_per_base"]}
    assert list(validated) == [20, 40, 60, 80]
    best = min(validated, key=validated.get)
    assert f"{validated[best]:.4f} bits per base at step {best} of 80" in out and str(run / "model") in out
    assert float(rows[-1]["bits_per_base"]) < float(rows[0]["bits_per_base"])
    for said in (
        "1 of 1 contigs: chr1",
        "left out",
        "16 bases       20 steps of 8 windows",
        "64 bases       40 steps of 2 windows",
    ):
        assert (said in err) == (said != "left out")
    description = json.loads((run / "model/config.json").read_text())
    assert description["training"]["step"] == best and description["training"]["data"][0]["source"] == "a.fa"
    assert (run / "model/split.json").exists() and "a.fa" in (run / "model/README.md").read_text()


def test_the_model_is_that_of_the_best_validation(whole):
    run, _, _ = whole
    state = final_state(run)
    model = HyenaDNA.from_pretrained(run / "model")
    assert model.config.filter_length == 66
    same = all(torch.equal(model.state_dict()[name], state.model[name]) for name in state.model)
    assert same == (state.best.step == STEPS)


@pytest.mark.parametrize("fork", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_and_signalled_it_ends_as_if_nothing_had_been(whole, fasta, tmp_path, fork):
    """kill -9, SIGTERM, SIGINT and SIGUSR1, each in the middle of a stage, then to the end."""
    run, command = tmp_path / "run", ("pretrain", "--fasta", fasta, *EXACT, "--out", tmp_path / "run")
    process = Command(*command, fork=fork)
    wait_for_step(run, 10, process)
    time.sleep(random.random() * 0.2)
    process.send(signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL
    saved, died = final_state(run).step, last_step(run)
    assert 7 <= saved <= died < STEPS
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        before = saved
        process = Command(*command, fork=fork)
        wait_for_step(run, before + 10, process)
        sent = time.monotonic()
        process.send(number)
        found, out, err = process.finish()
        assert found == code, err
        assert time.monotonic() - sent < 30 and out == ""
        assert f"resumed at step {before}\n" in err
        saved = final_state(run).step
        assert err.splitlines()[-1].startswith(f"hyena: saved at step {saved} in ") and "Traceback" not in err
        assert before + 10 <= saved == last_step(run) < STEPS
    code, out, err = Command(*command, fork=fork).finish()
    assert code == 0 and f"resumed at step {saved}\n" in err
    assert_same_run(whole[0], run)


def test_signals_are_given_back(fasta, tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    assert hyena("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")[0] == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_finished_run_trains_nothing(whole, fasta, monkeypatch):
    run, out, _ = whole
    monkeypatch.setattr(PretrainModule, "training_step", lambda *_: pytest.fail("it trains"))
    weights, lines = (run / "model/model.safetensors").read_bytes(), (run / "metrics.csv").read_bytes()
    code, again, err = hyena("pretrain", "--fasta", fasta, *EXACT, "--out", run)
    assert code == 0 and "resumed at step 80; the run is complete" in err and again == out
    assert (run / "model/model.safetensors").read_bytes() == weights and (run / "metrics.csv").read_bytes() == lines


def test_its_yaml_runs_again(whole, tmp_path):
    run, _, _ = whole
    code, _, err = Command(
        "pretrain", "--config", run / "training.yaml", "--out", tmp_path / "again", fork=True
    ).finish()
    assert code == 0, err
    assert_same_run(run, tmp_path / "again")
    ours, theirs = (yaml.safe_load((path / "training.yaml").read_text()) for path in (run, tmp_path / "again"))
    assert ours | {"out": ""} == theirs | {"out": ""} and None not in (ours["lr"], ours["threads"], ours["steps"])


def test_another_configuration_is_refused(whole, fasta):
    run, _, _ = whole
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    code, out, err = hyena("pretrain", "--fasta", fasta, *EXACT, "--lr", "1e-3", "--clip", "2", "--out", run)
    assert code == 2 and out == ""
    last = err.splitlines()[-1]
    assert "differs in lr (0.003 there, 0.001 now), clip (1.0 there, 2.0 now); give the same" in last
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


QUICK = (*SMALL, "--steps", "8", "--warmup-share", "0.5", "--checkpoint-every", "3", "--valid-every", "4")


@pytest.fixture(scope="module")
def quick(fasta, tmp_path_factory):
    """A short run in this process."""
    run = tmp_path_factory.mktemp("quick") / "run"
    code, _, err = hyena("pretrain", "--fasta", fasta, *QUICK, "--out", run)
    assert code == 0, err
    return run


def test_overwrite_starts_anew(fasta, tmp_path, quick):
    run, command = tmp_path / "run", ("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    assert hyena(*command, "--seed", "5")[0] == 0
    first = (run / "model/model.safetensors").read_bytes()
    code, _, err = hyena(*command, "--overwrite")
    assert code == 0 and "resumed" not in err
    assert_same_run(quick, run)
    assert first != (run / "model/model.safetensors").read_bytes()


def test_a_genome_that_changed_is_refused(fasta, tmp_path):
    copy = tmp_path / "a.fa"
    shutil.copy(fasta, copy)
    command = ("pretrain", "--fasta", copy, *QUICK, "--out", tmp_path / "run")
    assert hyena(*command)[0] == 0
    weights = (tmp_path / "run/model/model.safetensors").read_bytes()
    head, bases = copy.read_text().split("\n", 1)
    copy.write_text(f"{head}\n{'C' if bases[0] != 'C' else 'G'}{bases[1:]}")
    code, _, err = hyena(*command)
    assert code == 2 and "the genomes are not those that" in err.splitlines()[-1]
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == weights


def test_a_model_that_is_gone_is_missed(fasta, tmp_path):
    command = ("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    assert hyena(*command)[0] == 0
    shutil.rmtree(tmp_path / "run/model")
    code, out, err = hyena(*command)
    assert code == 2 and out == "" and "run/model, the best model so far, is missing" in err.splitlines()[-1]


def test_other_windows_are_refused(fasta, tmp_path, monkeypatch):
    command = ("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    assert hyena(*command)[0] == 0
    real = train.stages

    def rounded_down(config):
        warmup, micro_batches = real(config)
        fewer = [dataclasses.replace(stage, windows=stage.windows - 1) for stage in warmup.stages]
        return dataclasses.replace(warmup, stages=tuple(fewer)), micro_batches

    monkeypatch.setattr(train, "stages", rounded_down)
    code, _, err = hyena(*command)
    assert code == 2 and "take a number of devices that divides these" in err.splitlines()[-1]


def test_a_signal_does_not_wait_for_a_long_validation(fasta, tmp_path, monkeypatch):
    """The last checkpoint stands, and the validation is made again: the run ends as if nothing had been."""
    monkeypatch.setattr(monitor, "_PATIENCE_S", 0.2)
    real, slow = monitor.Monitor.validate, [True]

    def validate(self, trainer, module):
        if module.step == 8 and slow and slow.pop():
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(300):
                time.sleep(0.1)
        return real(self, trainer, module)

    monkeypatch.setattr(monitor.Monitor, "validate", validate)
    command = ("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    code, _, err = hyena(*command)
    assert code == 143 and "saved at step 6 in" in err.splitlines()[-1]
    code, _, err = hyena(*command)
    assert code == 0, err
    assert hyena("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "again")[0] == 0
    assert_same_run(tmp_path / "again", tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(fasta, tmp_path, quick):
    run, command = tmp_path / "run", ("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    assert hyena(*command)[0] == 0
    path = run / "checkpoints/step-00000008.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = hyena(*command)
    assert code == 3 and "step-00000008.ckpt cannot be read as a checkpoint" in err.splitlines()[-1]
    path.unlink()
    code, _, err = hyena(*command)
    assert code == 0 and "resumed at step 6\n" in err
    assert_same_run(quick, run)


def test_a_loss_that_is_no_number(fasta, tmp_path, monkeypatch):
    run = tmp_path / "run"
    command = ("pretrain", "--fasta", fasta, *QUICK, "--micro-batch-tokens", "64", "--out", run)
    plain, blamed = PretrainModule.training_step, []

    def poisoned(self, batch, batch_idx):
        if self.step == 4 and batch_idx % 2 == 1:
            blamed.extend(self.sampler.describe(4, 1, 1, 64))
            hook = self.model.register_forward_hook(lambda m, i, o: Output(o.logits * math.nan, o.hidden))
            try:
                return plain(self, batch, batch_idx)
            finally:
                hook.remove()
        return plain(self, batch, batch_idx)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    monkeypatch.setattr(PretrainModule, "training_step", poisoned)
    code, out, err = hyena(*command)
    assert code == 1 and out == ""
    last = err.splitlines()[-1]
    assert "the loss of step 5 is not finite; its windows on this rank: " in last and "lower --lr than 0.003" in last
    assert len(blamed) == 1 and f"on this rank: {blamed[0]}. The state" in last
    assert final_state(run).step == 4 == last_step(run)
    assert all(weight.isfinite().all() for weight in final_state(run).model.values())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    monkeypatch.setattr(PretrainModule, "training_step", plain)
    assert hyena(*command)[0] == 0
    assert hyena(*command[:-1], tmp_path / "other")[0] == 0
    assert_same_run(run, tmp_path / "other")


def test_gradients_that_are_no_numbers(fasta, tmp_path, monkeypatch):
    plain = PretrainModule.on_before_optimizer_step

    def poisoned(self, optimizer):
        if self.step == 2:
            next(iter(self.model.parameters())).grad[0] = math.inf
        plain(self, optimizer)

    monkeypatch.setattr(PretrainModule, "on_before_optimizer_step", poisoned)
    code, _, err = hyena("pretrain", "--fasta", fasta, *QUICK, "--out", tmp_path / "run")
    assert code == 1 and "the gradient of step 3 is not finite" in err.splitlines()[-1]
    assert final_state(tmp_path / "run").step == 2


def test_two_processes_in_one_folder(quick, fasta):
    with RunFolder(quick).locked():
        code, _, err = hyena("pretrain", "--fasta", fasta, *QUICK, "--out", quick)
    assert code == 2 and "is in use by another process; wait for it" in err.splitlines()[-1]


@pytest.mark.parametrize("call", ["checkpoint", "model"])
def test_no_space_left(fasta, tmp_path, monkeypatch, call):
    """In the middle of a save: one line, and the same command goes on where the last checkpoint stands."""
    # validated at every step, of which an early one is surely better than the first
    often = ("--valid-every", "1", "--checkpoint-every", "1") if call == "model" else ()
    run, command = tmp_path / "run", ("pretrain", "--fasta", fasta, *QUICK, *often, "--out", tmp_path / "run")
    replace, rename, failed = os.replace, os.rename, []

    def full(plain, wanted):
        def call(source, target):
            if wanted(str(target)) and str(source).endswith(".tmp"):
                failed.append(str(target))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(source, target)

        return call

    if call == "checkpoint":
        monkeypatch.setattr(files.os, "replace", full(replace, lambda target: target.endswith("step-00000006.ckpt")))
    else:
        late = full(rename, lambda target: target.endswith("/model") and last_step(run) > 1)
        monkeypatch.setattr(files.os, "rename", late)
    code, out, err = hyena(*command)
    assert failed and code == 1 and out == ""
    assert "No space left on device; what was there before is unchanged" in err.splitlines()[-1]
    assert not list(run.rglob("*.tmp"))
    before = final_state(run).step
    assert before == (3 if call == "checkpoint" else last_step(run) - 1)
    HyenaDNA.from_pretrained(run / "model")
    monkeypatch.undo()
    code, _, err = hyena(*command)
    assert code == 0 and f"resumed at step {before}\n" in err
    hyena(*command[:-1], tmp_path / "other")
    assert_same_run(run, tmp_path / "other")


def test_dry_run_writes_nothing(fasta, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rehearse = plan.dry_run
    monkeypatch.setattr(plan, "dry_run", lambda config, overwrite: rehearse(config, overwrite=overwrite, seconds=0.05))
    before = sorted(fasta.parent.iterdir())
    command = ("pretrain", "--fasta", fasta, *QUICK, "--dry-run")
    code, out, _ = hyena(*command)
    assert code == 0 and list(tmp_path.iterdir()) == [] and sorted(fasta.parent.iterdir()) == before
    for said in (
        "16 bases",
        "2 steps of 8 windows",
        "nt/s at 16 bases",
        "at 64 bases",
        "\ntime  ",
        "GB on each device",
    ):
        assert said in out
    report = json.loads(hyena(*command, "--json")[1])
    assert report["nt_per_second"].keys() == {"16", "64"} and report["memory_bytes"] > 1e6
    slowest = min(report["nt_per_second"].values())
    assert report["seconds"] == pytest.approx(8 * 128 / slowest)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--batch-tokens", "32"), 2, "a step of 32 tokens has no window of 64 bases for each of 1 micro-batches"),
        (("--micro-batch-tokens", "32"), 2, "--micro-batch-tokens 32 holds no window of 64 bases"),
        (("--device", "cuda:9"), 2, "--device cuda:9: torch sees"),
        (("--max-length", "20000"), 3, "20,000"),
        (("--valid-contigs", "chr7", "--test-contigs", "chr8"), 3, "chr7"),
        (("--valid-contigs", "chr7"), 2, "--valid-contigs and --test-contigs go together"),
        (("--contigs", "none"), 2, "none"),
        (("--steps", "3", "--warmup-steps", "2"), 2, "3 steps end before the length warm-up does, at step 4"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(fasta, tmp_path, arguments, code, said):
    given = ["pretrain", "--fasta", fasta, *SMALL, "--out", tmp_path / "run"]
    found, out, err = hyena(*given, *arguments)
    assert (found, out) == (code, "") and said in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()


def test_files_with_and_without_a_weight(fasta, tmp_path):
    code, _, err = hyena("pretrain", "--fasta", f"{fasta}:2", fasta, *QUICK, "--out", tmp_path / "run")
    assert code == 2 and "give all of them one, or none" in err.splitlines()[-1]
    code, _, err = hyena("pretrain", "--fasta", f"{fasta}:-1", *QUICK, "--out", tmp_path / "run")
    assert code == 2 and "the weight must be a positive number" in err.splitlines()[-1]


def test_recomputed_blocks_give_the_same_weights(fasta, quick, tmp_path):
    assert hyena("pretrain", "--fasta", fasta, *QUICK, "--checkpoint-activations", "--out", tmp_path / "run")[0] == 0
    ours, theirs = final_state(tmp_path / "run").model, final_state(quick).model
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)
