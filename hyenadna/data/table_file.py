"""Tables as a stream of rows of text: CSV, TSV, JSONL and Parquet."""

import csv
import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from hyenadna.data.opened import Format, beginning, format_of, named, opened, text_lines
from hyenadna.errors import InputError, MissingExtra

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Row = tuple[int, tuple[str, ...]]
"""Its number in the file, and the text of its fields, '' where there is nothing."""
_HEAD_ROWS = 100
_LONGEST_FIELD = 1 << 30
_PARQUET_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that is open for one reading."""

    source: str
    """What messages call it."""
    columns: tuple[str, ...]
    """Their names, all different; 'column 3' for the third where its name is empty."""
    unit: str
    """What rows are counted in: 'line' of a text file, 'row' of a Parquet file, both from 1."""
    head: tuple[tuple[str, ...], ...]
    """The first rows, to tell columns apart by what they hold."""
    read: Callable[[tuple[str, ...]], Iterator[Row]]
    """The rows from the first to the last with the given columns, to be called once."""

    def place(self, number: int) -> str:
        """Where a row stands, in words."""
        return f"{self.source}, {self.unit} {number}"


@contextmanager
def open_table(source: str) -> Iterator[Table]:
    """The table in a file, plain or gzip, or on standard input ('-'); its kind by name and content.

    Raises
    ------
    InputError              the file is unreadable, empty, FASTA or BED, not UTF-8; its header or a row is malformed
    MissingExtra            Parquet without pyarrow
    """
    with opened(source) as stream:
        first, stream = beginning(stream)
        kind = format_of(source, first)
        if kind in ("fasta", "bed"):
            raise InputError(f"{named(source)} is {kind.upper()}; here a table is wanted: CSV, TSV, JSONL or Parquet")
        yield table_of(stream, source, first, kind)


def table_of(stream: IO[bytes], source: str, first: bytes, kind: Format) -> Table:
    """The table in an open stream of which the first line and the kind are known."""
    match kind:
        case "parquet":
            table = _parquet(source)
        case "jsonl":
            table = _json_lines(stream, source)
        case _:
            table = _delimited(stream, source, first)
    if not table.head:
        raise InputError(f"{table.source} has a header ({', '.join(table.columns)}) but no row")
    return table


def _delimited(stream: IO[bytes], source: str, first: bytes) -> Table:
    columns, rows = _delimited_rows(stream, source, first)
    head = tuple(itertools.islice(rows, _HEAD_ROWS))

    def read(names: tuple[str, ...]) -> Iterator[Row]:
        wanted = [columns.index(name) for name in names]
        for number, fields in itertools.chain(head, rows):
            yield number, tuple(fields[at] for at in wanted)

    return Table(named(source), columns, "line", tuple(fields for _, fields in head), read)


def _delimited_rows(stream: IO[bytes], source: str, first: bytes) -> tuple[tuple[str, ...], Iterator[Row]]:
    # the default limit of 131,072 characters is less than a sequence may have; Python keeps one limit for all readers
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    order = "\t,;" if source.lower().removesuffix(".gz").endswith((".tsv", ".tab")) else ",\t;"
    delimiter = max(order, key=first.decode("utf-8", "replace").count)
    reader = csv.reader(_without_comments(text_lines(stream, source)), delimiter=delimiter, strict=True)
    rows = _csv_rows(reader, named(source))
    number, header = next(rows, (0, ()))
    if any(re.fullmatch("[ACGTUNacgtun]{10,}", name.strip()) for name in header):
        raise InputError(
            f"{named(source)} has no header: its first line holds a sequence; "
            "begin it with a line of column names, such as sequence,label"
        )
    return _checked_names(header, f"{named(source)}, line {number}"), _even_rows(rows, len(header), named(source))


def _without_comments(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """The lines, of which those that begin with '# ' before the header are blank: the rest keep their number."""
    leading = True
    for _, line in lines:
        leading = leading and (not line.strip() or line.startswith("# "))
        yield "\n" if leading else line


def _csv_rows(reader: Any, source: str) -> Iterator[Row]:
    """The rows that are not blank."""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{source}, line {reader.line_num} cannot be parsed: {error}; "
                "a field in quotes ends with a quote, and a quote within it is doubled"
            ) from error
        if fields:
            yield reader.line_num, tuple(fields)


def _even_rows(rows: Iterator[Row], width: int, source: str) -> Iterator[Row]:
    for number, fields in rows:
        if len(fields) != width:
            raise InputError(
                f"{source}, line {number} has {len(fields)} fields where the header has {width}; "
                "a field that holds the separator must stand in quotes"
            )
        yield number, fields


def _json_lines(stream: IO[bytes], source: str) -> Table:
    objects = _json_objects(stream, source)
    head = tuple(itertools.islice(objects, _HEAD_ROWS))
    columns = _checked_names(tuple(head[0][1]), f"{named(source)}, line {head[0][0]}")

    def read(names: tuple[str, ...]) -> Iterator[Row]:
        for number, fields in itertools.chain(head, objects):
            if odd := [name for name in names if isinstance(fields.get(name), dict)]:
                raise InputError(
                    f"{named(source)}, line {number}: {odd[0]!r} holds an object; "
                    "text, a number or a list of them is wanted"
                )
            yield number, tuple(_json_text(fields.get(name)) for name in names)

    shown = tuple(tuple(_json_text(fields.get(name)) for name in columns) for _, fields in head)
    return Table(named(source), columns, "line", shown, read)


def _json_objects(stream: IO[bytes], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines(stream, source):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{named(source)}, line {number} is no JSON: {error.msg} at column {error.colno}"
            ) from error
        if not isinstance(value, dict):
            raise InputError(f"{named(source)}, line {number} is no JSON object; each line must be one, in braces")
        yield number, value


def _json_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ";".join(map(_json_text, value)) if isinstance(value, list) else str(value)


def _parquet(source: str) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra(
            f"{source} is Parquet. Install the 'parquet' extra: pip install hyenadna[parquet]"
        ) from error
    if source == "-":
        raise InputError("Parquet cannot be read from standard input, it is read from its end; give the file's path")

    def read(names: tuple[str, ...]) -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[given[name] for name in names]):
                fields = [_arrow_text(batch.column(given[name]), name, source) for name in names]
                for values in zip(*fields, strict=True):
                    number += 1
                    yield number, values
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{source} is damaged: {error}; write it again") from error

    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source} cannot be read as Parquet: {error}; write it again") from error
    schema = file.schema_arrow
    names = [name for name in schema.names if not name.startswith("__index_level_")]
    columns = _checked_names(tuple(names), source)
    given = dict(zip(columns, names, strict=True))
    simple = tuple(name for name in columns if not pa.types.is_nested(schema.field(given[name]).type))
    at = [simple.index(name) if name in simple else None for name in columns]
    first = itertools.islice(read(simple), _HEAD_ROWS) if simple else iter(())
    head = tuple(tuple("" if index is None else row[index] for index in at) for _, row in first)
    return Table(source, columns, "row", head, read)


def _arrow_text(column: "pyarrow.Array", name: str, source: str) -> list[str]:
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        parts = [None if value is None else pa.array(value) for value in column.to_pylist()]
        return ["" if part is None or not len(part) else ";".join(_arrow_text(part, name, source)) for part in parts]
    try:
        return [value or "" for value in column.cast(pa.string()).to_pylist()]
    except pa.ArrowException as error:
        raise InputError(f"{source}: column {name!r} holds {column.type}; text, numbers or lists are wanted") from error


def _checked_names(header: Sequence[str], place: str) -> tuple[str, ...]:
    names = tuple(name.strip() or f"column {at}" for at, name in enumerate(header, 1))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{place} names the column {twice[0]!r} twice; rename one of the two")
    return names
