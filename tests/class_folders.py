"""Folders of classes, and directories that list them in another order."""

from pathlib import Path


def write_classes(folder, classes):
    for label, sequences in classes.items():
        (folder / label).mkdir(parents=True)
        for name, sequence in sequences.items():
            (folder / label / name).write_text(sequence)


def reverse_directories(monkeypatch):
    """Directories that list their files in an odd order, as some file systems do."""
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
