"""Files of embeddings: HDF5 that can be read while it grows and taken up again, Parquet, and NPY with a table of ids.

HDF5 holds `embeddings` (n, D) float32, `ids`, `lengths` in bases and `checksums` (CRC-32 of the tokens), each (n,).
Where a sequence has several rows, `embeddings` holds those of all sequences end to end and `offsets` (n + 1,) where
each begins. The attribute `sequences` counts those that are whole on the disk, `complete` becomes 1 at the end, and
the others say where the numbers come from.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyenadna.errors import InputError, MissingExtra, UsageError, WriteError
from hyenadna.files import atomic_write, fsync
from hyenadna.inference.sequence_chunks import Chunk

SUFFIXES = (".h5", ".hdf5", ".parquet", ".npy")
Values = list[NDArray[np.float32]]
_OWN = ("sequences", "complete")
_BLOCK = 1 << 16
_CHUNK_BYTES = 1 << 18


class EmbeddingFile(Protocol):
    """A file to which chunks of sequences and their embeddings are added in order."""

    def holds(self, chunk: Chunk) -> bool:
        """Whether an earlier run wrote this chunk.

        Raises
        ------
        InputError              the file holds other sequences in its place
        """

    def append(self, chunk: Chunk, values: Values) -> None:
        """Write the embeddings of a chunk behind all others.

        Raises
        ------
        WriteError              the disk is full, or the folder is read-only
        """

    def finish(self, sequences: int) -> None:
        """Complete the file of so many sequences; without this it stays incomplete or is not put into its place."""

    def close(self) -> None:
        """Give up what is held open."""


def embedding_file(
    path: Path, about: Mapping[str, Any], *, width: int, ragged: bool, overwrite: bool = False
) -> EmbeddingFile:
    """The file to write, by its suffix.

    Parameters
    ----------
    path : Path
        NAME.h5, NAME.hdf5, NAME.parquet, or NAME.npy, beside which NAME.ids.tsv goes.
    about : mapping
        Where the numbers come from: attributes of HDF5, metadata of Parquet, first line of the table of ids.
    width : int
        D, numbers of a row.
    ragged : bool
        Whether a sequence has several rows.
    overwrite : bool
        Replace what is there. Without it, an HDF5 file that the same job began is continued.

    Raises
    ------
    UsageError              another suffix, or the file exists and was not begun by the same job
    MissingExtra            Parquet without pyarrow
    """
    check_suffix(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _Hdf5(path, about, width, ragged, overwrite)
    names = [path] if path.suffix.lower() == ".parquet" else [path, ids_of(path)]
    for name in names:
        if name.exists() and not overwrite:
            raise UsageError(f"-o {name} exists; give another name, or --overwrite to replace it")
    return _Parquet(path, about, width, ragged) if len(names) == 1 else _Npy(path, about, width, ragged)


def check_suffix(path: Path) -> None:
    """Raise UsageError if the name of a file to write says no format."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"-o {path}: the name must end in one of {', '.join(SUFFIXES)}, which say the format")


def ids_of(path: Path) -> Path:
    """The table of ids beside an NPY file."""
    return path.with_suffix(".ids.tsv")


