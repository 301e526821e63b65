"""FASTA in every shape that occurs, against Biopython and pyfaidx; everything else is refused by name and place."""

import gzip
import os
import re
from pathlib import Path

import pyfaidx
import pytest
from Bio import SeqIO, bgzf
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data import faidx, fasta
from hyenadna.data.fasta import open_reference, read_records
from hyenadna.errors import FastaError, StaleIndexError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

records_strategy = st.lists(
    st.text(alphabet="ACGTNacgtnRYKMrykm", min_size=1, max_size=60), min_size=1, max_size=4
).filter(lambda records: all(sum(letter in "RYKMrykm" for letter in record) * 2 <= len(record) for record in records))


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} of the shared data is not here")
    return path


def write(path, data, how="plain"):
    match how:
        case "plain":
            path.write_bytes(data)
        case "gzip":
            path.write_bytes(gzip.compress(data, mtime=0))
        case "bgzf":
            with bgzf.BgzfWriter(str(path), "wb") as file:
                file.write(data)
    return path


def read(path):
    return [(record.name, record.sequence.tobytes().decode()) for record in read_records(path)]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), records=records_strategy)
def test_round_trip_in_any_shape(tmp_path_factory, data, records):
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for number, sequence in enumerate(records):
        lines += [f">c{number} some text > with marks"] + [""] * data.draw(st.integers(0, 1))
        while sequence:
            width = data.draw(st.integers(1, 30))
            lines.append(sequence[:width])
            sequence = sequence[width:]
        lines += [""] * data.draw(st.integers(0, 2))
    text = end.join(lines) + end * data.draw(st.integers(0, 1))
    path = tmp_path_factory.mktemp("fasta") / "a.fa"
    write(path, text.encode(), data.draw(st.sampled_from(["plain", "gzip", "bgzf"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "_CHUNK", data.draw(st.sampled_from([1, 2, 3, 7, 64])))  # cut anywhere
        assert read(path) == [(f"c{number}", sequence) for number, sequence in enumerate(records)]


@pytest.mark.parametrize("name", ["lambda_virus.fa.gz", "human_mtDNA_rCRS.fa", "human_GRCh37_chr1_first1Mb.fa.gz"])
def test_real_files_against_biopython(name):
    path = shared(f"genomes/{name}")
    with (gzip.open if name.endswith(".gz") else open)(path, "rt") as file:
        expected = [(record.id, str(record.seq)) for record in SeqIO.parse(file, "fasta")]
    assert read(path) == expected


def test_byte_order_mark_and_leading_blank_lines(tmp_path):
    assert read(write(tmp_path / "a.fa", b"\xef\xbb\xbf\n\n>a\nAC\n")) == [("a", "AC")]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty; give a FASTA file"),
        (b"\n \n", "is empty; give a FASTA file"),
        (b"ACGT\n", r"does not begin with '>' but with 'ACGT"),
        (b"@read\nACGT\n+\nIIII\n", "looks like a FASTQ file"),
        (b"##fileformat=VCFv4.2\n", "looks like a VCF file"),
        (b"\x00\x01\x02\xff", r"does not begin with '>' but with '\\x00\\x01\\x02\\xff'"),
        (b"BZh91AY", "compressed by bzip2"),
        (b">a\n>b\nACGT\n", "record 'a' has no sequence"),
        (b">a\nAC\n>b\n", "record 'b' has no sequence"),
        (b">a", "record 'a' has no sequence"),
        (b">a\nAC\n>a other\nAC\n", "two records named 'a'"),
        (b">a\nAC\n> \nAC\n", "after record 1 has no name"),
        (b">p\nMEEPQSDPSV\n", "record 'p' has 'E' at position 2, which is no nucleotide"),
        (
            b">p\n" + b"MKVASHVNSVKRWWTGYYSSHHKKD\n",
            "more than half of the record 'p' are ambiguity codes; is this protein",
        ),
        (b">a\nACGT\nAC-GT\n", "record 'a' has '-' at position 7"),
        (b">a\nACGT*\n", r"record 'a' has '\*' at position 5"),
        (b">a\nAC.GT\n", r"'\.' at position 3"),
        (b">a\nAC GT\n", "' ' at position 3"),
        (b">a\nACGT>b\nACGT\n", "record 'a' has '>' at position 5"),
        (b">a\rACGT\r>b\rACGT\r", "record 'a' has no sequence"),  # line ends of Mac OS 9: refused, never misread
    ],
)
def test_refused(tmp_path, data, message):
    path = write(tmp_path / "bad.fa", data)
    with pytest.raises(FastaError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_refused_at_every_chunk_size(tmp_path, monkeypatch):
    path = write(tmp_path / "bad.fa", b">a\nACGT\nACGT>b\nAC\n")
    for size in range(1, 20):
        monkeypatch.setattr(fasta, "_CHUNK", size)
        with pytest.raises(FastaError, match="'>' at position 9"):
            read(path)


def test_endless_header_is_refused(tmp_path):
    with pytest.raises(FastaError, match=r"header of more than 1048576 characters"):
        read(write(tmp_path / "a.fa", b">" + bytes(range(33, 123)) * 40_000))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FastaError, match=r"none\.fa cannot be read: No such file"):
        read(tmp_path / "none.fa")
    with pytest.raises(FastaError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("how", ["gzip", "bgzf"])
def test_truncated_at_any_byte(tmp_path, how):
    whole = write(tmp_path / "whole.fa.gz", b">a\n" + b"ACGTTGCA" * 40 + b"\n", how).read_bytes()
    for size in range(2, len(whole)):
        with pytest.raises(FastaError, match=r"truncated|damaged|is empty"):
            read(write(tmp_path / "cut.fa.gz", whole[:size]))


def test_damaged_gzip(tmp_path):
    data = bytearray(
        gzip.compress(
            b">a\n" + os.urandom(3000).hex().translate(str.maketrans("0123456789abcdef", "ACGT" * 4)).encode()
        )
    )
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(FastaError, match=r"is damaged|truncated|no nucleotide"):
        read(write(tmp_path / "a.fa.gz", bytes(data)))


def test_named_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if os.fork() == 0:
        pipe.write_bytes(b">a\nACGT\n")
        os._exit(0)
    assert read(pipe) == [("a", "ACGT")]
    os.wait()


# random access

REGULAR = b">one text\r\n" + b"ACGTNacgtn\r\n" * 7 + b"ACG\r\n" + b">two\r\nGGGGG\r\n>three\r\n" + b"TTTTTTTTTT\r\n" * 3


@pytest.mark.parametrize("how, name", [("plain", "a.fa"), ("bgzf", "a.fa.gz"), ("bgzf", "a.fa.bgz")])
def test_reference_agrees_with_the_stream(tmp_path, how, name):
    path = write(tmp_path / name, REGULAR, how)
    reference = open_reference(path)
    for contig, sequence in read(path):
        assert len(reference[contig]) == len(sequence)
        for start in range(0, len(sequence), 3):
            end = min(start + 5, len(sequence))
            assert reference[contig][start:end].seq == sequence[start:end]
    with pytest.raises(pyfaidx.FetchError):
        reference.get_seq("two", 1, 6)
    assert open_reference(path)["two"][:].seq == "GGGGG"  # by the index of before


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("chunk", [3, 11, 1 << 20])
def test_index_is_pyfaidxs(tmp_path, monkeypatch, ending, chunk):
    monkeypatch.setattr(faidx, "_CHUNK", chunk)
    path = write(tmp_path / "a.fa", b">a b\nACGT\nACGT\nAC\n>b\nACGT\n>c\nACG" + ending)
    open_reference(path)
    index = path.with_name("a.fa.fai")
    ours = index.read_text()
    index.unlink()
    pyfaidx.Faidx(str(path))
    assert [line.split("\t")[:4] for line in ours.splitlines()] == [
        line.split("\t")[:4] for line in index.read_text().splitlines()
    ]


def test_bgzf_over_several_blocks(tmp_path):
    sequence = (b"ACGGT" * 13 + b"\n") * 6000
    path = write(tmp_path / "a.fa.gz", b">a\n" + sequence + b">b\nTTTT\n", "bgzf")
    reference = open_reference(path)
    flat = sequence.replace(b"\n", b"").decode()
    for start in range(0, len(flat) - 200, 9973):
        assert reference["a"][start : start + 200].seq == flat[start : start + 200]
    assert reference["b"][:].seq == "TTTT"


def test_index_older_than_its_fasta_is_refused(tmp_path):
    path = write(tmp_path / "a.fa", REGULAR)
    open_reference(path).close()
    os.utime(path, ns=(0, path.with_name("a.fa.fai").stat().st_mtime_ns + 1_000_000_000))
    with pytest.raises(StaleIndexError, match=re.escape(f"delete {path}.fai and run again")):
        open_reference(path)


@pytest.mark.parametrize("how, name", [("plain", "a.fa"), ("bgzf", "a.fa.gz")])
@pytest.mark.parametrize(
    "changed", [REGULAR.replace(b"GGGGG", b"GGGG"), REGULAR + b"TTT\r\n", REGULAR[:-3], REGULAR[:120]]
)
def test_index_of_other_lengths_is_refused(tmp_path, how, name, changed):
    path = write(tmp_path / name, REGULAR, how)
    open_reference(path).close()
    write(path, changed, how)
    os.utime(path, (0, 0))  # the trap: a changed file that looks older than its index
    with pytest.raises(StaleIndexError, match=re.escape(f"delete {path}.fai")):
        open_reference(path)


def test_what_is_no_index_is_refused(tmp_path):
    path = write(tmp_path / "a.fa", REGULAR)
    path.with_name("a.fa.fai").write_text("one\t5\n")
    with pytest.raises(StaleIndexError, match=r"is no index of a\.fa; delete"):
        open_reference(path)


def test_plain_gzip_is_refused_for_random_access(tmp_path):
    with pytest.raises(FastaError, match="compressed by gzip, which allows no random access; compress it by bgzip"):
        open_reference(write(tmp_path / "a.fa.gz", REGULAR, "gzip"))


def test_a_name_that_belies_the_content_is_refused(tmp_path):
    with pytest.raises(FastaError, match="is bgzf, but its name says otherwise"):
        open_reference(write(tmp_path / "a.fa", REGULAR, "bgzf"))


@pytest.mark.parametrize(
    "data, message",
    [
        (b">a\nACGT\nAC\nACGT\n", "record 'a' have different lengths"),
        (b">a\nACGT\nACGTA\n", "record 'a' have different lengths"),
        (b">a\nACGT\n\nACGT\n", "record 'a' have different lengths"),
        (b">a\nACGT\r\nACGT\nAC\n", "record 'a' have different lengths"),
        (b">a\nAC\n>a\nAC\n", "repeats the name"),
        (b">a\n>b\nAC\n", "has no sequence for 'a'"),
        (b"ACGT\n", "does not begin with '>'"),
        (b"", "has no sequence"),
    ],
)
def test_what_cannot_be_indexed(tmp_path, data, message):
    path = write(tmp_path / "a.fa", data)
    with pytest.raises(FastaError, match=message):
        open_reference(path)
    assert not path.with_name("a.fa.fai").exists()


def test_read_only_folder_puts_the_index_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "genomes"
    folder.mkdir()
    path = write(folder / "a.fa.gz", REGULAR, "bgzf")
    folder.chmod(0o555)
    try:
        assert open_reference(path)["two"][:].seq == "GGGGG"
        assert open_reference(path)["two"][:].seq == "GGGGG"
        [index] = (tmp_path / "cache" / "indexes").glob("a.fa.gz-*.fai")
        write(path, REGULAR.replace(b"GGGGG", b"GGTTGG"), "bgzf")
        os.utime(path, ns=(0, index.stat().st_mtime_ns + 1))
        assert open_reference(path)["two"][:].seq == "GGTTGG"  # the cache is ours: no word about its file
    finally:
        folder.chmod(0o755)
    assert [file.name for file in folder.iterdir()] == ["a.fa.gz"]
    assert len(list((tmp_path / "cache" / "indexes").glob("a.fa.gz-*.fai"))) == 1
