"""The benchmark of cache budgets on a toy hybrid: it runs, and its numbers are those of the model."""

import importlib
import json

import numpy as np
import pytest
import torch
from oracles import BENCHMARKS
from pretraining import write_genome

from hyenadna import HyenaConfig, HyenaDNA


@pytest.fixture
def benchmark(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("pyramid_kv")
    torch.set_num_threads(threads)


def saved(folder, layers):
    torch.manual_seed(0)
    config = HyenaConfig(d_model=8, d_inner=16, layers=layers, heads=2, kv_heads=1, filter_length=66)
    HyenaDNA(config).save_pretrained(folder)
    return folder


def test_a_report_of_budgets_and_of_attention(benchmark, tmp_path, capsys):
    model, out = saved(tmp_path / "model", "SHS"), tmp_path / "report.json"
    genome = write_genome(tmp_path / "genome.fa")
    given = ["-m", str(model), "--fasta", str(genome), "-o", str(out), "--window", "4", "--quick"]
    assert benchmark.main(given) == 0
    report = json.loads(out.read_text())
    full, *cases = report["cases"]
    assert (full["tokens"], full["schedule"], full["more_than_full"]["value"]) == (32, "full", 0)
    assert 1.8 < full["bits_per_base"]["value"] < 2.3
    assert [(case["tokens"], case["schedule"], case["bits"]) for case in cases] == [
        (8, "arithmetic", None), (8, "uniform", None), (4, "arithmetic", None), (4, "uniform", None),
        *((32, "arithmetic", bits) for bits in (8, 4, 2)),
    ]  # fmt: skip
    assert full["cache_bytes"] == 2 * 2 * 32 * 4 * 4  # layers, keys and values, tokens, channels, float32
    assert [case["share_of_full"] for case in cases[:4]] == [0.25, 0.25, 0.125, 0.125]
    assert abs(cases[4]["more_than_full"]["value"]) < 1e-3
    first, last = report["attention"]
    assert (first["layer"], last["layer"]) == (0, 2)
    # weights as they are drawn attend to all alike
    assert 0.95 < first["share_of_equal_attention"] < 1 and 18 < first["tokens_of_90_percent"] < 29
    assert abs(report["entropy_of_first_minus_last_layer"]["value"]) < 0.1
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "from the first softmax layer to the last the entropy falls by" in capsys.readouterr().err


def test_full_caches_give_what_one_reading_gives(benchmark):
    model = HyenaDNA(HyenaConfig(d_model=8, d_inner=16, layers="SH", heads=2, kv_heads=2, filter_length=102)).eval()
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(0).integers(4, size=(3, 100))]
    found = benchmark.measure(model, letters, [])
    tokens = torch.from_numpy(np.searchsorted(np.frombuffer(b"ACGT", dtype=np.uint8), letters)) + 7
    with torch.no_grad():
        nats = model(tokens).logits[:, 49:-1, 7:11].log_softmax(-1).gather(-1, tokens[:, 50:, None] - 7)
    np.testing.assert_allclose(found["bits"][0], -nats.sum(dim=(1, 2)).numpy() / np.log(2), rtol=1e-5)


def test_a_model_without_softmax_layers_is_refused(benchmark, tmp_path, capsys):
    model, genome = saved(tmp_path / "model", "HH"), write_genome(tmp_path / "genome.fa")
    out = tmp_path / "report.json"
    assert benchmark.main(["-m", str(model), "--fasta", str(genome), "-o", str(out), "--quick", "--window", "4"]) == 2
    assert "without softmax layers" in capsys.readouterr().err and not out.exists()


def test_a_genome_without_whole_windows_is_refused(benchmark, tmp_path, capsys):
    genome, out = tmp_path / "genome.fa", tmp_path / "report.json"
    genome.write_text(f">c\n{('ACGTTGCAAC' * 3 + 'N') * 1000}\n")
    model = saved(tmp_path / "model", "S")
    code = benchmark.main(["-m", str(model), "--fasta", str(genome), "-o", str(out), "--window", "4", "--quick"])
    assert code != 0 and "none is without N; give a smaller --length" in capsys.readouterr().err
    assert not out.exists()
