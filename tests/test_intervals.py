"""Interval sets against sets of positions, BED files against what was written, and contigs of real assemblies."""

import gzip
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.intervals import (
    Interval,
    Region,
    check_contig,
    kept_contigs,
    merge,
    parse_region,
    read_bed,
    subtract,
)
from hyenadna.errors import InputError, IntervalError, UsageError

LENGTHS = {"chr1": 100, "chr2": 50, "chrM": 16}
interval = st.builds(
    lambda contig, start, length: Interval(contig, start, start + length),
    st.sampled_from("ab"),
    st.integers(0, 40),
    st.integers(1, 15),
)


def positions(intervals):
    return {(i.contig, position) for i in intervals for position in range(i.start, i.end)}


def test_interval():
    assert len(Interval("1", 5, 9)) == 4
    assert str(Interval("1", 0, 1_000_000)) == "1:1-1,000,000"


@given(st.lists(interval))
def test_merge_is_the_union(intervals):
    merged = merge(intervals)
    assert positions(merged) == positions(intervals)
    assert merged == sorted(merged)
    for before, after in itertools.pairwise(merged):
        assert before.contig != after.contig or before.end < after.start


@given(interval, st.lists(interval))
def test_subtract_is_the_difference(whole, holes):
    remaining = subtract(whole, holes)
    assert positions(remaining) == positions([whole]) - positions(holes)
    assert remaining == sorted(remaining) and all(map(len, remaining))


