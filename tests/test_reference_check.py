"""Whether a VCF speaks of the genome: names, lengths and REFs, each verdict against what was put in."""

import itertools
import random
import shutil

import pytest
from Bio import bgzf
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.alleles import Variant
from hyenadna.data.reference_check import ContigNames, Genome, checked, reference_verdict
from hyenadna.data.vcf import Record, Vcf
from hyenadna.errors import InputError, IntervalError

random.seed(5)
BASES = {"chr1": "".join(random.choices("ACGT", k=200_000)), "chrM": "acgtunrn" * 40, "2": "ACGT" * 10}


def fasta(folder, bases=BASES, name="ref.fa"):
    text = "".join(
        f">{contig} told\n" + "".join(f"{line[n : n + 60]}\n" for line in [sequence] for n in range(0, len(line), 60))
        for contig, sequence in bases.items()
    ).encode()
    if name.endswith(".gz"):
        with bgzf.BgzfWriter(str(folder / name), "wb") as file:
            file.write(text)
    else:
        (folder / name).write_bytes(text)
    return folder / name


@pytest.fixture(scope="module", params=["ref.fa", "ref.fa.gz"])
def genome(request, tmp_path_factory):
    return Genome(fasta(tmp_path_factory.mktemp("genome"), name=request.param))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(list(BASES)), st.integers(0, 200_000), st.integers(0, 200_000)), max_size=8))
def test_what_is_fetched(genome, places):
    for contig, start, end in places:
        start, end = sorted(min(place, len(BASES[contig])) for place in (start, end))
        for stop in (end, min(end, start + 30)):
            assert genome.fetch(contig, start, stop) == BASES[contig][start:stop].upper().replace("U", "T")


def test_variants_in_order_cost_few_reads(genome, monkeypatch):
    reads, read = [], genome._read
    monkeypatch.setattr(genome, "_read", lambda *place: reads.append(place) or read(*place))
    for start in range(1000, 199_000, 100):
        genome.fetch("chr1", start, start + 1)
        genome.fetch("chr1", start - 512, start + 256)
    assert len(reads) <= 5


def test_the_stretch_must_be_within_the_contig(genome):
    assert genome.lengths == {contig: len(bases) for contig, bases in BASES.items()}
    with pytest.raises(IntervalError, match=r"2:31-41 is not within 2, which has 40 bases"):
        genome.fetch("2", 30, 41)
    with pytest.raises(IntervalError, match=r"there is no contig '1' in the genome; it calls that one 'chr1'"):
        genome.fetch("1", 30, 41)


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    first = Genome(fasta(tmp_path)).fingerprint
    (tmp_path / "copy").mkdir()
    assert Genome(shutil.copy(tmp_path / "ref.fa", tmp_path / "copy" / "other.fa")).fingerprint == first
    others = [
        {**BASES, "2": "ACGT" * 9 + "ACGA"},
        {name.upper(): bases for name, bases in BASES.items()},
        dict(reversed(BASES.items())),
    ]
    prints = {Genome(fasta(tmp_path, bases, f"{n}.fa")).fingerprint for n, bases in enumerate(others)}
    assert len(prints | {first}) == 4


@pytest.mark.parametrize(
    "contig, start, ref, expected",
    [
        ("2", 0, "ACGTA", "match"),
        ("2", 4, "", "match"),
        ("2", 0, "ACGTC", "mismatch"),
        ("2", 39, "T", "match"),
        ("2", 39, "TA", "outside"),
        ("2", 99, "A", "outside"),
        ("2", -1, "A", "outside"),
        ("3", 0, "A", "outside"),
        ("chrM", 0, "ACGTT", "match"),
        ("chrM", 4, "TA", "unknown"),
        ("chrM", 3, "TTN", "unknown"),
        ("chrM", 3, "AAA", "mismatch"),
        ("2", 0, "N", "unknown"),
    ],
)
def test_verdict(genome, contig, start, ref, expected):
    assert reference_verdict(Variant(contig, start, ref, ""), genome) == expected


