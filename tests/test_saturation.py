"""All substitutions of regions into tables, HDF5 and a plot; what they score is a formula that knows each by heart."""

import csv
import io
import math
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from checkpoints import small_model

from hyenadna.data.intervals import Interval, Region
from hyenadna.errors import InputError, UsageError
from hyenadna.inference import saturation_pieces
from hyenadna.inference.saturation import saturate
from hyenadna.inference.saturation_pieces import by_base
from hyenadna.inference.saturation_plots import mean_losses, saturation_figure
from hyenadna.inference.variant_scores import VariantScore, VariantScorer

ABOUT = {"hyenadna": "0", "model": "tiny", "window": 64, "command": "hyena score --bed a.bed"}
CONTIGS = {
    "one": "".join(np.random.default_rng(1).choice(list("ACGT"), 90)),
    "two": "ACGTNNRACGTTTGACA",
}
REGIONS = [
    Region(Interval("one", 10, 47), "exon", "-"),
    Region(Interval("two", 0, 17), "", ""),
    Region(Interval("one", 40, 44), "overlaps", "+"),
]


def score_of(variant):
    place = variant.start + 100 * "ACGT".index(variant.alt)
    flags = (("NEAR_EDGE",) if variant.start < 3 else ()) + (("HAS_N",) if variant.contig == "two" else ())
    percentile = math.nan if variant.start % 5 == 0 else (place * 7) % 1000 / 10
    return VariantScore(math.sin(place), math.cos(place) / 1e6 * -1, percentile, flags)


class Scorer:
    """Counts what it was asked for, and may die of it."""

    def __init__(self, last=10**9):
        self.asked, self.last = [], last
        self.genome = SimpleNamespace(
            lengths={name: len(letters) for name, letters in CONTIGS.items()},
            fetch=lambda contig, start, end: CONTIGS[contig][start:end],
        )

    def score(self, variants):
        self.asked += variants
        if len(self.asked) > self.last:
            raise KeyboardInterrupt
        return [score_of(variant) for variant in variants]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(saturation_pieces, "_TOGETHER", 10)


def expected():
    """Rows of the table, one loop in another."""
    for region in REGIONS:
        contig, start, end = region.interval.contig, region.interval.start, region.interval.end
        for place in range(start, end):
            for alt in "ACGT":
                ref = CONTIGS[contig][place]
                if ref in "ACGT" and alt != ref:
                    yield region, place, ref, alt, score_of(SimpleNamespace(contig=contig, start=place, alt=alt))


def test_a_table(tmp_path):
    scorer, path = Scorer(), tmp_path / "a.tsv"
    done = saturate(scorer, REGIONS, path, ABOUT)
    assert done == (3, 3 * (37 + 14 + 4), 0) and done.substitutions == len(scorer.asked)
    about, *lines = path.read_text().splitlines()
    told = "pos 1-based; alleles of the forward strand"
    assert about == f"# {told}; hyenadna 0; model tiny; window 64; command hyena score --bed a.bed"
    rows = list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t"))
    for row, (region, place, ref, alt, score) in zip(rows, expected(), strict=True):
        assert (row["contig"], row["pos"]) == (region.interval.contig, str(place + 1))
        assert (row["id"], row["ref"], row["alt"]) == (region.name or ".", ref, alt)
        assert float(row["llr"]) == pytest.approx(score.llr, abs=5.1e-5) and row["llr_markov"] == "0.0000"
        assert row["flag"] == ("|".join(score.flags) or ".") and row["strand"] == (region.strand or ".")
        if math.isnan(score.percentile):
            assert row["percentile"] == "."
        else:
            assert float(row["percentile"]) == pytest.approx(score.percentile, abs=0.051)
    with pytest.raises(UsageError, match=r"-o .*a\.tsv exists; give another name, or --overwrite"):
        saturate(scorer, REGIONS, path, ABOUT)
    assert saturate(scorer, REGIONS[2:], path, ABOUT, overwrite=True).substitutions == 12


def test_what_is_left_is_continued(tmp_path):
    whole, path = tmp_path / "whole.tsv", tmp_path / "a.tsv"
    saturate(Scorer(), REGIONS, whole, ABOUT)
    with pytest.raises(KeyboardInterrupt):
        saturate(Scorer(last=100), REGIONS, path, ABOUT)
    assert not path.exists()
    with pytest.raises(UsageError, match="was begun by another job"):
        saturate(Scorer(), REGIONS, path, ABOUT | {"window": 32})
    with pytest.raises(InputError, match=r"holds 'one\\t11\\texon"):
        saturate(Scorer(), REGIONS[1:], path, ABOUT)
    scorer, plot = Scorer(), tmp_path / "a.png"
    done = saturate(scorer, REGIONS, path, ABOUT, plot=plot)
    assert path.read_bytes() == whole.read_bytes() and done.earlier == 90
    # the first region is scored again for the plot alone
    assert len(scorer.asked) == done.substitutions and plot.read_bytes().startswith(b"\x89PNG")


def test_to_stdout(capsys):
    saturate(Scorer(), REGIONS[2:], None, ABOUT)
    assert len(capsys.readouterr().out.splitlines()) == 2 + 12