@given(
    st.lists(
        st.tuples(st.sampled_from(["chr1", "chr2"]), st.integers(0, 48), st.integers(1, 2), st.text("abc", max_size=3)),
        min_size=1,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_bed_round_trip(tmp_path_factory, rows, end, gzipped):
    lines = ["# comment", "track name=x", "browser position chr1", ""]
    lines += [
        f"{contig}\t{start}\t{start + n}" + (f"\t{name}\t0\t+" if name else "") for contig, start, n, name in rows
    ]
    path = tmp_path_factory.mktemp("bed") / "a.bed"
    data = end.join(lines).encode()
    path.write_bytes(gzip.compress(data) if gzipped else data)
    expected = [
        Region(Interval(contig, start, start + n), name, "+" if name else "") for contig, start, n, name in rows
    ]
    assert read_bed(path, LENGTHS) == expected


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.lists(
                st.one_of(
                    st.sampled_from([b"chr1", b"track", b"#", b"", b"+", b" "]),
                    st.integers(-2, 120).map(b"%d".__mod__),
                    st.sampled_from(["1_0", "\u0663", "9" * 5000, "1e1", "\xa05"]).map(str.encode),
                ),
                max_size=7,
            ).map(b"\t".join),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_bytes_are_regions_or_an_interval_error(tmp_path_factory, lines, gzipped):
    path = tmp_path_factory.mktemp("bed") / "a.bed"
    text = b"\n".join(lines)
    path.write_bytes(gzip.compress(text) if gzipped else text)
    try:
        regions = read_bed(path, LENGTHS)
    except IntervalError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    for region in regions:
        contig, start, end = region.interval.contig, region.interval.start, region.interval.end
        assert 0 <= start < end <= LENGTHS[contig]
        assert f"{start}".encode() in text and f"{end}".encode() in text


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_any_file_is_a_bed_file_or_an_interval_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bed") / "a.bed"
    for start in (b"", b"\x1f\x8b"):
        path.write_bytes(start + data)
        with pytest.raises(IntervalError):
            read_bed(path, LENGTHS)


@given(interval)
def test_a_region_is_what_an_interval_is_written_as(given):
    assert parse_region(str(given)) == given
    assert parse_region(f"HLA-A*01:01:{given.start + 1}-{given.end}") == Interval("HLA-A*01:01", given.start, given.end)


def test_a_contig_alone_is_all_of_it():
    assert parse_region("chr20") == Interval("chr20", 0, 2**31 - 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("chr1:5", r"'chr1:5' is no region; a region is contig:first-last, counted from 1"),
        ("chr1:5-", r"'chr1:5-' is no region"),
        ("chr1:-5-9", r"'chr1:-5-9' is no region"),
        (":5-9", r"':5-9' is no region"),
        ("chr 1:5-9", r"'chr 1:5-9' is no region"),
        ("", r"'' is no region"),
        ("chr1:" + "9" * 5000 + "-5", r"is no region"),
        ("chr1:0-5", r"'chr1:0-5' begins at 0 and ends at 5; a region is contig:first-last"),
        ("chr1:1,000-999", r"begins at 1000 and ends at 999"),
    ],
)
def test_what_is_no_region(text, message):
    with pytest.raises(UsageError, match=message):
        parse_region(text)


def test_bed_with_spaces(tmp_path):
    (tmp_path / "a.bed").write_text("chr1 0 5 train\n")
    assert read_bed(tmp_path / "a.bed", LENGTHS) == [Region(Interval("chr1", 0, 5), "train")]


@pytest.mark.parametrize(
    "line, message",
    [
        ("chr1\t0\t101", r"a\.bed:2 ends at 101, past the 100 bases of chr1: is the BED on another assembly"),
        ("chr9\t0\t5", r"a\.bed:2 names the contig 'chr9', .* it has chr1, chr2, chrM"),
        ("1\t0\t5", r"a\.bed:2 names the contig '1', .* it calls that one 'chr1': rename one of the two"),
        ("MT\t0\t5", r"it calls that one 'chrM'"),
        ("chr1\t5\t5", r"a\.bed:2 runs from 5 to 5; a start is at least 0 and less than its end"),
        ("chr1\t7\t5", r"a\.bed:2 runs from 7 to 5"),
        ("chr1\t-1\t5", r"a\.bed:2 runs from -1 to 5"),
        ("chr1\t5", r"a\.bed:2 is no BED line: 'chr1 5'; it must be contig, start and end"),
        ("chr1\ta\tb", r"a\.bed:2 is no BED line"),
    ],
)
def test_bed_refused(tmp_path, line, message):
    (tmp_path / "a.bed").write_text(f"chr1\t0\t5\n{line}\n")
    with pytest.raises(IntervalError, match=message):
        read_bed(tmp_path / "a.bed", LENGTHS)


def test_bed_that_is_none(tmp_path):
    for content, message in [
        (b"", "holds no region"),
        (b"# only\n", "holds no region"),
        (b"\xff\xfe\x00", "is no text"),
        (b"\x1f\x8bxx", "cannot be read"),
        (gzip.compress(b"chr1\t0\t5\n" * 99)[:-9], "cannot be read"),
    ]:
        (tmp_path / "a.bed").write_bytes(content)
        with pytest.raises(IntervalError, match=message):
            read_bed(tmp_path / "a.bed", LENGTHS)
    with pytest.raises(IntervalError, match="cannot be read: No such file"):
        read_bed(tmp_path / "none.bed", LENGTHS)
    with pytest.raises(IntervalError, match="cannot be read: Is a directory"):
        read_bed(tmp_path, LENGTHS)


def test_hint_for_a_name_without_chr():
    with pytest.raises(IntervalError, match="no contig 'chr1' in the genome; it calls that one '1'"):
        check_contig("chr1", {"1": 5})


GRCH38 = {
    "chr1": 248_956_422,
    "chrX": 156_040_895,
    "chrY": 57_227_415,
    "chrM": 16_569,
    "chr1_KI270706v1_random": 175_055,
    "chrUn_KI270302v1": 2_274,
    "chr6_GL000250v2_alt": 4_672_374,
    "chr1_KN196472v1_fix": 186_494,
    "chrEBV": 171_823,
    "chrUn_JTFH01000001v1_decoy": 25_139,
    "HLA-A*01:01:01:01": 3_503,
}
B37 = {
    "1": 249_250_621,
    "Y": 59_373_566,
    "MT": 16_569,
    "GL000191.1": 106_433,
    "NC_007605": 171_823,
    "hs37d5": 35_477_943,
}


def test_default_contigs_of_grch38():
    contigs = kept_contigs(GRCH38, None)
    assert [i.contig for i in contigs.intervals] == ["chr1", "chrX", "chrY", "chrY", "chrY", "chrM"]
    assert contigs.left_out == {
        "chr1_KI270706v1_random": "unplaced on its chromosome",
        "chrUn_KI270302v1": "unplaced",
        "chr6_GL000250v2_alt": "alternate locus",
        "chr1_KN196472v1_fix": "fix patch",
        "chrEBV": "Epstein-Barr virus",
        "chrUn_JTFH01000001v1_decoy": "decoy",
        "HLA-A*01:01:01:01": "HLA allele",
        "chrY:10,001-2,781,479": "pseudo-autosomal copy of X",
        "chrY:56,887,903-57,217,415": "pseudo-autosomal copy of X",
    }


def test_default_contigs_of_b37_and_t2t():
    contigs = kept_contigs(B37, None)
    assert [i.contig for i in contigs.intervals] == ["1", "Y", "Y", "Y", "MT"]
    assert {"Y:10,001-2,649,520", "Y:59,034,050-59,363,566", "hs37d5", "NC_007605", "GL000191.1"} == set(
        contigs.left_out
    )
    assert kept_contigs({"chrY": 62_460_029}, None).intervals == (Interval("chrY", 2_458_320, 62_122_809),)
    ucsc37 = {"chr6_apd_hap1": 5, "chr17_gl000203_random": 5, "chrUn_gl000211": 5, "chr21": 9}
    assert [i.contig for i in kept_contigs(ucsc37, None).intervals] == ["chr21"]


def test_ordinary_genomes_are_kept_whole():
    names = ["20", "NC_000913.3", "gi|110640213|ref|NC_008253.1|", "chrIV", "chrmt", "2L", "scaffold_12", "CP009685.1"]
    contigs = kept_contigs(dict.fromkeys(names, 7), None)
    assert [i.contig for i in contigs.intervals] == names and not contigs.left_out


def test_all_and_regular_expressions():
    whole = kept_contigs(GRCH38, "all")
    assert whole.intervals == tuple(Interval(name, 0, length) for name, length in GRCH38.items()) and not whole.left_out
    some = kept_contigs(GRCH38, r"chr\d|chr.*_alt|chrY")
    assert [i.contig for i in some.intervals] == ["chr1", "chrY", "chrY", "chrY", "chr6_GL000250v2_alt"]
    assert some.left_out["chrX"] == r"does not match --contigs 'chr\\d|chr.*_alt|chrY'"
    assert some.left_out["chrY:10,001-2,781,479"] == "pseudo-autosomal copy of X"


def test_contigs_refused():
    with pytest.raises(UsageError, match="--contigs 'chr99' matches no contig; it has chr1, chrX"):
        kept_contigs(GRCH38, "chr99")
    with pytest.raises(UsageError, match=r"--contigs '\(' is no regular expression"):
        kept_contigs(GRCH38, "(")
    with pytest.raises(InputError, match=r"no contig remains: .* --contigs all keeps them"):
        kept_contigs({"chrUn_1": 5, "NW_0012.1": 5}, None)
