"""The sets of the variant benchmark: what is read, what is drawn at random beside it, and open reading frames."""

import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import BENCHMARKS

from hyenadna.data.alleles import Variant, normalized
from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.errors import InputError


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("variant_sets")


@pytest.fixture
def matching(sets):
    return importlib.import_module("variant_matching")


def genome(bases):
    """As Sequences is, from letters."""
    letters = np.frombuffer(bases.encode(), dtype=np.uint8)
    return SimpleNamespace(
        letters={"1": letters}, lengths={"1": len(bases)}, fetch=lambda contig, start, end: bases[start:end]
    )


def haplotype(bases, variant):
    return bases[: variant.start] + variant.alt + bases[variant.start + len(variant.ref) :]


def repetitive(random, n):
    """Bases of which many stand in short tandem repeats."""
    bases = ""
    while len(bases) < n:
        unit = "".join(random.choice(list("ACGT"), random.integers(1, 5)))
        bases += unit * int(random.integers(1, 7))
    return bases[:n]


def test_classes_of_mutation(sets) -> None:
    for before in "ACGT":
        for base in "ACGT":
            for after in "ACGT":
                for becomes in set("ACGT") - {base}:
                    found = sets.mutation(before, base, after, becomes)
                    # the other strand sees the same change
                    turned = [reverse_complement(one) for one in (after, base, before, becomes)]
                    assert sets.mutation(*turned) == found
                    is_transition = {base, becomes} in ({"A", "G"}, {"C", "T"})
                    assert (found == sets.TRANSVERSION) != is_transition
                    if base == "C" and becomes == "T":
                        assert (found == sets.CPG) == (after == "G")
    source = genome("TACGT")
    # a CpG that became TpG is, the other way round, no transition of a CpG
    variants = [Variant("1", 2, "C", "T")] * 2
    assert sets.mutations(variants, source, np.array([False, True])) == [sets.CPG, sets.TRANSITION]


def test_slack_is_how_far_it_can_be_moved(matching) -> None:
    random = np.random.default_rng(3)
    bases = repetitive(random, 400)
    source = genome(bases)
    seen = set()
    for _ in range(300):
        start, length = int(random.integers(20, 300)), int(random.integers(1, 6))
        unit = bases[start : start + length]
        made = "".join(random.choice(list("ACGT"), length)) if random.random() < 0.5 else unit
        variant = Variant("1", start, "", made) if random.random() < 0.5 else Variant("1", start, unit, "")
        variant = normalized(variant, source)
        whole, length = haplotype(bases, variant), max(len(variant.ref), len(variant.alt))
        moved = 0
        while variant.start + moved + length < 400:
            place = variant.start + moved + 1
            again = Variant("1", place, bases[place : place + length], "")
            if variant.alt:
                again = Variant("1", place, "", whole[place : place + length])
            if haplotype(bases, again) != whole:
                break
            moved += 1
        assert matching.slack(variant, source) == moved
        seen.add(min(moved, 8))
    assert seen >= set(range(5))


@pytest.fixture
def drawn(matching, monkeypatch):
    """A matcher with real variants of many kinds, in a stretch with an N."""
    monkeypatch.setattr(matching, "FAR_FROM_N", 10)
    random = np.random.default_rng(8)
    bases = repetitive(random, 8_000)
    bases = bases[:3_000] + "N" * 50 + bases[3_050:]
    source = genome(bases)
    real = []
    for start in range(200, 6_800, 130):
        unit = bases[start : start + 1 + start % 3]
        insertion = unit if start % 4 else "".join(random.choice(list("ACGT"), 1 + start % 5))
        real.append(Variant("1", start, "", insertion) if start % 2 else Variant("1", start, unit, ""))
    real = [normalized(variant, source) for variant in real if "N" not in variant.ref + variant.alt]
    return bases, source, real, matching.Matcher(source, Interval("1", 100, 6_900), real)


def test_random_ones_match_the_real_ones(matching, drawn) -> None:
    bases, source, real, matcher = drawn
    found = matcher.matched(5, seed=1)
    apart = []
    for variant, number, slack in zip(found.variants, found.of, found.slack, strict=True):
        own = real[number]
        assert normalized(variant, source) == variant and variant not in real
        assert len(variant.ref) == len(own.ref) and len(variant.alt) == len(own.alt)
        assert variant.ref == bases[variant.start : variant.start + len(variant.ref)]
        assert "N" not in bases[variant.start - 10 : variant.start + len(variant.ref + variant.alt) + 10]
        assert 100 <= variant.start < 6_900
        apart.append(abs(int(slack) - matching.slack(own, source)))
    assert np.bincount(found.of, minlength=len(real)).tolist() == [5] * len(real)
    assert np.mean(np.array(apart) == 0) > 0.9
    assert len(set(found.variants)) > 0.8 * len(found.variants)