def test_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    done = saturate(Scorer(), REGIONS, path, ABOUT)
    with h5py.File(path) as file:
        assert dict(file.attrs)["window"] == 64 and list(file.attrs["bases"]) == list("ACGT")
        assert file["contigs"].asstr()[:].tolist() == ["one", "two", "one"]
        assert file["names"].asstr()[:].tolist() == ["exon", "", "overlaps"]
        assert file["strands"].asstr()[:].tolist() == ["-", "", "+"]
        assert file["offsets"][:].tolist() == [0, 37, 54, 58]
        assert (file["starts"][:].tolist(), file["ends"][:].tolist()) == ([10, 0, 40], [47, 17, 44])
        letters = b"".join(file["reference"][:]).decode()
        assert letters == CONTIGS["one"][10:47] + CONTIGS["two"] + CONTIGS["one"][40:44]
        found = {name: file[name][:] for name in ("llr", "llr_markov", "percentile", "flags")}
        names = list(file.attrs["flags"])
    seen = 0
    for region, place, _, alt, score in expected():
        row = REGIONS.index(region)
        at = [0, 37, 54][row] + place - region.interval.start, "ACGT".index(alt)
        assert found["llr"][at] == score.llr and found["llr_markov"][at] == score.markov
        assert found["percentile"][at] == score.percentile or math.isnan(score.percentile)
        assert tuple(flag for bit, flag in enumerate(names) if found["flags"][at] >> bit & 1) == score.flags
        seen += 1
    assert seen == done.substitutions
    own = [(at, "ACGT".index(letter)) for at, letter in enumerate(letters) if letter in "ACGT"]
    assert all(found["llr"][at] == 0 and math.isnan(found["percentile"][at]) for at in own)
    assert np.isnan(found["llr"][41:44]).all() and np.isfinite(found["llr"]).sum() == seen + len(own)
    with pytest.raises(KeyboardInterrupt):
        saturate(Scorer(last=100), REGIONS, path, ABOUT, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"] and h5py.File(path)["offsets"][-1] == 58


def test_the_scorer_itself(tmp_path):
    scorer = VariantScorer(small_model().double(), Scorer().genome, window=64, dtype=torch.float64)
    saturate(scorer, REGIONS[2:], tmp_path / "a.h5", ABOUT)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_allclose(file["llr"][:], scorer.saturation("one", 40, 44), rtol=0, atol=1e-9)
        assert np.isnan(file["llr_markov"][:]).sum() == 12


def test_by_base():
    table = by_base("GA", [1, 2, 3, 4, 5, 6], reference=-1)
    assert table.tolist() == [[1, 2, -1, 3], [-1, 4, 5, 6]]


def test_mean_losses():
    ratios = np.array([[0.0, -1.0, -2.0, -6.0], [2.0, 1.0, 0.0, 3.0], [math.nan] * 4])
    np.testing.assert_allclose(mean_losses("AGN", ratios), [3.0, -2.0, math.nan])


@pytest.mark.parametrize("length", [1, 100, 250])
def test_the_figure(length):
    letters = "".join(np.random.default_rng(2).choice(list("ACGTN"), length, p=[0.24, 0.24, 0.24, 0.24, 0.04]))
    known = sum(letter in "ACGT" for letter in letters)
    ratios = by_base(letters, np.random.default_rng(3).normal(-1, 1, 3 * known))
    drawn = saturation_figure(Interval("17", 43_000_000, 43_000_000 + length), letters, ratios, title="BRCA1")
    *panels, bar = drawn.axes
    rows = -(-length // 100)
    assert len(panels) == 2 * rows and bar.get_ylabel().endswith("nats")
    assert panels[0].get_title() == "BRCA1"
    shown = np.concatenate([panel.images[0].get_array().filled(np.nan).T for panel in panels[1::2]])
    np.testing.assert_array_equal(shown, ratios)
    patches = [patch for panel in panels[::2] for patch in panel.patches]
    assert len(patches) == known
    places = [x for panel in panels[1::2] for x in panel.lines[0].get_xdata()]
    assert places == [43_000_001 + at for at, letter in enumerate(letters) if letter in "ACGT"]


def test_a_letter_is_as_tall_as_its_loss():
    ratios = by_base("AC", [-1.0, -2.0, -3.0, 1.0, 0.5, 0.0])
    drawn = saturation_figure(Interval("c", 0, 2), "AC", ratios, title="")
    upper = drawn.axes[0]
    for patch, height, place in zip(upper.patches, (2.0, -0.5), (1, 2), strict=True):
        box = (
            patch.get_transform().transform_path(patch.get_path()).get_extents().transformed(upper.transData.inverted())
        )
        np.testing.assert_allclose(sorted((box.y0, box.y1)), sorted((0.0, height)), atol=1e-9)
        assert (box.x0 + box.x1) / 2 == pytest.approx(place) and box.width < 1


def test_what_cannot_be_drawn(tmp_path):
    long, png = [Region(Interval("one", 0, 401), "", "")], tmp_path / "a.png"
    scorer = Scorer()
    with pytest.raises(UsageError, match=r"the first region, one:1-401, which has 401 bases; it takes up to 400"):
        saturate(scorer, long, None, ABOUT, plot=png)
    with pytest.raises(UsageError, match=r"--plot .*a\.pdf: the plot is a PNG file"):
        saturate(scorer, REGIONS, None, ABOUT, plot=tmp_path / "a.pdf")
    with pytest.raises(UsageError, match=r"-o .*a\.tsv\.gz: substitutions of regions are written plain, or as HDF5"):
        saturate(scorer, REGIONS, tmp_path / "a.tsv.gz", ABOUT)
    png.write_bytes(b"")
    with pytest.raises(UsageError, match=r"--plot .*a\.png exists; give another name, or --overwrite"):
        saturate(scorer, REGIONS, None, ABOUT, plot=png)
    assert not scorer.asked
