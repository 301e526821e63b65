"""Which data are meant, apart from what reads them, so that the command line knows the flags without numpy."""

import dataclasses
from pathlib import Path
from typing import Literal

Kind = Literal["binary", "multiclass", "multilabel", "regression", "nucleotide"]
"""What labels may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where labelled data are and which of their columns is what."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    data: str | None = None
    """Labelled data: CSV, TSV, JSONL (plain or gzip), Parquet, FASTA with labels in its headers, BED with --fasta; a
    folder with a folder for each class; a folder with train, valid and test; genomic-benchmarks/NAME; gue/TASK; - is
    standard input. Default: the table of splice junctions that comes with the package."""
    seq_col: str | None = None
    """Column of the sequences. Default: one named sequence, seq, dna ..., else the only one that holds DNA."""
    label_col: str | None = None
    """Column of the labels. Default: one named label, class, target, y ..., else the only one left."""
    id_col: str | None = None
    """Column of the names. Default: one named id, name ..., else rows are numbered from 1."""
    split_col: str | None = None
    """Column that says train, valid or test. Default: one named split, part or set that holds nothing else."""
    group_col: str | None = None
    """Column of what a split must not tear apart. Default: one named chrom, chromosome, contig or group."""
    labels: Path | None = None
    """A second table that gives the label of each id: for FASTA and BED without labels of their own."""
    fasta: Path | None = None
    """The genome of a BED file: FASTA, plain, gzip or BGZF, or a pack."""
    data_dir: Path | None = None
    """Folder that holds genomic-benchmarks/NAME or gue/TASK; nothing is downloaded then."""
    valid: Path | None = None
    """A further file or folder: the validation part."""
    test: Path | None = None
    """A further file or folder: the test part."""
