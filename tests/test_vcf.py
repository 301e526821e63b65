"""VCF files: what is read is what is written, byte for byte, and what cannot be read is told in one line."""

import gzip
import io
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.alleles import Variant
from hyenadna.data.bgzf import BlockWriter, index_vcf
from hyenadna.data.intervals import Interval, parse_region
from hyenadna.data.vcf import (
    INFO_LINES,
    Record,
    annotated,
    annotated_header,
    contig_lengths,
    has_annotations,
    open_vcf,
    why_not_scored,
)
from hyenadna.errors import InputError

COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEADER = b"##fileformat=VCFv4.2\n##contig=<ID=20,length=64444167>\n" + COLUMNS + b"\tFORMAT\tNA1\tNA2\n"
LINES = (
    b"20\t14370\trs6\tG\tA\t29\tPASS\tNS=3;DP=14;DB\tGT:ZZ\t0|0:1\t1|0:2\n"  # ZZ is declared nowhere
    b"20\t17330\t.\tT\t<DEL>,*\t.\t.\t.\tGT\t0/1\t.\n"
    b"20\t17330\t.\tT\t<DEL>,*\t.\t.\t.\tGT\t0/1\t.\n"  # twice
    b"20\t0\tcaf\xe9\tN\tc\t.\t.\tX=\xff\xfe\tGT\t\xf0\t.\r\n"  # no UTF-8, and a line end of its own
    b"unknown\t99999999999\t.\tacgt\tA\t.\t.\tAC=1\tGT\t.\t."  # no line end
)


def bgzf(text):
    file = io.BytesIO()
    writer = BlockWriter(file)
    writer.write(text)
    writer.close()
    return file.getvalue()


def read(path, region=None):
    with open_vcf(str(path), region) as vcf:
        return vcf.header, list(vcf.records)


def text_of(header, records):
    return b"".join(header) + b"".join(record.line + record.end for record in records)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bgzf])
def test_what_is_read_is_what_is_written(tmp_path, compress):
    (tmp_path / "a.vcf").write_bytes(compress(HEADER + LINES))
    header, records = read(tmp_path / "a.vcf")
    assert text_of(header, records) == HEADER + LINES
    assert [(r.contig, r.start, r.ref, r.alts, r.number) for r in records] == [
        ("20", 14_369, "G", ("A",), 4),
        ("20", 17_329, "T", ("<DEL>", "*"), 5),
        ("20", 17_329, "T", ("<DEL>", "*"), 6),
        ("20", -1, "N", ("c",), 7),
        ("unknown", 99_999_999_998, "acgt", ("A",), 8),
    ]
    assert records[0].place == "20:14,370"
    assert records[4].variant("a", "chrU") == Variant("chrU", 99_999_999_998, "ACGT", "A")


