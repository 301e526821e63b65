"""Atomic writes, locks and fingerprints: what every part of the package uses to touch the disk."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hyenadna.errors import HyenaError, WriteError

_HEAD_TAIL_BYTES = 1 << 16


@contextmanager
def atomic_write(path: Path, verify: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success fsync it, rename it to `path` and check it again.

    Whatever stood at `path` stays as it was until the rename, and after any failure.

    Parameters
    ----------
    path : Path
        The file to write; missing parent folders are made.
    verify : callable, optional
        Called with `path` after the rename; raises if what was written does not read back.

    Raises
    ------
    WriteError
        The folder is read-only, the disk is full, or another error of the operating system.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    except RuntimeError as error:
        # torch's and HDF5's writers hide the operating system's reason: ask the disk itself
        if shutil.disk_usage(path.parent).free < 1 << 20:
            raise _write_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
    if verify is not None:
        verify(path)


def fsync(path: Path) -> None:
    """Flush a file's or a folder's data to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity become null, which JSON can hold."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace_folder(new: Path, folder: Path) -> None:
    """Put the complete folder `new` in the place of `folder`, which is kept as `.NAME.old` until `new` stands there."""
    old = folder.with_name(f".{folder.name}.old")
    try:
        for file in new.rglob("*"):
            fsync(file)
        fsync(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
        fsync(folder.parent)
    except OSError as error:
        restore_folder(folder)
        raise _write_error(folder, error) from error
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Bring back what `replace_folder` had set aside when the process died between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        os.rename(old, folder)


@contextmanager
def lock(path: Path, busy: HyenaError | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made if missing; the kernel drops it when the process ends.

    Parameters
    ----------
    path : Path
        The lock file.
    busy : HyenaError, optional
        Raised at once when another process holds the lock. Without it, wait.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy is not None  # only a non-blocking request can be refused
            raise busy from None
        yield
    finally:
        os.close(descriptor)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a file looked like: enough to notice that it was changed, cheap enough to take at every start."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change in nanoseconds."""
    head_tail_sha256: str
    """SHA-256 of the first and the last 64 KiB."""

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """The fingerprint of the file at `path`."""
        stat = path.stat()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_TAIL_BYTES))
            file.seek(max(0, stat.st_size - _HEAD_TAIL_BYTES))
            digest.update(file.read(_HEAD_TAIL_BYTES))
        return cls(stat.st_size, stat.st_mtime_ns, digest.hexdigest())


def sha256(path: Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The user's cache for files that can be made again: HYENA_CACHE, or hyenadna under XDG_CACHE_HOME or ~/.cache."""
    if "HYENA_CACHE" in os.environ:
        return Path(os.environ["HYENA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hyenadna"


def beside_or_cached(source: Path, suffix: str, kind: str) -> tuple[Path, Path]:
    """Where a file derived from `source` may lie: beside it, and in the folder `kind` of the cache."""
    key = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
    return source.with_name(source.name + suffix), cache_folder() / kind / f"{source.name}-{key}{suffix}"


def writable(folder: Path) -> bool:
    """Whether derived files may be put into `folder`: never into this package.

    A folder that grants nobody writing counts as read-only for root too, who could.
    """
    folder = folder.resolve()
    ours = folder.is_relative_to(Path(__file__).parent)
    return not ours and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _write_error(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    return WriteError(
        f"{path} could not be written: {reason}; what was there before is unchanged. "
        "Free some space or name another place, then run the same command again."
    )
