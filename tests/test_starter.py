"""The model that comes with the package, and how its held-out sequences were found."""

import importlib
import re

import numpy as np
import pytest
from oracles import BENCHMARKS

from hyenadna import HyenaDNA
from hyenadna.data.alphabet import reverse_complement
from hyenadna.model import checkpoint
from hyenadna.model.hub import STARTER, find_model


def test_it_is_small_whole_and_says_what_it_is() -> None:
    found = checkpoint.read(STARTER)
    assert found.verify() < 1e-3
    assert found.name == STARTER
    assert (find_model(STARTER) / "model.safetensors").stat().st_size <= 2_000_000
    card = found.card or ""
    assert "hyena pretrain --fasta human_GRCh37_chr20.fa.gz" in card
    assert found.description["training"]["data"][0]["sequence_sha256"] in card
    for piece in ("4 to 6", "15 to 17", "34 to 36", "45 to 47", "57 to 59"):
        assert piece in card
    assert re.search(r"\| this model \| 1\.\d{4} \|", card)
    assert "not good for" in card


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    HyenaDNA.from_pretrained(STARTER).save_pretrained(tmp_path / STARTER, card="mine")
    assert checkpoint.read(STARTER).card == "mine"


@pytest.fixture
def starter(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("starter")


def _chromosome() -> str:
    return "".join(np.random.default_rng(0).choice(list("ACGT"), 20_000))


@pytest.mark.parametrize("strand", ["+", "-"])
def test_sequences_are_found_in_either_strand_despite_differences(starter, strand) -> None:
    chromosome = _chromosome()
    copy = list(chromosome[5_000:5_300])
    copy[100] = {"A": "C", "C": "G", "G": "T", "T": "A"}[copy[100]]
    del copy[200]
    sequence = "".join(copy) if strand == "+" else reverse_complement("".join(copy))
    found = starter.places({sequence}, "20", np.frombuffer(chromosome.encode(), dtype=np.uint8))
    assert len(found) == 1
    assert found[0].start <= 5_000 and found[0].end >= 5_300 and len(found[0]) < 500


def test_foreign_sequences_are_not_found(starter) -> None:
    chromosome = _chromosome()
    other = "".join(np.random.default_rng(1).choice(list("ACGT"), 300))
    half = chromosome[7_000 : 7_000 + starter.WORD + 20] + other
    assert starter.places({other, half}, "20", np.frombuffer(chromosome.encode(), dtype=np.uint8)) == []
