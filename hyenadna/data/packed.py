"""Packed genomes: one HDF5 file with all contigs end to end, read through a memory map.

The dataset `sequence` is contiguous uint8 (ASCII, case kept); `names`, `offsets` (n + 1) and `counts` (n, 5: A, C, G, T
and all others, case ignored) describe the contigs. Random access to a compressed FASTA file is far too slow to train.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.compressed import compression
from hyenadna.data.fasta import Record, read_records
from hyenadna.data.intervals import Interval, check_contig
from hyenadna.errors import FastaError, InputError, IntervalError, StaleIndexError, UsageError, WriteError
from hyenadna.files import Fingerprint, atomic_write, beside_or_cached, lock, writable
from hyenadna.progress import notice

FORMAT_VERSION = 1
_CHUNK = 1 << 18
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_UPPER = np.uint8(0xDF)  # clears the bit that makes an ASCII letter lower case


@dataclasses.dataclass(frozen=True)
class Pack:
    """A packed genome. Cheap to pickle and safe to fork: the map is opened on first use in each process."""

    path: Path
    """The HDF5 file."""
    names: tuple[str, ...]
    """Contigs in the order of the FASTA file."""
    offsets: NDArray[np.int64] = dataclasses.field(repr=False, compare=False)
    """int64 (n + 1,): where each contig begins in `sequence`."""
    counts: NDArray[np.int64] = dataclasses.field(repr=False, compare=False)
    """int64 (n, 5): A, C, G, T and all other letters of each contig."""
    source: str
    """Name of the FASTA file, without folders."""
    fingerprint: Fingerprint
    """What the FASTA file looked like when it was packed."""
    sequence_sha256: str
    """SHA-256 of names, lengths and upper-cased bases: the same for every compression and soft-masking."""
    data_offset: int
    """Byte of the file at which `sequence` begins."""
    identity: tuple[int, int] = dataclasses.field(repr=False)
    """Size and time of change of the pack itself: another process may replace it."""

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Open a pack.

        Raises
        ------
        InputError              the file is no pack, or not whole
        StaleIndexError         the FASTA file that it was made from lies beside it and has changed
        """
        pack = _read(Path(path))
        source = pack.path.with_name(pack.source)
        if source.is_file() and Fingerprint.of(source) != pack.fingerprint:
            raise StaleIndexError(
                f"{path} was packed from an earlier {source.name}, which has changed since; "
                f"delete the pack or make it anew: hyena data pack {source} -o {path}"
            )
        return pack

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Length of every contig in bases."""
        return dict(zip(self.names, np.diff(self.offsets).tolist(), strict=True))

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where every contig begins in `sequence`."""
        return dict(zip(self.names, self.offsets[:-1].tolist(), strict=True))

    @cached_property
    def sequence(self) -> NDArray[np.uint8]:
        """uint8 (bases of all contigs,): a read-only memory map."""
        if _identity(self.path) != self.identity:
            raise StaleIndexError(f"{self.path} was replaced while it was in use; start again")
        mapped = np.memmap(self.path, np.uint8, "r", self.data_offset, (int(self.offsets[-1]),))
        return mapped.view(np.ndarray)

    def contig(self, name: str) -> NDArray[np.uint8]:
        """uint8 (L,): a view of one contig.

        Raises
        ------
        IntervalError           there is no such contig
        """
        check_contig(name, self.lengths)
        return self.sequence[self.starts[name] : self.starts[name] + self.lengths[name]]

    def fetch(self, interval: Interval) -> NDArray[np.uint8]:
        """uint8 (L,): a view of a stretch of a contig.

        Raises
        ------
        IntervalError           there is no such contig, or the interval is not within it
        """
        contig = self.contig(interval.contig)
        if not 0 <= interval.start <= interval.end <= len(contig):
            raise IntervalError(f"{interval} is not within {interval.contig}, which has {len(contig):,} bases")
        return contig[interval.start : interval.end]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "sequence"}


def packed(fasta: Path) -> Pack:
    """The pack of a FASTA file, made if there is none that fits, else found beside the file or in the user's cache.

    Parameters
    ----------
    fasta : Path
        A FASTA file, plain, gzip or BGZF; or a pack itself.

    Raises
    ------
    FastaError              the file is not readable FASTA
    StaleIndexError         the file is a pack whose FASTA, beside it, has changed
    WriteError              there is no room for the pack
    """
    fasta = Path(fasta)
    if is_pack(fasta):
        return Pack.open(fasta)
    fingerprint = Fingerprint.of(fasta)
    beside, cached = beside_or_cached(fasta, ".hyena.h5", "packs")
    if pack_ := _fitting(beside, fingerprint) or _fitting(cached, fingerprint):
        return pack_
    place = beside if writable(fasta.parent) else cached
    with lock(place.with_name(f".{place.name}.lock")):
        if pack_ := _fitting(place, fingerprint):
            return pack_
        if place.exists():
            notice(f"{place} is damaged or no longer fits {fasta.name}, which is packed anew")
        for left_behind in place.parent.glob(f".{place.name}.*.tmp"):
            left_behind.unlink(missing_ok=True)  # of a packing that was killed: only the holder of the lock writes here
        pack(fasta, place)
    return _read(place)


