"""Likelihoods of long sequences by stretches, and their tables and tracks, against the library's numbers."""

import json
import math

import numpy as np
import pytest
from checkpoints import small_model

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.intervals import Interval
from hyenadna.data.tokenizer import encode
from hyenadna.errors import FastaError, InputError, IntervalError, UsageError
from hyenadna.inference import likelihood_stretches
from hyenadna.inference.likelihood import likelihoods, scored_windows, window_nats
from hyenadna.inference.likelihood_files import (
    Placed,
    TotalLines,
    TrackLines,
    placed_sequences,
    write_totals,
    write_track,
)
from hyenadna.inference.likelihood_plan import likelihood_plan
from hyenadna.inference.likelihood_stretches import LikelihoodReader, Total, scored_bases, stretches
from hyenadna.inference.line_file import LineFile

CONTEXT = 12
STRANDS = ("forward", "reverse", "both")
ABOUT = {"hyenadna": "0", "model": "run/tiny", "strands": "forward", "command": "hyena likelihood a.fa"}


@pytest.fixture(scope="module")
def model():
    return small_model(layers="HH", filter_length=CONTEXT + 2).double()


def random_dna(length, seed, letters="ACGTacgtNR"):
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


SEQUENCES = [(f"s{seed}", random_dna(length, seed)) for seed, length in enumerate((1, 2, 7, 13, 30, 3, 61, 90, 5))]


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("bases", [5, 17, 1000])
def test_stretches_give_the_numbers_of_whole_sequences(model, strand, bases):
    reader = LikelihoodReader(model, strand=strand, batch_tokens=300, bases=bases)
    sequences = [sequence for _, sequence in SEQUENCES]
    tokens = [encode(sequence) for sequence in sequences]
    expected = likelihoods(model, sequences, strand=strand)
    found = [np.full(len(sequence), 7.0) for sequence in sequences]
    order = []
    for some, read in reader.parts(tokens):
        for stretch, own in zip(some, read(), strict=True):
            found[stretch.row][stretch.start : stretch.end] = own.per_base
            order.append(stretch)
    assert max(stretch.end - stretch.start for stretch in order) <= bases
    for total, per_base, whole in zip(reader(tokens), found, expected, strict=True):
        np.testing.assert_allclose(per_base, whole.per_base, rtol=0, atol=1e-10)
        assert total.length == len(per_base) and total.scored == whole.scored
        assert total.nats == pytest.approx(whole.nats, abs=1e-9)
        assert total.bits_per_base == pytest.approx(whole.bits_per_base, abs=1e-9, nan_ok=True)
    for own, whole in zip(tokens, expected, strict=True):
        np.testing.assert_array_equal(scored_bases(own, strand), ~np.isnan(whole.per_base))


def test_stretches_of_several_rows():
    assert list(stretches([], 3)) == []
    assert [[tuple(stretch) for stretch in some] for some in stretches([2, 3, 7], 3)] == [
        [(0, 0, 2), (1, 0, 3), (2, 0, 3)],
        [(2, 3, 6)],
        [(2, 6, 7)],
    ]


def test_gaps_are_not_read(model, monkeypatch):
    read = []

    def watched(model, windows, **options):
        read.extend(windows)
        return window_nats(model, windows, **options)

    monkeypatch.setattr(likelihood_stretches, "window_nats", watched)
    sequence = "ACGTAC" + "N" * 300 + "GATTACA"
    (total,) = LikelihoodReader(model, strand="both", bases=40)([encode(sequence)])
    (expected,) = likelihoods(model, [sequence], strand="both")
    assert total.nats == pytest.approx(expected.nats, abs=1e-9) and total.scored == expected.scored == 12
    assert len(read) < 10 < len(scored_windows(encode(sequence), CONTEXT))


