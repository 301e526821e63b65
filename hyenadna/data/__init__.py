"""Genomes and tables on their way to tokens: FASTA, packed HDF5, intervals and splits, windows."""
