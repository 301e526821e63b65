"""Files of embeddings: whole or continued after every kind of death, readable while they grow."""

import errno
import json
import multiprocessing
import os

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import small_model
from embedding import config_of, differences, ragged_sequences, tokens_of

from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.inference import embedding_files
from hyenadna.inference.embed import Embedder, embed
from hyenadna.inference.embedding_files import embedding_file, ids_of
from hyenadna.inference.sequence_chunks import origin

ABOUT = {"hyenadna": "0", "model": "small", "base_sha256": "a" * 64, "layer": 3, "pool": "mean", "bins": 0}
SEQUENCES = ragged_sequences()


@pytest.fixture(scope="module")
def model():
    return small_model()


def small_chunks(embedder, monkeypatch, bases=150):
    monkeypatch.setattr(Embedder, "chunk", {"bases": bases, "rows": 100})
    return embedder


def write(path, embedder, pairs=SEQUENCES, about=ABOUT, overwrite=False):
    file = embedding_file(path, about, width=embedder.width, ragged=embedder.config.ragged, overwrite=overwrite)
    return embed(embedder, iter(pairs), file)


def contents(path):
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        columns = {name: file[name][:] for name in file if name != "ids"}
        return columns | {"ids": file["ids"].asstr()[:].tolist()}, dict(file.attrs)


@pytest.mark.parametrize("options", [{}, {"bins": 7}, {"pool": "none", "both": True}], ids=str)
@pytest.mark.parametrize("suffix", ["h5", "parquet", "npy"])
def test_files_hold_ids_in_order_and_the_embeddings(model, tmp_path, monkeypatch, options, suffix):
    embedder = small_chunks(Embedder(model, config_of(options)), monkeypatch)
    path, wanted = tmp_path / "new" / f"out.{suffix}", embedder(tokens_of(SEQUENCES))
    done = write(path, embedder)
    assert done == (len(SEQUENCES), 0, sum(len(sequence) for _, sequence in SEQUENCES))
    lengths, ids = [len(sequence) for _, sequence in SEQUENCES], [name for name, _ in SEQUENCES]
    rows = [value.reshape(-1, embedder.width) for value in wanted]
    offsets = np.cumsum([0, *map(len, rows)])
    match suffix:
        case "h5":
            found, attributes = contents(path)
            assert found["ids"] == ids and found["lengths"].tolist() == lengths
            assert ("offsets" in found) == embedder.config.ragged
            if embedder.config.ragged:
                assert found["offsets"].tolist() == offsets.tolist()
            flat = found["embeddings"]
            assert attributes == ABOUT | {"sequences": len(ids), "complete": 1}
        case "parquet":
            table = pq.read_table(path)
            assert table["id"].to_pylist() == ids and table["length"].to_pylist() == lengths
            flat = np.array([row for value in table["embedding"].to_pylist() for row in np.atleast_2d(value)])
            assert json.loads(table.schema.metadata[b"hyenadna"]) == ABOUT
            assert pq.ParquetFile(path).num_row_groups > 1
        case "npy":
            flat = np.load(path, mmap_mode="r")
            lines = ids_of(path).read_text().splitlines()
            assert lines[0].startswith("# hyenadna 0; model small; base_sha256 aaa")
            assert lines[1] == "id\tlength\tfirst_row\trows"
            table = [tuple(line.split("\t")) for line in lines[2:]]
            assert [(name, int(length)) for name, length, *_ in table] == list(zip(ids, lengths, strict=True))
            assert [int(first) for *_, first, _ in table] == offsets[:-1].tolist()
    assert differences([flat], [np.concatenate(rows)]) < 1e-5
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def _embed_and_die(path, config, after, bases):
    """In a process of its own: killed by SIGKILL once so many chunks are written."""
    embedder = Embedder(small_model(), config)
    Embedder.chunk = {"bases": bases, "rows": 100}

    def mortal():
        for number, pair in enumerate(SEQUENCES):
            if number == after:
                os.kill(os.getpid(), 9)
            yield pair

    embed(embedder, mortal(), embedding_file(path, ABOUT, width=16, ragged=config.ragged))