def rows_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()[2:]]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_table_of_totals(model, tmp_path, as_json):
    path = tmp_path / "a.tsv"
    reader = LikelihoodReader(model, strand="both", bases=20)
    assert write_totals(reader, iter(SEQUENCES), LineFile(path, TotalLines(as_json=as_json), ABOUT)) == 9
    first, *lines = path.read_text().splitlines()
    expected = likelihoods(model, [sequence for _, sequence in SEQUENCES], strand="both")
    if as_json:
        assert json.loads(first) == ABOUT
        rows = [list(json.loads(line).values()) for line in lines]
    else:
        assert first == "# hyenadna 0; model run/tiny; strands forward; command hyena likelihood a.fa"
        assert lines.pop(0) == "id\tlength\tscored_bases\tnats\tbits_per_base"
        rows = [line.split("\t") for line in lines]
    for row, (name, sequence), whole in zip(rows, SEQUENCES, expected, strict=True):
        assert row[0] == name and int(row[1]) == len(sequence) and float(row[2]) == whole.scored
        assert float(row[3]) == pytest.approx(whole.nats, abs=1e-4)
        if whole.scored:
            assert float(row[4]) == pytest.approx(whole.bits_per_base, abs=1e-6)
        else:
            assert row[4] == (None if as_json else "")


def test_halves_and_large_numbers_are_written_whole():
    lines = TotalLines()
    assert lines.line("a", Total(248_956_422, -1_234_567.25, 230_481_012.0)).split("\t")[1:4] == [
        "248956422",
        "230481012",
        "-1234567.2500",
    ]
    assert lines.line("a", Total(4, -4 * math.log(2), 3.5)) == "a\t4\t3.5\t-2.7726\t1.142857\n"
    with pytest.raises(InputError, match=r"'x\\ty' holds a tab"):
        lines.line("x\ty", Total(1, 0.0, 0.0))


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_what_is_left_is_continued(model, tmp_path, cut):
    path, partial = tmp_path / "a.tsv", tmp_path / "a.tsv.partial"
    reader = LikelihoodReader(model, strand="both", bases=20)

    def write(**options):
        source = [Placed(Interval(name, 0, len(text)), reverse=False, sequence=text) for name, text in SEQUENCES]
        return write_track(reader, iter(source), LineFile(path, TrackLines(), ABOUT, **options))

    written = write()
    whole = path.read_bytes()
    assert written == whole.count(b"\n") - 2
    path.rename(partial)
    partial.write_bytes(whole[:-cut])
    assert write() == written
    assert path.read_bytes() == whole and not partial.exists()
    path.rename(partial)
    partial.write_bytes(whole.replace(b"s6\t", b"s9\t"))
    with pytest.raises(InputError, match=r"partial holds 's9\\t0' in row \d+, where the input has 's6\\t0'"):
        write()


def test_a_header_alone_is_begun_anew(tmp_path):
    path, partial = tmp_path / "a.tsv", tmp_path / "a.tsv.partial"
    partial.write_text(TotalLines().header(ABOUT))
    another = ABOUT | {"model": "another"}
    with LineFile(path, TotalLines(), another) as file:
        file.append(["a"], [Total(1, 0.0, 0.0)])
    with pytest.raises(UsageError, match="was begun by another job"):
        LineFile(path, TotalLines(), ABOUT)
    with LineFile(path, TotalLines(), another, resume=False) as file:
        assert not file.holds(["a"])
        file.append(["b"], [Total(1, 0.0, 0.0)])
    assert partial.read_text() == TotalLines().header(another) + "b\t1\t0\t0.0000\t\n"


@pytest.mark.parametrize("to_stdout", [True, False])
def test_nothing_is_written_of_what_is_refused(model, tmp_path, capsys, to_stdout):
    file = LineFile(None if to_stdout else tmp_path / "a.tsv", TotalLines(), ABOUT)
    with pytest.raises(InputError, match="nucleotide"):
        write_totals(LikelihoodReader(model), iter([("a", "ACGT"), ("b", "AC!")]), file)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


@pytest.mark.parametrize("to_stdout", [True, False])
def test_a_track_of_gaps_is_a_header(model, tmp_path, capsys, to_stdout):
    path = tmp_path / "a.bedgraph"
    source = iter([Placed(Interval("a", 0, 5), reverse=False, sequence="N" * 5)])
    assert write_track(LikelihoodReader(model), source, LineFile(None if to_stdout else path, TrackLines(), ABOUT)) == 0
    text = capsys.readouterr().out if to_stdout else path.read_text()
    assert text == TrackLines().header(ABOUT)


