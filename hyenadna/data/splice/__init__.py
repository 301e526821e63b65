"""The labelled table that comes with the package."""

from pathlib import Path


def splice() -> Path:
    """Path of a table of 3,186 primate splice junctions of 60 bp, gzip CSV with the columns sequence and label.

    Labels: ei (exon to intron, a donor, 767), ie (intron to exon, an acceptor, 765), n (neither, 1,654). 3,001 of the
    sequences are distinct. Source: UCI Machine Learning Repository, "Molecular Biology (Splice-junction Gene
    Sequences)", as decoded from Debian's r-cran-mlbench; licence CC BY 4.0.
    """
    return Path(__file__).with_name("uci_splice.csv.gz")
