"""`hyena predict` as users call it."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
import torch
from checkpoints import edit_json, small_model
from embedding import ragged_sequences
from typer.testing import CliRunner

from hyenadna import HyenaDNA
from hyenadna.cli import main as cli
from hyenadna.data.tokenizer import encode
from hyenadna.finetune import adapter
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.predict import Predictor
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task

SEQUENCES = ragged_sequences(number=8, longest=150)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and a run with a head for it that was trained on both strands."""
    folder = tmp_path_factory.mktemp("models")
    small_model().save_pretrained(folder / "base")
    base = HyenaDNA.from_pretrained(folder / "base")
    model = SequenceModel(base, Task("binary", ("no", "yes")), Adaptation(method="head"), seed=1).eval()
    with torch.no_grad():
        model.head.linear.weight.normal_(generator=torch.Generator().manual_seed(2))
    training = {"reverse_complement": True}
    adapter.save(model, folder / "run" / "adapter", base=str(folder / "base"), card="# x", training=training)
    return folder


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,sequence\n" + "".join(f"{name},{sequence}\n" for name, sequence in SEQUENCES))
    return path


def run(*arguments, text=None):
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.app, ["predict", *given, "--threads", "1"], input=text, terminal_width=120)


def rows_of(text):
    about, *lines = text.splitlines()
    assert about.startswith("# hyenadna ")
    return about, list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t"))


def wanted(folders, **options):
    model = adapter.load(folders / "run")
    return np.array([Predictor(model, **options)([encode(sequence)])[0] for _, sequence in SEQUENCES])


def probabilities(rows):
    return np.array([[float(row["probability_no"]), float(row["probability_yes"])] for row in rows])


def test_a_table_into_a_file(folders, table, tmp_path):
    out = tmp_path / "out.tsv"
    ended = run(table, "-m", folders / "run", "-o", out, "--id-col", "name")
    assert ended.exit_code == 0 and ended.stdout == "", ended.output
    assert f"8 sequences: their predictions are in {out}" in ended.stderr
    about, rows = rows_of(out.read_text())
    for part in (
        "; base_sha256 ",
        "; stride 34; aggregate mean; strands mean of both; ",
        "; input a.csv; ",
        "; command ",
    ):
        assert part in about
    assert [row["id"] for row in rows] == [name for name, _ in SEQUENCES]
    expected = wanted(folders, reverse_complement=True)
    assert np.abs(probabilities(rows) - expected).max() < 1e-5
    assert [row["prediction"] for row in rows] == [["no", "yes"][best] for best in expected.argmax(1)]
    again = run(table, "-m", folders / "run", "-o", out, "--id-col", "name")
    assert again.exit_code == 2 and "out.tsv exists; give another name, or --overwrite" in again.stderr
    flags = ("--no-reverse-complement", "--aggregate", "max", "--stride", 20, "--overwrite", "--batch-tokens", 100)
    assert run(table, "-m", folders / "run" / "adapter", "-o", out, "--id-col", "name", *flags).exit_code == 0
    about, rows = rows_of(out.read_text())
    assert "; stride 20; aggregate max; strands as given; " in about
    assert np.abs(probabilities(rows) - wanted(folders, aggregate="max", stride=20)).max() < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out.tsv"]


def test_fasta_to_stdout_and_from_stdin(folders, table, tmp_path):
    fasta = "".join(f">{name} text\n{sequence}\n" for name, sequence in SEQUENCES)
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(fasta.encode()))
    from_file = run(tmp_path / "a.fa.gz", "-m", folders / "run")
    from_stdin = run("-", "-m", folders / "run", text=fasta)
    assert from_file.exit_code == from_stdin.exit_code == 0, from_file.output
    assert rows_of(from_file.stdout)[1] == rows_of(from_stdin.stdout)[1]
    assert [row["id"] for row in rows_of(from_file.stdout)[1]] == [name for name, _ in SEQUENCES]
    ended = run("-", "-m", folders / "run", "--json", text=fasta)
    about, *lines = map(json.loads, ended.stdout.splitlines())
    assert about["input"] == "-" and about["strands"] == "mean of both"
    values = [[line["probabilities"]["no"], line["probabilities"]["yes"]] for line in lines]
    assert np.abs(np.array(values) - wanted(folders, reverse_complement=True)).max() < 1e-5


def test_what_was_left_is_continued(folders, table, tmp_path):
    out, partial = tmp_path / "out.tsv", tmp_path / "out.tsv.partial"
    arguments = (table, "-m", folders / "run", "-o", out)
    assert run(*arguments).exit_code == 0
    whole = out.read_bytes()
    out.rename(partial)
    partial.write_bytes(whole[:-30])
    refused = run(*arguments, "--stride", 30)
    assert refused.exit_code == 2 and "out.tsv.partial was begun by another job" in refused.stderr
    assert run(*arguments).exit_code == 0
    assert out.read_bytes() == whole and not partial.exists()


def test_standard_input_is_not_continued_and_no_input_is_replaced(folders, table, tmp_path):
    out, partial = tmp_path / "out.tsv", tmp_path / "out.tsv.partial"
    found = []
    for sequence in ("ACGTTTGA", "TTTTACGG"):  # of the same name, and killed right before the end
        assert run("-", "-m", folders / "run", "-o", out, text=f"sequence\n{sequence}\n").exit_code == 0
        found.append(rows_of(out.read_text())[1])
        out.rename(partial)
    assert found[0] != found[1]
    refused = run(table, "-m", folders / "run", "-o", table, "--overwrite")
    assert refused.exit_code == 2 and "is an input itself; give another name" in refused.stderr


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ('sequence\nACG\n""\n', 3, "empty"),
        ("sequence\nACG\nAEG\n", 3, "'E' at position 2"),
        ("", 3, "empty"),
        ("x,y\n1,2\n", 3, "x"),
    ],
)
def test_bad_input_in_one_line(folders, text, code, said):
    ended = run("-", "-m", folders / "run", text=text)
    assert ended.exit_code in (2, code) and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_bad_models_in_one_line(folders, table, tmp_path):
    for model in (folders / "base", "starter"):
        ended = run(table, "-m", model)
        assert ended.exit_code == 3 and ended.stderr.count("\n") == 1
        assert f"{model} is a language model and predicts no labels; fine-tune it first: hyena finetune" in ended.stderr
    ended = run(table, "-m", tmp_path)
    assert ended.exit_code == 3 and "is no adapter: it has no adapter.json" in ended.stderr
    small_model(d_model=8).save_pretrained(tmp_path / "other")
    ended = run(table, "-m", folders / "run", "--base", tmp_path / "other")
    assert ended.exit_code == 3 and "an adapter works on the very model that it was trained on" in ended.stderr
    ended = run(table, "-m", folders / "run", "--base", folders / "base")
    assert ended.exit_code == 0, ended.output
    assert run(table).exit_code == 2


def test_a_base_that_is_gone_is_named(folders, table, tmp_path):
    copied = tmp_path / "run"
    copied.mkdir()
    for file in (folders / "run" / "adapter").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    edit_json(copied / "adapter.json", base=str(tmp_path / "gone"))
    ended = run(table, "-m", copied)
    assert ended.exit_code == 3 and "gone" in ended.stderr and ended.stderr.count("\n") == 1
    assert run(table, "-m", copied, "--base", folders / "base").exit_code == 0
