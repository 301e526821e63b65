"""Every file that holds sequences gives the same stream, in order and flat memory; the rest is refused by line."""

import csv
import gzip
import io
import json
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio import bgzf
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.sequence_files import nucleotides, stream
from hyenadna.data.table_file import open_table
from hyenadna.errors import FastaError, InputError, IntervalError, MissingExtra, UsageError

ROWS = [("a", "acgtu"), ("b", "NNRY"), ("c", "G"), ("b", "TTTT")]
READ = [("a", "ACGTT"), ("b", "NNRY"), ("c", "G"), ("b", "TTTT")]
GENOME = "AACCGGTTAACG"


def delimited(separator):
    return ("id" + separator + "seq\n" + "".join(f"{name}{separator} {seq} \n" for name, seq in ROWS)).encode()


TEXTS = {
    "a.csv": delimited(","),
    "a.tsv": delimited("\t"),
    "semicolon.csv": delimited(";"),
    "tabs.txt": delimited("\t"),
    "crlf.csv": delimited(",").replace(b"\n", b"\r\n"),
    "bom.csv": b"\xef\xbb\xbf" + delimited(","),
    "blank.csv": b"\n\n" + delimited(",") + b"\n\n",
    "comments.tsv": b"# hyena 0.1, predicted\n\n# by, this\n" + delimited("\t"),
    "no_last_newline.csv": delimited(",").rstrip(b"\n"),
    "quoted.csv": b'"id","note","seq"\n' + b"".join(f'"{n}","x, ""y""\nz","{s}"\n'.encode() for n, s in ROWS),
    "a.jsonl": b"\n" + b"".join(json.dumps({"id": n, "n": {"x": 1}, "seq": s}).encode() + b"\n" for n, s in ROWS),
    "a.fa": b"".join(f">{name} some words\n{seq}\n".encode() for name, seq in ROWS),
    "bom.fa": b"\xef\xbb\xbf\n" + b"".join(f">{name}\r\n{seq}\r\n".encode() for name, seq in ROWS),
}


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_text_gives_the_same_stream(tmp_path, stdin, name, packed):
    data = gzip.compress(TEXTS[name]) if packed else TEXTS[name]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(data)
    assert list(stream(path)) == READ
    stdin(data)
    assert list(stream("-")) == READ