@pytest.mark.parametrize("options", [{}, {"bins": 7}], ids=str)
def test_killed_it_is_readable_and_goes_on(model, tmp_path, monkeypatch, options):
    embedder = small_chunks(Embedder(model, config_of(options)), monkeypatch)
    write(tmp_path / "whole.h5", embedder)
    whole, attributes = contents(tmp_path / "whole.h5")
    path = tmp_path / "killed.h5"
    process = multiprocessing.get_context("fork").Process(
        target=_embed_and_die, args=(path, embedder.config, len(SEQUENCES) - 2, 150)
    )
    process.start()
    process.join()
    assert process.exitcode == -9
    part, of_part = contents(path)
    there = int(of_part["sequences"])
    assert 0 < there < len(SEQUENCES) and not of_part["complete"]
    for name in ("ids", "lengths", "checksums"):
        assert list(part[name]) == list(whole[name][:there])
    assert np.array_equal(part["embeddings"], whole["embeddings"][: len(part["embeddings"])])

    done = write(path, embedder)
    assert done.sequences == len(SEQUENCES) and done.earlier == there
    found, of_found = contents(path)
    assert of_found == attributes and found.keys() == whole.keys()
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert write(path, embedder) == (len(SEQUENCES), len(SEQUENCES), 0)  # a whole one is left as it is


def test_killed_behind_the_last_sequence_it_is_completed(model, tmp_path, monkeypatch):
    embedder = small_chunks(Embedder(model), monkeypatch)
    file = embedding_file(tmp_path / "a.h5", ABOUT, width=16, ragged=False)
    file.finish = lambda sequences: None
    embed(embedder, iter(SEQUENCES), file)
    assert not contents(tmp_path / "a.h5")[1]["complete"]
    assert write(tmp_path / "a.h5", embedder).earlier == len(SEQUENCES)
    found, attributes = contents(tmp_path / "a.h5")
    assert attributes["complete"] and found["ids"] == [name for name, _ in SEQUENCES]


def test_other_chunks_than_before_drop_what_is_not_whole(model, tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "a.h5", small_chunks(Embedder(model), monkeypatch, 100), _failing(10))
    there = int(contents(tmp_path / "a.h5")[1]["sequences"])
    assert there > 3
    done = write(tmp_path / "a.h5", small_chunks(Embedder(model), monkeypatch, 10**6))
    assert done.earlier == 0 and contents(tmp_path / "a.h5")[0]["ids"] == [name for name, _ in SEQUENCES]


def _failing(after):
    for number, pair in enumerate(SEQUENCES):
        yield pair if number < after else 1 / 0


def _read_growing(path, queue):
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        queue.put((int(file.attrs["sequences"]), len(file["embeddings"]), file["embeddings"][-1].tolist()))


def test_another_process_reads_it_while_it_grows(model, tmp_path, monkeypatch):
    embedder, path, seen = small_chunks(Embedder(model), monkeypatch), tmp_path / "a.h5", []
    context = multiprocessing.get_context("fork")

    def watched():
        for number, pair in enumerate(SEQUENCES):
            if number in (6, 11):
                queue = context.Queue()
                reader = context.Process(target=_read_growing, args=(path, queue))
                reader.start()
                seen.append(queue.get(timeout=60))
                reader.join()
            yield pair

    write(path, embedder, watched())
    whole = contents(path)[0]["embeddings"]
    assert 0 < seen[0][0] < seen[1][0] < len(SEQUENCES)
    for sequences, rows, last in seen:
        assert rows == sequences and last == whole[rows - 1].tolist()


