"""The background of percentiles: which SNVs it holds, and when it is made anew."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
from fake_genome import FakeGenome, random_bases
from hybrids import hybrid

from hyenadna.data.alleles import Variant
from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.errors import InputError
from hyenadna.inference import variant_background
from hyenadna.inference.trinucleotides import Background, trinucleotide_change
from hyenadna.inference.variant_background import background_of, held_out
from hyenadna.inference.variant_scores import VariantScore, VariantScorer

GENOME = FakeGenome(c=random_bases(30_000, 1), d=random_bases(20_000, 2) + "N" * 200)


class Told(VariantScorer):
    """A scorer whose scores are numbers of the place, and which tells what it was asked."""

    def score(self, variants):
        self.asked = [*getattr(self, "asked", []), *variants]
        return [VariantScore(math.sin(v.start) + len(v.alt), math.nan, math.nan, ()) for v in variants]


@pytest.fixture(scope="module")
def model():
    return hybrid("H")


@pytest.mark.parametrize("strand", ["forward", "both"])
def test_so_many_snvs_of_every_change_from_many_places(model, strand) -> None:
    scorer = Told(model, GENOME, window=32, strand=strand)
    intervals = [Interval("c", 101, 20_000), Interval("d", 0, 20_200)]
    background = background_of(scorer, intervals)
    assert len(background.ratios) == (96 if strand == "both" else 192)
    counts = [len(values) for values in background.ratios.values()]
    assert set(counts) == {64} and len(scorer.asked) == len(set(scorer.asked)) == sum(counts)
    changes = Counter()
    for variant in scorer.asked:
        assert any(i.contig == variant.contig and i.start <= variant.start < i.end for i in intervals)
        change = trinucleotide_change(variant, GENOME)
        if strand == "both":
            before, after = change.split(">")
            change = min(change, f"{reverse_complement(before)}>{reverse_complement(after)}")
        changes[change] += 1
    assert changes == dict.fromkeys(background.ratios, 64)
    for contig, length in (("c", 20_000), ("d", 20_000)):
        places = np.array([variant.start for variant in scorer.asked if variant.contig == contig])
        shares = np.histogram(places, bins=5, range=(0, length))[0] / len(places)
        assert shares.min() > 0.1
    assert "up to 64 of each trinucleotide change" in background.where and "held-out" in background.where


def test_changes_of_which_few_are_found_have_no_percentile(model) -> None:
    scorer = Told(model, FakeGenome(c="ACGT" * 100), window=32)
    background = background_of(scorer)
    assert "of the whole genome" in background.where and "90 changes with fewer than 20 have no" in background.where
    assert math.isnan(background.percentile("AAA>C", 0.0)) and not math.isnan(background.percentile("ACG>T", 0.0))
    assert background_of(Told(model, FakeGenome(c="ACG"), window=32)).ratios == {}


def test_percentile_counts_those_below_and_half_of_those_alike() -> None:
    values = np.sort(np.random.default_rng(0).integers(0, 9, 50)).astype(float)
    background = Background({"ACG>T": values}, folded=False, where="")
    for llr in (-1.0, 0.0, 3.0, 3.5, 8.0, 99.0):
        expected = 100 * np.mean([1.0 if value < llr else 0.5 if value == llr else 0.0 for value in values])
        assert background.percentile("ACG>T", llr) == pytest.approx(expected)
    assert math.isnan(background.percentile("CGT>A", 0.0))


def test_the_change_of_a_variant() -> None:
    genome = FakeGenome(c="ACGTNA")
    assert trinucleotide_change(Variant("c", 1, "C", "T"), genome) == "ACG>T"
    # as it was said, where the genome holds another base
    assert trinucleotide_change(Variant("c", 1, "G", "T"), genome) == "AGG>T"
    for start, ref, alt in ((0, "A", "C"), (5, "A", "C"), (3, "T", "C"), (1, "CG", "TT"), (1, "C", ""), (2, "", "C")):
        assert trinucleotide_change(Variant("c", start, ref, alt), genome) is None


def test_kept_until_anything_changes_that_it_depends_on(model, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path))
    monkeypatch.setattr(variant_background, "PER_CLASS", 20)
    places = [Interval("c", 0, 30_000)]

    def files() -> int:
        return len(list((tmp_path / "variant-background").iterdir()))

    first = background_of(Told(model, GENOME, window=32), places, fingerprint="abc")
    silent = Told(model, GENOME, window=32)
    again = background_of(silent, places, fingerprint="abc")
    assert not hasattr(silent, "asked") and dataclasses.replace(again, ratios={}) == dataclasses.replace(
        first, ratios={}
    )
    assert all(np.array_equal(first.ratios[change], again.ratios[change]) for change in first.ratios)
    (file,) = (tmp_path / "variant-background").iterdir()
    file.write_text(file.read_text()[:-100])
    background_of(silent, places, fingerprint="abc")
    assert len(silent.asked) == 96 * 20 and json.loads(file.read_text())["about"]["genome"] == "abc"
    for number, (options, where, name) in enumerate(
        [
            ({"window": 36}, places, "abc"),
            ({"strand": "reverse"}, places, "abc"),
            ({}, [Interval("c", 0, 29_000)], "abc"),
            ({}, places, "abd"),
        ],
        start=2,
    ):
        other = Told(model, GENOME, **{"window": 32} | options)
        background_of(other, where, fingerprint=name)
        assert files() == number and other.asked
    background_of(Told(hybrid("H", d_inner=8), GENOME, window=32), places, fingerprint="abc")
    assert files() == 6


def test_held_out_is_the_test_part_of_a_split_of_this_genome(tmp_path) -> None:
    path = tmp_path / "split.json"
    assert held_out(path, {"c": 100}) is None
    split = {name: [["c", start, start + 10]] for start, name in enumerate(("train", "valid", "test"))}
    split |= {"rule": "", "source": "x.fa", "sequence_sha256": "", "lengths": {"c": 100}, "gc": {}}
    path.write_text(json.dumps({"genomes": [split]}))
    assert held_out(path, {"c": 100}) == (Interval("c", 2, 12),)
    assert held_out(path, {"c": 101}) is None and held_out(path, {"d": 100}) is None
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a stored split"):
        held_out(path, {"c": 100})
