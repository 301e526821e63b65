"""BGZF against gzip and Biopython's own writer, whatever the cuts; indexes against reading all."""

import gzip
import io
import itertools
import os
import random
import sys

import pytest
from Bio import bgzf
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.bgzf import BlockWriter, index_vcf, indexed_lines
from hyenadna.data.compressed import compression
from hyenadna.data.intervals import Interval, parse_region
from hyenadna.errors import InputError

HEADER = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def blocks(*texts):
    file = io.BytesIO()
    writer = BlockWriter(file)
    for text in texts:
        writer.write(text)
    writer.close()
    return file.getvalue()


def write(path, text):
    path.write_bytes(blocks(text))
    return path


def vcf_of(*places, info="."):
    lines = (f"{contig}\t{position}\t.\tA\tC\t.\t.\t{info}\n" for contig, position in places)
    return HEADER + "".join(lines).encode()


@settings(max_examples=40)
@given(st.integers(0, 300_000), st.lists(st.integers(0, 300_000), max_size=6), st.booleans())
def test_the_bytes_do_not_depend_on_the_cuts(size, cuts, noise):
    text = random.Random(size).randbytes(size) if noise else (b"0|0:0.000\t" * 30_000)[:size]
    bounds = [0, *sorted(cuts), size + 300_000]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    assert blocks(*pieces) == blocks(text)
    assert gzip.decompress(blocks(text)) == text


def test_blocks_are_those_of_bgzip():
    data = blocks(b"x" * 150_000)
    sizes = [block[3] for block in bgzf.BgzfBlocks(io.BytesIO(data))]
    assert sizes == [65_280, 65_280, 150_000 - 2 * 65_280, 0]
    expected = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=expected)
    writer.close = lambda: None
    for size in sizes[:-1]:
        writer.write(b"x" * size)
        writer.flush()
    assert data[:-28] == expected.getvalue()


def test_the_end_is_marked(tmp_path):
    for text in (b"", b"a", b"a" * 65_280):
        assert compression(write(tmp_path / "a.gz", text)) == "bgzf"
        assert gzip.decompress(blocks(text)) == text


def test_an_index_finds_what_reading_finds(tmp_path):
    random.seed(3)
    places = sorted((contig, random.randrange(1, 2_000_000)) for contig in ("1", "2") for _ in range(8_000))
    path = write(tmp_path / "a.vcf.gz", vcf_of(*places, info="NOTE=caf\xc3\xa9" + "x" * 50))
    assert index_vcf(path, {"1": 2_000_000}) == tmp_path / "a.vcf.gz.tbi"
    for region in (Interval("1", 0, 2_000_000), Interval("2", 500_000, 600_000), Interval("2", 1_999_999, 2_000_000)):
        found = [line.split(b"\t")[:2] for line in indexed_lines(path, region)]
        wanted = [(c, p) for c, p in places if c == region.contig and region.start < p <= region.end]
        assert found == [[c.encode(), str(p).encode()] for c, p in wanted]
    assert list(indexed_lines(path, Interval("3", 0, 5))) == []
    assert list(indexed_lines(path, Interval("2", 600_000_000, 700_000_000))) == []  # beyond what a .tbi can tell
    assert next(indexed_lines(path, parse_region("2"))).endswith("caf\xc3\xa9".encode() + b"x" * 50 + b"\n")


def test_a_long_contig_has_a_csi(tmp_path):
    path = write(tmp_path / "a.vcf.gz", vcf_of(("1", 5), ("1", 700_000_000)))
    (tmp_path / "a.vcf.gz.tbi").write_bytes(b"of an earlier file")
    assert index_vcf(path, {"2": None, "1": 800_000_000}) == tmp_path / "a.vcf.gz.csi"
    assert {file.name for file in tmp_path.iterdir()} == {"a.vcf.gz", "a.vcf.gz.csi"}
    assert len(list(indexed_lines(path, Interval("1", 600_000_000, 700_000_000)))) == 1


@pytest.mark.parametrize("places", [[("1", 9), ("1", 5)], [("1", 5), ("2", 5), ("1", 9)], [("1", 9 * 10**8)]])
def test_no_index_of_what_is_not_sorted_or_beyond_it(tmp_path, capfd, places):
    path = write(tmp_path / "a.vcf.gz", vcf_of(*places))
    (tmp_path / "a.vcf.gz.tbi").write_bytes(b"of an earlier file")
    assert index_vcf(path, {}) is None
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr().err == (
        "a.vcf.gz was not indexed: its records are not sorted, lie beyond what .tbi can hold, or the disk is full; "
        f"bcftools sort -Oz sorts, bcftools index {path} tells what is wrong\n"
    )


def test_without_pysam(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.vcf.gz", vcf_of(("1", 5)))
    index_vcf(path, {})
    monkeypatch.setitem(sys.modules, "pysam", None)
    assert indexed_lines(path, Interval("1", 0, 9)) is None
    told = capsys.readouterr().err
    assert "a.vcf.gz.tbi is not used, because pysam is not installed: pip install 'hyenadna[vcf]'; all of" in told
    assert index_vcf(path, {"1": 1 << 30}) is None and not (tmp_path / "a.vcf.gz.tbi").exists()
    assert "pip install 'hyenadna[vcf]', or run bcftools index --csi" in capsys.readouterr().err


def test_an_index_that_is_not_to_be_trusted(tmp_path, capfd):
    path = write(tmp_path / "a.vcf.gz", vcf_of(("1", 5)))
    index = index_vcf(path, {})
    os.utime(index, ns=(0, 0))
    assert indexed_lines(path, Interval("1", 0, 9)) is None
    assert "a.vcf.gz.tbi is older than the file" in capfd.readouterr().err
    index.write_bytes(b"no index")
    assert indexed_lines(path, Interval("1", 0, 9)) is None
    assert capfd.readouterr().err == "a.vcf.gz.tbi cannot be read; all of a.vcf.gz is read for the region instead\n"


def test_a_file_that_is_damaged_behind_its_index(tmp_path):
    random.seed(4)
    path = write(tmp_path / "a.vcf.gz", vcf_of(*(("1", n) for n in range(1, 9_000)), info=f"X={random.random()}"))
    index = index_vcf(path, {})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    os.utime(index)
    with pytest.raises(InputError, match=r"a\.vcf\.gz is damaged, or its index is of another file"):
        list(indexed_lines(path, Interval("1", 0, 9_000)))
