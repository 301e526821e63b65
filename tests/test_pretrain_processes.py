"""Several processes train as one: the same losses and weights, also when a run goes on with another number of them."""

import shutil

import pytest
import torch
from pretraining import SMALL, Command, final_state, hyena, metrics, write_genome

TWO = (*SMALL, "--steps", "5", "--warmup-share", "0.4", "--dropout", "0", "--lr", "6e-4", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    return write_genome(tmp_path_factory.mktemp("genome") / "a.fa")


@pytest.fixture(scope="module")
def one_process(fasta, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    assert hyena("pretrain", "--fasta", fasta, *TWO, "--keep-last", "9", "--out", run)[0] == 0
    return run


def assert_close_run(one, other):
    rows, others = metrics(one), metrics(other)
    assert len(rows) == len(others) == 5
    for row, same in zip(rows, others, strict=True):
        for name in ("step", "length", "tokens", "learning_rate"):
            assert row[name] == same[name]
        assert float(row["bits_per_base"]) == pytest.approx(float(same["bits_per_base"]), abs=1e-5)
    assert float(rows[0]["gradient_norm"]) == pytest.approx(float(others[0]["gradient_norm"]), rel=1e-6)
    valid = [float(rows_[-1]["valid_bits_per_base"]) for rows_ in (rows, others)]
    assert valid[0] == pytest.approx(valid[1], abs=1e-5)
    a, b = final_state(one), final_state(other)
    for name, weight in a.model.items():
        torch.testing.assert_close(weight, b.model[name], rtol=0, atol=1e-5)


def test_two_processes_train_as_one(fasta, one_process, tmp_path):
    code, out, err = Command("pretrain", "--fasta", fasta, *TWO, "--devices", "2", "--out", tmp_path / "run").finish()
    assert code == 0, err
    assert out.count("bits per base at step") == 1  # said once, not by each
    assert_close_run(one_process, tmp_path / "run")


@pytest.mark.slow
def test_one_process_goes_on_as_two(fasta, one_process, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(one_process, run)
    for path in (run / "checkpoints").iterdir():
        if path.name > "step-00000002.ckpt":
            path.unlink()
    code, _, err = Command("pretrain", "--fasta", fasta, *TWO, "--devices", "2", "--out", run).finish()
    assert code == 0 and err.count("resumed at step 2\n") == 1, err
    assert_close_run(one_process, run)
