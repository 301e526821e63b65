"""Embeddings against a model that reads one sequence at a time in float64; and the files that hold them."""

import copy
import errno
import itertools
import json
import multiprocessing
import os
import random

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import small_model
from embedding import oracle, ragged_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, NotFiniteError, SequenceTooLong, UsageError, WriteError
from hyenadna.inference import embedding_files
from hyenadna.inference.embed import EmbedConfig, Embedder, embed
from hyenadna.inference.embedding_files import embedding_file, ids_of
from hyenadna.inference.long_windows import long_windows
from hyenadna.inference.sequence_chunks import chunks, origin

ABOUT = {"hyenadna": "0", "model": "small", "base_sha256": "a" * 64, "layer": 3, "pool": "mean", "bins": 0}
SEQUENCES = ragged_sequences()
CONFIGS = [
    {},
    {"layer": 0},
    {"layer": 1, "pool": "max"},
    {"layer": -2, "pool": "last"},
    {"pool": "none"},
    {"bins": 7},
    {"pool": "max", "both": True},
    {"pool": "last", "both": True},
    {"bins": 5, "both": True, "layer": 2},
    {"pool": "none", "both": True},
]


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def in_float64(model):
    return copy.deepcopy(model).double()


def config_of(options):
    return EmbedConfig(**{{"both": "reverse_complement"}.get(name, name): value for name, value in options.items()})


def tokens_of(pairs, n_token="n"):
    return [encode(sequence, n_token) for _, sequence in pairs]


def differences(found, wanted):
    assert [value.shape for value in found] == [value.shape for value in wanted]
    return max(np.abs(value - other).max() / np.abs(other).max() for value, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_batched_equals_one_at_a_time_in_float64(model, in_float64, options):
    found = Embedder(model, config_of(options), batch_tokens=300)(tokens_of(SEQUENCES))
    assert all(value.dtype == np.float32 for value in found)
    wanted = [oracle(in_float64, sequence, **options) for _, sequence in SEQUENCES]
    assert differences(found, wanted) < 1e-5


@pytest.mark.parametrize("stride", [None, 68, 30])
def test_long_sequences_are_read_in_windows(model, in_float64, stride):
    draw = random.Random(1)
    pairs = [(str(n), "".join(draw.choices("ACGT", k=n))) for n in (68, 69, 150)]
    for options in CONFIGS:
        embedder = Embedder(model, config_of(options | {"stride": stride}), batch_tokens=300)
        wanted = [oracle(in_float64, sequence, **options, stride=stride) for _, sequence in pairs]
        assert differences(embedder(tokens_of(pairs)), wanted) < 1e-5


@pytest.fixture(scope="module")
def alone(model):
    return [Embedder(model)([tokens])[0] for tokens in tokens_of(SEQUENCES)]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(SEQUENCES))), st.integers(1, 700), st.integers(1, len(SEQUENCES)))
def test_neighbours_order_and_batches_do_not_matter(model, alone, order, batch_tokens, number):
    tokens = tokens_of(SEQUENCES)
    found = Embedder(model, batch_tokens=batch_tokens)([tokens[row] for row in order[:number]])
    assert differences(found, [alone[row] for row in order[:number]]) < 1e-5


def test_n_is_what_the_model_takes_it_for():
    model = small_model(n_token="pad")
    in_float64 = copy.deepcopy(model).double()
    wanted = [oracle(in_float64, sequence) for _, sequence in SEQUENCES]
    assert differences(Embedder(model)(tokens_of(SEQUENCES, "pad")), wanted) < 1e-5


@pytest.mark.parametrize("options", [{}, {"pool": "max"}, {"pool": "last"}, {"bins": 4}, {"pool": "none"}], ids=str)
def test_both_strands_give_one_embedding(model, options):
    sequences = [sequence for _, sequence in SEQUENCES if len(sequence) % 4 == 0]  # else bins have other borders
    embedder = Embedder(model, config_of(options | {"both": True}))
    one = embedder([encode(sequence) for sequence in sequences])
    other = embedder([encode(reverse_complement(sequence)) for sequence in sequences])
    if embedder.config.ragged:
        other = [value[::-1] for value in other]
    assert differences(one, other) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model, dtype):
    found = Embedder(model, dtype=dtype)(tokens_of(SEQUENCES))
    assert differences(found, Embedder(model)(tokens_of(SEQUENCES))) < 16 * torch.finfo(dtype).eps


