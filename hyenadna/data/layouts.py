"""How labelled data lie on disk: one file, a folder a class, and files or folders named after train, valid and test."""

import re
from collections.abc import Iterator
from pathlib import Path

from hyenadna.data.columns import PART_NAMES
from hyenadna.data.opened import FASTA_SUFFIXES, TABLE_SUFFIXES
from hyenadna.data.splits import PARTS, Part
from hyenadna.errors import InputError

_PART_FILE = re.compile(
    rf"(?:(?P<name>.+)\.)?(?P<part>{'|'.join(PART_NAMES)})(?:{'|'.join(map(re.escape, TABLE_SUFFIXES))})(?:\.gz)?"
)


def parts_in(path: Path) -> dict[Part | None, Path]:
    """The files and folders that hold the parts of the data at `path`; None stands for data that no part is given of.

    `path` may be a file; a folder with a folder for each class; a folder that holds such folders, or tables, named
    train, valid (validation, val, dev) and test; or NAME, beside which lie NAME.train.csv and NAME.test.csv (TSV, JSONL
    or Parquet, gzip or not), or the folder that these lie in if there is only one NAME.

    Raises
    ------
    InputError              nothing is there, two things are the same part, or none is the training part
    """
    if path.is_dir():
        return _parts_in_folder(path)
    if path.exists():
        return {None: path}
    pairs = _named_tables(path.parent).get(path.name) if path.parent.is_dir() else None
    if pairs is None:
        raise InputError(f"there is no file or folder {path}, and no {path.name}.train.csv beside it")
    return _checked(path, pairs)


def exists(path: Path) -> bool:
    """Whether there is a file or folder at `path`, or tables NAME.train.csv and so on beside it."""
    return path.exists() or (path.parent.is_dir() and path.name in _named_tables(path.parent))


def _parts_in_folder(folder: Path) -> dict[Part | None, Path]:
    children = _children(folder)
    parts = [(PART_NAMES[child.name.lower()], child) for child in children if _is_part_folder(child)]
    parts += _named_tables(folder).get("", [])
    if parts:
        return _checked(folder, parts)
    if any(child.is_dir() for child in children):
        return {None: folder}
    sets = _named_tables(folder)
    if len(sets) == 1:
        return _checked(folder, next(iter(sets.values())))
    if sets:
        raise InputError(f"{folder} holds several data sets: {', '.join(sorted(sets))}; give one, as {folder}/NAME")
    raise InputError(
        f"{folder} holds no labelled data: it must have a folder for each class, or folders or tables "
        "named train, valid and test"
    )


def class_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The classes of a folder that has a folder for each, sorted by name, and the files of each, sorted by name.

    Raises
    ------
    InputError              a file outside of the class folders, a folder in one, a class without files, a file that is
                            neither .txt nor FASTA
    """
    for child in _children(folder):
        if not child.is_dir():
            raise InputError(f"{child} lies beside the folders of the classes; move it elsewhere")
        files = _children(child)
        if not files:
            raise InputError(f"the class folder {child} is empty; put the class's sequences there or remove it")
        for file in files:
            if file.is_dir() or not _without_gz(file).endswith((".txt", *FASTA_SUFFIXES)):
                raise InputError(
                    f"{file} is no sequence file; a class folder holds .txt files of one sequence each, or FASTA "
                    f"({', '.join(FASTA_SUFFIXES)})"
                )
            yield child.name, file


def _named_tables(folder: Path) -> dict[str, list[tuple[Part, Path]]]:
    """Tables named after a part, by what stands before it: '' for train.csv, NAME for NAME.train.csv."""
    found: dict[str, list[tuple[Part, Path]]] = {}
    for child in _children(folder):
        if child.is_file() and (match := _PART_FILE.fullmatch(child.name)):
            found.setdefault(match["name"] or "", []).append((PART_NAMES[match["part"]], child))
    return found


def _checked(path: Path, parts: list[tuple[Part, Path]]) -> dict[Part | None, Path]:
    found: dict[Part | None, Path] = {}
    for part, file in parts:
        if part in found:
            raise InputError(f"{found[part]} and {file} are both the {part} part; remove one of them")
        found[part] = file
    found = {part: found[part] for part in PARTS if part in found}
    if "train" not in found:
        raise InputError(f"{path} has the parts {', '.join(map(str, found))} but nothing named train")
    return found


def _is_part_folder(path: Path) -> bool:
    return path.is_dir() and path.name.lower() in PART_NAMES


def _children(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted by name: a directory's own order differs between machines."""
    try:
        return sorted((child for child in folder.iterdir() if not child.name.startswith(".")), key=lambda p: p.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


def _without_gz(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")
