import errno
import json
import math
import os
import subprocess
import sys
import time

import pytest

from hyenadna import files
from hyenadna.errors import CheckpointError, RunFolderError, WriteError
from hyenadna.files import Fingerprint, atomic_write, lock, replace_folder, restore_folder, write_json, write_text


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def test_the_old_file_stands_until_the_new_one_is_whole(old):
    with atomic_write(old) as temporary:
        temporary.write_text("half")
        assert old.read_text() == "old" and temporary.parent == old.parent
        temporary.write_text("new")
    assert old.read_text() == "new" and names(old.parent) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_left(old, monkeypatch, call):
    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(WriteError, match=r"a\.txt could not be written: No space left on device; what was there"):
        write_text(old, "new")
    assert old.read_text() == "old" and names(old.parent) == ["a.txt"]


def test_other_failures_leave_the_old_file(old):
    with pytest.raises(KeyError), atomic_write(old) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert old.read_text() == "old" and names(old.parent) == ["a.txt"]


def test_writers_that_hide_the_reason(old, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: _usage(free=0))
    with pytest.raises(WriteError, match="No space left"), atomic_write(old):
        raise RuntimeError("unexpected pos 512 vs 448")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: _usage(free=1 << 30))
    with pytest.raises(RuntimeError, match="unexpected pos"), atomic_write(old):
        raise RuntimeError("unexpected pos 512 vs 448")
    assert old.read_text() == "old" and names(old.parent) == ["a.txt"]


def _usage(free):
    return type("Usage", (), {"free": free})


def test_what_does_not_read_back_is_told(old):
    def verify(path):
        raise CheckpointError(f"{path.name} holds {path.read_text()}")

    with pytest.raises(CheckpointError, match=r"a\.txt holds new"), atomic_write(old, verify) as temporary:
        temporary.write_text("new")


def test_missing_parents_are_made_and_a_file_in_their_place_is_told(tmp_path, old):
    write_text(tmp_path / "b" / "c" / "d.txt", "x")
    assert (tmp_path / "b" / "c" / "d.txt").read_text() == "x"
    with pytest.raises(WriteError, match=r"e\.txt could not be written"):
        write_text(old / "e.txt", "x")


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [1.5, math.inf, (-math.inf, "é")], "c": True})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, None, [None, "é"]], "c": True} and text.endswith("}\n")


@pytest.fixture
def folders(tmp_path):
    for name in ("model", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    return tmp_path / "new", tmp_path / "model"


def test_replace_folder(folders):
    new, folder = folders
    replace_folder(new, folder)
    assert (folder / "weights").read_text() == "new" and names(folder.parent) == ["model"]


def test_a_failed_second_rename_brings_the_old_folder_back(folders, monkeypatch):
    new, folder = folders
    rename = os.rename
    monkeypatch.setattr(files.os, "rename", lambda a, b: full() if a == new else rename(a, b))
    with pytest.raises(WriteError, match="No space left"):
        replace_folder(new, folder)
    assert (folder / "weights").read_text() == "model"


def test_death_between_the_two_renames(folders):
    new, folder = folders
    program = (
        "import os, sys; from pathlib import Path; from hyenadna import files\n"
        "rename, new, folder = os.rename, Path(sys.argv[1]), Path(sys.argv[2])\n"
        "files.os.rename = lambda a, b: os._exit(9) if a == new else rename(a, b)\n"
        "files.replace_folder(new, folder)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(new), str(folder)], check=False)
    assert died.returncode == 9 and not folder.exists()
    restore_folder(folder)
    assert (folder / "weights").read_text() == "model"
    replace_folder(new, folder)
    assert (folder / "weights").read_text() == "new" and names(folder.parent) == ["model"]


def test_restore_leaves_a_whole_folder_alone(folders):
    _, folder = folders
    (folder.parent / ".model.old").mkdir()
    restore_folder(folder)
    assert (folder / "weights").read_text() == "model"


HOLDER = (
    "import sys, time; from pathlib import Path; from hyenadna.files import lock\n"
    "with lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
)


def test_lock_between_processes(tmp_path):
    path = tmp_path / "deeper" / ".lock"
    busy = RunFolderError("in use")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="in use"), lock(path, busy):
            pass
        other.kill()  # the kernel drops the lock of a dead process
        other.wait()
        with lock(path, busy):
            pass


def test_a_lock_without_busy_waits(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        waiter = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(0.5)
        other.stdin.close()
        assert waiter.stdout.readline() == "held\n" and waiter.wait(10) == 0


def test_lock_in_a_place_that_cannot_be_written(old):
    with pytest.raises(WriteError, match="could not be written"), lock(old / ".lock"):
        pass


def test_fingerprint_notices_changes(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(bytes(300_000))
    first = Fingerprint.of(path)
    assert first.size == 300_000 and Fingerprint.of(path) == first
    os.utime(path, ns=(time.time_ns(), first.mtime_ns + 1))
    assert Fingerprint.of(path) != first
    for position in (0, 65_535, 300_000 - 65_536, 299_999):
        content = bytearray(300_000)
        content[position] = 1
        path.write_bytes(content)
        os.utime(path, ns=(first.mtime_ns, first.mtime_ns))
        assert Fingerprint.of(path) != first
    path.write_bytes(bytes(300_000))
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns))
    assert Fingerprint.of(path) == first


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path / "x"))
    assert files.cache_folder() == tmp_path / "x"
    monkeypatch.delenv("HYENA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert files.cache_folder() == tmp_path / "y" / "hyenadna"
    one, other = (files.beside_or_cached(tmp_path / name / "a.fa", ".h5", "packs")[1] for name in "pq")
    assert one != other and one.parent == other.parent == tmp_path / "y" / "hyenadna" / "packs"
