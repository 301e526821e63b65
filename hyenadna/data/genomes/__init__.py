"""The genome that comes with the package."""

from pathlib import Path


def ecoli() -> Path:
    """Path of the genome of Escherichia coli K-12 MG1655: NCBI NC_000913, 4,639,675 bases, gzip."""
    return Path(__file__).with_name("ecoli_K12_MG1655.fa.gz")