def test_parquet_in_several_row_groups(tmp_path):
    names, sequences = zip(*ROWS, strict=True)
    table = pa.table({"id": names, "vector": [[1.0]] * 4, "seq": pa.array(sequences).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert list(stream(tmp_path / "a.parquet")) == READ


def test_rows_without_ids_are_numbered_and_a_single_column_is_enough(tmp_path):
    (tmp_path / "a.csv").write_text("whatever\nAC\nGT\n")
    assert list(stream(tmp_path / "a.csv")) == [("1", "AC"), ("2", "GT")]
    (tmp_path / "b.csv").write_text("id,sequence\n,AC\nx,GT\n")
    assert list(stream(tmp_path / "b.csv")) == [("1", "AC"), ("x", "GT")]


def test_columns_by_flag(tmp_path):
    (tmp_path / "a.csv").write_text("id,sequence,other,gene\n1,AC,GG,g\n")
    assert list(stream(tmp_path / "a.csv", seq_col="other", id_col="gene")) == [("g", "GG")]
    with pytest.raises(
        UsageError, match=r"--seq-col dna: .*a\.csv has no such column; it has id, sequence, other, gene"
    ):
        list(stream(tmp_path / "a.csv", seq_col="dna"))


def bed(tmp_path, text, name="a.bed"):
    (tmp_path / name).write_text(text)
    if not (tmp_path / "g.fa").exists():
        (tmp_path / "g.fa").write_text(f">chr1\n{GENOME[:6]}\n{GENOME[6:]}\n")
    return tmp_path / name, tmp_path / "g.fa"


def test_bed_takes_the_other_strand(tmp_path, stdin):
    text = "chr1\t0\t4\tx\t0\t+\nchr1\t1\t7\t.\t0\t-\nchr1\t9\t12\n"
    expected = [("x", GENOME[:4]), ("chr1:2-7", str(Seq(GENOME[1:7]).reverse_complement())), ("chr1:10-12", GENOME[9:])]
    path, genome = bed(tmp_path, text)
    assert list(stream(path, fasta=genome)) == expected
    stdin(text.encode())
    assert list(stream("-", fasta=genome)) == expected


def test_bed_of_a_gzipped_genome_with_soft_masks_and_rna(tmp_path):
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(b">chr1\naacCuRn\n"))
    (tmp_path / "a.bed").write_text("chr1\t1\t7\n")
    assert list(stream(tmp_path / "a.bed", fasta=tmp_path / "g.fa.gz")) == [("chr1:2-7", "ACCTRN")]
    with pytest.raises(FastaError, match=r"none\.fa"):
        list(stream(tmp_path / "a.bed", fasta=tmp_path / "none.fa"))


def test_bed_errors(tmp_path):
    path, genome = bed(tmp_path, "chr1\t0\t4\tx\t0\t*\n")
    with pytest.raises(
        InputError, match=r"a\.bed: chr1:1-4 has the strand '\*' in its sixth column; allowed are \+, - an"
    ):
        list(stream(path, fasta=genome))
    with pytest.raises(UsageError, match=r"a\.bed is a BED file; --fasta names the genome"):
        list(stream(path))
    with pytest.raises(UsageError, match=r"--fasta is the genome of a BED file, but .*g\.fa is fasta"):
        list(stream(genome, fasta=genome))
    path, genome = bed(tmp_path, "chr1\t0\t40\n")
    with pytest.raises(IntervalError, match=r"a\.bed:1 ends at 40, past the 12 bases of chr1"):
        list(stream(path, fasta=genome))


GZIPPED = gzip.compress(b"id,seq\nx,AC\n" * 9, mtime=0)  # without the time, which would be part of the names of tests


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"id,seq\nx,AC\ny,\n", r"a\.csv, line 3 has an empty sequence; each needs at least one base"),
        ("a.csv", b"id,seq\nx,AC\n\ny,AC GT\n", r"line 4 has ' ' at position 3 of its sequence, which is no nuc"),
        ("a.csv", b"id,seq\nx,ACEA\n", r"'E' at position 3 of its sequence.*allowed are ACGTURYSWKMBDHVN in either"),
        ("a.csv", "id,seq\nx,ACſ\n".encode(), r"line 2 has 'ſ' at position 3"),
        ("a.csv", b"id,seq\nx,AC\ny,AC,3\n", r"a\.csv, line 3 has 3 fields where the header has 2; a field that holds"),
        ("a.csv", b"id,seq\n", r"a\.csv has a header \(id, seq\) but no row"),
        ("a.csv", b"", r"a\.csv is empty; give a table with a header, a FASTA or a BED file"),
        ("a.csv", b" \n\n", r"a\.csv is empty"),
        ("a.csv", b"# made by x\nid,seq\nx,AC\n# no,AC\ny,E\n", r"a\.csv, line 5 has 'E' at position 1"),
        ("a.csv", b"ACGTACGTACGT,1\nACGT,0\n", r"a\.csv has no header: its first line holds a sequence; begin it"),
        ("a.csv", b"seq,id,seq\nA,x,C\n", r"a\.csv, line 1 names the column 'seq' twice"),
        ("a.csv", b"id,n\nx,1\n", r"a\.csv: which column holds the sequences\? It has id, n, and none of them holds"),
        ("a.csv", b"u,v\nAC,GT\n", r"It has u, v, and more than one of them holds DNA alone; name it by --seq-col"),
        ("a.csv", b'id,seq\nx,"AC\n', r"a\.csv, line 2 cannot be parsed: unexpected end of data; a field in quotes"),
        ("a.csv", b'id,seq\nx,"A"C\n', r"a\.csv, line 2 cannot be parsed: ',' expected after '\"'"),
        ("a.csv", b"id,seq\nx,AC\n\xe9,AC\n", r"a\.csv, line 3 is not UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        ("a.csv", "id,seq\nx,AC\n".encode("utf-16"), r"a\.csv, line 1 is not UTF-8 \(byte 0xff\)"),
        ("a.csv.gz", GZIPPED[:-9], r"a\.csv\.gz is truncated: its gzip stream ends"),
        ("a.csv.gz", GZIPPED[:-8] + bytes(8), r"a\.csv\.gz is damaged: CRC check failed"),
        ("a.jsonl", b'{"seq": "AC"}\n{"seq" "AC"}\n', r"a\.jsonl, line 2 is no JSON: Expecting ':' delimiter at col"),
        ("a.jsonl", b'{"seq": "AC"}\n3\n', r"a\.jsonl, line 2 is no JSON object; each line must be one, in braces"),
        ("a.jsonl", b'{"seq": "AC"}\n{"sq": "AC"}\n', r"a\.jsonl, line 2 has an empty sequence"),
        ("a.jsonl", b'{"seq": {"a": 1}}\n', r"a\.jsonl, line 1: 'seq' holds an object; text, a number or a list"),
        ("a.json", b'[{"seq": "AC"}]', r"a\.json is a JSON array; write one object a line \(JSONL\)"),
        ("a.parquet", b"id,seq\nx,AC\n", r"a\.parquet is no Parquet file, though its name says so"),
        ("a.parquet", b"PAR1 and nothing", r"a\.parquet cannot be read as Parquet"),
        ("a.xlsx", b"PK\x03\x04", r"a\.xlsx looks like a ZIP archive; unpack it; give CSV, TSV, JSONL, Parquet, FASTA"),
        ("a.fq", b"@x\nACGT\n+\nIIII\n", r"a\.fq looks like a FASTQ file"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(stream(tmp_path / name))


def test_fasta_errors_and_missing_files(tmp_path):
    (tmp_path / "a.fa").write_text(">x\nAC\n>y\n>z\nAC\n")
    with pytest.raises(FastaError, match=r"a\.fa: the record 'y' has no sequence"):
        list(stream(tmp_path / "a.fa"))
    with pytest.raises(InputError, match=r"there is no file .*none\.csv; give a table, FASTA or BED file"):
        list(stream(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="is a folder; give a table, FASTA or BED file"):
        list(stream(tmp_path))
    with bgzf.BgzfWriter(str(tmp_path / "cut.csv.gz"), "wb") as file:
        file.write(b"id,seq\nx,AC\n")
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "cut.csv.gz").read_bytes()[:-28])
    with pytest.raises(InputError, match=r"cut\.csv\.gz is truncated: it lacks the block that ends a BGZF file"):
        list(stream(tmp_path / "cut.csv.gz"))


def test_parquet_from_a_pipe_and_without_pyarrow(tmp_path, stdin, monkeypatch):
    pq.write_table(pa.table({"seq": ["AC"]}), tmp_path / "a.parquet")
    stdin((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(InputError, match="Parquet cannot be read from standard input"):
        list(stream("-"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"Install the 'parquet' extra: pip install hyenadna\[parquet\]"):
        list(stream(tmp_path / "a.parquet"))


def test_a_sequence_longer_than_any_buffer(tmp_path):
    long = "ACGT" * 400_000
    (tmp_path / "a.csv").write_text(f"id,seq\nx,{long}\ny,AC\n")
    assert list(stream(tmp_path / "a.csv")) == [("x", long), ("y", "AC")]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.fa", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    def peak(rows):
        path, sequences = tmp_path / name, ["ACGTACGTAC" * 30] * rows
        match path.suffix:
            case ".csv":
                path.write_text("seq\n" + "\n".join(sequences))
            case ".jsonl":
                path.write_text("\n".join(json.dumps({"seq": sequence}) for sequence in sequences))
            case ".fa":
                path.write_text("\n".join(f">{row}\n{sequence}" for row, sequence in enumerate(sequences)))
            case _:
                pq.write_table(pa.table({"seq": sequences}), path, row_group_size=1000)
        del sequences
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        arrow = [pa.total_allocated_bytes() - before for _ in stream(path)]  # which tracemalloc does not see
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(arrow) == rows
        return used + max(arrow) - sys.getsizeof(arrow)

    small = peak(2_000)
    assert peak(8_000) < 1.2 * small + 200_000


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(text, min_size=width, max_size=width), min_size=1)),
    st.sampled_from([",", "\t"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_tables_are_read_as_python_reads_them(tmp_path_factory, rows, delimiter, quoting, end, packed):
    names = [f"c{at}" for at in range(len(rows[0]))]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([names, *rows])
    path = tmp_path_factory.getbasetemp() / "table"
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    expected = [tuple(row.values()) for row in csv.DictReader(io.StringIO(buffer.getvalue()), delimiter=delimiter)]
    with open_table(str(path)) as table:
        assert table.columns == tuple(names)
        assert [fields for _, fields in table.read(table.columns)] == expected == [tuple(row) for row in rows]


@settings(deadline=None)
@given(st.text("ACGTUNRYacgtun-*x \n", max_size=12))
def test_nucleotides(text):
    expected = text.strip().upper()
    if expected and set(expected) <= set("ACGTURYSWKMBDHVN"):
        assert nucleotides(text, "here") == expected.replace("U", "T")
    else:
        with pytest.raises(InputError, match=r"^here has "):
            nucleotides(text, "here")


def test_tables_where_fasta_is_wanted_and_the_reverse(tmp_path):
    (tmp_path / "a.fa").write_text(">x\nAC\n")
    with pytest.raises(InputError, match=r"a\.fa is FASTA; here a table is wanted"), open_table(str(tmp_path / "a.fa")):
        pass


@pytest.mark.parametrize("flag", ["seq_col", "id_col"])
def test_fasta_has_no_columns(tmp_path, flag):
    (tmp_path / "a.fa").write_text(">a\nAC\n")
    message = rf"--{flag.replace('_', '-')} x: .*a\.fa is FASTA, which has no columns by name; leave it out"
    with pytest.raises(UsageError, match=message):
        list(stream(tmp_path / "a.fa", **{flag: "x"}))


def test_a_pdf_is_named(tmp_path):
    (tmp_path / "paper.txt").write_bytes(b"%PDF-1.4\n%\xe2\xe3\n")
    with pytest.raises(InputError, match=r"paper\.txt looks like a PDF file; give CSV"):
        list(stream(tmp_path / "paper.txt"))