def test_random_ones_are_seeded_and_depend_on_no_other(drawn) -> None:
    _, _, _, matcher = drawn
    once, again, other = (matcher.matched(2, seed=seed) for seed in (1, 1, 2))
    assert once.variants == again.variants != other.variants
    matcher.real = matcher.real[:7]
    assert matcher.matched(2, seed=1).variants == once.variants[:14]


def test_open_reading_frames(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    frames = importlib.import_module("variant_reading_frames")
    random = np.random.default_rng(0)
    bases = "".join(random.choice(list("ACGT"), 6_000))
    expected = []
    for strand, text in (("+", bases), ("-", reverse_complement(bases))):
        for first in range(3):
            begin = None
            for i in range(first, len(text) - 2, 3):
                codon = text[i : i + 3]
                begin = i if codon == "ATG" and begin is None else begin
                if codon in ("TAA", "TAG", "TGA"):
                    if begin is not None and i + 3 - begin >= 60:
                        span = (begin, i + 3) if strand == "+" else (len(text) - i - 3, len(text) - begin)
                        expected.append((*span, strand))
                    begin = None
    letters = np.frombuffer(bases.encode(), dtype=np.uint8)
    found = frames.reading_frames(letters, 60)
    assert found and {tuple(frame) for frame in found} <= set(expected)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    for start, end, _ in expected:  # each that is left out is in the shadow of one as long
        assert any(f.start < end and start < f.end and f.end - f.start >= end - start for f in found)
    for frame in found:
        text = frame.letters(letters, 12)
        assert text is None or text.tobytes()[12:15] == b"ATG"
        assert text is None or text.tobytes()[-3:] in (b"TAA", b"TAG", b"TGA")


def test_brca1(sets, shared) -> None:
    source = sets.Sequences(shared / "data" / sets.BRCA1_GENOME)
    table = sets.brca1(shared / "data", source)
    assert len(table.variants) == 3_893 and len(set(table.positions.tolist())) == 1_326
    assert {name: int((table.outcome == name).sum()) for name in ("FUNC", "LOF", "INT")} == {
        "FUNC": 2_821, "LOF": 823, "INT": 249
    }  # fmt: skip
    assert {name: int(rows.sum()) for name, rows in table.strata().items()} == {
        "all": 3_893, "missense": 2_086, "splice region": 446, "all but nonsense and canonical splice": 3_612,
    }  # fmt: skip
    # the published ones are within what the data's own description gives for consequence, phyloP and CADD
    statistics = importlib.import_module("variant_statistics")
    both = table.outcome != "INT"
    for score, area in ((table.severity, 0.773), (table.phylop, 0.793), (table.cadd, 0.817)):
        found = statistics.auroc(table.outcome[both] == "LOF", score[both])(np.ones((1, int(both.sum()))))[0]
        assert found == pytest.approx(area, abs=0.015)


def test_thousand_genomes(sets, shared) -> None:
    source = sets.Sequences(shared / "data" / sets.CHR22)
    snvs, indels = sets.thousand_genomes(shared / "data", source)
    # 6,653 lie where the genome is known; in 68 nobody in the sample has the alternative allele, in one all have it
    assert (len(snvs.variants), len(indels.variants)) == (6_653 - 68 - 1, 237)
    sets.check_references(snvs.variants, source)
    sets.check_references(indels.variants, source)
    assert all(not ref or not alt for _, _, ref, alt in indels.variants)
    assert ((snvs.frequency > 0) & (snvs.frequency < 1)).all() and (snvs.frequency >= sets.COMMON).sum() == 1_404 - 1
    assert (snvs.ancestral == "alt").sum() > 500


def test_references_are_checked(sets) -> None:
    source = genome("ACGT")
    sets.check_references([Variant("1", 1, "C", "T")], source)
    with pytest.raises(InputError, match="base 2 from 0: the reference is A, the genome holds G"):
        sets.check_references([Variant("1", 2, "A", "T")], source)