def test_standard_input_and_crlf(monkeypatch):
    text = (HEADER + LINES).replace(b"\r", b"").replace(b"\n", b"\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + text)))
    header, records = read("-")
    assert text_of(header, records) == b"\xef\xbb\xbf" + text
    assert {record.end for record in records[:-1]} == {b"\r\n"}
    assert annotated(records[0].line, {"HYENA_LLR": "1"}).endswith(b"\t1|0:2")


FIELD = st.binary(max_size=6).map(lambda text: text.translate(None, b"\t\n\r"))
PLAUSIBLE = st.tuples(
    st.sampled_from([b"20", b"", b"\xff", b"#"]), st.one_of(st.integers(-2, 10**20).map(b"%d".__mod__), FIELD),
    FIELD, FIELD, FIELD, FIELD, FIELD, st.one_of(st.sampled_from([b".", b"", b"A=1;", b"HYENA_LLR=1;B"]), FIELD),
).map(b"\t".join)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r\n"])


@given(st.lists(st.tuples(st.one_of(PLAUSIBLE, st.binary(max_size=30)), ENDS), max_size=5), st.booleans())
def test_any_bytes_are_records_or_an_input_error(tmp_path_factory, lines, with_header):
    path = tmp_path_factory.mktemp("vcf") / "a.vcf"
    text = COLUMNS + b"\n" if with_header else b""
    text += b"".join(line + end for line, end in lines)
    path.write_bytes(text)
    try:
        header, records = read(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    assert text_of(header, records) == text
    for record in records:
        again = annotated(record.line, {"HYENA_LLR": "-0.5,.", "HYENA_FLAG": "INDEL,."})
        before, after = record.line.split(b"\t"), again.split(b"\t")
        assert before[:7] + before[8:] == after[:7] + after[8:]
        assert after[7].endswith(b"HYENA_LLR=-0.5,.;HYENA_FLAG=INDEL,.")
        assert annotated(again, {"HYENA_LLR": "-0.5,.", "HYENA_FLAG": "INDEL,."}) == again
        kept = [
            entry for entry in before[7].split(b";") if not entry.startswith(b"HYENA_") and entry not in (b"", b".")
        ]
        assert [entry for entry in after[7].split(b";")[:-2] if entry not in (b"", b".")] == kept
        for alt in record.alts:
            assert why_not_scored(record, alt) is None or why_not_scored(record, alt)


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_any_file_is_read_or_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("vcf") / "a.vcf"
    for start in (b"", b"##a\n", b"\x1f\x8b"):
        path.write_bytes(start + data)
        with pytest.raises(InputError):
            read(path)


def test_every_truncation_of_a_compressed_file_is_told(tmp_path):
    for compressed in (gzip.compress(HEADER + LINES), bgzf(HEADER + LINES)):
        for size in range(18, len(compressed), 3):
            (tmp_path / "a.vcf.gz").write_bytes(compressed[:size])
            with pytest.raises(InputError, match=r"a\.vcf\.gz is (truncated|damaged)"):
                read(tmp_path / "a.vcf.gz")


@pytest.mark.parametrize("where", ["file", "pipe", "stdin"])
def test_bgzf_cut_after_a_line_and_a_block_is_told(tmp_path, monkeypatch, where):
    """Blocks of htslib end with lines, so what is left of such a file is whole VCF and whole gzip."""
    cut = bgzf(HEADER)[:-28] + bgzf(LINES[: LINES.index(b"\n") + 1])[:-28]
    assert gzip.decompress(cut).endswith(b"1|0:2\n")
    source = str(tmp_path / "a.vcf.gz")
    if where == "file":
        (tmp_path / "a.vcf.gz").write_bytes(cut)
    elif where == "pipe":
        os.mkfifo(source)
        writer = threading.Thread(target=(tmp_path / "a.vcf.gz").write_bytes, args=(cut,))
        writer.start()
    else:
        source = "-"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(cut)))
    with pytest.raises(InputError, match=r"(a\.vcf\.gz|standard input) is truncated: "):
        read(source)
    if where == "pipe":
        writer.join()


def test_a_file_that_may_not_be_read_is_no_fasta_file(tmp_path, monkeypatch):
    (tmp_path / "a.vcf").write_bytes(HEADER)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"a\.vcf cannot be read: Permission denied$"):
        read(tmp_path / "a.vcf")


ROW = b"20\t5\t.\tA\tC\t.\t.\t."


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", r"a\.vcf is empty; give a VCF file"),
        (ROW, r"a\.vcf has no VCF header: its first line begins with '20.*a VCF file begins with ##fileformat=VCF"),
        (b">chr1\nACGT\n", r"it looks like a FASTA file"),
        (bgzf(b"BCF\x02\x02"), r"it looks like BCF; convert it: bcftools view -Oz"),
        (b"##fileformat=VCFv4.2\n", r"a\.vcf, line 2 is missing: the file ends there; after the lines with ##"),
        (b"##a\n" + ROW, r"a\.vcf, line 2 is '20.*must come #CHROM, POS"),
        (COLUMNS.replace(b"\t", b" ") + b"\n", r"a\.vcf, line 1 is '#CHROM POS.*separated by tabs"),
        (b"##a\n#CHROM\tPOS\n", r"a\.vcf, line 2 is '#CHROM"),
        (HEADER + b"20\t5\t.\tA\tC\t.\t.\t.\tGT\t0/", r"a\.vcf, line 4 has 10 columns of 11.*is the file cut off"),
        (COLUMNS + b"\n" + ROW[:-2], r"a\.vcf, line 2 has 7 columns of 8, separated by tabs: '20"),
        (COLUMNS + b"\n" + ROW + b"\n\n", r"a\.vcf, line 3 is blank; remove it"),
        (COLUMNS + b"\n##a\n", r"a\.vcf, line 2 begins with #, below the line #CHROM; join files with bcftools concat"),
        (COLUMNS + b"\n" + ROW.replace(b"5", b"1e5"), r"a\.vcf, line 2 has POS '1e5'; a position is a whole number"),
        (COLUMNS + b"\n" + ROW.replace(b"5", b"-5"), r"a\.vcf, line 2 has POS '-5'"),
        (COLUMNS + b"\n" + ROW.replace(b"5", b"5" * 5000), r"a\.vcf, line 2 has POS '5{40}';"),
        (COLUMNS + b"\n" + ROW[2:], r"a\.vcf, line 2 has no contig in its first column"),
    ],
)
def test_what_is_no_vcf(tmp_path, text, message):
    (tmp_path / "a.vcf").write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "a.vcf")
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*a\.vcf; give a VCF file, or - for standard input"):
        read(tmp_path / "a.vcf")
    with pytest.raises(InputError, match=r"is a folder; give a VCF file"):
        read(tmp_path)


