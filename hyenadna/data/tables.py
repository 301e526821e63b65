"""Labelled data in any of the forms that people have them in, read into memory."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from hyenadna.data import columns as find
from hyenadna.data import genomic_benchmarks, gue
from hyenadna.data.class_sequences import read_class_folder
from hyenadna.data.columns import Columns
from hyenadna.data.data_config import DataConfig as DataConfig
from hyenadna.data.header_labels import HeaderLabels
from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.layouts import parts_in
from hyenadna.data.opened import named
from hyenadna.data.sequence_files import bed_regions, fasta_records, nucleotides, open_sequences, refuse_columns
from hyenadna.data.splice import splice
from hyenadna.data.splits import Part
from hyenadna.data.table_file import Table, open_table, table_of
from hyenadna.errors import InputError, UsageError
from hyenadna.progress import notice


def read_labelled(config: DataConfig) -> LabelledSequences:
    """The labelled sequences that a configuration names; labels are always present, as text.

    Sequences are in upper case with U as T. Says once through `notice` which columns were taken for what.

    Raises
    ------
    InputError              unreadable or malformed data; an empty sequence or what is no nucleotide; labels missing, or
                            missing in --labels; a part given twice; no training rows. Names the file and the line
    UsageError              a column that does not exist; flags that do not fit the kind of data
    MissingExtra            Parquet, or GenomicBenchmarks to be fetched, without the extra
    DownloadError           a data set could not be fetched
    """
    path = _located(config)
    reader = _Reader(config)
    files = {None: path} if str(path) == "-" else parts_in(path)
    if config.split_col is not None and None not in files:
        raise UsageError(f"--split-col {config.split_col}: {path} has a file or folder for each part; leave it out")
    pieces = [reader.read(str(file), part) for part, file in files.items()]
    further: tuple[tuple[Part, Path | None], ...] = (("valid", config.valid), ("test", config.test))
    for part, file in further:
        if file is not None:
            _refuse_second(part, file, pieces)
            pieces = [_all_in(piece, "train") for piece in pieces]
            pieces.append(reader.read(str(file), part))
    data = _joined(pieces, config.data or "the bundled splice table")
    if data.parts is not None and "train" not in data.parts:
        raise InputError(f"{data.source} has no row in the part train; a model needs rows to learn from")
    return data


def _refuse_second(part: Part, file: Path, pieces: Sequence[LabelledSequences]) -> None:
    """Raise InputError if the data have this part already, or the file that gives it has parts itself."""
    for piece in pieces:
        if part in (piece.parts or ()):
            raise InputError(
                f"--{part} {file}: {piece.source} is or holds a {part} part already; leave one of them out"
            )
    if list(parts_in(file)) != [None]:
        raise InputError(f"--{part} {file} holds several parts itself; give the file or folder of one")


def _located(config: DataConfig) -> Path:
    if config.data is None:
        _refuse_data_dir(config)
        return splice()
    if not config.data:
        raise UsageError("--data is empty; give a file, a folder, genomic-benchmarks/NAME or gue/TASK")
    for prefix, locate in ((genomic_benchmarks.PREFIX, genomic_benchmarks.locate), (gue.PREFIX, gue.locate)):
        if config.data.startswith(prefix) and not Path(config.data).exists():
            return locate(config.data.removeprefix(prefix).strip("/"), config.data_dir)
    _refuse_data_dir(config)
    return Path(config.data)


def _refuse_data_dir(config: DataConfig) -> None:
    if config.data_dir is not None:
        raise UsageError(
            f"--data-dir {config.data_dir} holds genomic-benchmarks/NAME or gue/TASK, but the data are "
            f"{config.data or 'the bundled splice table'}; leave it out"
        )


class _Reader:
    """Reads the files of one data set, and says only once what they have in common."""

    def __init__(self, config: DataConfig) -> None:
        self.config, self.said, self.any_read = config, set[str](), False
        self.labels = None if config.labels is None else _labels_by_id(config.labels, config)

    def read(self, source: str, part: Part | None) -> LabelledSequences:
        """One file or folder of classes; all of it belongs to `part` if that is known."""
        if Path(source).is_dir():
            for flag, given in (("--labels", self.config.labels), ("--fasta", self.config.fasta)):
                if given is not None:
                    raise UsageError(f"{flag} {given}: the folders in {source} give labels and sequences; leave it out")
            self._refuse_columns(f"{source} is a folder of classes")
            data = read_class_folder(Path(source))
        else:
            with open_sequences(source, self.config.fasta) as (kind, first, file):
                if kind in ("fasta", "bed"):
                    self._refuse_columns(f"{named(source)} is {kind.upper()}")
                if kind == "fasta":
                    data = self._fasta(file, source)
                elif kind == "bed":
                    data = self._bed(file, source)
                else:
                    data = self._table(table_of(file, source, first, kind), part)
        self.any_read = True
        return data if part is None else _all_in(data, part)

    def _refuse_columns(self, what: str) -> None:
        """Raise UsageError if the data have no columns but flags name some; files of --valid and --test may differ."""
        if self.any_read:
            return
        config = self.config
        given = {"--seq-col": config.seq_col, "--split-col": config.split_col, "--group-col": config.group_col}
        if self.labels is None:  # else they are columns of the second table
            given |= {"--label-col": config.label_col, "--id-col": config.id_col}
        refuse_columns(what, given)

    def _say(self, source: str, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            notice(f"{source}: {text}")

    def _table(self, table: Table, part: Part | None) -> LabelledSequences:
        found = self._columns(table, part)
        self._say(table.source, found.text(table))
        rows = _Rows(table.source, table.unit)
        wanted = {what: name for what, name in dataclasses.asdict(found).items() if name is not None}
        for row, (number, fields) in enumerate(table.read(tuple(wanted.values())), 1):
            value = dict(zip(wanted, (field.strip() for field in fields), strict=True))
            rows.numbers.append(number)
            rows.sequences.append(nucleotides(value["sequence"], table.place(number)))
            rows.ids.append(value.get("id") or str(row))
            rows.labels.append(value.get("label", ""))
            if "split" in value:
                rows.parts.append(find.part_of(value["split"], table.place(number)))
            if "group" in value:
                rows.groups.append(value["group"])
        return rows.labelled(self.labels, self.config.labels)

    def _columns(self, table: Table, part: Part | None) -> Columns:
        config = self.config
        identity = find.id_column(table, config.id_col)
        sequence = find.sequence_column(table, config.seq_col)
        split = find.split_column(table, config.split_col) if part is None else None
        group = find.group_column(table, config.group_col)
        if self.labels is not None and identity is None:
            raise UsageError(
                f"--labels needs the ids of {table.source}, which has the columns {', '.join(table.columns)}; --id-col"
            )
        label = None
        if self.labels is None:
            label = find.label_column(table, config.label_col, (sequence, identity, split, group))
        found = Columns(sequence=sequence, label=label, id=identity, split=split, group=group)
        twice = [name for name, count in Counter(dataclasses.astuple(found)).items() if name and count > 1]
        if twice:
            raise UsageError(
                f"{table.source}: the column {twice[0]!r} cannot be two things at once; {found.text(table)}"
            )
        return found

    def _fasta(self, file: IO[bytes], source: str) -> LabelledSequences:
        rows, header = _Rows(named(source), "record"), HeaderLabels(named(source))
        for number, record in enumerate(fasta_records(file, source), 1):
            name, label = (record.name, "") if self.labels is not None else header.read(record.name, record.description)
            rows.numbers.append(number)
            rows.ids.append(name)
            rows.labels.append(label)
            rows.sequences.append(record.sequence)
        self._say(named(source), f"labels from {self.config.labels or f'the headers, {header.convention}'}")
        return rows.labelled(self.labels, self.config.labels)

    def _bed(self, file: IO[bytes], source: str) -> LabelledSequences:
        assert self.config.fasta is not None  # open_sequences asks for it
        rows = _Rows(named(source), "region")
        for number, region in enumerate(bed_regions(file, source, self.config.fasta), 1):
            rows.numbers.append(number)
            rows.ids.append(region.coordinates if self.labels is None else region.name)
            rows.labels.append(region.given_name)
            rows.sequences.append(region.sequence)
            rows.groups.append(region.contig)
        where = self.config.labels or "the fourth column"
        self._say(named(source), f"labels from {where}, groups by contig")
        return rows.labelled(self.labels, self.config.labels)


class _Rows:
    """Rows of one file while they are read."""

    def __init__(self, source: str, unit: str) -> None:
        self.source, self.unit = source, unit
        self.numbers: list[int] = []
        self.ids: list[str] = []
        self.sequences: list[str] = []
        self.labels: list[str] = []
        self.parts: list[Part] = []
        self.groups: list[str] = []

    def labelled(self, labels: dict[str, str] | None, table: Path | None) -> LabelledSequences:
        """What was read, with the labels of the second table if there is one."""
        if labels is not None:
            self.labels = self._looked_up(labels, table)
        # in a table of several labels at once an empty field says that none applies
        if not any(";" in label for label in self.labels):
            self._refuse_gaps("label")
        return LabelledSequences(
            tuple(self.ids), tuple(self.sequences), tuple(self.labels),
            tuple(self.parts) or None, tuple(self.groups) or None, self.source,
        )  # fmt: skip

    def _looked_up(self, labels: dict[str, str], table: Path | None) -> list[str]:
        if twice := [name for name, count in Counter(self.ids).items() if count > 1]:
            raise InputError(
                f"{self.source} has {self.unit}s of the same id {twice[0]!r}; --labels needs ids that are unique"
            )
        missing = [at for at, name in enumerate(self.ids) if name not in labels]
        if missing:
            raise InputError(
                f"{table} has no label for {len(missing)} of the {len(self.ids)} ids of {self.source}, "
                f"the first is {self.ids[missing[0]]!r}"
            )
        if idle := len(labels) - len(self.ids):
            notice(f"{table}: {idle} labels belong to no {self.unit} of {self.source}")
        return [labels[name] for name in self.ids]

    def _refuse_gaps(self, what: str) -> None:
        gaps = [at for at, label in enumerate(self.labels) if not label]
        if gaps:
            raise InputError(
                f"{len(gaps)} of the {len(self.labels)} {self.unit}s of {self.source} have no {what}, "
                f"the first is {self.unit} {self.numbers[gaps[0]]}; complete or remove them"
            )


def _labels_by_id(path: Path, config: DataConfig) -> dict[str, str]:
    """The label of each id of a second table; InputError if an id occurs twice."""
    found: dict[str, str] = {}
    with open_table(str(path)) as table:
        identity = find.id_column(table, config.id_col)
        label = find.label_column(table, config.label_col, (identity,)) if identity else _other_label(table, config)
        identity = identity or next(name for name in table.columns if name != label)
        for number, (name, value) in table.read((identity, label)):
            if name.strip() in found:
                raise InputError(
                    f"{table.place(number)} gives the id {name.strip()!r} a second time; ids must be unique"
                )
            found[name.strip()] = value.strip()
    return found


def _other_label(table: Table, config: DataConfig) -> str:
    """The label column of a table whose ids nobody has named: there must be one other column, which are the ids."""
    if len(table.columns) != 2:
        raise InputError(
            f"{table.source}: which column holds the ids? It has {', '.join(table.columns)}; name it by --id-col"
        )
    return find.label_column(table, config.label_col, ())


def _all_in(data: LabelledSequences, part: Part) -> LabelledSequences:
    """The data with every row in `part`, unless they say otherwise themselves."""
    return data if data.parts is not None else dataclasses.replace(data, parts=(part,) * len(data))


def _joined(pieces: Sequence[LabelledSequences], source: str) -> LabelledSequences:
    """All rows, piece after piece; groups only if every piece has them."""
    grouped = [piece.groups is not None for piece in pieces]
    if any(grouped) and not all(grouped):
        notice(f"{source}: groups are left out, since {pieces[grouped.index(False)].source} has none")

    return LabelledSequences(
        tuple(name for piece in pieces for name in piece.ids),
        tuple(sequence for piece in pieces for sequence in piece.sequences),
        tuple(label for piece in pieces for label in piece.labels or ()),
        tuple(part for piece in pieces for part in piece.parts or ()) or None,
        tuple(group for piece in pieces for group in piece.groups or ()) if all(grouped) else None,
        source,
    )
