"""Splits: disjoint, guarded, near their shares, the same everywhere and always."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.intervals import Interval, Region, merge
from hyenadna.data.packed import packed
from hyenadna.data.splits import PARTS, Split, bed_split, contig_split, hashed_split, read_splits, splits_to_json
from hyenadna.errors import InputError, IntervalError


def genome(folder, lengths, seed=0, masked=0.0):
    random = np.random.default_rng(seed)
    text = ""
    for name, length in lengths.items():
        letters = np.frombuffer(b"ACGTgc", dtype=np.uint8)[random.integers(0, 6, length)].copy()
        letters[: int(masked * length)] = ord("N")
        text += f">{name}\n{letters.tobytes().decode()}\n"
    (folder / "a.fa").write_text(text)
    return packed(folder / "a.fa")


def whole(pack):
    return tuple(Interval(name, 0, length) for name, length in pack.lengths.items())


def part_of(split, lengths):
    """For every contig an array that holds the number of the part of each base, 0 for none."""
    owner = {name: np.zeros(length, dtype=int) for name, length in lengths.items()}
    for number, name in enumerate(PARTS, 1):
        for interval in split.part(name):
            assert 0 <= interval.start < interval.end <= lengths[interval.contig]
            assert not owner[interval.contig][interval.start : interval.end].any(), "parts or intervals overlap"
            owner[interval.contig][interval.start : interval.end] = number
    return owner


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=8), st.integers(2, 400))
def test_disjoint_guarded_and_never_empty(tmp_path_factory, sizes, max_length):
    lengths = {f"c{number}": size for number, size in enumerate(sizes)}
    pack = genome(tmp_path_factory.mktemp("genome"), lengths)
    try:
        split = hashed_split(whole(pack), pack, max_length)
    except InputError as error:
        allowed = int(str(error).rsplit(" ", 1)[1].replace(",", ""))
        assert allowed < max_length
        if allowed:  # what the message promises holds, and no more would
            hashed_split(whole(pack), pack, allowed)
        with pytest.raises(InputError):
            hashed_split(whole(pack), pack, allowed + 1)
        return
    owner = part_of(split, lengths)
    for name, parts in owner.items():
        steps = np.flatnonzero(np.diff(parts))
        change = np.flatnonzero(parts)
        for before, after in itertools.pairwise(change):
            if parts[before] != parts[after]:
                assert after - before - 1 >= max_length, f"guard on {name}"
        # nothing but guards is lost, and no guard is longer than it must be
        assert (parts == 0).sum() <= max_length * len(steps)
        used = Interval(name, 0, len(parts))
        assert parts[0] and parts[-1], used
    for part in PARTS:
        assert max(map(len, split.part(part))) >= max_length


def test_shares_of_a_large_genome_in_blocks(tmp_path):
    pack = genome(tmp_path, {"a": 3_000_000, "b": 1_500_000, "c": 700_001})
    split = hashed_split(whole(pack), pack, 64)
    total = sum(pack.lengths.values())
    for part, share, block in (("train", 0.85, 0.04), ("valid", 0.05, 0.02), ("test", 0.10, 0.02)):
        assert abs(split.bases(part) / total - share) < block


def test_train_has_the_rest(tmp_path):
    pack = genome(tmp_path, {"a": 200_000})
    split = hashed_split(whole(pack), pack, 100)
    boundaries = len(merge([*split.train, *split.valid, *split.test])) - 1
    assert sum(map(split.bases, PARTS)) == 200_000 - 100 * boundaries


def test_order_of_contigs_does_not_matter(tmp_path):
    pack = genome(tmp_path, {"a": 60_000, "b": 50_000, "c": 40_000})
    split = hashed_split(whole(pack), pack, 32)
    assert hashed_split(whole(pack)[::-1], pack, 32) == split
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.fa").write_text("".join(f">{n}\n{pack.contig(n).tobytes().decode()}\n" for n in ("c", "a", "b")))
    reordered = packed(other / "a.fa")
    again = hashed_split(whole(reordered), reordered, 32)
    assert [again.part(part) for part in PARTS] == [split.part(part) for part in PARTS]


def test_the_same_in_another_process(tmp_path):
    pack = genome(tmp_path, {"a": 60_000, "b": 50_000})
    program = (
        "import sys, json; from pathlib import Path; from hyenadna.data.packed import packed;"
        "from hyenadna.data.splits import hashed_split; from hyenadna.data.intervals import kept_contigs;"
        "p = packed(Path(sys.argv[1])); i = kept_contigs(p.lengths, None).intervals;"
        "print(json.dumps(hashed_split(i, p, 32).to_json()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.fa")], capture_output=True, check=True, env=environment
    )
    assert Split.from_json(json.loads(out.stdout)) == hashed_split(whole(pack), pack, 32)


def test_frozen_assignment(tmp_path):
    # decimals of our own first version: a change would move held-out bases into the training of stored models
    pack = genome(tmp_path, {"a": 100_000})
    assert hashed_split(whole(pack), pack, 100).valid == (Interval("a", 38_000, 40_000), Interval("a", 44_000, 46_000))


def test_masked_blocks_are_not_held_out(tmp_path):
    pack = genome(tmp_path, {"a": 100_000, "b": 100_000}, masked=0.6)
    split = hashed_split(whole(pack), pack, 100)
    for part in ("valid", "test"):
        bases = np.concatenate([pack.fetch(interval) for interval in split.part(part)])
        assert (bases == ord("N")).mean() < 0.5


def test_gc_and_provenance(tmp_path):
    pack = genome(tmp_path, {"a": 50_000}, masked=0.1)
    split = hashed_split(whole(pack), pack, 50)
    assert (split.source, split.sequence_sha256, split.lengths) == ("a.fa", pack.sequence_sha256, pack.lengths)
    for part in PARTS:
        text = b"".join(pack.fetch(interval).tobytes() for interval in split.part(part)).upper()
        gc = text.count(b"G") + text.count(b"C")
        assert split.gc[part] == pytest.approx(gc / (gc + text.count(b"A") + text.count(b"T")))


def test_json_round_trip(tmp_path):
    pack = genome(tmp_path, {"a": 50_000})
    split = hashed_split(whole(pack), pack, 50)
    stored = json.loads(json.dumps(split.to_json()))
    assert Split.from_json(stored) == split
    assert stored["bases"]["train"] == split.bases("train") and "50 bases between parts" in stored["rule"]
    for broken in ({}, stored | {"train": [["a", 1]]}, stored | {"lengths": 5}, {"train": None}):
        with pytest.raises(InputError, match="not a stored split"):
            Split.from_json(broken)


def test_splits_of_a_model_folder(tmp_path):
    pack = genome(tmp_path, {"a": 50_000})
    splits = (hashed_split(whole(pack), pack, 50), hashed_split(whole(pack), pack, 60))
    (tmp_path / "split.json").write_text(json.dumps(splits_to_json(splits)))
    assert read_splits(tmp_path / "split.json") == splits
    for broken in ("", "[]", "{}", '{"genomes": 5}', '{"genomes": [{}]}'):
        (tmp_path / "split.json").write_text(broken)
        with pytest.raises(InputError, match="stored split"):
            read_splits(tmp_path / "split.json")
    with pytest.raises(InputError, match=r"none\.json cannot be read as a stored split"):
        read_splits(tmp_path / "none.json")


def test_too_small_says_what_would_do(tmp_path):
    pack = genome(tmp_path, {"a": 16_569})
    with pytest.raises(
        InputError, match=r"a\.fa is too small .* windows of 16,384 bases: .* allow a max length of 1,380"
    ):
        hashed_split(whole(pack), pack, 16_384)
    assert hashed_split(whole(pack), pack, 1_380).test


def test_all_n(tmp_path):
    pack = genome(tmp_path, {"a": 10_000}, masked=1.0)
    with pytest.raises(InputError, match=r"a\.fa has 0 A, C, G or T in 10,000 bases, .* is it masked"):
        hashed_split(whole(pack), pack, 10)


def test_contigs_by_name(tmp_path):
    pack = genome(tmp_path, {"a": 500, "b": 400, "c": 300, "d": 200})
    split = contig_split(whole(pack), ["b"], ["c", "d"], pack)
    assert split.train == (Interval("a", 0, 500),)
    assert split.valid == (Interval("b", 0, 400),)
    assert split.test == (Interval("c", 0, 300), Interval("d", 0, 200))
    assert "valid b; test c, d" in split.rule
    for valid, test, message in [
        (["x"], ["c"], "no contig 'x' in the genome; it has a, b, c, d"),
        (["b"], ["b"], "b is given for both valid and test"),
        ([], ["c"], r"is left for valid"),
        (["b"], [], r"is left for test"),
        (["a", "b"], ["c", "d"], r"is left for train"),
    ]:
        with pytest.raises(IntervalError, match=message):
            contig_split(whole(pack), valid, test, pack)


def region(contig, start, end, name):
    return Region(Interval(contig, start, end), name)


def test_bed(tmp_path):
    pack = genome(tmp_path, {"a": 500, "b": 400})
    regions = [
        region("b", 10, 400, "test"),
        region("a", 0, 100, "train"),
        region("a", 50, 200, "train"),
        region("a", 200, 300, "valid"),
    ]
    split = bed_split(regions, pack)
    assert split.train == (Interval("a", 0, 200),)
    assert (split.valid, split.test) == ((Interval("a", 200, 300),), (Interval("b", 10, 400),))
    with pytest.raises(IntervalError, match=r"a:300-310 \(test\) overlaps a:201-300 \(valid\)"):
        bed_split([*regions, region("a", 299, 310, "test")], pack)
    with pytest.raises(IntervalError, match=r"a:21-30 \(valid\) overlaps a:1-200 \(train\)"):
        bed_split([*regions, region("a", 20, 30, "valid")], pack)
    with pytest.raises(IntervalError, match="has the name 'exon'; the fourth column must be train, valid or test"):
        bed_split([*regions, region("a", 400, 410, "exon")], pack)
    with pytest.raises(IntervalError, match="is left for test"):
        bed_split(regions[1:], pack)