def test_a_header_alone_is_a_file_without_records(tmp_path):
    (tmp_path / "a.vcf").write_bytes(HEADER)
    assert read(tmp_path / "a.vcf")[1] == []


def test_format_in_the_header_alone(tmp_path):
    (tmp_path / "a.vcf").write_bytes(COLUMNS + b"\tFORMAT\n" + ROW)
    assert len(read(tmp_path / "a.vcf")[1]) == 1


def test_failures_of_the_caller_stay_what_they_are(tmp_path):
    (tmp_path / "a.vcf.gz").write_bytes(bgzf(HEADER + LINES))
    with pytest.raises(BrokenPipeError), open_vcf(str(tmp_path / "a.vcf.gz")):
        raise BrokenPipeError


@pytest.mark.parametrize("how", ["index", "plain", "crlf"])
def test_regions_add_up_to_the_whole(tmp_path, how):
    """A deletion or block that begins before a region and reaches into it belongs to the region before."""
    rows = [("1", p, "A", "C", ".") for p in range(1, 200, 7)] + [("1", 50, "ACGTACGT" * 4, "A", ".")]
    rows += [("1", 60, "A", "<NON_REF>", "END=180"), ("1", 0, "N", "A", "."), ("2", 5, "A", "C", ".")]
    rows.sort(key=lambda row: row[:2])
    body = "".join(f"{c}\t{p}\t.\t{ref}\t{alt}\t.\t.\t{info}\n" for c, p, ref, alt, info in rows).encode()
    text = COLUMNS + b"\n" + body
    path = tmp_path / "a.vcf.gz"
    path.write_bytes(bgzf(text.replace(b"\n", b"\r\n") if how == "crlf" else text))
    if how != "plain":
        assert index_vcf(path, {})
    parts = [read(path, parse_region(region)) for region in ("1:1-56", "1:57-63", "1:64-100", "1:101-500", "2")]
    assert b"".join(r.line + b"\n" for _, records in parts for r in records) == body
    assert all(parts[n][1] for n in range(5))
    assert parts[1][1][0].number == (0 if how == "index" else 12)
    assert text_of(*read(path, Interval("1", 0, 200))) == text_of(parts[0][0], [r for p in parts[:4] for r in p[1]])


def test_an_indexed_record_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.vcf.gz"
    path.write_bytes(bgzf(HEADER + b"20\t5\t.\tA\tC\t.\t.\t.\n"))
    index_vcf(path, {})
    with pytest.raises(InputError, match=r"a\.vcf\.gz, the record at 20:5 has 8 columns of 11"):
        read(path, Interval("20", 0, 10))


def test_a_region_without_records(tmp_path, capsys):
    (tmp_path / "a.vcf").write_bytes(HEADER + LINES)
    assert read(tmp_path / "a.vcf", parse_region("chr20:1-99"))[1] == []
    told = capsys.readouterr().err
    assert told.endswith("a.vcf has no record in chr20:1-99; its header has the contigs 20\n")
    assert read(tmp_path / "a.vcf", Interval("20", 5, 9))[1] == []
    assert capsys.readouterr().err.endswith("a.vcf has no record in 20:6-9\n")


