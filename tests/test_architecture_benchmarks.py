"""The comparisons of architectures at toy sizes: equal weights, equal data, every training kept."""

import importlib
import json
import sys
from importlib.metadata import packages_distributions

import pytest
import torch
from oracles import BENCHMARKS
from pretraining import write_genome

from hyenadna.errors import UsageError


@pytest.fixture
def trainings(monkeypatch):
    """The module, training in this process."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("trainings")
    monkeypatch.setattr(found, "in_fresh_process", lambda work, *arguments: (work(*arguments), 10**9))
    yield found
    torch.set_num_threads(threads)


@pytest.fixture
def fasta(tmp_path):
    return write_genome(tmp_path / "a.fa", 60_000)


def test_experts(trainings, fasta, tmp_path, capsys):
    experts = importlib.import_module("experts")
    out = tmp_path / "experts.json"
    arguments = ["--fasta", str(fasta), "--runs", str(tmp_path / "runs"), "--quick", "--seeds", "2", "--layers", "L"]
    assert experts.main([*arguments, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    dense, damped, published = report["contenders"]
    for row in (damped, published):
        assert row["active_weights"] == pytest.approx(dense["active_weights"], rel=0.02)
        assert row["weights"] > 2 * dense["weights"] and 0 < row["sparsity"]["mean"] < 1
        gap = [a - b for a, b in zip(row["by_seed"], dense["by_seed"], strict=True)]
        assert row["minus_dense"]["value"] == pytest.approx(sum(gap) / 2)
        low, high = (row["minus_dense"][end] for end in ("low", "high"))
        # Student's t with one degree of freedom
        assert (high - low) / 2 == pytest.approx(12.7062 * abs(gap[0] - gap[1]) / 2, rel=1e-4)
    assert dense["minus_dense"]["value"] == 0 and "sparsity" not in dense
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert report["plan"]["fasta"] == "a.fa" and "ReMoE" in capsys.readouterr().err


def test_architectures_goes_on_where_it_was(trainings, fasta, tmp_path, monkeypatch):
    architectures = importlib.import_module("architectures")
    monkeypatch.setattr(architectures, "PATTERNS", ("HH", "LS"))
    out = tmp_path / "architectures.json"
    arguments = ["--fasta", str(fasta), "--runs", str(tmp_path / "runs"), "--quick", "--seeds", "1", "--out", str(out)]
    train, done = trainings.train, []

    def stopping(contender, seed, plan):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(contender.name)
        return train(contender, seed, plan)

    monkeypatch.setattr(trainings, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        architectures.main(arguments)
    assert done == ["HH", "HH + ReMoE", "LS"] and len(json.loads(out.read_text())["contenders"]) == 3
    done.pop()
    assert architectures.main(arguments) == 0
    assert done == ["HH", "HH + ReMoE", "LS + ReMoE"]  # the other three were kept
    rows = json.loads(out.read_text())["contenders"]
    assert [(row["layers"], row["feed_forward"]) for row in rows] == [
        ("HH", "mlp"), ("HH", "remoe"), ("LS", "mlp"), ("LS", "remoe"),
    ]  # fmt: skip
    for row in rows:
        assert row["active_weights"] == pytest.approx(rows[0]["active_weights"], rel=0.02)
        assert row["generated_per_cpu_second"]["value"] > 0 and row["peak_memory_gb"]["value"] == 1
    lines = out.with_suffix(".tsv").read_text().splitlines()
    assert len(lines) == 5 and len({line.count("\t") for line in lines}) == 1
    assert out.with_suffix(".png").exists()


def test_what_cannot_be_compared_is_refused_in_one_line(trainings, tmp_path, capsys):
    given = ["--fasta", "no.fa", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    for name, more, message in (
        ("experts", ["--layers", "HX"], "layers is 'HX'; allowed are"),
        ("experts", ["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        ("architectures", ["--batch-tokens", "0"], "--batch-tokens is 0; it must be at least 1"),
    ):
        assert importlib.import_module(name).main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_no_benchmark_hides_a_package(trainings):
    """Of a script its folder is first on the path, for all that it imports."""
    ours = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert not ours & (set(sys.stdlib_module_names) | set(packages_distributions()))


def test_widths_that_cannot_match_are_refused(trainings):
    plan = trainings.Plan("", d_model=8, length=64)
    with pytest.raises(UsageError, match=r"L+: no feed-forward width comes within 2% of"):
        trainings.matched("LLLLLLLL", "mlp", plan, like="H")


def test_active_weights_are_counted(trainings):
    plan = trainings.Plan("", d_model=16, length=64)
    dense = trainings.weights(trainings.model_config(trainings.Contender("H", "mlp", 64), plan))
    total, active = trainings.weights(trainings.model_config(trainings.Contender("H", "remoe", 64), plan))
    assert dense[0] == dense[1] and active == dense[0] + 8 * 16  # the router
    assert total == active + 7 * (2 * 16 * 64 + 64 + 16)
