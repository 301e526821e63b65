"""Finished batches on the disk: taken up in order, and never those of another job."""

import errno
import json
import os

import pytest

from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.files import lock
from hyenadna.inference.score_journal import BATCHES, JOB, LOCK, journal

A = {"input": "a.vcf", "window": 64, "region": None, "percentiles": True}
VALUES = [[[["-0.1200", ".", "3.1", "."]], [["0.5000", "0.1", ".", "INDEL"], [".", ".", ".", "SKIPPED"]]], [[]]]
"""Of two batches: of two records, and of one."""


def begun(folder, values=VALUES, job=A):
    with journal(folder, job, keep_folder=False) as kept:
        for checksum, some in enumerate(values):
            assert kept.take(checksum, len(some)) is None
            kept.append(checksum, some)


def taken(folder, job=A, **how):
    with journal(folder, job, keep_folder=False, **how) as kept:
        return [kept.take(checksum, len(some)) for checksum, some in enumerate([*VALUES, [[]]])]


def test_what_was_stored_is_taken_up_in_order_and_gone_on_with(tmp_path):
    folder = tmp_path / "deep" / ".out.journal"
    begun(folder, VALUES[:1])
    assert sorted(path.name for path in folder.iterdir()) == [BATCHES, JOB]
    with journal(folder, A, keep_folder=False) as kept:
        assert kept.take(0, 2) == VALUES[0] and kept.records == 2
        assert kept.take(1, 1) is None
        kept.append(1, VALUES[1])
        assert kept.take(2, 1) is None and kept.records == 3
    assert taken(folder) == [*VALUES, None]
    with journal(folder, A, keep_folder=False) as kept:
        kept.done = True
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_empty_journal_leaves_nothing_and_a_folder_of_the_users_stays(tmp_path):
    begun(tmp_path / "a", [])
    assert not (tmp_path / "a").exists()
    state = tmp_path / "state"
    state.mkdir()
    (state / "mine").write_text("x")
    with journal(state, A, keep_folder=True) as kept:
        kept.append(0, VALUES[0])
        kept.done = True
    assert [path.name for path in state.iterdir()] == ["mine"]


def test_one_that_was_not_read_before_a_failure_is_kept(tmp_path):
    begun(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), journal(tmp_path / "a", A, keep_folder=False):
        raise ZeroDivisionError
    assert taken(tmp_path / "a") == [*VALUES, None]


@pytest.mark.parametrize("lost", range(1, 30))
def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path, lost):
    begun(tmp_path)
    whole = (tmp_path / BATCHES).read_bytes()
    first = whole.index(b"\n") + 1
    (tmp_path / BATCHES).write_bytes(whole[: max(first, len(whole) - lost)])
    assert taken(tmp_path) == [VALUES[0], None, None]
    assert (tmp_path / BATCHES).read_bytes() == whole[:first]


def test_nor_one_that_was_damaged(tmp_path):
    begun(tmp_path)
    whole = (tmp_path / BATCHES).read_bytes()
    for place in range(0, whole.index(b"\n"), 7):
        (tmp_path / BATCHES).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with journal(tmp_path, A, keep_folder=False) as kept:
            assert kept.take(0, 2) is None
        begun(tmp_path)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (A | {"window": 128}, "a stopped run with window 64, and this is 128; run the earlier command"),
        (A | {"region": "20:1-5"}, "with region None, and this is '20:1-5'"),
        ({"input": "a.vcf", "window": 64, "region": None}, "with percentiles True, and this is None"),
    ],
)
def test_another_job_is_refused_or_overwrites(tmp_path, job, said):
    begun(tmp_path)
    before = (tmp_path / BATCHES).read_bytes()
    with pytest.raises(UsageError, match=said), journal(tmp_path, job, keep_folder=False):
        pass
    assert (tmp_path / BATCHES).read_bytes() == before and taken(tmp_path) == [*VALUES, None]
    assert taken(tmp_path, job, overwrite=True) == [None, None, None]
    assert not tmp_path.exists()


def test_the_same_job_goes_on_even_where_it_may_overwrite(tmp_path):
    begun(tmp_path)
    assert taken(tmp_path, overwrite=True) == [*VALUES, None]


def test_other_records_in_the_middle(tmp_path):
    begun(tmp_path)
    with journal(tmp_path, A, keep_folder=False) as kept:
        assert kept.take(0, 2) == VALUES[0]
        with pytest.raises(
            InputError, match=r"begun with another input: records 3 to 3 are not what they were.*--overw"
        ):
            kept.take(7, 1)
    with journal(tmp_path, A, keep_folder=False, overwrite=True) as kept:
        assert kept.take(0, 2) == VALUES[0] and kept.take(7, 1) is None
        kept.append(7, VALUES[1])
    with journal(tmp_path, A, keep_folder=False) as kept:
        assert kept.take(0, 2) == VALUES[0] and kept.take(7, 1) == VALUES[1]


def test_a_folder_with_a_file_of_that_name(tmp_path):
    begun(tmp_path)
    (tmp_path / JOB).write_text("[not a job")
    with (
        pytest.raises(UsageError, match=r"with input None, and this is 'a\.vcf'"),
        journal(tmp_path, A, keep_folder=False),
    ):
        pass
    assert taken(tmp_path, overwrite=True) == [None, None, None]


def test_one_process_at_a_time(tmp_path):
    with (
        lock(tmp_path / LOCK),
        pytest.raises(UsageError, match="is in use by another process; wait for it, or give each job a --state"),
        journal(tmp_path, A, keep_folder=False),
    ):
        pass


def test_a_full_disk_and_a_folder_that_cannot_be(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hyenadna.inference.score_journal._FSYNC_EVERY_S", -1)
    with journal(tmp_path / "a", A, keep_folder=False) as kept:
        kept.append(0, VALUES[0])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match=r"No space left on device; the scores of 2 records are kept. Free"):
            kept.append(1, VALUES[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"), journal(tmp_path / "file", A, keep_folder=False):
        pass


def test_the_job_is_plain_json(tmp_path):
    begun(tmp_path)
    assert json.loads((tmp_path / JOB).read_text()) == A