def test_hidden_states_are_those_before_the_head(model):
    tokens = torch.randint(7, 11, (2, 30))
    with torch.no_grad():
        assert torch.equal(model.hidden_states(tokens), model(tokens).hidden)
        assert torch.equal(model.hidden_states(tokens, 0), model.embedding(tokens))
        assert torch.equal(model.hidden_states(tokens, -4), model.hidden_states(tokens, 0))
        assert torch.equal(model.hidden_states(tokens, 3), model.hidden_states(tokens, -1))
    with pytest.raises(SequenceTooLong, match="takes up to 70"):
        model.hidden_states(torch.full((1, 71), 7))
    for layer in (4, -5):
        with pytest.raises(UsageError, match=f"layer is {layer}; this model of 3 blocks has 0 .* to 3 .* or -4 to -1"):
            model.hidden_states(tokens, layer)


@given(st.lists(st.integers(1, 50), max_size=5), st.integers(1, 12), st.data())
def test_windows_hold_every_base_once_as_new(lengths, context, data):
    stride = data.draw(st.integers(1, context))
    windows = long_windows(lengths, context, stride)
    for row, length in enumerate(lengths):
        own = [window for window in windows if window.row == row]
        assert [base for window in own for base in range(window.first, window.end)] == list(range(length))
        assert all(window.end - window.start == min(context, length) for window in own)
        assert all(two.start - one.start <= stride for one, two in itertools.pairwise(own))


def test_settings_that_do_not_fit(model):
    with pytest.raises(UsageError, match="--bins 8 takes means; leave out --pool max"):
        EmbedConfig(pool="max", bins=8)
    with pytest.raises(UsageError, match="--bins 0: it takes a number of bases"):
        EmbedConfig(bins=0)
    with pytest.raises(UsageError, match="stride of 69 bases; allowed are 1 to the 68 bases of a window"):
        Embedder(model, EmbedConfig(stride=69))
    with pytest.raises(UsageError, match="layer is 9"):
        Embedder(model, EmbedConfig(layer=9))


def test_what_cannot_be_embedded(model, monkeypatch):
    monkeypatch.setattr("hyenadna.inference.embed.MOST_BYTES", 4 * 16 * 10)
    with pytest.raises(InputError, match=r"sequence of 11 bases would give 11 rows of 16 numbers.*larger --bins"):
        Embedder(model, EmbedConfig(pool="none"))([encode("A" * 11)])
    broken = small_model()
    broken.backbone.ln_f.weight.data[0] = torch.nan
    with pytest.raises(NotFiniteError, match="embedding of a sequence of 3 bases is not made of numbers"):
        Embedder(broken)([encode("ACG")])


def test_chunks_depend_on_the_sequences_alone():
    found = list(chunks(iter(SEQUENCES), n_token="n", bases=200))
    assert [name for chunk in found for name in chunk.ids] == [name for name, _ in SEQUENCES]
    assert [chunk.first for chunk in found] == np.cumsum([0, *map(len, found[:-1])]).tolist()
    assert all(chunk.lengths.sum() >= 200 > chunk.lengths[:-1].sum() for chunk in found[:-1])
    later = list(chunks(iter(SEQUENCES[found[0].end :]), n_token="n", bases=200))
    assert [chunk.ids for chunk in later] == [chunk.ids for chunk in found[1:]]
    assert [len(chunk) for chunk in chunks(iter(SEQUENCES), n_token="n", bases=10**6, rows=10)] == [10, 2]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "AC"), ("b", "")], r"sequence 2 \('b'\) is empty"),
        ([("a", "AC"), ("b", "AXG")], r"sequence 2 \('b'\): character 'X' at position 2 is no nucleotide"),
        ([], "the input holds no sequences"),
    ],
)
def test_what_is_no_sequence_is_named(pairs, message):
    with pytest.raises(InputError, match=message):
        list(chunks(iter(pairs), n_token="n", bases=100))


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
