"""Labelled data in every form give the same rows; columns are found or asked for; gaps are named by file and line."""

import csv
import gzip
import io
import json
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from class_folders import reverse_directories, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.splice import splice
from hyenadna.data.tables import DataConfig, read_labelled
from hyenadna.errors import FastaError, InputError, UsageError

ROWS = [
    {"id": "a", "seq": "acgu", "label": "yes", "split": "train", "chrom": "chr1"},
    {"id": "b", "seq": "GGNN", "label": "no", "split": "dev", "chrom": "chr2"},
    {"id": "a", "seq": "T", "label": "10", "split": "Test", "chrom": "chr2"},
]
READ = LabelledSequences(
    ("a", "b", "a"), ("ACGT", "GGNN", "T"), ("yes", "no", "10"), ("train", "valid", "test"), ("chr1", "chr2", "chr2")
)
COLUMNS = ("ids", "sequences", "labels", "parts", "groups")


def columns(data):
    return {name: getattr(data, name) for name in COLUMNS}


def as_csv(rows, delimiter=","):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def read(tmp_path, text, name="a.csv", **config):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labelled(DataConfig(data=str(tmp_path / name), **config))


def test_the_bundled_table_is_the_default():
    data = read_labelled(DataConfig())
    assert (len(data), set(data.lengths), len(set(data.sequences))) == (3186, {60}, 3001)
    assert Counter(data.labels) == {"n": 1654, "ei": 767, "ie": 765}
    with gzip.open(splice(), "rt") as file:
        assert list(data.labels) == [row["label"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "unnamed"])
def test_every_table_gives_the_same_rows(tmp_path, capsys, name, packed):
    text = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    text = text if name == "a.jsonl" else as_csv(ROWS, "\t" if name == "a.tsv" else ",")
    data = read(tmp_path, gzip.compress(text) if packed else text, name + ".gz" * packed)
    assert columns(data) == columns(READ)
    found = (
        "sequences in column 'seq', labels in column 'label', ids in column 'id', parts in column 'split', groups in"
    )
    assert found in capsys.readouterr().err


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(as_csv(ROWS))))
    assert columns(read_labelled(DataConfig(data="-"))) == columns(READ)


