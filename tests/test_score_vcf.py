"""A VCF through scoring: nothing changes but INFO, and a run that was stopped gives the bytes of one that was not."""

import errno
import gzip
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from scoring import HEADER, JOB, MadeUp, Score, bases, configured, line, records, run, write_fasta, write_vcf

from hyenadna.cli.main import _interrupt
from hyenadna.data import reference_check
from hyenadna.data.alleles import Variant
from hyenadna.errors import InputError, Interrupted, UsageError, WriteError
from hyenadna.files import lock
from hyenadna.inference import score_vcf as module
from hyenadna.inference.score_lines import model_line, texts

OURS = re.compile(rb";?HYENA_\w+=[^;\t]*")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_RECORDS", 20)


@pytest.fixture
def folder(tmp_path):
    write_fasta(tmp_path / "ref.fa")
    write_vcf(tmp_path / "in.vcf", records(110))
    return tmp_path


def left_in(folder):
    return sorted(
        path.name for path in folder.iterdir() if path.name not in ("ref.fa", "ref.fa.fai", ".ref.fa.fai.lock")
    )


def infos(path):
    return [row.split("\t")[7] for row in path.read_text().splitlines() if not row.startswith("#")]


def test_by_hand(tmp_path):
    write_fasta(tmp_path / "ref.fa")
    one = bases()["1"]
    alts = [base for base in "ACGT" if base != one[99]][:2]
    made = [
        line(100, ",".join([*alts, "<DEL>", "*"])),
        line(200, ".", info="."),
        line(300, info="DP=7;HYENA_LLR=9;X").replace("\n", "\r\n"),
    ]
    write_vcf(tmp_path / "in.vcf", made)
    done = run(configured(tmp_path))
    assert done == (3, 0, 6, 3, 0, {"SKIPPED": 3})
    a, b = (texts(MadeUp.one(Variant("1", 99, one[99], alt))) for alt in alts)
    c = texts(MadeUp.one(Variant("1", 299, one[299], made[2].split("\t")[4])))
    wanted = [
        f"DP=7;HYENA_LLR={a[0]},{b[0]},.,.;HYENA_LLR_MARKOV={a[1]},{b[1]},.,.;HYENA_PCT={a[2]},{b[2]},.,."
        ";HYENA_FLAG=.,.,SKIPPED,SKIPPED",
        "HYENA_LLR=.;HYENA_LLR_MARKOV=.;HYENA_PCT=.;HYENA_FLAG=SKIPPED",
        f"DP=7;X;HYENA_LLR={c[0]};HYENA_LLR_MARKOV={c[1]};HYENA_PCT={c[2]};HYENA_FLAG=.",
    ]
    assert infos(tmp_path / "out.vcf") == wanted
    text = (tmp_path / "out.vcf").read_bytes().decode()
    assert text.endswith("\tGT\t0/1\r\n") and text.count("\r") == 1
    head = [row for row in text.split("\n") if row.startswith("##")]
    assert head[:4] == HEADER.split("\n")[:4] and [row[:24] for row in head[4:8]] == ["##INFO=<ID=HYENA_LLR,Num",
        "##INFO=<ID=HYENA_LLR_MAR", "##INFO=<ID=HYENA_PCT,Num", "##INFO=<ID=HYENA_FLAG,Nu"]  # fmt: skip
    assert head[8:] == [
        '##hyenaModel=<ID=made_up,window=64,performance="not measured">',
        "##hyenaCommand=hyena score in.vcf --fasta ref.fa --window 64",
    ]


def test_a_table_passes_on_what_is_no_utf_8(tmp_path):
    write_fasta(tmp_path / "ref.fa")
    made = line(700).encode().replace(b"rs700", b"rs\xe9")
    odd = line(800, "C", "C").encode().split(b"\t")
    odd[4] = b"C\xe9"
    (tmp_path / "in.vcf").write_bytes(HEADER.encode() + made + b"\t".join(odd))
    run(configured(tmp_path, out=str(tmp_path / "out.tsv")))
    rows = (tmp_path / "out.tsv").read_bytes().splitlines()[2:]
    assert [row.split(b"\t")[2] for row in rows] == [b"rs\xe9", b"rs800"]
    assert rows[1].split(b"\t")[4:6] == [b"C\xe9", b"."]


