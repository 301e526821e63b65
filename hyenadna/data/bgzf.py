"""BGZF: gzip in blocks, for random access. Written so that the file's bytes depend on its text alone; and its indexes.

The indexes are htslib's, through pysam, which is optional (the extra `vcf`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hyenadna.data.intervals import MAX_POSITION, Interval
from hyenadna.errors import InputError
from hyenadna.files import atomic_write
from hyenadna.progress import notice

if TYPE_CHECKING:
    import pysam

_BLOCK = 0xFF00  # as bgzip cuts: what does not compress still fits a block's 64 KiB
_LONGEST_IN_TBI = 1 << 29
_INSTALL = "pip install 'hyenadna[vcf]'"


class BlockWriter:
    r"""Writes BGZF in blocks of 65,280 bytes of text, however the text is cut into calls of `write`.

    So the same text always gives the same file: a run that was killed needs no compressed file to go on with. It keeps
    its text, or what makes it, and writes the BGZF file anew.

    Parameters
    ----------
    file : binary file          open for writing; it stays open

    Examples
    --------
    >>> import gzip, io
    >>> file = io.BytesIO()
    >>> writer = BlockWriter(file)
    >>> writer.write(b"##fileformat=VCFv4.2\n")
    >>> writer.close()
    >>> gzip.decompress(file.getvalue())
    b'##fileformat=VCFv4.2\n'
    """

    def __init__(self, file: IO[bytes]) -> None:
        from Bio.bgzf import BgzfWriter

        self._blocks = BgzfWriter(fileobj=file, mode="wb")  # type: ignore[no-untyped-call]
        self._text = bytearray()

    def write(self, text: bytes) -> None:
        """Add text; whole blocks are written at once."""
        self._text += text
        while len(self._text) >= _BLOCK:
            self._write(bytes(self._text[:_BLOCK]))
            del self._text[:_BLOCK]

    def close(self) -> None:
        """Write what is left and the empty block that marks the end of a whole file."""
        if self._text:
            self._write(bytes(self._text))
            self._text.clear()
        self._write(b"")

    def _write(self, block: bytes) -> None:
        self._blocks.write(block)  # type: ignore[no-untyped-call]
        self._blocks.flush()  # type: ignore[no-untyped-call]


def index_vcf(path: Path, lengths: Mapping[str, int | None]) -> Path | None:
    """Index a sorted VCF file in BGZF: .tbi, or .csi if a contig is longer than 512 Mb; older indexes are removed.

    Parameters
    ----------
    path : Path
    lengths : mapping of str to int
        Of the contigs, from the VCF's header or the genome; None where it is not known.

    Returns
    -------
    Path or None
        The index. None, after a notice, if pysam is not installed or htslib fails, as where records are not sorted.
    """
    tbi, csi = _indexes(path)
    for index in (tbi, csi):
        index.unlink(missing_ok=True)
    long = max((length or 0 for length in lengths.values()), default=0) > _LONGEST_IN_TBI
    try:
        import pysam
    except ModuleNotFoundError:
        how = f"bcftools index {'--csi' if long else '--tbi'} {path}"
        notice(f"{path.name} was not indexed, because pysam is not installed: {_INSTALL}, or run {how}")
        return None
    index = csi if long else tbi
    try:
        with _silent(), atomic_write(index) as temporary:
            try:
                pysam.tabix_index(str(path), preset="vcf", csi=long, index=str(temporary))
            except OSError as error:  # htslib tells no more than that it failed; of a full disk, too
                raise ValueError(str(error)) from error
    except ValueError:
        notice(
            f"{path.name} was not indexed: its records are not sorted, lie beyond what {index.suffix} can hold, or the "
            f"disk is full; bcftools sort -Oz sorts, bcftools index {path} tells what is wrong"
        )
        return None
    return index


def indexed_lines(path: Path, region: Interval, *, tell: bool = True) -> Iterator[bytes] | None:
    """The lines of a BGZF file that its index finds for a region, in their order, with LF at their ends.

    They hold all records that overlap the region, and so those whose POS lies in it. None if all must be read instead:
    there is no index, or, after a notice (unless `tell` is False), one that cannot be used.

    Raises
    ------
    InputError              the file is damaged, while the lines are read
    """
    index = next((index for index in _indexes(path) if index.exists()), None)
    if index is None or not region.contig.isascii():
        return None

    def unused(why: str) -> None:
        if tell:
            notice(f"{why}; all of {path.name} is read for the region instead")

    if index.stat().st_mtime_ns < path.stat().st_mtime_ns:
        unused(f"{index.name} is older than the file that it describes")
        return None
    try:
        import pysam
    except ModuleNotFoundError:
        unused(f"{index.name} is not used, because pysam is not installed: {_INSTALL}")
        return None
    try:
        with _silent():
            # every byte is a letter of latin-1, so the lines come through as they are
            tabix = pysam.TabixFile(str(path), index=str(index), encoding="latin-1")
    except (OSError, ValueError):
        unused(f"{index.name} cannot be read")
        return None
    return _fetched(tabix, path, region)


def _fetched(tabix: "pysam.TabixFile", path: Path, region: Interval) -> Iterator[bytes]:
    with tabix, _silent():
        if region.contig not in tabix.contigs:
            return
        try:
            for line in tabix.fetch(region.contig, region.start, None if region.end >= MAX_POSITION else region.end):
                yield line.encode("latin-1") + b"\n"
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is damaged, or its index is of another file: {error}; write both again"
            ) from error


def _indexes(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.tbi"), path.with_name(f"{path.name}.csi")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep htslib from printing to stderr what we tell in our own words."""
    import pysam

    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)
