"""Alleles against whole haplotypes, and against bcftools norm."""

import random
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hyenadna.data.alleles import Variant, normalized, trimmed


class Bases:
    """A genome of one contig that counts what is fetched."""

    def __init__(self, bases):
        self.bases, self.lengths, self.fetched, self.calls = bases, {"1": len(bases)}, 0, 0

    def fetch(self, contig, start, end):
        assert contig == "1" and 0 <= start <= end <= len(self.bases)
        self.fetched, self.calls = self.fetched + end - start, self.calls + 1
        return self.bases[start:end]


def changed(bases, variant):
    """The haplotype with the variant's alternative allele."""
    assert bases[variant.start :].startswith(variant.ref)
    return bases[: variant.start] + variant.alt + bases[variant.start + len(variant.ref) :]


def shared_ends(a, b):
    """Lengths of the longest common prefix and suffix, letter by letter."""
    prefix = suffix = 0
    while prefix < min(len(a), len(b)) and a[prefix] == b[prefix]:
        prefix += 1
    while suffix < min(len(a), len(b)) and a[len(a) - 1 - suffix] == b[len(b) - 1 - suffix]:
        suffix += 1
    return prefix, suffix


def canonical(bases, haplotype):
    """The leftmost shortest difference: the common suffix of the whole haplotypes goes, then the common prefix."""
    suffix = shared_ends(bases, haplotype)[1]
    ref, alt = bases[: len(bases) - suffix], haplotype[: len(haplotype) - suffix]
    prefix = shared_ends(ref, alt)[0]
    return Variant("1", prefix, ref[prefix:], alt[prefix:])


@st.composite
def edits(draw):
    """A genome, a haplotype that differs from it at one place, and two spellings of the difference."""
    letters = draw(st.sampled_from(["A", "AC", "ACGT"]))
    unit = draw(st.text(letters, min_size=1, max_size=5))
    bases = draw(st.text(letters, max_size=30)) + unit * draw(st.integers(0, 40)) + draw(st.text(letters, max_size=30))
    start = draw(st.integers(0, len(bases)))
    end = draw(st.integers(start, min(len(bases), start + 12)))
    alt = draw(st.one_of(st.text(letters, max_size=12), st.just(bases[start:end] + unit)))
    haplotype = bases[:start] + alt + bases[end:]
    assume(haplotype != bases)
    prefix, suffix = shared_ends(bases, haplotype)
    shorter = min(len(bases), len(haplotype))
    spellings = []
    for _ in range(2):
        left = draw(st.integers(0, prefix))
        right = draw(st.integers(0, min(suffix, shorter - left)))
        spellings.append(Variant("1", left, bases[left : len(bases) - right], haplotype[left : len(haplotype) - right]))
    return bases, haplotype, spellings


@given(edits())
def test_all_spellings_become_one_that_makes_the_same_haplotype(edit):
    bases, haplotype, spellings = edit
    for spelling in spellings:
        assert changed(bases, spelling) == haplotype
        found = normalized(spelling, Bases(bases))
        assert changed(bases, found) == haplotype
        assert found == canonical(bases, haplotype)
        assert normalized(found, Bases(bases)) == found


@given(edits())
def test_trimming_keeps_the_haplotype_and_the_difference_in_length(edit):
    bases, haplotype, spellings = edit
    for spelling in spellings:
        found = trimmed(spelling)
        assert changed(bases, found) == haplotype
        assert not (found.ref and found.alt) or (found.ref[0] != found.alt[0] and found.ref[-1] != found.alt[-1])


@pytest.mark.parametrize(
    "variant, expected",
    [
        (Variant("1", 4, "A", "C"), Variant("1", 4, "A", "C")),
        (Variant("1", 4, "ACG", "ACG"), Variant("1", 4, "", "")),
        (Variant("1", 4, "CTT", "CT"), Variant("1", 5, "T", "")),
        (Variant("1", 4, "GAT", "CAT"), Variant("1", 4, "G", "C")),
        (Variant("1", 4, "AC", "AGTC"), Variant("1", 5, "", "GT")),
    ],
)
def test_trimmed(variant, expected):
    assert trimmed(variant) == expected


def test_nothing_moves_past_the_start_of_the_contig():
    genome = Bases("AAAAAC")
    assert normalized(Variant("1", 4, "A", ""), genome) == Variant("1", 0, "A", "")
    assert normalized(Variant("1", 5, "", "AA"), genome) == Variant("1", 0, "", "AA")
    assert normalized(Variant("1", 0, "", "A"), genome) == Variant("1", 0, "", "A")


def test_a_repeat_stops_at_an_n():
    assert normalized(Variant("1", 5, "A", ""), Bases("AANAAAC")) == Variant("1", 3, "A", "")


@pytest.mark.parametrize("unit", ["A", "CAG", "ACGTTGCATG"])
def test_a_long_repeat_is_read_once(unit):
    genome = Bases("T" + unit * (300_000 // len(unit)) + "T")
    end = len(genome.bases) - 1
    found = normalized(Variant("1", end - len(unit), unit, ""), genome)
    assert (found.start, len(found.ref)) == (1, len(unit))
    assert genome.fetched <= len(genome.bases) and genome.calls < 20


def test_an_allele_longer_than_the_stretches():
    random.seed(1)
    inserted = "".join(random.choices("ACGT", k=100_000))
    bases = "".join(random.choices("ACGT", k=500))
    genome = Bases(bases + "TTTTT" + bases)
    assert normalized(Variant("1", 504, "T", "T" + inserted), genome) == canonical(
        genome.bases, genome.bases[:505] + inserted + genome.bases[505:]
    )


@pytest.mark.skipif(shutil.which("bcftools") is None, reason="bcftools is not installed")
def test_the_same_as_bcftools_norm(tmp_path):
    random.seed(2)
    bases = "".join(random.choice("ACGT") + random.choice(["", "A" * 9, "CA" * 5]) for _ in range(400))
    (tmp_path / "a.fa").write_text(f">1\n{bases}\n")
    lines = ["##fileformat=VCFv4.2", f"##contig=<ID=1,length={len(bases)}>", "#CHROM POS ID REF ALT QUAL FILTER INFO"]
    for n in range(600):
        start = random.randrange(1, len(bases) - 20)
        ref = bases[start : start + random.choice([1, 2, 3, 6])]
        alt = random.choice([ref[0], ref + ref[-1] * 2, ref + ref, ref[0] + random.choice("ACGT"), ref[-1]])
        if alt != ref:
            lines.append(f"1 {start + 1} v{n} {ref} {alt} . . .")
    (tmp_path / "a.vcf").write_text("\n".join(lines).replace(" ", "\t") + "\n")
    command = ["bcftools", "norm", "--no-version", "-f", "a.fa", "a.vcf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    theirs = {}
    for line in done.stdout.splitlines():
        if not line.startswith("#"):
            _, position, name, ref, alt, *_ = line.split("\t")
            theirs[name] = trimmed(Variant("1", int(position) - 1, ref, alt))
    genome = SimpleNamespace(lengths={"1": len(bases)}, fetch=lambda contig, start, end: bases[start:end])
    ours = {}
    for line in lines[3:]:
        _, position, name, ref, alt, *_ = line.split()
        ours[name] = normalized(Variant("1", int(position) - 1, ref, alt), genome)
    assert len(ours) > 500 and ours == theirs