def test_as_a_table(tmp_path, capsys):
    write_fasta(tmp_path / "ref.fa")
    one = bases()["1"]
    write_vcf(tmp_path / "in.vcf", [line(100, "<DEL>," + ("T" if one[99] != "T" else "G")), line(7, "X,")])
    run(configured(tmp_path, out=str(tmp_path / "out.tsv")))
    head, columns, *rows = (tmp_path / "out.tsv").read_text().splitlines()
    assert head == (
        "# model made up; window 64; performance not measured; command hyena score in.vcf --fasta ref.fa --window 64"
    )
    assert columns.split("\t") == ["contig", "pos", "id", "ref", "alt", "llr", "llr_markov", "percentile", "flag"]
    alt = "T" if one[99] != "T" else "G"
    assert [row.split("\t") for row in rows] == [
        ["1", "100", "rs100", one[99], "<DEL>", ".", ".", ".", "SKIPPED"],
        ["1", "100", "rs100", one[99], alt, *texts(MadeUp.one(Variant("1", 99, one[99], alt)))],
        ["1", "7", "rs7", one[6], "X", ".", ".", ".", "SKIPPED"],
        ["1", "7", "rs7", one[6], "", ".", ".", ".", "SKIPPED"],
    ]
    run(configured(tmp_path, out="-", format="tsv"))
    assert capsys.readouterr().out.splitlines()[1:] == [columns, *rows]


def test_numbers_as_they_are_printed():
    nan = float("nan")
    assert texts(Score(-0.00004, 12.34567, 99.96, ())) == ["0.0000", "12.3457", "100.0", "."]
    assert texts(Score(-0.00006, nan, nan, ("NEAR_EDGE", "INDEL"))) == ["-0.0001", ".", ".", "NEAR_EDGE|INDEL"]


def test_the_model_in_the_header():
    about = {"model": "LongSafari/hyena, <x>", "n": 3, "said": 'a "b" \\ c,\nd', "dtype": "float32"}
    assert model_line(about) == ('##hyenaModel=<ID=LongSafari/hyena___x_,n=3,said="a \\"b\\" \\\\ c, d",dtype=float32>')


def test_nothing_but_info_changes_and_again_gives_the_same(folder, capsys):
    run(configured(folder))
    out = (folder / "out.vcf").read_bytes()
    records_out = out[out.index(b"#CHROM") :]
    assert OURS.sub(b"", records_out) == (folder / "in.vcf").read_bytes()[HEADER.index("#CHROM") :]
    assert left_in(folder) == ["in.vcf", "out.vcf"]
    (folder / "in.vcf").write_bytes(out)
    run(configured(folder), overwrite=True)
    assert (folder / "out.vcf").read_bytes() == out
    assert "in.vcf has been scored before: its HYENA_ keys are replaced" in capsys.readouterr().err


def test_without_percentiles(folder):
    run(configured(folder, percentiles=False))
    assert "HYENA_PCT" not in (folder / "out.vcf").read_text() and "HYENA_LLR=" in (folder / "out.vcf").read_text()


class Crash(Exception):
    pass


def crash():
    raise Crash


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("out", ["out.vcf", "out.vcf.gz", "out.tsv"])
def test_a_crash_after_some_batches(folder, after, out):
    whole = folder / f"whole.{out}"
    run(configured(folder, out=str(whole)))
    with pytest.raises(Crash):
        run(configured(folder, out=str(folder / out)), MadeUp(crash, after))
    kept = [f".{out}.journal"] * (after > 0)
    assert [name for name in left_in(folder) if "whole" not in name] == [*kept, "in.vcf"]
    scorer = MadeUp()
    done = run(configured(folder, out=str(folder / out)), scorer)
    assert (done.records, done.earlier, scorer.batches) == (110, 20 * after, 6 - after)
    assert (folder / out).read_bytes() == whole.read_bytes()
    assert not (folder / f".{out}.journal").exists()


