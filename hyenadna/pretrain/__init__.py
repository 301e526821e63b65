"""Pretraining: from FASTA files to a model folder."""
