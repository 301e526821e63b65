"""`hyena embed` as users call it."""

import gzip
import json

import h5py
import numpy as np
import pytest
from checkpoints import small_model
from embedding import oracle, ragged_sequences
from typer.testing import CliRunner

from hyenadna.cli import main as cli
from hyenadna.data.alphabet import reverse_complement
from hyenadna.files import lock

SEQUENCES = ragged_sequences()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in" / "a.fa.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress("".join(f">{name} text\n{sequence}\n" for name, sequence in SEQUENCES).encode()))
    return path


def run(*arguments, text=None):
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.app, ["embed", *given, "--threads", "1"], input=text, terminal_width=120)


def embeddings(path):
    with h5py.File(path, "r") as file:
        return file["ids"].asstr()[:].tolist(), file["embeddings"][:], dict(file.attrs)


def wanted(sequences):
    model = small_model().double()
    return np.stack([oracle(model, sequence) for sequence in sequences])


def test_a_fasta_file_into_hdf5(folder, fasta, tmp_path):
    out = tmp_path / "out.h5"
    ended = run(fasta, "-m", folder, "-o", out)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith(f"{out}: 12 sequences, one row of 16 numbers each; ") and ended.stderr == ""
    ids, values, attributes = embeddings(out)
    assert ids == [name for name, _ in SEQUENCES]
    assert np.abs(values - wanted([sequence for _, sequence in SEQUENCES])).max() < 1e-4
    assert attributes["input"] == "a.fa.gz" and len(attributes["input_head_tail_sha256"]) == 64
    assert (attributes["layer"], attributes["pool"], attributes["strands"]) == (3, "mean", "as given")
    assert attributes["complete"] == 1 and len(attributes["base_sha256"]) == 64
    before = out.read_bytes()
    again = run(fasta, "-m", folder, "-o", out)
    assert again.exit_code == 0 and "12 of them by an earlier run" in again.stdout and out.read_bytes() == before
    refused = run(fasta, "-m", folder, "-o", out, "--pool", "max")
    assert refused.exit_code == 2 and "was begun with pool 'mean', and this is 'max'" in refused.stderr
    assert run(fasta, "-m", folder, "-o", out, "--pool", "max", "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.h5"]


def test_tables_bed_and_standard_input(folder, fasta, tmp_path):
    table = "name,seq\n" + "".join(f"{name},{sequence}\n" for name, sequence in SEQUENCES)
    ended = run("-", "-m", folder, "-o", tmp_path / "a.h5", "--seq-col", "seq", "--id-col", "name", text=table)
    assert ended.exit_code == 0, ended.output
    ids, values, attributes = embeddings(tmp_path / "a.h5")
    assert ids == [name for name, _ in SEQUENCES] and attributes["input"] == "-"
    assert np.abs(values - wanted([sequence for _, sequence in SEQUENCES])).max() < 1e-4
    genome = tmp_path / "genome.fa"
    genome.write_text(">chr\n" + SEQUENCES[2][1] + "\n")
    bed = tmp_path / "a.bed"
    bed.write_text("chr\t2\t30\tone\t0\t+\nchr\t5\t40\ttwo\t0\t-\n")
    ended = run(bed, "--fasta", genome, "-m", folder, "-o", tmp_path / "b.npy", "--json")
    assert ended.exit_code == 0, ended.output
    result = json.loads(ended.stdout)
    assert (result["sequences"], result["bases"], result["fasta"]) == (2, 63, "genome.fa")
    sequences = [SEQUENCES[2][1][2:30], reverse_complement(SEQUENCES[2][1][5:40])]
    assert np.abs(np.load(tmp_path / "b.npy") - wanted(sequences)).max() < 1e-4


def test_dry_run_counts_and_writes_nothing(folder, fasta, tmp_path):
    ended = run(fasta, "-m", folder, "-o", tmp_path / "a.h5", "--bins", 10, "--dry-run", "--json")
    assert ended.exit_code == 0, ended.output
    plan, lengths = json.loads(ended.stdout), [len(sequence) for _, sequence in SEQUENCES]
    rows = sum(-(-length // 10) for length in lengths)
    assert (plan["sequences"], plan["bases"], plan["longest"]) == (12, sum(lengths), max(lengths))
    assert (plan["rows"], plan["output_bytes"]) == (rows, 4 * 16 * rows) and plan["nt_per_s"] > 0
    ended = run(fasta, "-m", folder, "-o", tmp_path / "a.h5", "--dry-run")
    assert ended.stdout.startswith(
        f"12 sequences, {sum(lengths):,} bases, the longest 60; 12 rows of 16 numbers, 768 B."
    )
    assert not (tmp_path / "a.h5").exists()
    ended = run(fasta, "-m", folder, "-o", tmp_path / "a.txt", "--dry-run")
    assert ended.exit_code == 2 and "the name must end in one of" in ended.stderr
    ended = run("-", "-m", folder, "-o", tmp_path / "a.h5", "--dry-run", text=">a\nA\n")
    assert ended.exit_code == 2 and "standard input does not allow; give a file" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "text", "code", "said"),
    [
        (["-o", "a.txt"], ">a\nACG\n", 2, "-o a.txt: the name must end in one of .h5, .hdf5, .parquet, .npy"),
        (
            ["-o", "a.h5", "--layer", "4"],
            ">a\nACG\n",
            2,
            "layer is 4; this model of 3 blocks has 0 (the embedding) to 3",
        ),
        (["-o", "a.h5", "--stride", "69"], ">a\nACG\n", 2, "a stride of 69 bases; allowed are 1 to the 68"),
        (["-o", "a.h5", "--bins", "2", "--pool", "max"], ">a\nACG\n", 2, "--bins 2 takes means; leave out --pool max"),
        (["-o", "a.h5", "--seq-col", "x"], "sequence\nACG\n", 2, "x"),
        (["-o", "a.h5"], 'sequence\nACG\n""\n', 3, "empty"),
        (["-o", "a.h5"], "sequence\nACG\nAEG\n", 3, "'E' at position 2"),
        (["-o", "a.h5"], "", 3, "empty"),
    ],
)
def test_bad_input_in_one_line(folder, tmp_path, monkeypatch, arguments, text, code, said):
    monkeypatch.chdir(tmp_path)
    ended = run("-", "-m", folder, *arguments, text=text)
    assert ended.exit_code == code and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_file_and_somebody_elses(folder, fasta, tmp_path):
    ended = run(tmp_path / "none.fa", "-m", folder, "-o", tmp_path / "a.h5")
    assert ended.exit_code == 3 and "there is no file" in ended.stderr
    with lock(tmp_path / ".a.h5.lock"):
        ended = run(fasta, "-m", folder, "-o", tmp_path / "a.h5")
    assert ended.exit_code == 2 and "a.h5 is being written by another process" in ended.stderr
