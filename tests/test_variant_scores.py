"""Scores of variants against whole passes over both haplotypes, and what they must not depend on."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from checkpoints import small_model
from fake_genome import FakeGenome, random_bases, whole_passes
from hybrids import hybrid

from hyenadna import HyenaDNA
from hyenadna.data.alleles import Variant, normalized
from hyenadna.data.alphabet import BASES, reverse_complement
from hyenadna.errors import IntervalError, NotFiniteError, UsageError
from hyenadna.inference.trinucleotides import Background
from hyenadna.inference.variant_scores import VariantScorer
from hyenadna.model.hub import STARTER

SIGNS = {"forward": "+", "reverse": "-"}


def spelt(genome, contig, start, length, alt) -> Variant:
    return Variant(contig, start, genome.fetch(contig, start, start + length), alt)


def some_variants(genome, contig, places, longest) -> list[Variant]:
    """At each place an SNV, or by turns a change of several bases, an insertion or a deletion, that begin otherwise."""
    draw, found = np.random.default_rng(7), []
    for turn, start in enumerate(places):
        length, other = [(1, 1), (1, 1), (3, 2), (0, int(draw.integers(1, longest + 1))), (min(longest, 4), 0)][
            turn % 5
        ]
        length = min(length, genome.lengths[contig] - start)
        alt = "".join(draw.choice(list(BASES), other))
        own = genome.fetch(contig, start, start + length)
        if alt == own:
            alt = "".join(BASES[BASES.index(base) - 1] for base in alt)
        found.append(Variant(contig, start, own, alt))
    return found


def scorer_of(model, genome, *, batch_tokens=512, **options) -> VariantScorer:
    """A scorer of small batches, since batches are always filled up."""
    return VariantScorer(model, genome, batch_tokens=batch_tokens, **options)


def llrs(scorer, variants) -> np.ndarray:
    return np.array([score.llr for score in scorer.score(variants)])


@pytest.fixture(scope="module")
def starter():
    return HyenaDNA.from_pretrained(STARTER)


@pytest.mark.parametrize("pattern", ["HH", "L", "S", "HLS", "HS+remoe"])
@pytest.mark.parametrize("strand", ["forward", "reverse"])
def test_every_layer_gives_what_whole_passes_give(pattern, strand) -> None:
    genome = FakeGenome(a=random_bases(90, 1), b=random_bases(150, 2))
    model = hybrid(pattern).double()
    variants = some_variants(genome, "a", range(0, 90, 5), 8) + some_variants(genome, "b", range(60, 80, 4), 3)
    scorer = scorer_of(model, genome, window=32, strand=strand)
    for variant, score in zip(variants, scorer.score(variants), strict=True):
        if score.flags == ("SKIPPED",):
            assert variant.ref == variant.alt
            continue
        expected = whole_passes(model, genome, normalized(variant, genome), 32, SIGNS[strand])
        assert score.llr == pytest.approx(expected, abs=1e-9)


def test_many_steps_and_long_alleles_in_one_window() -> None:
    genome = FakeGenome(c=random_bases(1100, 3))
    model = small_model(layers="HLS", heads=2, kv_heads=2, d_model=8, d_inner=8, filter_length=514).double()
    variants = some_variants(genome, "c", range(380, 660, 29), 40)
    for strand, sign in SIGNS.items():
        scorer = scorer_of(model, genome, window=512, strand=strand)
        expected = [whole_passes(model, genome, normalized(variant, genome), 512, sign) for variant in variants]
        np.testing.assert_allclose(llrs(scorer, variants), expected, rtol=0, atol=1e-9)


def test_the_mean_of_both_strands() -> None:
    genome, model = FakeGenome(c=random_bases(120, 4)), hybrid("HL").double()
    variants = some_variants(genome, "c", range(40, 80, 4), 8)
    plus, minus, both = (
        llrs(scorer_of(model, genome, window=32, strand=strand), variants) for strand in ("forward", "reverse", "both")
    )
    np.testing.assert_allclose(both, (plus + minus) / 2, rtol=0, atol=1e-12)
    assert np.abs(plus - minus).max() > 0.1
    # the other strand of a genome whose windows lie alike is the reverse complement's own
    turned = FakeGenome(c=reverse_complement(genome.contigs["c"]))
    there = [Variant("c", 119 - p, reverse_complement(genome.fetch("c", p, p + 1)), "A") for p in range(40, 80)]
    here = [Variant("c", p, genome.fetch("c", p, p + 1), "T") for p in range(40, 80)]
    of_turned = llrs(scorer_of(model, turned, window=32, strand="forward"), there)
    np.testing.assert_allclose(
        llrs(scorer_of(model, genome, window=32, strand="reverse"), here), of_turned, rtol=0, atol=1e-9
    )


def test_the_starter_model_in_float32(starter) -> None:
    genome = FakeGenome(c=random_bases(3000, 5))
    variants = some_variants(genome, "c", [1300, 1530, 1610, 1700], 30)
    for strand, sign in SIGNS.items():
        found = llrs(scorer_of(starter, genome, strand=strand, batch_tokens=2048), variants)
        expected = [whole_passes(starter, genome, normalized(variant, genome), 1024, sign) for variant in variants]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("double", "bound"), [(False, 1e-5), (True, 1e-9)])
def test_scores_do_not_depend_on_what_is_scored_with_them(double, bound) -> None:
    genome = FakeGenome(a=random_bases(700, 6), b=random_bases(500, 7))
    model = small_model(layers="HL", heads=2, filter_length=258)
    model = model.double() if double else model
    variants = some_variants(genome, "a", range(0, 700, 83), 20) + some_variants(genome, "b", range(250, 310, 5), 3)
    all_at_once = llrs(scorer_of(model, genome, window=256), variants)
    assert not np.isnan(all_at_once).any()
    order = np.random.default_rng(0).permutation(len(variants))
    shuffled = llrs(scorer_of(model, genome, window=256), [variants[i] for i in order])
    np.testing.assert_allclose(shuffled, all_at_once[order], rtol=0, atol=bound)
    few = llrs(scorer_of(model, genome, window=256, batch_tokens=1), variants[::11])
    np.testing.assert_allclose(few, all_at_once[::11], rtol=0, atol=bound)
    alone = [llrs(scorer_of(model, genome, window=256, batch_tokens=1 << 12), [variants[i]])[0] for i in (0, 13, 20)]
    np.testing.assert_allclose(alone, all_at_once[[0, 13, 20]], rtol=0, atol=bound)


def test_spellings_of_one_change_score_identically() -> None:
    genome = FakeGenome(c=random_bases(60, 8) + "GGCACACACATT" + random_bases(60, 9))
    scorer = scorer_of(hybrid("HLS"), genome, window=32)
    deleted = [spelt(genome, "c", start, 3, genome.fetch("c", start, start + 1)) for start in range(61, 68)]
    deleted += [spelt(genome, "c", start, 2, "") for start in range(62, 69)] + [spelt(genome, "c", 60, 9, "GGCACAC")]
    scores = scorer.score(deleted)
    assert len(set(scores)) == 1 and scores[0].flags == ("INDEL",) and math.isnan(scores[0].percentile)
    base = genome.fetch("c", 70, 71)
    changed = [spelt(genome, "c", 70 - before, before + 1 + after, genome.fetch("c", 70 - before, 70) + "G"
               + genome.fetch("c", 71, 71 + after)) for before, after in product((0, 2, 5), (0, 1, 6))]  # fmt: skip
    assert base != "G" and len(set(scorer.score(changed))) == 1 and scorer.score(changed)[0].flags == ()


def test_flags_say_what_was_not_as_usual() -> None:
    bases = random_bases(200, 10)
    genome = FakeGenome(c=bases[:120] + "N" + bases[121:], d="ACGT")
    scorer = scorer_of(hybrid("HS"), genome, window=32)
    c = bases[60]
    other = "A" if c != "A" else "C"

    def flags(*variant):
        (score,) = scorer.score([Variant(*variant)])
        assert math.isnan(score.llr) == bool({"REF_MISMATCH", "SKIPPED", "TOO_LONG"} & set(score.flags))
        return score.flags

    assert flags("c", 60, c, other) == ()
    assert flags("c", 60, other, c) == ("REF_MISMATCH",)
    assert flags("c", 60, c, c + "G" * 8 + other) == ("INDEL", "TOO_LONG")
    assert flags("c", 60, c, c + "G" * 6 + other) == ("INDEL",)
    assert flags("c", 110, bases[110], "A" if bases[110] != "A" else "C") == ("HAS_N",)
    assert flags("c", 3, bases[3], "A" if bases[3] != "A" else "C") == ("NEAR_EDGE",)
    assert flags("d", 1, "C", "CCA") == ("NEAR_EDGE", "INDEL")
    assert flags("c", 120, "N", "A") == flags("c", 60, c, c) == flags("c", 60, c, "R") == ("SKIPPED",)
    assert flags("c", 199, bases[199] + "A", "C") == flags("c", -1, "A", "C") == ("REF_MISMATCH",)
    assert flags("x", 1, "A", "C") == ("SKIPPED",)
    assert scorer.score([]) == []


def test_an_n_is_scored_in_neither_haplotype() -> None:
    bases = random_bases(150, 11)
    genome, model = FakeGenome(c=bases[:75] + "NN" + bases[77:]), hybrid("HL").double()
    variants = [spelt(genome, "c", 70, 1, ""), spelt(genome, "c", 71, 0, "GAT"), spelt(genome, "c", 68, 3, "CC")]
    for strand, sign in SIGNS.items():
        found = llrs(scorer_of(model, genome, window=32, strand=strand), variants)
        expected = [whole_passes(model, genome, normalized(variant, genome), 32, sign) for variant in variants]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_a_reference_where_the_genome_has_n_is_taken_at_its_word() -> None:
    bases, model = random_bases(150, 12), hybrid("HS").double()
    genome, as_said = FakeGenome(c=bases[:70] + "N" + bases[71:]), FakeGenome(c=bases)
    alt = next(base for base in BASES if base != bases[70])
    mixed = [Variant("c", 70, bases[70], alt), Variant("c", 75, bases[75], "A" if bases[75] != "A" else "C")]
    mixed.append(Variant("c", 81, bases[81], ""))
    found = scorer_of(model, genome, window=32).score(mixed)
    (expected,) = scorer_of(model, as_said, window=32).score(mixed[:1])
    assert found[0].llr == pytest.approx(expected.llr, abs=1e-9) and found[0].flags == ("HAS_N",)
    alone = scorer_of(model, genome, window=32).score(mixed[1:])
    assert [score.llr for score in found[1:]] == pytest.approx([score.llr for score in alone], abs=1e-9)
    assert [score.flags for score in found[1:]] == [("HAS_N",), ("HAS_N", "INDEL")]


def tokens_read(monkeypatch, scorer, variants) -> int:
    read = [0]
    forward, extend = HyenaDNA.forward, HyenaDNA.extend

    def watched_forward(self, tokens, **options):
        read[0] += tokens.numel()
        return forward(self, tokens, **options)

    def watched_extend(self, tokens, *more, **options):
        read[0] += tokens.numel()
        return extend(self, tokens, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HyenaDNA, "forward", watched_forward)
        patch.setattr(HyenaDNA, "extend", watched_extend)
        scorer.score(variants)
    return read[0]


def test_what_is_read_of_many_variants_and_of_few(monkeypatch) -> None:
    genome = FakeGenome(c=random_bases(20_000, 13))
    model = small_model(layers="H", d_model=2, d_inner=2, filter_order=2, filter_length=1026)
    scorer = scorer_of(model, genome, strand="forward", batch_tokens=None)
    dense = [
        Variant("c", p, own, alt) for p in range(2560, 2688) if (own := genome.fetch("c", p, p + 1)) for alt in "ACGT"
    ]
    dense = [variant for variant in dense if variant.ref != variant.alt]
    read = tokens_read(monkeypatch, scorer, dense)
    assert 5 * read < len(dense) * 2 * 1024
    assert tokens_read(monkeypatch, scorer, dense[:15] * 2) == tokens_read(monkeypatch, scorer, dense[:15])
    sparse = [spelt(genome, "c", p, 1, "") for p in range(2600, 19_000, 1025)]
    assert tokens_read(monkeypatch, scorer, sparse) < 0.75 * len(sparse) * 2 * 1024
    # alleles of one place share their reference
    assert tokens_read(monkeypatch, scorer, dense[:15]) == tokens_read(monkeypatch, scorer, dense[:1])


def test_saturation_gives_the_numbers_of_score() -> None:
    bases = random_bases(100, 14)
    genome = FakeGenome(c=bases[:50] + "N" + bases[51:])
    scorer = scorer_of(hybrid("HS"), genome, window=32)
    found = scorer.saturation("c", 41, 67)
    for p, alt in product((41, 48, 50, 55, 56, 66), BASES):
        own = genome.fetch("c", p, p + 1)
        value = found[p - 41, BASES.index(alt)]
        if own == "N":
            assert math.isnan(value)
        else:
            expected = 0.0 if own == alt else scorer.score([Variant("c", p, own, alt)])[0].llr
            assert value == pytest.approx(expected, abs=1e-5)
    with pytest.raises(IntervalError, match="there is no contig 'x'"):
        scorer.saturation("x", 0, 1)
    for start, end in ((5, 5), (-1, 2), (90, 101)):
        with pytest.raises(IntervalError, match=f"c:{start}-{end} .* is empty or leaves its contig, which has 100"):
            scorer.saturation("c", start, end)


def test_percentiles_are_of_snvs_alone() -> None:
    genome = FakeGenome(c="ACGT" * 30)
    background = Background({"ACG>T": np.arange(-50.0, 50.0)}, folded=True, where="")
    scorer = scorer_of(hybrid("H"), genome, window=32, background=background)
    one, same, other, longer = scorer.score(
        [
            Variant("c", 61, "C", "T"),
            Variant("c", 61, "CG", "TG"),
            Variant("c", 61, "C", "A"),
            Variant("c", 61, "C", ""),
        ]
    )
    assert one == same and one.percentile == background.percentile("ACG>T", one.llr) and 0 < one.percentile < 100
    assert math.isnan(other.percentile) and math.isnan(longer.percentile) and math.isnan(one.markov)


def test_what_cannot_be_scored_with_is_refused() -> None:
    genome = FakeGenome(c=random_bases(100, 15))
    with pytest.raises(UsageError, match="a window of 52 bases was asked for; this model reads up to 46: the largest"):
        scorer_of(hybrid("H"), genome, window=52)
    broken = hybrid("H")
    with torch.no_grad():
        broken.backbone.ln_f.weight[0] = math.nan
    with pytest.raises(NotFiniteError, match="not numbers in a sequence of"):
        scorer_of(broken, genome, window=32).score([spelt(genome, "c", 50, 1, "")])
