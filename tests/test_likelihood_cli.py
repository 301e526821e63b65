"""`hyena likelihood` as users call it."""

import csv
import functools
import gzip
import io
import json

import numpy as np
import pytest
import torch
from checkpoints import small_model
from embedding import ragged_sequences
from typer.testing import CliRunner

from hyenadna.cli import main as cli
from hyenadna.data.tokenizer import encode

SEQUENCES = ragged_sequences(number=8, longest=150)
CONTEXT = 68


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
    return CliRunner().invoke(cli.app, ["likelihood", *given, "--threads", "1"], input=text, terminal_width=120)


@functools.cache
def oracle(sequence):
    """Nats of each base in float64, window by window, each scored in its second half; NaN where none is."""
    model, tokens = small_model().double(), torch.from_numpy(encode(sequence)).long()
    found = np.full(len(sequence), np.nan)
    half = CONTEXT // 2
    for start in range(0, max(1, len(tokens) - half), half):
        with torch.no_grad():
            logits = model(tokens[None, start : start + CONTEXT]).logits[0, :, 7:11].log_softmax(-1)
        for at in range(start + half if start else 1, min(start + CONTEXT, len(tokens))):
            if 7 <= tokens[at] <= 10:
                found[at] = logits[at - start - 1, tokens[at] - 7]
    return found


def rows_of(text):
    about, *lines = text.splitlines()
    assert about.startswith("# hyenadna ")
    return about, list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t"))


def check(rows):
    assert [row["id"] for row in rows] == [name for name, _ in SEQUENCES]
    for row, (_, sequence) in zip(rows, SEQUENCES, strict=True):
        nats = oracle(sequence)
        count = int(np.isfinite(nats).sum())
        assert (int(row["length"]), float(row["scored_bases"])) == (len(sequence), count)
        assert float(row["nats"]) == pytest.approx(np.nansum(nats), abs=1e-3)
        if count:
            assert float(row["bits_per_base"]) == pytest.approx(-np.nanmean(nats) / np.log(2), abs=1e-4)
        else:
            assert not row["bits_per_base"]


def test_a_fasta_file_into_a_table(folder, fasta, tmp_path):
    out = tmp_path / "out.tsv"
    ended = run(fasta, "-m", folder, "-o", out)
    assert ended.exit_code == 0 and ended.stdout == "", ended.output
    assert f"8 sequences: their likelihoods are in {out}" in ended.stderr
    about, rows = rows_of(out.read_text())
    check(rows)
    for part in ("; base_sha256 ", "; context 68; stride 34; strands forward; dtype float32; ", "; input a.fa.gz; "):
        assert part in about
    again = run(fasta, "-m", folder, "-o", out)
    assert again.exit_code == 2 and "out.tsv exists; give another name, or --overwrite" in again.stderr
    assert run(fasta, "-m", folder, "-o", out, "--strand", "both", "--overwrite").exit_code == 0
    assert "; strands mean of both; " in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.tsv"]


def test_tables_from_stdin_and_lines_of_json(folder):
    table = "name,seq\n" + "".join(f"{name},{sequence}\n" for name, sequence in SEQUENCES)
    columns = ("--seq-col", "seq", "--id-col", "name")
    ended = run("-", "-m", folder, *columns, text=table)
    assert ended.exit_code == 0, ended.output
    check(rows_of(ended.stdout)[1])
    ended = run("-", "-m", folder, *columns, "--json", text=table)
    about, *rows = map(json.loads, ended.stdout.splitlines())
    assert about["input"] == "-" and about["context"] == 68
    check(rows)


def test_what_was_left_is_continued(folder, fasta, tmp_path):
    out, partial = tmp_path / "out.tsv", tmp_path / "out.tsv.partial"
    assert run(fasta, "-m", folder, "-o", out).exit_code == 0
    whole = out.read_bytes()
    out.rename(partial)
    partial.write_bytes(whole[:-30])
    refused = run(fasta, "-m", folder, "-o", out, "--strand", "reverse")
    assert refused.exit_code == 2 and "out.tsv.partial was begun by another job" in refused.stderr
    assert run(fasta, "-m", folder, "-o", out).exit_code == 0
    assert out.read_bytes() == whole and not partial.exists()


def test_standard_input_is_not_continued(folder, tmp_path):
    out, partial = tmp_path / "out.tsv", tmp_path / "out.tsv.partial"
    first = run("-", "-m", folder, "-o", out, text="sequence\nACGTTT\nGGGG\n")
    assert first.exit_code == 0 and "standard input cannot be read again: a run that is stopped starts anew" in (
        first.stderr
    )
    whole = out.read_bytes()
    out.rename(partial)  # as if killed right before
    # other sequences of the same names
    assert run("-", "-m", folder, "-o", out, text="sequence\nTTTACG\nGGGG\n").exit_code == 0
    rows = [rows_of(text)[1] for text in (whole.decode(), out.read_text())]
    assert rows[0][0]["nats"] != rows[1][0]["nats"] and rows[0][1] == rows[1][1]