def pack(fasta: Path, out: Path) -> None:
    """Pack a FASTA file into `out`, whole or not at all.

    Raises
    ------
    FastaError              the file is not readable FASTA, or changed while it was read
    UsageError              `out` exists and is no pack
    WriteError              the disk is full or the folder read-only
    """
    fasta, out = Path(fasta), Path(out)
    compression(fasta)
    if out.exists() and not is_pack(out):
        raise UsageError(f"{out} exists and is no pack: it is not overwritten; give another name with --out")
    fingerprint = Fingerprint.of(fasta)
    records = read_records(fasta)
    first = next(records)  # a file that is no FASTA fails here, before anything is written
    with atomic_write(out, verify=_verify) as temporary, tempfile.TemporaryFile(dir=out.parent) as spool:
        contigs, digest = _spool(first, records, spool)
        if Fingerprint.of(fasta) != fingerprint:
            raise FastaError(f"{fasta} changed while it was read; wait until it is complete and start again")
        attributes = {
            "format_version": FORMAT_VERSION,
            "source": fasta.name,
            "fingerprint": json.dumps(dataclasses.asdict(fingerprint)),
            "sequence_sha256": digest,
        }
        _write(temporary, spool, contigs, attributes)


def is_pack(path: Path) -> bool:
    """Whether a file is HDF5, by its first bytes.

    Raises
    ------
    FastaError              the file cannot be read
    """
    compression(path)
    with path.open("rb") as file:
        return file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC


def letter_counts(sequence: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 (5,): how many of the ASCII bytes (L,) are A, C, G, T and anything else, case ignored."""
    counts = np.zeros(5, dtype=np.int64)
    for start in range(0, len(sequence), _CHUNK):  # small enough to stay in the processor's cache
        upper = sequence[start : start + _CHUNK] & _UPPER
        counts[:4] += [np.count_nonzero(upper == letter) for letter in b"ACGT"]
        counts[3] += np.count_nonzero(upper == ord("U"))
    counts[4] = len(sequence) - counts[:4].sum()
    return counts


def _spool(first: Record, records: Iterator[Record], spool: IO[bytes]) -> tuple[dict[str, NDArray[np.int64]], str]:
    """Write the bases to `spool`, for HDF5 needs their number before the first: counts per contig, and the SHA-256."""
    digest, contigs = hashlib.sha256(), {}
    record: Record | None = first
    while record is not None:
        _update(digest, record.name, record.sequence)
        spool.write(record.sequence.data)
        contigs[record.name] = letter_counts(record.sequence)
        record = next(records, None)
    spool.flush()
    return contigs, digest.hexdigest()


def _write(path: Path, spool: IO[bytes], contigs: dict[str, NDArray[np.int64]], attributes: dict[str, Any]) -> None:
    import h5py

    counts = np.stack(list(contigs.values()))
    offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file.create_dataset("names", data=list(contigs), dtype=h5py.string_dtype())
        file.create_dataset("offsets", data=offsets.astype(np.int64))
        file.create_dataset("counts", data=counts)
        sequence = file.create_dataset("sequence", shape=(int(offsets[-1]),), dtype=np.uint8)
        spool.seek(0)
        position = 0
        while block := spool.read(1 << 24):
            sequence[position : position + len(block)] = np.frombuffer(block, dtype=np.uint8)
            position += len(block)


def _read(path: Path) -> Pack:
    import h5py

    try:
        identity = _identity(path)
        with h5py.File(path, "r") as file:
            version, sequence = int(file.attrs["format_version"]), file["sequence"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
            pack_ = Pack(
                path=path,
                names=tuple(file["names"].asstr()[:]),
                offsets=file["offsets"][:].astype(np.int64),
                counts=file["counts"][:].astype(np.int64),
                source=Path(str(file.attrs["source"])).name,
                fingerprint=Fingerprint(**json.loads(file.attrs["fingerprint"])),
                sequence_sha256=str(file.attrs["sequence_sha256"]),
                data_offset=int(sequence.id.get_offset() or 0),
                identity=identity,
            )
            _check(pack_, sequence.shape, sequence.dtype == np.uint8)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no whole pack of hyena data pack: {reason}; delete it and pack again") from error
    return pack_


def _verify(path: Path) -> None:
    pack_ = _read(path)
    if _digest(pack_) != pack_.sequence_sha256:
        raise WriteError(f"{path} does not read back as it was written; delete it and check the disk")


def _digest(pack_: Pack) -> str:
    digest = hashlib.sha256()
    for name in pack_.names:
        _update(digest, name, pack_.contig(name))
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", name: str, sequence: NDArray[np.uint8]) -> None:
    digest.update(f"{name}\t{len(sequence)}\n".encode())
    for start in range(0, len(sequence), _CHUNK):
        digest.update((sequence[start : start + _CHUNK] & _UPPER).data)


def _check(pack_: Pack, shape: tuple[int, ...], is_bytes: bool) -> None:
    offsets, n = pack_.offsets, len(pack_.names)
    if not is_bytes or not pack_.data_offset:
        raise ValueError("its sequence is no contiguous dataset of bytes")
    if offsets.shape != (n + 1,) or offsets[0] != 0 or (np.diff(offsets) <= 0).any() or shape != (offsets[-1],):
        raise ValueError("its offsets do not fit its sequence")
    if pack_.counts.shape != (n, 5) or (pack_.counts.sum(axis=1) != np.diff(offsets)).any():
        raise ValueError("its counts do not fit its contigs")
    if pack_.data_offset + offsets[-1] > pack_.identity[0]:
        raise ValueError("it is truncated")


def _fitting(path: Path, fingerprint: Fingerprint) -> Pack | None:
    try:
        pack_ = _read(path) if path.exists() else None
    except InputError:
        return None  # damaged or of another version: made anew, with the same notice as a stale one
    return pack_ if pack_ is not None and pack_.fingerprint == fingerprint else None


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