def track_of(path):
    comment, track, *lines = path.read_text().splitlines()
    assert comment.startswith("# hyenadna 0; ")
    assert track == (
        'track type=bedGraph name="ln p, tiny" description="ln p of each base, in nats, by tiny; forward" '
        "visibility=full autoScale=on"
    )
    rows = [line.split("\t") for line in lines]
    assert all(int(end) == int(start) + 1 and len(value.partition(".")[2]) == 4 for _, start, end, value in rows)
    return {(contig, int(start)): float(value) for contig, start, _, value in rows}


@pytest.mark.parametrize("strand", STRANDS)
def test_a_track_of_a_fasta_file(model, tmp_path, strand):
    fasta, path = tmp_path / "a.fa", tmp_path / "a.bedgraph"
    fasta.write_text("".join(f">{name} text\n{sequence}\n" for name, sequence in SEQUENCES))
    reader = LikelihoodReader(model, strand=strand, bases=20)
    written = write_track(reader, placed_sequences(str(fasta)), LineFile(path, TrackLines(), ABOUT))
    expected = {}
    for (name, _), whole in zip(
        SEQUENCES, likelihoods(model, [text for _, text in SEQUENCES], strand=strand), strict=True
    ):
        expected |= {(name, at): value for at, value in enumerate(whole.per_base) if not math.isnan(value)}
    found = track_of(path)
    assert list(found) == list(expected) and written == len(found) < 212
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=6e-5)


@pytest.mark.parametrize("strand", STRANDS)
def test_a_track_of_regions_has_the_genome_s_coordinates(model, tmp_path, strand):
    genome = {"one": random_dna(80, 20), "two": random_dna(50, 21)}
    fasta, bed, path = tmp_path / "g.fa", tmp_path / "a.bed", tmp_path / "a.bedgraph"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in genome.items()))
    regions = [("two", 3, 49, "-"), ("one", 40, 60, "+"), ("one", 10, 40, "-")]
    bed.write_text("".join(f"{contig}\t{start}\t{end}\tx\t0\t{sign}\n" for contig, start, end, sign in regions))
    reader = LikelihoodReader(model, strand=strand, bases=16)
    written = write_track(reader, placed_sequences(str(bed), fasta), LineFile(path, TrackLines(), ABOUT))
    expected = {}
    for contig, start, end, sign in regions:
        sequence = genome[contig][start:end]
        # as hyena predict and embed read it: the region's own strand
        own = likelihoods(model, [reverse_complement(sequence) if sign == "-" else sequence], strand=strand)[0].per_base
        values = own[::-1] if sign == "-" else own
        expected |= {(contig, start + at): value for at, value in enumerate(values) if not math.isnan(value)}
    found = track_of(path)
    assert list(found) == list(expected) and written == len(found) < 96
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=6e-5)


def test_what_has_no_track(tmp_path):
    fasta, bed, table = tmp_path / "g.fa", tmp_path / "a.bed", tmp_path / "a.csv"
    fasta.write_text(">one\n" + "ACGT" * 20 + "\n")
    table.write_text("sequence\nACGT\n")
    with pytest.raises(
        UsageError, match=r"a\.csv is a table, whose sequences have no coordinates; a track needs FASTA"
    ):
        list(placed_sequences(str(table)))
    for text, error, said in (
        ("one\t0\t10\none\t30\t40\none\t9\t12\n", IntervalError, "the regions one:1-10 and one:10-12, which overlap"),
        ("one\t0\t81\n", IntervalError, "past the 80 bases of one"),
        ("two\t0\t8\n", IntervalError, "the contig 'two', unknown to the genome"),
        ("one\t0\t8\tx\t0\t*\n", InputError, r"one:1-8 has the strand '\*' in its sixth column"),
    ):
        bed.write_text(text)
        with pytest.raises(error, match=said):
            list(placed_sequences(str(bed), fasta))
    with pytest.raises(UsageError, match="--fasta names the genome"):
        list(placed_sequences(str(bed)))
    fasta.write_text(">one\nACGT\n>one\nACGT\n")
    with pytest.raises(FastaError, match="two records named 'one'"):
        list(placed_sequences(str(fasta)))


def test_the_plan_counts_everything(model):
    plan = likelihood_plan(LikelihoodReader(model), iter(SEQUENCES), iter(SEQUENCES))
    assert (plan["sequences"], plan["bases"], plan["longest"]) == (9, 212, 90)
    assert plan["nt_per_s"] > 0 and plan["text"].startswith("9 sequences, 212 bases, the longest 90. At ")
