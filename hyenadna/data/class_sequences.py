"""A folder with one folder for each class: the names of the folders are the labels."""

from pathlib import Path

from hyenadna.data.labelled import LabelledSequences
from hyenadna.data.layouts import class_files
from hyenadna.data.opened import beginning, opened
from hyenadna.data.sequence_files import fasta_records, nucleotides
from hyenadna.errors import InputError


def read_class_folder(folder: Path) -> LabelledSequences:
    """The sequences of a folder, by class and then file, both sorted by name and never in the order of the directory.

    A .txt file holds one sequence, over any number of lines, and its id is the file's name; a FASTA file holds many.

    Raises
    ------
    InputError              a file that is neither, unreadable, empty, or holds what is no nucleotide; no file
    """
    ids: list[str] = []
    sequences: list[str] = []
    labels: list[str] = []
    for label, file in class_files(folder):
        for name, sequence in _sequences(file):
            ids.append(name)
            sequences.append(sequence)
            labels.append(label)
    if not ids:
        raise InputError(f"{folder} holds no sequences; it must have a folder for each class")
    return LabelledSequences(tuple(ids), tuple(sequences), tuple(labels), source=str(folder))


def _sequences(file: Path) -> list[tuple[str, str]]:
    """The names and sequences of one file."""
    if file.suffix.lower() == ".txt":
        # benchmarks have up to 300,000 files of one line: no stream is built for each
        try:
            text = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
        if not text.startswith((b">", b"\x1f\x8b")):
            return [_one(file, text)]
    with opened(str(file)) as stream:
        first, stream = beginning(stream)
        if first.startswith(b">") or not file.name.lower().endswith((".txt", ".txt.gz")):
            return [(record.name, record.sequence) for record in fasta_records(stream, str(file))]
        return [_one(file, stream.read())]


def _one(file: Path, text: bytes) -> tuple[str, str]:
    """The name of a file, and the sequence that fills it."""
    lines = text.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    return file.name.split(".")[0], nucleotides("".join(map(str.strip, lines)), str(file))