class _Hdf5:
    """SWMR: nothing can be created once others may read, so that every dataset is there from the start.

    A file whose writer was killed cannot be opened for writing again (HDF5 then wants its flags cleared by h5clear), so
    what it holds is copied into a new one, which takes its place.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], width: int, ragged: bool, overwrite: bool) -> None:
        self.path, self.about, self.width, self.ragged = path, dict(about), width, ragged
        self.file: Any = None
        self.earlier: Any = None
        self.there = 0
        if path.exists() and not overwrite:
            self._open_earlier()

    def _open_earlier(self) -> None:
        import h5py

        try:
            self.earlier = h5py.File(self.path, "r", libver="latest", swmr=True)
            self.there, names = int(self.earlier.attrs["sequences"]), set(self.earlier.attrs) - set(_OWN)
            known = {name: np.asarray(self.earlier.attrs[name]).item() for name in names}
        except (OSError, KeyError) as error:
            raise UsageError(
                f"-o {self.path} exists and is no file of hyena embed; give another name, or --overwrite to replace it"
            ) from error
        for name in sorted(names | set(self.about)):
            was, now = known.get(name), self.about.get(name)
            if was != now:
                raise UsageError(
                    f"-o {self.path} was begun with {name} {was!r}, and this is {now!r}; run the earlier command to "
                    "continue it, give another name, or --overwrite to replace it"
                )

    def holds(self, chunk: Chunk) -> bool:
        last = min(chunk.end, self.there)
        if last <= chunk.first:
            return False
        part, n = slice(chunk.first, last), last - chunk.first
        same = (
            (self.earlier["lengths"][part] == chunk.lengths[:n])
            & (self.earlier["checksums"][part] == chunk.checksums[:n])
            & (self.earlier["ids"].asstr()[part] == np.array(chunk.ids[:n], dtype=object))
        )
        if not same.all():
            row = chunk.first + int(np.argmin(same))
            raise InputError(
                f"-o {self.path} holds another sequence in row {row + 1} ({self.earlier['ids'].asstr()[row]!r}) than "
                f"the input ({chunk.ids[row - chunk.first]!r}); give another name, or --overwrite to start anew"
            )
        return chunk.end <= self.there

    def append(self, chunk: Chunk, values: Values) -> None:
        with self._telling_what_is_kept():
            if self.file is None:
                self._begin(chunk.first, chunk.ids)
            columns: dict[str, NDArray[Any]] = {
                "embeddings": np.concatenate(values) if self.ragged else np.stack(values),
                "ids": self._ids(chunk),
                "lengths": chunk.lengths,
                "checksums": chunk.checksums,
            }
            if self.ragged:
                columns["offsets"] = len(self.file["embeddings"]) + np.cumsum([len(rows) for rows in values])
            for name, column in columns.items():
                _extend(self.file[name], column)
            self.file.flush()
            # only now, so that what it counts is whole on the disk
            self.file.attrs.modify("sequences", np.int64(chunk.end))
            self.file.flush()
        self.there = chunk.end

    def finish(self, sequences: int) -> None:
        if sequences < self.there:
            raise InputError(
                f"-o {self.path} holds {self.there:,} sequences, the input only {sequences:,}; give another name, or "
                "--overwrite to start anew"
            )
        if self.file is None and self.earlier.attrs["complete"]:
            return
        with self._telling_what_is_kept():
            if self.file is None:  # killed after its last sequence
                self._begin(sequences, [])
            self.file.attrs.modify("complete", np.uint8(1))
            self.file.close()
            fsync(self.path)

    @contextmanager
    def _telling_what_is_kept(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, WriteError) as error:
            raise WriteError(
                f"{self.path} could not be written: {_reason(error.__cause__ or error)}; the {self.there:,} sequences "
                "before are kept. Free some space, then run the same command again to continue"
            ) from error

    def close(self) -> None:
        for file in (self.file, self.earlier):
            if file is not None:
                with suppress(OSError, RuntimeError):  # of a full disk, which is told already
                    file.close()

    def _begin(self, sequences: int, ids: list[str]) -> None:
        """Make the file under its name, with so many sequences of an earlier one; `ids` are the first to come."""
        import h5py

        longest = max((len(name.encode()) for name in ids), default=0)
        width = self.earlier["ids"].dtype.itemsize if self.earlier is not None else max(64, 2 * longest)
        with atomic_write(self.path) as temporary:
            file = self.file = h5py.File(temporary, "w", libver="latest")
            file.attrs.update(self.about)
            file.attrs.create("complete", 0, dtype=np.uint8)
            file.attrs.create("sequences", sequences, dtype=np.int64)
            text = h5py.string_dtype("utf-8", width)  # of a fixed length, as SWMR writes no others
            columns: list[tuple[str, tuple[int, ...], Any]] = [("embeddings", (self.width,), np.float32)]
            columns += [("ids", (), text), ("lengths", (), np.int64), ("checksums", (), np.uint32)]
            columns += [("offsets", (), np.int64)] if self.ragged else []
            for name, shape, dtype in columns:
                rows = max(1, _CHUNK_BYTES // (np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int))))
                file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape))
            if self.ragged:
                _extend(file["offsets"], np.zeros(1, dtype=np.int64))
            self._copy_earlier(sequences)
            file.swmr_mode = True
            file.flush()
        self.there = sequences

    def _copy_earlier(self, sequences: int) -> None:
        if not sequences:
            return
        rows = int(self.earlier["offsets"][sequences]) if self.ragged else sequences
        for name, target in self.file.items():
            first, last = len(target), {"embeddings": rows, "offsets": sequences + 1}.get(name, sequences)
            for start in range(first, last, _BLOCK):
                _extend(target, self.earlier[name][start : min(start + _BLOCK, last)])

    def _ids(self, chunk: Chunk) -> NDArray[Any]:
        dtype = self.file["ids"].dtype
        encoded = [name.encode() for name in chunk.ids]
        for number, name in enumerate(encoded, start=chunk.first + 1):
            if len(name) > dtype.itemsize:
                raise InputError(
                    f"the id of sequence {number} has {len(name)} bytes; this file holds up to {dtype.itemsize}, twice "
                    "as many as its first ids have: shorten it, or write .parquet"
                )
        return np.array(encoded, dtype=dtype)


class _Parquet:
    """A row group a chunk, to a temporary file that is put into its place at the end."""

    def __init__(self, path: Path, about: Mapping[str, Any], width: int, ragged: bool) -> None:
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingExtra("Parquet needs the 'parquet' extra: pip install hyenadna[parquet]") from error
        row = pa.list_(pa.float32(), width)
        columns = [("id", pa.string()), ("length", pa.int64()), ("embedding", pa.list_(row) if ragged else row)]
        self.schema = pa.schema(columns, metadata={"hyenadna": json.dumps(dict(about))})
        self.path, self.ragged = path, ragged
        self.stack = ExitStack()
        self.writer: Any = None

    def holds(self, chunk: Chunk) -> bool:
        return False

    def append(self, chunk: Chunk, values: Values) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.writer is None:
            temporary = self.stack.enter_context(atomic_write(self.path))
            self.writer = self.stack.enter_context(pq.ParquetWriter(temporary, self.schema))
        kind = self.schema.field("embedding").type
        rows = pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate([value.reshape(-1) for value in values])),
            type=kind.value_type if self.ragged else kind,
        )
        if self.ragged:
            offsets = np.cumsum([0, *(len(value) for value in values)]).astype(np.int32)
            rows = pa.ListArray.from_arrays(pa.array(offsets), rows, type=kind)
        columns = [pa.array(chunk.ids, pa.string()), pa.array(chunk.lengths), rows]
        with _telling(self.path):
            self.writer.write_table(pa.table(columns, schema=self.schema))

    def finish(self, sequences: int) -> None:
        with _telling(self.path):
            self.stack.close()

    def close(self) -> None:
        _abandon(self.stack)


class _Npy:
    """The rows of all sequences end to end, (rows, D) float32, and a table of ids, lengths, first rows and rows."""

    def __init__(self, path: Path, about: Mapping[str, Any], width: int, ragged: bool) -> None:
        self.path, self.about, self.width, self.ragged = path, about, width, ragged
        self.stack = ExitStack()
        self.rows = 0
        self.array: Any = None
        self.table: Any = None

    def holds(self, chunk: Chunk) -> bool:
        return False

    def append(self, chunk: Chunk, values: Values) -> None:
        with _telling(self.path):
            if self.array is None:
                self._begin()
            for name, length, value in zip(chunk.ids, chunk.lengths.tolist(), values, strict=True):
                rows = len(value) if self.ragged else 1
                self.table.write(f"{' '.join(name.split())}\t{length}\t{self.rows}\t{rows}\n")
                self.array.write(value.astype("<f4", copy=False).tobytes())
                self.rows += rows

    def finish(self, sequences: int) -> None:
        with _telling(self.path):
            self.array.seek(0)
            self._header()  # numpy leaves room for a larger number of rows
            self.stack.close()

    def close(self) -> None:
        _abandon(self.stack)

    def _begin(self) -> None:
        temporary = self.stack.enter_context(atomic_write(self.path))
        table = self.stack.enter_context(atomic_write(ids_of(self.path)))
        self.array = self.stack.enter_context(temporary.open("wb"))
        self.table = self.stack.enter_context(table.open("w", encoding="utf-8"))
        self._header()
        about = "; ".join(f"{name} {value}" for name, value in self.about.items())
        self.table.write(f"# {about}\nid\tlength\tfirst_row\trows\n")

    def _header(self) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.width)}
        np.lib.format.write_array_header_1_0(self.array, description)


class _Abandoned(Exception):
    """Makes the writers of temporary files drop them."""


def _abandon(stack: ExitStack) -> None:
    with suppress(_Abandoned, OSError, WriteError):
        stack.__exit__(_Abandoned, _Abandoned(), None)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Tell an error of the operating system in one line."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {_reason(error)}; nothing was put there. Free some space or name another "
            "place, then run the same command again"
        ) from error


def _extend(dataset: Any, rows: NDArray[Any]) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
