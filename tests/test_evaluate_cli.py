"""hyena evaluate: the split it uses, what it prints and what it refuses."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import ORDER, random_dna, sharp_model
from typer.testing import CliRunner

from hyenadna.cli.main import app
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import packed
from hyenadna.data.splits import contig_split, splits_to_json
from hyenadna.inference import markov
from hyenadna.inference.evaluate import evaluate
from hyenadna.model.language_model import HyenaDNA


@pytest.fixture(scope="module")
def model() -> HyenaDNA:
    return sharp_model()


@pytest.fixture
def workplace(model: HyenaDNA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A genome, a model that stores its split, and Markov models of low order."""
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(markov, "fit", functools.partial(markov.fit, order=ORDER))
    contigs = (random_dna(9000, 11), random_dna(3000, 12, "ACGTacgtN"), random_dna(1000, 13))
    (tmp_path / "genome.fa").write_text("".join(f">c{i}\n{contig}\n" for i, contig in enumerate(contigs)))
    pack = packed(tmp_path / "genome.fa")
    split = contig_split(kept_contigs(pack.lengths, None).intervals, ("c2",), ("c1",), pack)
    model.save_pretrained(tmp_path / "model", extra={"split.json": splits_to_json([split])})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hyena(*arguments: object) -> Any:
    given = ["evaluate", "-m", "model", *map(str, arguments), "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(app, given)


def test_command_uses_the_stored_split(workplace: Path) -> None:
    (workplace / "some.bed").write_text("c1\t100\t700\n")
    result = json.loads(hyena("--fasta", "genome.fa", "--regions", "some=some.bed", "-o", "report", "--json").stdout)
    pack = packed(workplace / "genome.fa")
    baselines, _ = markov.fit(pack, [Interval("c0", 0, 9000)], [Interval("c2", 0, 1000)])
    regions = {"some": [Interval("c1", 100, 700)]}
    network = HyenaDNA.from_pretrained(workplace / "model")
    expected = evaluate(network, pack, [Interval("c1", 0, 3000)], baselines, length=64, regions=regions)
    assert {name: result[name] for name in expected.to_json()} == expected.to_json()
    assert result["split_stored_with_model"]
    assert result["part"] == "test"
    assert result["markov_trained_on"] == "both strands of the train part of genome.fa: 9,000 bases in 1 intervals"

    report = workplace / "report"
    assert json.loads((report / "evaluation.json").read_text()) == result
    tables = ("models", "context", "annotations")
    names = {f"{name}.{kind}" for name in tables for kind in ("png", "tsv")}
    assert {path.name for path in report.iterdir()} == {"evaluation.json", *names}
    rows = (report / "models.tsv").read_text().splitlines()
    assert len(rows) == 1 + 2 + ORDER + 1
    assert float(rows[1].split("\t")[1]) == expected.model.value

    refused = hyena("--fasta", "genome.fa", "-o", "report")
    assert refused.exit_code == 2
    assert "report holds an evaluation already (evaluation.json); --overwrite replaces it" in refused.stderr
    shorter = hyena("--fasta", "genome.fa", "-o", "report", "--overwrite", "--max-bases", 100, "--length", 32)
    assert shorter.exit_code == 0
    assert json.loads((report / "evaluation.json").read_text())["length"] == 32


def test_command_prints_a_table(workplace: Path) -> None:
    printed = hyena("--fasta", "genome.fa", "--split", "valid", "--length", 16)
    lines = [line for line in printed.stdout.splitlines() if not line.startswith("#")]
    assert lines[2].startswith("language model ")
    assert lines[3].startswith("Markov interpolated ")
    assert sum(line.startswith("Markov order") and " * " in line for line in lines) == 1
    assert "1,984" in lines[2]  # 992 of 1,000 bases on each of two strands
    assert "one block only" in lines[3]


def test_command_splits_an_unknown_genome_anew(workplace: Path) -> None:
    (workplace / "other.fa").write_text(f">x\n{random_dna(20_000, 14)}\n")
    printed = hyena("--fasta", "other.fa", "--json", "-o", "report")
    assert not json.loads(printed.stdout)["split_stored_with_model"]
    assert "model stores no split of this genome, and may have been trained on any of it" in printed.stderr
    assert (workplace / "report" / "models.png").exists()


def test_command_says_when_the_sequence_differs(workplace: Path) -> None:
    text = (workplace / "genome.fa").read_text()
    (workplace / "changed.fa").write_text(text[:50] + ("A" if text[50] != "A" else "C") + text[51:])
    printed = hyena("--fasta", "changed.fa", "--max-bases", 100)
    assert printed.exit_code == 0
    assert "changed.fa has the contigs of genome.fa, which the model was trained on" in printed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--length", 67), 3, "--length 67 is more than the 66 bases that model takes"),
        (("--regions", "some.bed"), 2, "--regions 'some.bed': it takes NAME=BED, such as exons=exons.bed"),
        (("--regions", "soft-masked=x"), 2, "the name 'soft-masked' is taken already"),
        (("--contigs", "c0"), 2, "--contigs 'c0': the test part of the model's split has nothing there"),
        (("-o", "genome.fa"), 2, "-o genome.fa is a file; give a folder"),
    ],
)
def test_command_refuses(workplace: Path, arguments: tuple[object, ...], code: int, message: str) -> None:
    refused = hyena("--fasta", "genome.fa", *arguments)
    assert refused.exit_code == code
    assert message in refused.stderr


def test_command_does_not_take_the_bundled_genome_for_another(workplace: Path) -> None:
    result = hyena()
    assert result.exit_code == 2
    assert "model was trained on genome.fa; say by --fasta where that, or another genome, is" in result.stderr