HUMAN = {"1": 100, "MT": 16_569, "X": 50}


@pytest.mark.parametrize(
    "vcf, wanted, found, reason",
    [
        ({}, "1", "1", None),
        ({}, "chr1", "1", None),
        ({}, "chrX", "X", None),
        ({}, "chr9", None, "not in the FASTA"),
        ({}, "MT", "MT", None),
        ({"MT": 16_569}, "MT", "MT", None),
        ({"chrM": 16_569}, "chrM", "MT", None),
        ({"MT": 16_571}, "MT", None, r"16,571 bases in the VCF's header, the FASTA has MT of 16,569 bases"),
        ({"chrM": 16_571}, "chrM", None, r"16,571 bases in the VCF's header, the FASTA has MT of 16,569 bases"),
        ({"chrM": None}, "chrM", None, r"no length in the VCF's header, the FASTA has MT of 16,569 bases"),
    ],
)
def test_names(vcf, wanted, found, reason):
    names = ContigNames(vcf, HUMAN)
    assert names.get(wanted) == found
    assert names.missing == ({} if reason is None else {wanted: reason})


def test_names_the_other_way_and_without_a_mitochondrion():
    assert ContigNames({}, {"chr1": 5, "1": 6}).get("1") == "1"
    assert ContigNames({}, {"chr1": 5}).get("1") == "chr1"
    assert ContigNames({}, {"chr1": 5}).match("MT") == (None, "not in the FASTA")
    assert ContigNames({"M": 9}, {"MT": 8, "chrM": 9}).get("M") == "chrM"


def test_notices_of_names_come_once(capsys):
    names = ContigNames({"chrM": 7}, HUMAN)
    for name in ("chr1", "chrX", "chr1", "chr9", "chrM", "chr8", "chr9"):
        names.get(name)
    names.report_missing()
    assert capsys.readouterr().err.splitlines() == [
        "the contig chr1 of the VCF is 1 in the FASTA; others are matched in the same way",
        "contigs of the VCF that the FASTA does not have, their records are not scored: chr9, "
        "chrM (7 bases in the VCF's header, the FASTA has MT of 16,569 bases), chr8",
    ]
    names = ContigNames({}, HUMAN)
    names.get("1")
    names.report_missing()
    assert capsys.readouterr().err == ""


def vcf_of(records, *header):
    return Vcf("a.vcf", (*header, b"#CHROM\n"), iter(records))


def record(contig, start, ref, alt="T"):
    return Record(b"line", b"\n", contig, start, ref, (alt,), start + 2)


def right(count):
    return [record("1", start, BASES["chr1"][start].lower()) for start in range(count)]


def wrong(count, start=0):
    return [record("1", place, "ACGT"["CGTA".index(BASES["chr1"][place])]) for place in range(start, start + count)]


def test_all_records_come_and_the_first_are_compared(genome, capsys):
    others = [("chrUn", 3, "A"), ("1", -1, "N"), ("chrM", 5, "A"), ("1", 4, "R" + BASES["chr1"][5])]
    records = [*right(150), *(record(*other) for other in others)]
    found = checked(vcf_of(records, b"##contig=<ID=1,length=200000>"), genome)
    assert (found.matches, found.mismatches, found.unknown) == (150, 0, 2)
    assert list(found.records) == records
    assert found.names.get("1") == "chr1" and not found.names.missing
    assert capsys.readouterr().err.count("\n") == 1  # of chr1 and 1


def test_no_more_than_the_first_are_read(genome):
    records = iter(right(10_000) + wrong(10_000, 10_000))
    found = checked(Vcf("-", (b"#CHROM\n",), records), genome)
    assert (found.matches, found.mismatches) == (10_000, 0)
    assert len(list(itertools.islice(records, 5))) == 5


