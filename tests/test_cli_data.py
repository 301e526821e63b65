"""`hyena data pack` and `hyena data split`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from hyenadna.cli.data import app
from hyenadna.data.packed import Pack
from hyenadna.data.splits import Split
from hyenadna.errors import FastaError, InputError, UsageError


@pytest.fixture
def fasta(tmp_path):
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(0).integers(0, 4, 60_000)].tobytes().decode()
    path = tmp_path / "a.fa"
    path.write_text(f">chr1\n{letters}\n>chrUn_x\nACGTN\n>chrEBV\nACGT\n")
    return path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # cli/main.py turns these into one line
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pack_beside_the_fasta(fasta):
    out = run("pack", fasta)
    assert out == f"{fasta}.hyena.h5: 3 contigs, 60,009 bases\n"
    assert Pack.open(fasta.with_name("a.fa.hyena.h5")).names == ("chr1", "chrUn_x", "chrEBV")


def test_pack_to_a_place(fasta, tmp_path):
    out = json.loads(run("pack", fasta, "-o", tmp_path / "b.h5", "--json"))
    assert out["path"] == str(tmp_path / "b.h5") and out["bases"] == 60_009 and out["counts"]["N"] == 1
    assert out["sequence_sha256"] == Pack.open(tmp_path / "b.h5").sequence_sha256
    assert not fasta.with_name("a.fa.hyena.h5").exists()


def test_split_is_printed(fasta):
    out = run("split", fasta, "--max-length", "100")
    assert "kept 1 of 3 contigs: chr1\n" in out
    assert "left out, unplaced: chrUn_x\n" in out and "left out, Epstein-Barr virus: chrEBV\n" in out
    rows = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert rows[0] == ["part", "intervals", "bases", "share", "GC"]
    assert [row[0] for row in rows[1:]] == ["train", "valid", "test"]
    assert sum(float(row[3]) for row in rows[1:]) == pytest.approx(1, abs=2e-4)
    assert "kept 3 of 3" in run("split", fasta, "--contigs", "all")


def test_split_as_json(fasta, tmp_path):
    printed = json.loads(run("split", fasta, "--max-length", "100", "-o", tmp_path / "split.json", "--json"))
    stored = json.loads((tmp_path / "split.json").read_text())
    assert printed == stored and Split.from_json(stored).lengths["chr1"] == 60_000
    assert printed["left_out"] == {"chrUn_x": "unplaced", "chrEBV": "Epstein-Barr virus"}


@pytest.mark.parametrize("verb", ["pack", "split"])
def test_nothing_is_replaced_unasked(fasta, tmp_path, verb):
    out = tmp_path / "precious.h5"
    out.write_bytes(b"\x89HDF\r\n\x1a\n precious")
    with pytest.raises(UsageError, match=r"precious\.h5 exists; give another name, or --overwrite"):
        run(verb, fasta, "-o", out)
    assert out.read_bytes().endswith(b"precious")
    run(verb, fasta, "-o", out, "--overwrite")
    assert not out.read_bytes().endswith(b"precious")


def test_failures_are_ours(fasta, tmp_path):
    with pytest.raises(FastaError, match="No such file"):
        run("pack", tmp_path / "none.fa")
    with pytest.raises(InputError, match="allow a max length of 5,000"):
        run("split", fasta, "--max-length", "20000")
    with pytest.raises(UsageError, match="matches no contig"):
        run("split", fasta, "--contigs", "x")


def test_help_is_light():
    program = (
        "import sys, hyenadna.cli.data; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'lightning') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