def test_why_not_scored():
    reasons = {
        ".": "no alternative allele",
        "": "no alternative allele",
        "*": "deleted by another variant",
        "<DEL>": "symbolic",
        "<NON_REF>": "symbolic",
        "<*>": "symbolic",
        "A[chr1:1[": "breakend",
        "]chr1:1]A": "breakend",
        "A.": "breakend",
        "N": "ALT is not of A, C, G and T alone",
        "ARC": "ALT is not of A, C, G and T alone",
        "aC": "ALT equals REF",
        "Acgt": None,
    }
    record = Record(b"", b"", "20", 5, "Ac", tuple(reasons), 1)
    assert {alt: why_not_scored(record, alt) for alt in record.alts} == reasons
    for ref in ("N", "AR", ""):
        assert why_not_scored(record._replace(ref=ref), "C") == "REF is not of A, C, G and T alone"


@pytest.mark.parametrize(
    "info, values, expected",
    [
        ("DP=1;HYENA_PCT=3", {}, "DP=1"),
        ("HYENA_PCT=3", {}, "."),
        ("", {}, ""),
        (".", {}, "."),
        (".", {"HYENA_LLR": "1"}, "HYENA_LLR=1"),
        ("HYENA_PCT=3;DP=1;HYENA_OLD;DB", {"HYENA_LLR": "1"}, "DP=1;DB;HYENA_LLR=1"),
        ("DP=1;;DB;", {"HYENA_LLR": "1"}, "DP=1;;DB;HYENA_LLR=1"),
    ],
)
def test_annotated(info, values, expected):
    line = f"20\t5\tHYENA_LLR=7\tA\tC\t.\t.\t{info}\tGT\tHYENA_LLR=8"
    assert annotated(line.encode(), values).decode() == f"20\t5\tHYENA_LLR=7\tA\tC\t.\t.\t{expected}\tGT\tHYENA_LLR=8"


def test_annotated_header():
    header = [line + b"\r\n" for line in (b"##fileformat=VCFv4.2", b"##INFO=<ID=DP,Number=1>", COLUMNS)]
    once = annotated_header(header, INFO_LINES, "##hyenaModel=a", "##hyenaCommand=hyena score 'a\nb' é")
    assert once[:2] == header[:2] and once[-1] == header[-1] and not has_annotations(header)
    assert once[-2] == "##hyenaCommand=hyena score 'a b' é\r\n".encode()
    assert len(once) == len(header) + len(INFO_LINES) + 2 and has_annotations(once)
    twice = annotated_header(once, INFO_LINES[:1], "##hyenaModel=b", "##hyenaCommand=c")
    assert twice == [
        *header[:2],
        INFO_LINES[0].encode() + b"\r\n",
        b"##hyenaModel=b\r\n",
        b"##hyenaCommand=c\r\n",
        header[2],
    ]
    other = b'##INFO=<ID=X,Description="see,ID=HYENA_LLR">\n'
    assert other in annotated_header([other, COLUMNS], (), "##hyenaModel=b", "##hyenaCommand=c")


def test_the_header_lines_are_read_by_pysam(tmp_path):
    pysam = pytest.importorskip("pysam")
    header = annotated_header(HEADER.splitlines(True), INFO_LINES, "##hyenaModel=a", "##hyenaCommand=b")
    values = {"HYENA_LLR": "-1.5,.", "HYENA_FLAG": "INDEL|HAS_N,SKIPPED"}
    line = annotated(b"20\t9\t.\tAC\tA,*\t.\t.\tDP=1\tGT\t0/1\t0/2", values)
    (tmp_path / "a.vcf").write_bytes(b"".join(header) + line + b"\n")
    with pysam.VariantFile(str(tmp_path / "a.vcf")) as file:
        record = next(iter(file))
    assert record.info["HYENA_LLR"] == (-1.5, None)
    assert record.info["HYENA_FLAG"] == ("INDEL|HAS_N", "SKIPPED")


def test_contig_lengths():
    lines = [
        b"##contig=<ID=HLA-A*01:01,assembly=b37,length=9>\r\n",
        b'##contig=<length=7,Description="length=5,ID=b",ID=chr1>\n',
        b"##contig=<ID=MT>",
        b"##contig=<length=3>",
        b"##contig=<ID=X,length=0>\n",  # which htslib takes for unknown, too
    ]
    assert contig_lengths(lines) == {"HLA-A*01:01": 9, "chr1": 7, "MT": None, "X": None}