def test_memory_is_bounded(genome, monkeypatch):
    monkeypatch.setattr("hyenadna.data.reference_check._FIRST_BYTES", 40)
    assert checked(vcf_of(right(100)), genome).matches == 10


def test_a_tenth_is_borne_and_more_is_not(genome, capsys):
    found = checked(vcf_of(right(90) + wrong(10)), genome)
    assert (found.matches, found.mismatches) == (90, 10)
    given, held = wrong(1)[0].ref, BASES["chr1"][0]
    told = (
        f"of the first 100 REF alleles of a.vcf are not what {genome.path.name} holds (1:1 has REF {given}, the FASTA "
    )
    assert capsys.readouterr().err == f"10 {told}{held})\n"
    with pytest.raises(InputError) as caught:
        checked(vcf_of(right(89) + wrong(11)), genome)
    assert str(caught.value).startswith(f"11 {told}{held}); the genome build is probably another: give the FASTA")


def test_places_off_the_contig_are_mismatches(genome):
    beyond = [record("chr1", start, "A") for start in (200_000, 200_001, 10**17)]
    with pytest.raises(
        InputError, match=r"3 of the first 4 .*\(chr1:200,001 is off the end of chr1, which has 200,000"
    ):
        checked(vcf_of([record("chr1", 199_999, BASES["chr1"][-1]), *beyond]), genome)


def test_a_long_allele_is_told_by_its_first_difference(genome):
    ref = list(BASES["chr1"][:50])
    ref[30] = "ACGT"["CGTA".index(ref[30])]
    told = rf"1:1 has {ref[30]} at base 31 of its REF, the FASTA {BASES['chr1'][30]}"
    with pytest.raises(InputError, match=told):
        checked(vcf_of([record("1", 0, "".join(ref))] * 3), genome)
    # a letter that is two in upper case, and a difference behind it
    last = wrong(1, 49)[0].ref
    odd = BASES["chr1"][:10] + "\u00df" + BASES["chr1"][12:49] + last
    with pytest.raises(InputError, match=rf"1:1 has {last} at base 50 of its REF, the FASTA {BASES['chr1'][49]}"):
        checked(vcf_of([record("1", 0, odd)] * 3), genome)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_of_a_few_are_no_other_build(genome, capsys, count):
    found = checked(vcf_of(right(3) + wrong(count)), genome)
    assert (found.matches, found.mismatches) == (3, count)
    assert capsys.readouterr().err.endswith("); too few to tell, but the genome build may be another\n")
    with pytest.raises(InputError, match=r"^3 of the first 6 .*the genome build is probably another"):
        checked(vcf_of(right(3) + wrong(3)), genome)


def test_another_length_is_another_build(genome):
    header = b"##contig=<ID=1,length=249250621>\n"
    told = (
        r"1 has 249,250,621 bases by the header of a\.vcf, but chr1 has 200,000 in ref\.fa.*; the genome build is prob"
        r".*the FASTA holds only the beginning of the contig, correct the length in the header: bcftools reheader"
    )
    with pytest.raises(InputError, match=told):
        checked(vcf_of(right(5), header), genome)


def test_another_mitochondrion_is_only_left_out(genome):
    found = checked(vcf_of(right(5), b"##contig=<ID=chrM,length=16571>\n"), genome)
    assert found.names.get("chrM") is None


def test_no_contig_in_common(genome):
    told = r"no contig of a\.vcf is in ref\.fa.*: the VCF has 7, 8, the FASTA has chr1, chrM, 2; give the FASTA"
    with pytest.raises(InputError, match=told):
        checked(vcf_of([record("8", 4, "A")], b"##contig=<ID=7>"), genome)


def test_nothing_to_compare(genome, capsys):
    checked(vcf_of([record("7", 4, "A")], b"##contig=<ID=1>"), genome)
    assert capsys.readouterr().err == (f"none of the first 1 REF alleles could be compared with {genome.path.name}\n")
    assert list(checked(vcf_of([]), genome).records) == []
    assert capsys.readouterr().err == ""