def test_only_the_same_job_is_continued(model, tmp_path, monkeypatch):
    embedder, path = small_chunks(Embedder(model), monkeypatch), tmp_path / "a.h5"
    with pytest.raises(ZeroDivisionError):
        write(path, embedder, _failing(10))
    before = contents(path)
    with pytest.raises(UsageError, match=r"a\.h5 was begun with layer 3, and this is 2"):
        write(path, embedder, about=ABOUT | {"layer": 2})
    with pytest.raises(UsageError, match="was begun with stride None, and this is 5"):
        write(path, embedder, about=ABOUT | {"stride": 5})
    swapped = [SEQUENCES[0], SEQUENCES[2], SEQUENCES[1], *SEQUENCES[3:]]
    with pytest.raises(InputError, match=r"another sequence in row 2 \('s1'\) than the input \('s2'\)"):
        write(path, embedder, swapped)
    changed = [(name, "T" * len(sequence)) for name, sequence in SEQUENCES]
    with pytest.raises(InputError, match=r"another sequence in row 1 \('s0'\)"):
        write(path, embedder, changed)
    with pytest.raises(InputError, match=r"sequences, the input only 4"):
        write(path, embedder, SEQUENCES[:4])
    after = contents(path)
    assert after[1] == before[1] and after[0]["ids"] == before[0]["ids"]
    (tmp_path / "b.h5").write_text("precious")
    with pytest.raises(UsageError, match=r"b\.h5 exists and is no file of hyena embed"):
        write(tmp_path / "b.h5", embedder)
    assert (tmp_path / "b.h5").read_text() == "precious"
    assert write(path, embedder, changed, overwrite=True).earlier == 0


def test_other_names_and_files_that_exist(model, tmp_path):
    embedder = Embedder(model)
    with pytest.raises(UsageError, match=r"must end in one of \.h5, \.hdf5, \.parquet, \.npy"):
        write(tmp_path / "a.csv", embedder)
    for name in ("a.parquet", "a.npy", "b.ids.tsv"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UsageError, match=f"{name} exists; give another name, or --overwrite"):
            write((tmp_path / name).with_name(name.replace("ids.tsv", "npy")), embedder)
    write(tmp_path / "a.npy", embedder, overwrite=True)
    assert np.load(tmp_path / "a.npy").shape == (len(SEQUENCES), 16)


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_parquet_and_npy_are_whole_or_not_there(model, tmp_path, monkeypatch, suffix):
    embedder = small_chunks(Embedder(model), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / f"a.{suffix}", embedder, _failing(10))
    assert list(tmp_path.iterdir()) == []


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(model, tmp_path, monkeypatch):
    embedder = small_chunks(Embedder(model), monkeypatch)
    extend, count = embedding_files._extend, [0]

    def filling(dataset, rows):
        count[0] += 1
        (full if count[0] > 8 else extend)(dataset, rows)

    with monkeypatch.context() as patched:
        patched.setattr(embedding_files, "_extend", filling)
        with pytest.raises(WriteError, match=r"a\.h5 could not be written: No space left.* the (\d+) sequences before"):
            write(tmp_path / "a.h5", embedder)
    there = int(contents(tmp_path / "a.h5")[1]["sequences"])
    assert there > 0 and write(tmp_path / "a.h5", embedder).earlier == there
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(WriteError, match=r"a\.parquet could not be written: No space left.*nothing was put there"):
            write(tmp_path / "a.parquet", embedder)
        patched.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(WriteError, match=r"a\.npy could not be written: No space left"):
            write(tmp_path / "a.npy", embedder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_ids_of_any_length_fit_or_are_named(model, tmp_path, monkeypatch):
    embedder = small_chunks(Embedder(model), monkeypatch, 2)
    pairs = [("é" * 50, "ACG"), ("b" * 200, "AC")]
    write(tmp_path / "a.h5", embedder, pairs)
    assert contents(tmp_path / "a.h5")[0]["ids"] == [name for name, _ in pairs]
    with pytest.raises(InputError, match="id of sequence 3 has 201 bytes; this file holds up to 200"):
        write(tmp_path / "b.h5", embedder, [*pairs, ("c" * 201, "A")])
    assert contents(tmp_path / "b.h5")[0]["ids"] == [name for name, _ in pairs]


def test_origin_knows_a_file_by_what_is_in_it(tmp_path):
    one, two = tmp_path / "a.fa", tmp_path / "b.fa"
    one.write_text(">a\nACGT\n")
    two.write_text(">a\nACGA\n")
    assert origin(str(one))["input_bytes"] == 8 and origin("-") == {"input": "-"}
    assert origin(str(one))["input_head_tail_sha256"] != origin(str(two))["input_head_tail_sha256"]
    assert set(origin(str(one), two)) == {
        f"{role}{what}" for role in ("input", "fasta") for what in ("", "_bytes", "_head_tail_sha256")
    }
    with pytest.raises(InputError, match=r"there is no file .*none\.fa"):
        origin(str(tmp_path / "none.fa"))
