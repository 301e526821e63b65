"""Packs: what is in them, when they are made anew, and that nothing half-written or stale is ever read."""

import errno
import gzip
import hashlib
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pyfaidx
import pytest
from Bio import bgzf

import hyenadna.data.packed as module
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack, letter_counts, pack, packed
from hyenadna.errors import FastaError, InputError, IntervalError, StaleIndexError, UsageError, WriteError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
CONTIGS = {"one": "ACGTNacgtnRUu" * 7, "two": "G", "three": "TTTTA" * 100}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "the cache"
    monkeypatch.setenv("HYENA_CACHE", str(folder))
    return folder


def write(path, contigs=CONTIGS):
    text = "".join(f">{name} text\n{sequence}\n" for name, sequence in contigs.items()).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def text(array):
    return array.tobytes().decode()


def test_content(tmp_path):
    genome = packed(write(tmp_path / "a.fa"))
    assert genome.path == tmp_path / "a.fa.hyena.h5"
    assert genome.names == tuple(CONTIGS)
    assert genome.lengths == {name: len(sequence) for name, sequence in CONTIGS.items()}
    for name, sequence in CONTIGS.items():
        assert text(genome.contig(name)) == sequence
        assert text(genome.fetch(Interval(name, 1, len(sequence)))) == sequence[1:]
    assert text(genome.sequence) == "".join(CONTIGS.values())
    with h5py.File(genome.path) as file:  # as any other HDF5 program sees it
        assert file["sequence"][:].tobytes() == genome.sequence.tobytes()
        assert file["sequence"].chunks is None and file["sequence"].dtype == np.uint8
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_counts_are_a_loops(tmp_path):
    genome = packed(write(tmp_path / "a.fa"))
    for counts, sequence in zip(genome.counts.tolist(), CONTIGS.values(), strict=True):
        upper = sequence.upper().replace("U", "T")
        expected = [upper.count(letter) for letter in "ACGT"]
        assert counts == [*expected, len(sequence) - sum(expected)]


def test_counts_of_long_sequences():
    letters = np.frombuffer(b"ACGTNacgtn", dtype=np.uint8)
    sequence = letters[np.random.default_rng(0).integers(0, 10, 600_001)]
    upper = sequence.tobytes().upper()
    assert letter_counts(sequence).tolist() == [upper.count(letter.encode()) for letter in "ACGTN"]


def test_real_genome_against_pyfaidx(tmp_path):
    source = SHARED / "genomes" / "human_mtDNA_rCRS.fa"
    if not source.exists():
        pytest.skip(f"{source.name} of the shared data is not here")
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    genome, reference = packed(path), pyfaidx.Fasta(str(path))
    assert list(genome.names) == list(reference.keys())
    assert text(genome.contig("chrM")) == reference["chrM"][:].seq


def test_checksum_knows_bases_only(tmp_path):
    original = packed(write(tmp_path / "a.fa")).sequence_sha256
    expected = hashlib.sha256(
        "".join(f"{name}\t{len(sequence)}\n{sequence.upper()}" for name, sequence in CONTIGS.items()).encode()
    )
    assert original == expected.hexdigest()
    masked = {name: sequence.lower() for name, sequence in CONTIGS.items()}
    assert packed(write(tmp_path / "masked.fa.gz", masked)).sequence_sha256 == original
    assert packed(write(tmp_path / "other.fa", CONTIGS | {"two": "C"})).sequence_sha256 != original
    renamed = {name.replace("two", "2"): sequence for name, sequence in CONTIGS.items()}
    assert packed(write(tmp_path / "renamed.fa", renamed)).sequence_sha256 != original


def test_second_time_nothing_is_packed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.fa")
    first = packed(path)
    monkeypatch.setattr(module, "pack", lambda *_: pytest.fail("packed again"))
    assert packed(path) == first


def test_changed_fasta_is_packed_anew_with_a_notice(tmp_path, capsys):
    path = write(tmp_path / "a.fa")
    packed(path)
    assert capsys.readouterr().err == ""
    write(path, {"one": "CCCC"})
    assert text(packed(path).sequence) == "CCCC"
    assert "no longer fits a.fa, which is packed anew" in capsys.readouterr().err