@pytest.mark.parametrize(("batch", "written"), [("3", "99"), ("99", "5"), ("99", "7")])
def test_kill_9_while_it_scores_and_while_it_writes(folder, batch, written):
    """A process of its own: killed in its fourth batch, after its fourth batch was written, and after its last."""
    write_fasta(folder / "ref.fa")
    whole, out = folder / "whole.vcf.gz", folder / "out.vcf.gz"
    run(configured(folder, out=str(whole)))
    command = [sys.executable, Path(__file__).with_name("scoring.py"), folder, out, batch, written]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not out.exists() and any(
        name.startswith(".out.vcf.gz.") and name.endswith(".tmp") for name in left_in(folder)
    )
    scorer = MadeUp()
    done = run(configured(folder, out=str(out)), scorer)
    kept = min(int(batch), int(written) - 1)
    assert (done.earlier, scorer.batches) == (min(110, 20 * kept), 6 - kept)
    assert out.read_bytes() == whole.read_bytes() and gzip.decompress(out.read_bytes()).count(b"\n") > 110
    assert [name for name in left_in(folder) if "whole" not in name and ".tbi" not in name] == ["in.vcf", "out.vcf.gz"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_scored(folder, number, code):
    before = signal.signal(number, _interrupt)
    try:
        with pytest.raises(Interrupted, match="the scores of 40 records are kept: the same command goes on") as ended:
            run(configured(folder), MadeUp(lambda: signal.raise_signal(number), 2))
    finally:
        signal.signal(number, before)
    assert ended.value.exit_code == code and left_in(folder) == [".out.vcf.journal", "in.vcf"]
    assert run(configured(folder)).earlier == 40


def test_a_full_disk(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = folder / "out.vcf.gz"
    with monkeypatch.context() as during:
        during.setattr(module.BlockWriter, "close", full)
        with pytest.raises(
            WriteError, match=r"out\.vcf\.gz could not be written: No space left on device; what was th"
        ):
            run(configured(folder, out=str(out)))
    assert left_in(folder) == [".out.vcf.gz.journal", "in.vcf"]
    scorer = MadeUp()
    assert run(configured(folder, out=str(out)), scorer).earlier == 110 and scorer.batches == 0


def test_a_changed_input_is_noticed(folder):
    with pytest.raises(Crash):
        run(configured(folder), MadeUp(crash, 3))
    made = records(110)
    made[30] = made[30].replace("PASS", "FAIL")
    write_vcf(folder / "in.vcf", made)
    with pytest.raises(InputError, match="begun with another input: records 21 to 40 are not what they were"):
        run(configured(folder))
    with pytest.raises(UsageError, match="with window 64, and this is 32"):
        run(configured(folder), job=JOB | {"window": 32})
    scorer = MadeUp()
    done = run(configured(folder), scorer, overwrite=True)
    assert (done.earlier, scorer.batches) == (20, 5)
    assert OURS.sub(b"", (folder / "out.vcf").read_bytes()).endswith("".join(made).encode())


def test_a_folder_for_the_state(folder, capsysbinary):
    state = folder / "state"
    for out in (str(folder / "out.vcf"), "-"):
        with pytest.raises(Crash):
            run(configured(folder, out=out, state=state), MadeUp(crash, 2))
        capsysbinary.readouterr()
        assert run(configured(folder, out=out, state=state)).earlier == 40 and list(state.iterdir()) == []
    assert capsysbinary.readouterr().out == (folder / "out.vcf").read_bytes()
    assert module.state_folder(configured(folder, out="-")) is module.state_folder(configured(folder, data="-")) is None


def test_one_process_writes(folder):
    with (
        lock(folder / ".out.vcf.lock"),
        pytest.raises(UsageError, match=r"out\.vcf is being written by another process"),
    ):
        run(configured(folder))


@pytest.mark.parametrize("position", [150, 9999])
def test_ref_mismatch(folder, position):
    genome = bases()["1"]
    ref = "A" if position > 3000 else "CATG"["ACGT".index(genome[149])] * 2
    made = [*records(60), line(position, "G,T", ref), *[row for row in records(110) if int(row.split("\t")[1]) > 1700]]
    write_vcf(folder / "in.vcf", made)
    done = run(configured(folder))
    assert (done.records, done.left_out, done.flags["REF_MISMATCH"]) == (len(made), 0, 2)
    assert infos(folder / "out.vcf")[60].endswith(
        "HYENA_LLR=.,.;HYENA_LLR_MARKOV=.,.;HYENA_PCT=.,.;HYENA_FLAG=REF_MISMATCH,REF_MISMATCH"
    )
    done = run(configured(folder, ref_mismatch="skip", out=str(folder / "skip.vcf")))
    assert (done.records, done.left_out) == (len(made), 1)
    there = OURS.sub(b"", (folder / "skip.vcf").read_bytes())
    assert there.endswith("".join([*made[:60], *made[61:]]).encode())
    found = f"'{genome[149:151]}' there" if position == 150 else "3,000 bases in 1"
    with pytest.raises(
        InputError, match=rf"line 66, 1:{position:,}: REF is '{ref}', but the genome \w+ {found}; is the VCF"
    ):
        run(configured(folder, ref_mismatch="error", out=str(folder / "error.vcf")))
    assert not (folder / "error.vcf").exists()


def test_regions_add_up_to_the_whole(folder):
    made = [*records(110), line(10, contig="2"), line(11, contig="2"), line(11, contig="2")]
    write_vcf(folder / "in.vcf", made)
    run(configured(folder))
    parts = []
    middle = int(made[40].split("\t")[1])  # a record begins there
    for number, region in enumerate([f"1:1-{middle - 1}", f"1:{middle}-2,000", "1:2001-5000", "2"]):
        out = folder / f"{number}.vcf"
        run(configured(folder, out=str(out), region=region))
        text = out.read_bytes()
        assert f"##hyenaCommand=hyena score in.vcf --fasta ref.fa --window 64 --region {region}\n".encode() in text
        parts.append(text[text.index(b"#CHROM") :].partition(b"\n")[2])
    whole = (folder / "out.vcf").read_bytes()
    assert all(parts) and b"".join(parts) == whole[whole.index(b"#CHROM") :].partition(b"\n")[2]


def test_a_region_without_records(folder, capsys):
    assert run(configured(folder, region="2:1-100")).records == 0
    assert (folder / "out.vcf").read_text().endswith("\tone\n")
    assert capsys.readouterr().err.count("has no record in 2:1-100") == 1


def test_unsorted_duplicate_overlapping_and_unknown_contigs(folder, capsys):
    unknown = line(30).replace("1\t30", "3\t30", 1)
    made = [line(700), line(20), line(20), line(20, "AA", bases()["1"][19:23]), unknown]
    write_vcf(folder / "in.vcf", made)
    done = run(configured(folder, out=str(folder / "out.vcf.gz")))
    text = gzip.decompress((folder / "out.vcf.gz").read_bytes())
    assert done.flags == {"INDEL": 1, "SKIPPED": 1} and OURS.sub(b"", text).endswith("".join(made).encode())
    rows = text.splitlines()[-5:]
    assert rows[1] == rows[2] and b"HYENA_FLAG=SKIPPED" in rows[4]
    assert not list(folder.glob("*.tbi"))


def test_batches_end_by_records_and_by_bytes(monkeypatch):
    class Line:
        def __init__(self, size):
            self.line = bytes(size)

    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    sizes = [[len(one.line) for one in batch] for batch in module.batches(map(Line, [5] * 23 + [999, 1, 2000, 7]))]
    assert sizes == [[5] * 20, [5, 5, 5, 999], [1, 2000], [7]]
    assert list(module.batches([])) == []


def test_memory_does_not_grow_with_the_file(folder, monkeypatch):
    def peak(number):
        write_vcf(folder / "in.vcf", [line(100)] * number)
        tracemalloc.start()
        run(configured(folder), overwrite=True)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    monkeypatch.setattr(reference_check, "_FIRST_RECORDS", 200)  # those are held, up to a bound of their own
    few, many = peak(500), peak(2500)
    assert many < few + 100_000


def test_progress_counts_variants_and_only_ours(folder, monkeypatch):
    told = []

    class Job:
        def __init__(self, *given):
            told.append(given)

        def advance(self, amount):
            told.append(amount)

        def close(self):
            pass

    monkeypatch.setattr("hyenadna.progress.Job", Job)
    with pytest.raises(Crash):
        run(configured(folder), MadeUp(crash, 2))
    told.clear()
    done = run(configured(folder))
    (what, total, unit, before), *rest = told
    assert (what, total, unit) == ("scoring", done.scored, "variants") and before + sum(rest) == done.scored
    assert len(rest) == 4 and before > 0