def test_parquet_types_become_text(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"dna": ["AC", "GT"], "y": pa.array([0.5, 2], pa.float32()), "chromosome": [1, 2]}
    pq.write_table(pa.table(table), path)
    data = read_labelled(DataConfig(data=str(path)))
    assert (data.labels, data.groups, data.ids) == (("0.5", "2"), ("1", "2"), ("1", "2"))
    pq.write_table(pa.table({"dna": ["AC", "GT", "A"], "y": [["b", "a"], [], None]}), path)
    assert read_labelled(DataConfig(data=str(path))).labels == ("b;a", "", "")
    pq.write_table(pa.table({"dna": ["AC", "GT"], "y": [True, None]}), path)
    with pytest.raises(
        InputError, match=r"1 of the 2 rows of .*a\.parquet have no label, the first is row 2; complete"
    ):
        read_labelled(DataConfig(data=str(path)))
    pq.write_table(pa.table({"dna": ["AC"], "y": [{"deep": 1}]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: column 'y' holds struct<deep: int64>; text, numbers or lists"):
        read_labelled(DataConfig(data=str(path)))
    pq.write_table(pa.table({"dna": pa.array([], pa.string()), "y": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match=r"a\.parquet has a header \(dna, y\) but no row"):
        read_labelled(DataConfig(data=str(path)))


def test_json_numbers_keep_their_text(tmp_path):
    rows = [("AC", "1.50"), ("AG", "1e3"), ("AT", "NaN"), ("A", "true"), ("C", '["x", 2]'), ("G", "[]")]
    text = "".join(f'{{"seq": "{seq}", "y": {value}}}\n' for seq, value in rows)
    assert read(tmp_path, text, "a.jsonl").labels == ("1.50", "1e3", "NaN", "true", "x;2", "")


names = st.permutations(["id", "Seq", "LABEL", "gene"])
cells = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(names, st.lists(st.tuples(cells, st.text("ACGT", min_size=1), cells, cells), min_size=1, max_size=5))
def test_columns_are_found_wherever_they_stand(tmp_path_factory, names, rows):
    named = [dict(zip(("id", "Seq", "LABEL", "gene"), row, strict=True)) for row in rows]
    path = tmp_path_factory.getbasetemp() / "columns.csv"
    path.write_bytes(as_csv([{name: row[name] for name in names} for row in named]))
    data = read_labelled(DataConfig(data=str(path)))
    ids, sequences, labels, _ = zip(*rows, strict=True)
    assert (data.ids, data.sequences, data.labels) == (ids, sequences, labels)


def test_columns_by_what_they_hold_and_by_flag(tmp_path, capsys):
    data = read(tmp_path, "what,bases\nx,ACGT\ny,GG\n")
    assert (data.labels, data.sequences, data.ids) == (("x", "y"), ("ACGT", "GG"), ("1", "2"))
    text = "text,sequence,label,fold,gene,place\nsome,AC,0,train,g,p\nwords,GT,1,test,h,q\n"
    data = read(tmp_path, text, label_col="gene", id_col="place", split_col="fold", group_col="label")
    assert columns(data) == columns(
        LabelledSequences(("p", "q"), ("AC", "GT"), ("g", "h"), ("train", "test"), ("0", "1"))
    )
    assert "not used: text" in capsys.readouterr().err


def test_a_column_called_set_that_holds_something_else_gives_no_parts(tmp_path):
    assert read(tmp_path, "seq,label,set\nAC,x,big\nGT,y,train\n").parts is None


@pytest.mark.parametrize("flag", ["seq_col", "label_col", "id_col", "split_col", "group_col"])
def test_a_column_that_does_not_exist(tmp_path, flag):
    message = rf"--{flag.replace('_', '-')} none: .*a\.csv has no such column; it has id, seq, label, split, chrom$"
    with pytest.raises(UsageError, match=message):
        read(tmp_path, as_csv(ROWS), **{flag: "none"})


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("seq,u,v\nAC,1,2\n", {}, r"a\.csv: which column holds the labels\? It has seq, u, v, and more than one could"),
        ("seq\nAC\n", {}, r"which column holds the labels\? It has seq, and none is left; name it by --label-col"),
        ("seq,label\nAC,x\nGT,\nG, \n", {}, r"2 of the 3 lines of .*a\.csv have no label, the first is line 3; "),
        ("seq,label\nAC,x\n-,y\n", {}, r"a\.csv, line 3 has '-' at position 1 of its sequence, which is no nucleotide"),
        ("seq,label\n,x\n", {}, r"a\.csv, line 2 has an empty sequence; each needs at least one base"),
        ("seq,label\n", {}, r"a\.csv has a header \(seq, label\) but no row"),
        ("seq,label,part\nAC,x,half\n", {"split_col": "part"}, r"a\.csv, line 2 belongs to the part 'half'; allowed"),
        ("seq,label,split\nAC,x,test\n", {}, r"a\.csv has no row in the part train; a model needs rows to learn from"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, text, config, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, **config)


def test_one_column_cannot_be_two_things(tmp_path):
    with pytest.raises(UsageError, match=r"a\.csv: the column 'seq' cannot be two things at once; sequences in column"):
        read(tmp_path, "seq,label\nAC,x\n", label_col="seq")


def test_several_labels_at_once_may_be_none(tmp_path):
    assert read(tmp_path, "seq,label\nAC,x;y\nGT,\n").labels == ("x;y", "")


@pytest.mark.parametrize(
    ("headers", "ids", "said"),
    [
        (["a some words label=x", "b class=y"], ("a", "b"), "written as label=x"),
        (["a x", "b y"], ("a", "b"), "the only word behind the name"),
        (["n|a|x", "n|b|y"], ("n|a", "n|b"), "behind the last | of the name"),
    ],
)
def test_labels_in_fasta_headers(tmp_path, capsys, headers, ids, said):
    data = read(tmp_path, "".join(f">{header}\nAC\nGU\n" for header in headers), "a.fa")
    assert (data.ids, data.labels, data.sequences) == (ids, ("x", "y"), ("ACGT", "ACGT"))
    assert f"labels from the headers, {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (["a", "b x"], r"a\.fa: the header of 'a' holds no label; write >id label=x, >id x or >id\|x, or give a table"),
        (["a Homo sapiens"], r"the header of 'a' holds no label"),
        (
            ["a x", "b|y"],
            r"a\.fa: the label of 'b\|y' is not the only word behind the name, where the first record has",
        ),
    ],
)
def test_fasta_headers_without_labels(tmp_path, headers, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, "".join(f">{header}\nAC\n" for header in headers), "a.fa")


def test_fasta_that_is_none(tmp_path):
    with pytest.raises(FastaError, match=r"a\.fa: the record 'a' has '\*' at position 2, which is no nucleotide"):
        read(tmp_path, ">a x\nA*\n", "a.fa")


def test_labels_from_a_second_table(tmp_path, capsys):
    labels = tmp_path / "labels.tsv"
    labels.write_text("accession\tnote\ty\nb\t-\tno\na\t-\tyes\nc\t-\tno\n")
    data = read(tmp_path, ">a any words\nAC\n>b\nGT\n", "a.fa", labels=labels)
    assert (data.ids, data.labels) == (("a", "b"), ("yes", "no"))
    assert "labels.tsv: 1 labels belong to no record of" in capsys.readouterr().err
    assert read(tmp_path, "name,seq\na,AC\n", labels=labels).labels == ("yes",)
    labels.write_text("gene,label\na,yes\n")
    assert read(tmp_path, ">a\nAC\n", "a.fa", labels=labels).labels == ("yes",)


def test_labels_from_a_second_table_that_do_not_fit(tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\na,yes\na,no\n")
    with pytest.raises(InputError, match=r"labels\.csv, line 3 gives the id 'a' a second time; ids must be unique"):
        read(tmp_path, ">a\nAC\n", "a.fa", labels=labels)
    labels.write_text("id,label\na,yes\n")
    with pytest.raises(InputError, match=r"labels\.csv has no label for 2 of the 3 ids of .*a\.fa, the first is 'b'"):
        read(tmp_path, ">a\nAC\n>b\nAC\n>c\nA\n", "a.fa", labels=labels)
    with pytest.raises(InputError, match=r"a\.fa has records of the same id 'a'; --labels needs ids that are unique"):
        read(tmp_path, ">a\nAC\n>a\nAC\n", "a.fa", labels=labels)
    with pytest.raises(UsageError, match=r"--labels needs the ids of .*a\.csv, which has the columns seq, n; --id-col"):
        read(tmp_path, "seq,n\nAC,1\n", labels=labels)
    labels.write_text("u,v,label\na,b,yes\n")
    with pytest.raises(
        InputError, match=r"labels\.csv: which column holds the ids\? It has u, v, label; name it by --id"
    ):
        read(tmp_path, ">a\nAC\n", "a.fa", labels=labels)


def test_bed_with_labels(tmp_path):
    genome = tmp_path / "g.fa"
    genome.write_text(">chr1\nAACCGG\n>chr2\nACGTTT\n")
    text = "chr1\t0\t3\tyes\t0\t-\nchr2\t2\t6\tno\n"
    data = read(tmp_path, text, "a.bed", fasta=genome)
    expected = LabelledSequences(("chr1:1-3", "chr2:3-6"), ("GTT", "GTTT"), ("yes", "no"), None, ("chr1", "chr2"))
    assert columns(data) == columns(expected)
    (tmp_path / "labels.csv").write_text("id,label\nno,0\nyes,1\n")
    data = read(tmp_path, text, "a.bed", fasta=genome, labels=tmp_path / "labels.csv")
    assert (data.ids, data.labels) == (("yes", "no"), ("1", "0"))
    with pytest.raises(InputError, match=r"1 of the 2 regions of .*a\.bed have no label, the first is region 2"):
        read(tmp_path, "chr1\t0\t3\tx\nchr1\t0\t3\n", "a.bed", fasta=genome)
    with pytest.raises(UsageError, match=r"a\.bed is a BED file; --fasta names the genome"):
        read(tmp_path, text, "a.bed")


@pytest.mark.parametrize("odd", [False, True])
def test_a_folder_with_a_folder_for_each_class(tmp_path, monkeypatch, odd):
    sets = {
        "b": {"2.txt": "GG\nTT\n", "10.txt": "u"},
        "a": {"x.fa": ">p\nAC\n>q\nGT\n", ".hidden": "no sequence", "y.txt": ">r\nG\n"},
    }
    write_classes(tmp_path / "data", dict(reversed(sets.items())) if odd else sets)
    if odd:
        reverse_directories(monkeypatch)
    data = read_labelled(DataConfig(data=str(tmp_path / "data")))
    expected = LabelledSequences(("p", "q", "r", "10", "2"), ("AC", "GT", "G", "T", "GGTT"), tuple("aaabb"))
    assert columns(data) == columns(expected)


def test_class_folders_of_compressed_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt.gz").write_bytes(gzip.compress(b"AC\nGT\n"))
    (tmp_path / "a" / "2.txt").write_bytes(gzip.compress(b"\xef\xbb\xbfGG\r\n"))
    (tmp_path / "a" / "3.fna.gz").write_bytes(gzip.compress(b">x\nAC\n"))
    data = read_labelled(DataConfig(data=str(tmp_path)))
    assert (data.ids, data.sequences) == (("1", "2", "x"), ("ACGT", "GG", "AC"))


def test_class_folders_that_are_refused(tmp_path):
    def refuse(classes, message, error=InputError, **config):
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_classes(folder, classes)
        with pytest.raises(error, match=message):
            read_labelled(DataConfig(data=str(folder), **config))

    refuse({"a": {"1.txt": "AC"}, "b": {}}, r"the class folder .*b is empty; put the class's sequences there or remove")
    refuse({"a": {"1.txt": ""}}, r"a/1\.txt has an empty sequence")
    refuse({"a": {"1.txt": "AC EE"}}, r"a/1\.txt has ' ' at position 3 of its sequence")
    refuse(
        {"a": {"1.csv": "AC"}}, r"a/1\.csv is no sequence file; a class folder holds \.txt files of one sequence each"
    )
    refuse({}, "holds no labelled data: it must have a folder for each class, or folders or tables named train, valid")
    (tmp_path / "x.csv").write_text("id,label\na,1\n")
    refuse({"a": {"1.txt": "AC"}}, r"--labels .*x\.csv: the folders in .* give", UsageError, labels=tmp_path / "x.csv")


@pytest.mark.parametrize("flag", ["valid", "test"])
def test_further_files_give_parts(tmp_path, flag):
    other = tmp_path / "other.csv"
    other.write_text("seq,label\nGG,x\n")
    data = read(tmp_path, "seq,label\nAC,x\nGT,y\n", **{flag: other})
    assert (data.parts, data.ids) == (("train", "train", flag), ("1", "2", "1"))
    with pytest.raises(
        InputError, match=rf"--{flag} .*other\.csv: .*a\.csv is or holds a {flag} part already; leave one"
    ):
        read(tmp_path, f"seq,label,split\nAC,x,train\nGT,y,{flag}\n", **{flag: other})
    with pytest.raises(InputError, match=r"there is no file or folder .*none"):
        read(tmp_path, "seq,label\nAC,x\n", **{flag: tmp_path / "none"})


def test_groups_only_where_every_file_has_them(tmp_path, capsys):
    (tmp_path / "test.csv").write_text("seq,label\nGG,x\n")
    data = read(tmp_path, "seq,label,chrom\nAC,x,1\n", test=tmp_path / "test.csv")
    assert data.groups is None
    assert "groups are left out, since" in capsys.readouterr().err


def test_the_same_columns_are_said_once(tmp_path, capsys):
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.csv").write_text("seq,label\nAC,x\n")
    data = read_labelled(DataConfig(data=str(tmp_path)))
    assert data.parts == ("train", "valid", "test")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(InputError, match=r"there is no file or folder .*none, and no none\.train\.csv beside it"):
        read_labelled(DataConfig(data=str(tmp_path / "none")))
    with pytest.raises(UsageError, match="--data is empty; give a file, a folder"):
        read_labelled(DataConfig(data=""))


def test_flags_that_the_data_have_no_use_for(tmp_path):
    fasta, table = ">a x\nAC\n>b y\nGT\n", "id,label\na,x\nb,y\n"
    for flag in ("seq_col", "label_col", "id_col", "split_col", "group_col"):
        name = f"--{flag.replace('_', '-')}"
        with pytest.raises(
            UsageError, match=rf"{name} label: .*a\.fa is FASTA, which has no columns by name; leave it"
        ):
            read(tmp_path, fasta, "a.fa", **{flag: "label"})
    (tmp_path / "labels.csv").write_text(table)
    given = {"labels": tmp_path / "labels.csv", "label_col": "label", "id_col": "id"}
    assert read(tmp_path, fasta, "a.fa", **given).labels == ("x", "y")
    write_classes(tmp_path / "classes", {"p": {"1.txt": "AC"}})
    with pytest.raises(UsageError, match=r"--seq-col seq: .*classes is a folder of classes, which has no columns"):
        read_labelled(DataConfig(data=str(tmp_path / "classes"), seq_col="seq"))
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("seq,label,split\nAC,x,train\n")
    pair = str(tmp_path / "train.csv")
    assert read_labelled(DataConfig(data=pair, split_col="split", test=tmp_path / "a.fa")).parts == (
        "train", "test", "test",
    )  # fmt: skip
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").rename(folder / f"{name}.csv")
    with pytest.raises(UsageError, match=r"--split-col split: .*parts has a file or folder for each part; leave it"):
        read_labelled(DataConfig(data=str(folder), split_col="split"))
    for data, said in ((str(folder), "parts"), (None, "the bundled splice table")):
        with pytest.raises(UsageError, match=rf"--data-dir .* holds .*gue/TASK, but the data are .*{said}; leave it"):
            read_labelled(DataConfig(data=data, data_dir=tmp_path))