def test_damaged_pack_is_packed_anew(tmp_path, capsys):
    path = write(tmp_path / "a.fa")
    place = packed(path).path
    place.write_bytes(place.read_bytes()[:-50])
    assert text(packed(path).contig("two")) == "G"
    assert "is damaged or no longer fits" in capsys.readouterr().err


def test_read_only_folder_uses_the_cache(tmp_path, cache):
    path = write(tmp_path / "genomes" / "a.fa")
    path.parent.chmod(0o555)
    try:
        genome = packed(path)
        assert packed(path) == genome
    finally:
        path.parent.chmod(0o755)
    assert genome.path.parent == cache / "packs"
    assert [file.name for file in path.parent.iterdir()] == ["a.fa"]
    assert packed(path) == genome  # found there later, too


def test_two_files_of_one_name_do_not_share_a_cached_pack(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "writable", lambda folder: False)
    one, two = write(tmp_path / "x" / "a.fa"), write(tmp_path / "y" / "a.fa", {"c": "AC"})
    assert packed(one).path != packed(two).path
    assert packed(one).names == tuple(CONTIGS) and packed(two).names == ("c",)


def test_bundled_genome_is_never_packed_into_the_package(cache):
    from hyenadna.data.genomes import ecoli

    genome = packed(ecoli())
    assert genome.path.parent == cache / "packs"
    assert int(genome.offsets[-1]) == 4_639_675


def test_a_pack_opens_as_itself(tmp_path):
    path = write(tmp_path / "a.fa")
    pack(path, tmp_path / "elsewhere" / "b.h5")
    assert packed(tmp_path / "elsewhere" / "b.h5").names == tuple(CONTIGS)
    pack(path, tmp_path / "b.h5")
    write(path, {"one": "CCCC"})
    with pytest.raises(StaleIndexError, match=r"b\.h5 was packed from an earlier a\.fa, which has changed since"):
        packed(tmp_path / "b.h5")


def test_pack_does_not_overwrite_what_is_no_pack(tmp_path):
    path = write(tmp_path / "a.fa")
    with pytest.raises(UsageError, match=r"a\.fa exists and is no pack: it is not overwritten"):
        pack(path, path)
    assert path.read_text().startswith(">one")


def test_bad_fasta_leaves_nothing(tmp_path):
    for content in (b"", b">a\nAC\n>a\nAC\n"):
        (tmp_path / "a.fa").write_bytes(content)
        with pytest.raises(FastaError):
            packed(tmp_path / "a.fa")
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == ["a.fa"]
    with pytest.raises(FastaError, match="No such file"):
        packed(tmp_path / "none.fa")
    with pytest.raises(FastaError, match="Is a directory"):
        packed(tmp_path)


def test_fasta_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.fa")
    spool = module._spool

    def slow(*arguments):
        result = spool(*arguments)
        write(path, {"one": "CCCC"})
        return result

    monkeypatch.setattr(module, "_spool", slow)
    with pytest.raises(FastaError, match="changed while it was read"):
        pack(path, tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "Denied")])
@pytest.mark.parametrize("where", ["_spool", "_write"])
def test_disk_full_in_the_middle(tmp_path, monkeypatch, error, where):
    path = write(tmp_path / "a.fa")
    old = packed(path).path.read_bytes()
    write(path, {"one": "CCCC"})
    original = getattr(module, where)

    def fails(*arguments):
        original(*arguments)
        raise error

    monkeypatch.setattr(module, where, fails)
    with pytest.raises(WriteError, match=f"a.fa.hyena.h5 could not be written: {error.strerror}"):
        packed(path)
    assert (tmp_path / "a.fa.hyena.h5").read_bytes() == old
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_a_killed_packing_left_is_removed(tmp_path):
    path = write(tmp_path / "a.fa")
    left = tmp_path / ".a.fa.hyena.h5.0123456789ab.tmp"
    left.write_bytes(b"half")
    packed(path)
    assert not left.exists()


