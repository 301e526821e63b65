"""The Markov models of variants: who counted what, and ratios against the code length of whole contigs."""

import math

import numpy as np
import pytest
from fake_genome import FakeGenome, random_bases

from hyenadna.data.alleles import Variant
from hyenadna.data.alphabet import reverse_complement
from hyenadna.inference import variant_markov
from hyenadna.inference.variant_markov import fitted
from hyenadna.inference.variant_windows import place

WINDOW = 32


@pytest.fixture(scope="module")
def genome():
    return FakeGenome(a=random_bases(12_000, 1), b="ACGTTTGC" * 500, c=random_bases(90, 2) + "N" + random_bases(90, 3))


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.counts, other.counts, strict=True))


def ascii_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def by_whole_contigs(model, genome, variant, at) -> float:
    """Both haplotypes coded from the contig's beginning on, in reading direction."""
    sequence, (_, start, ref, alt) = genome.contigs[variant.contig], variant
    if at.sign == "-":
        sequence, start = reverse_complement(sequence), len(sequence) - start - len(ref)
        ref, alt = reverse_complement(ref), reverse_complement(alt)
    codes = []
    for allele in (ref, alt):
        haplotype = sequence[:start] + allele + sequence[start + len(ref) :]
        codes.append(
            model.bits(ascii_of(haplotype[: start + at.scored]))[-1][max(1, start) if not at.offset else start :]
        )
    both = ~np.isnan(codes).any(axis=0)
    if not both.any():
        return math.nan
    return math.log(2) * float((codes[0] - codes[1])[both].sum())


def test_ratios_are_those_of_whole_contigs(genome) -> None:
    models = fitted(genome)
    changes = [(1, "A"), (1, "G"), (0, "GATTA"), (4, ""), (3, "CC"), (2, "TA")]
    variants = [
        Variant(contig, start, genome.fetch(contig, start, start + length), alt)
        for contig, starts in (("a", (0, 3, 25, 700, 6001, 11_990)), ("c", (60, 80, 84, 170)), ("b", (2000,)))
        for start in starts
        for length, alt in changes
    ]
    pairs = [(v, place(v, sign, WINDOW, genome.lengths[v.contig])) for v in variants for sign in "+-"]
    found = models.ratios(pairs, genome)
    expected = [by_whole_contigs(models.model_for(v.contig, v.start), genome, v, at) for v, at in pairs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.nanmax(np.abs(found)) > 1


def test_a_variant_is_scored_without_its_own_block(genome) -> None:
    models = fitted(genome)
    folds = [{contig: of[0] for contig, of in models.folds.items()}, models.block]
    assert models.block == 500 and folds[0]["a"] in (0, 1)
    for start in (250, 3250, 9999):
        block = start // 500 * 500
        changed = genome.contigs["a"][:block] + random_bases(500, start) + genome.contigs["a"][block + 500 :]
        others = fitted(FakeGenome(**genome.contigs | {"a": changed}))
        one, other = models.model_for("a", start), others.model_for("a", start)
        assert same(one, other) and one.prior_weight == other.prior_weight
        assert not all(map(same, models.models, others.models))


def test_folds_share_the_genome_evenly_and_are_bounded(monkeypatch) -> None:
    genome = FakeGenome(a=random_bases(60_000, 4))
    monkeypatch.setattr(variant_markov, "MOST_BASES", 9_000)
    models = fitted(genome)
    assert abs(int(np.concatenate(list(models.folds.values())).sum()) - 60) <= 1
    for model in models.models:
        # on both strands, less the ends of blocks and those that choose the prior weight
        assert 2 * 5_000 < model.trained_bases <= 2 * 9_000
        assert model.order == 6


def test_tiny_genomes_fall_back_to_what_they_can_count() -> None:
    small = FakeGenome(c=random_bases(3_000, 5))
    assert fitted(small).models[0].order == 5
    (ratio,) = fitted(small).ratios(
        [(v := Variant("c", 1500, small.fetch("c", 1500, 1501), ""), place(v, "+", 8, 3000))], small
    )
    assert abs(ratio) < 5
    # a single block has no other to be counted on
    single = FakeGenome(c=random_bases(300, 6))
    variant = Variant("c", 150, single.fetch("c", 150, 151), "A" if single.fetch("c", 150, 151) != "A" else "C")
    assert fitted(single).ratios([(variant, place(variant, "-", 8, 300))], single).tolist() == [0.0]
    # contigs that are shorter than the ends of a block
    assert fitted(FakeGenome(a=random_bases(3_000, 5), b="ACGT")).models[0].trained_bases > 1_000
    # copies alone are counted after all
    assert fitted(FakeGenome(chr1_alt=random_bases(3_000, 7))).models[0].trained_bases > 1_000


def test_counts_are_kept_for_the_same_genome(genome, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path))
    first = fitted(genome, "abc")
    (file,) = (tmp_path / "variant-markov").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(variant_markov, "count_both_strands", None)
        again = fitted(genome, "abc")
        with pytest.raises(TypeError):
            fitted(genome, "another")
    assert all(map(same, first.models, again.models))
    assert [model.prior_weight for model in first.models] == [model.prior_weight for model in again.models]
    file.write_bytes(file.read_bytes()[:1000])
    assert all(map(same, first.models, fitted(genome, "abc").models))
    fitted(genome)
    assert list((tmp_path / "variant-markov").iterdir()) == [file]
    monkeypatch.setenv("HYENA_CACHE", str(file / "within"))
    assert all(map(same, first.models, fitted(genome, "abc").models))
    assert "the Markov models are not kept for the next time" in capsys.readouterr().err