def test_inputs_and_folders_are_no_outputs(folder, tmp_path):
    genome, bed = tmp_path / "g.fa", tmp_path / "a.bed"
    genome.write_text(">c\nACGTACGT\n")
    bed.write_text("c\t2\t7\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for out, said in (
        (genome, "is an input itself; give"),
        (bed, "is an input itself"),
        (tmp_path, "is a folder; name"),
    ):
        ended = run(bed, "--fasta", genome, "-m", folder, "-o", out, "--overwrite")
        assert ended.exit_code == 2 and said in ended.stderr
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_track(folder, fasta, tmp_path):
    ended = run(fasta, "-m", folder, "--track", "bedgraph")
    assert ended.exit_code == 0, ended.output
    about, track, *lines = ended.stdout.splitlines()
    assert about.startswith("# hyenadna ") and track.startswith('track type=bedGraph name="ln p, small" ')
    assert f"{len(lines):,} bases: their log-likelihoods" in ended.stderr
    expected = [
        (name, at, at + 1, value)
        for name, sequence in SEQUENCES
        for at, value in enumerate(oracle(sequence))
        if np.isfinite(value)
    ]
    for line, (name, start, end, value) in zip(lines, expected, strict=True):
        *place, written = line.split("\t")
        assert place == [name, str(start), str(end)] and float(written) == pytest.approx(value, abs=2e-4)


def test_regions_are_read_on_their_strand_and_placed_on_the_genome(folder, tmp_path):
    (tmp_path / "g.fa").write_text(">c\n" + SEQUENCES[2][1] + "\n")
    (tmp_path / "a.bed").write_text("c\t10\t40\tone\t0\t+\nc\t60\t90\ttwo\t0\t-\n")
    arguments = (tmp_path / "a.bed", "--fasta", tmp_path / "g.fa", "-m", folder)
    table, track = run(*arguments), run(*arguments, "--track", "bedgraph")
    assert table.exit_code == track.exit_code == 0, track.output
    rows, places = rows_of(table.stdout)[1], [line.split("\t") for line in track.stdout.splitlines()[2:]]
    assert [row["id"] for row in rows] == ["one", "two"]
    for row, (first, last) in zip(rows, ((11, 39), (60, 88)), strict=True):
        values = [float(value) for _, start, _, value in places if first <= int(start) <= last]
        assert len(values) == int(row["scored_bases"]) > 20
        assert sum(values) == pytest.approx(float(row["nats"]), abs=3e-3)


def test_dry_run_writes_nothing(folder, fasta, tmp_path):
    ended = run(fasta, "-m", folder, "-o", tmp_path / "a.tsv", "--dry-run", "--json", "--track", "bedgraph")
    assert ended.exit_code == 0, ended.output
    plan = json.loads(ended.stdout)
    assert (plan["sequences"], plan["bases"]) == (8, sum(len(text) for _, text in SEQUENCES))
    ended = run(fasta, "-m", folder, "--dry-run")
    assert ended.stdout.startswith("8 sequences, ") and "Nothing was written" in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    ended = run("-", "-m", folder, "--dry-run", text=">a\nA\n")
    assert ended.exit_code == 2 and "standard input does not allow; give a file" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "text", "code", "said"),
    [
        ([], "", 3, "standard input is empty"),
        ([], ">a\nACG\n>b\nAEG\n", 3, "'E' at position 2"),
        ([], 'sequence\nACG\n""\n', 3, "empty"),
        (["--seq-col", "x"], "sequence\nACG\n", 2, "x"),
        (["--track", "bedgraph"], "sequence\nACG\n", 2, "is a table, whose sequences have no coordinates"),
        (["--track", "bedgraph", "--json"], ">a\nACG\n", 2, "--json: a track is bedGraph and nothing else"),
        (["--track", "bedgraph", "--id-col", "x"], ">a\nACG\n", 2, "--id-col x: a track is of a FASTA or BED file"),
        (["--track", "bedgraph"], ">a\nACG\n>a\nACG\n", 3, "two records named 'a'"),
    ],
)
def test_bad_input_in_one_line(folder, arguments, text, code, said):
    ended = run("-", "-m", folder, *arguments, text=text)
    assert ended.exit_code == code and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not ended.stdout