def test_what_does_not_read_back_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_digest", lambda pack_: "another")
    with pytest.raises(WriteError, match="does not read back as it was written"):
        packed(write(tmp_path / "a.fa"))


def _pack_and_report(path, barrier, results):
    barrier.wait()
    genome = packed(path)
    results.put((genome.identity, hashlib.sha256(genome.sequence).hexdigest()))


def test_two_processes_at_once(tmp_path):
    contigs = {f"c{number}": "ACGTTGCAN" * 20_000 for number in range(5)}
    path = write(tmp_path / "a.fa", contigs)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_pack_and_report, args=(path, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1  # one packed, the others waited and read the same file
    assert found.pop()[1] == hashlib.sha256("".join(contigs.values()).encode()).hexdigest()


def test_pickle_carries_no_map(tmp_path):
    genome = packed(write(tmp_path / "a.fa"))
    assert genome.sequence is genome.sequence
    data = pickle.dumps(genome)
    assert len(data) < 3000
    copy = pickle.loads(data)
    assert "sequence" not in vars(copy)
    assert text(copy.contig("three")) == CONTIGS["three"] and copy == genome


def test_pack_replaced_while_in_use(tmp_path):
    path = write(tmp_path / "a.fa")
    old = pickle.dumps(packed(path))
    mapped = packed(path)
    before = text(mapped.sequence)
    write(path, {"one": "CCCC"})
    packed(path)
    assert text(mapped.sequence) == before  # the map holds the old file
    with pytest.raises(StaleIndexError, match="was replaced while it was in use"):
        _ = pickle.loads(old).sequence


def test_views_are_read_only(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        packed(write(tmp_path / "a.fa")).contig("one")[0] = 65


def test_wrong_places(tmp_path):
    genome = packed(write(tmp_path / "a.fa"))
    with pytest.raises(IntervalError, match="no contig 'four' in the genome; it has one, two, three"):
        genome.contig("four")
    for interval in (Interval("two", 0, 2), Interval("two", -1, 1), Interval("two", 1, 0)):
        with pytest.raises(IntervalError, match="is not within two, which has 1 bases"):
            genome.fetch(interval)


def _break(path, what):
    with h5py.File(path, "r+") as file:
        match what:
            case "version":
                file.attrs["format_version"] = 99
            case "missing":
                del file["names"]
            case "offsets":
                file["offsets"][1] = 0
            case "counts":
                file["counts"][0, 0] += 1
            case "chunked":
                data = file["sequence"][:]
                del file["sequence"]
                file.create_dataset("sequence", data=data, chunks=(10,))
            case "fingerprint":
                file.attrs["fingerprint"] = "{}"


@pytest.mark.parametrize(
    "what, message",
    [
        ("version", "format version 99, this program reads 1"),
        ("missing", "names"),
        ("offsets", "offsets do not fit"),
        ("counts", "counts do not fit"),
        ("chunked", "no contiguous dataset"),
        ("fingerprint", "missing"),
    ],
)
def test_foreign_or_broken_hdf5(tmp_path, what, message):
    pack(write(tmp_path / "a.fa"), tmp_path / "b.h5")
    _break(tmp_path / "b.h5", what)
    with pytest.raises(InputError, match=f"b.h5 is no whole pack of hyena data pack: .*{message}") as error:
        Pack.open(tmp_path / "b.h5")
    assert "\n" not in str(error.value)


def test_truncated_pack(tmp_path):
    pack(write(tmp_path / "a.fa"), tmp_path / "b.h5")
    whole = (tmp_path / "b.h5").read_bytes()
    for size in range(8, len(whole), 997):
        (tmp_path / "c.h5").write_bytes(whole[:size])
        with pytest.raises(InputError, match="is no whole pack"):
            Pack.open(tmp_path / "c.h5")


def test_bgzf_source(tmp_path):
    with bgzf.BgzfWriter(str(tmp_path / "a.fa.gz"), "wb") as file:
        file.write(b">a\nACGT\nAC\n")
    assert text(packed(tmp_path / "a.fa.gz").sequence) == "ACGTAC"
