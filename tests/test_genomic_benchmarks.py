"""Benchmarks by name: their folders and tables are found, fetched whole or not at all, and agree with what is known."""

import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from class_folders import reverse_directories, write_classes

from hyenadna.data import genomic_benchmarks, gue
from hyenadna.data.layouts import parts_in
from hyenadna.data.tables import DataConfig, read_labelled
from hyenadna.errors import DownloadError, InputError, MissingExtra, UsageError
from hyenadna.files import cache_folder

NAME = "human_nontata_promoters"


def write_set(folder):
    write_classes(folder / "train", {"positive": {"7.txt": "AC", "10.txt": "ACG"}, "negative": {"1.txt": "GT"}})
    write_classes(folder / "test", {"negative": {"2.txt": "TT"}, "positive": {"3.txt": "GG"}})


def read(name, data_dir=None, prefix="genomic-benchmarks/"):
    return read_labelled(DataConfig(data=prefix + name, data_dir=data_dir))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("between", ["", "genomic_benchmarks", "genomic-benchmarks"])
def test_the_layout_on_disk(tmp_path, monkeypatch, between, odd):
    write_set(tmp_path / between / NAME)
    (tmp_path / between / NAME / "metadata.yaml").write_text("version: 0\n")
    if odd:
        reverse_directories(monkeypatch)
    data = read(NAME, tmp_path)
    assert data.parts == ("train", "train", "train", "test", "test")
    assert data.labels == ("negative", "positive", "positive", "negative", "positive")
    assert data.ids == ("1", "10", "7", "2", "3")
    assert data.sequences == ("GT", "ACG", "AC", "TT", "GG")
    assert read_labelled(DataConfig(data=str(tmp_path / between / NAME))).ids == data.ids


def test_pairs_of_tables(tmp_path):
    for part, sequence in (("test", "GG"), ("train", "AC")):
        (tmp_path / f"x.{part}.csv").write_text(
            f"sequence,label,chrom_hg38,start,end,strand\n{sequence},p,chr2,1,3,+\n"
        )
    for data in (
        read("x", tmp_path),
        read_labelled(DataConfig(data=str(tmp_path))),
        read(str(tmp_path / "x"), prefix=""),
    ):
        assert (data.sequences, data.parts, data.groups) == (("AC", "GG"), ("train", "test"), ("chr2", "chr2"))
    (tmp_path / "y.train.csv").write_text("seq,label\nAC,x\n")
    with pytest.raises(InputError, match=r"holds several data sets: x, y; give one, as .*/NAME"):
        parts_in(tmp_path)
    (tmp_path / "x.training.tsv").write_text("seq\tlabel\nAC\tx\n")
    with pytest.raises(InputError, match=r"x\.train\.csv and .*x\.training\.tsv are both the train part; remove one"):
        read("x", tmp_path)
    (tmp_path / "z.test.csv").write_text("seq,label\nAC,x\n")
    with pytest.raises(InputError, match=r"z has the parts test but nothing named train"):
        read("z", tmp_path)


def test_a_set_that_is_not_in_the_folder(tmp_path):
    message = (
        rf"--data-dir .* does not hold {NAME}: wanted is {NAME}/train and {NAME}/test with a folder for each class"
    )
    with pytest.raises(InputError, match=message):
        read(NAME, tmp_path)
    with pytest.raises(
        InputError, match=r"genomic-benchmarks/nothing is unknown; known are demo_coding_vs_intergenomic_"
    ):
        read("nothing")
    write_set(tmp_path / "genomic_benchmarks" / NAME)
    (tmp_path / "genomic_benchmarks" / NAME / "train" / "notes.md").write_text("x")
    with pytest.raises(InputError, match=r"train/notes\.md lies beside the folders of the classes; move it elsewhere"):
        read(NAME, tmp_path)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A stand-in for the package, with the signature of its version 1.0.0; it counts what it fetches."""
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path / "cache"))
    package = types.SimpleNamespace(fetched=[], fail=None)

    def download_dataset(
        interval_list_dataset, version=None, dest_path=None, cache_path=None, force_download=False,
        use_cloud_cache=True, local_repo=False,
    ):  # fmt: skip
        print("Downloading")
        package.fetched.append((interval_list_dataset, version))
        folder = Path(dest_path) / interval_list_dataset
        write_set(folder)
        if package.fail:
            raise package.fail
        return folder

    module = types.ModuleType("genomic_benchmarks.loc2seq")
    module.download_dataset = download_dataset
    monkeypatch.setitem(sys.modules, "genomic_benchmarks", types.ModuleType("genomic_benchmarks"))
    monkeypatch.setitem(sys.modules, "genomic_benchmarks.loc2seq", module)
    return package


def test_fetched_once_into_the_cache(package, capsys):
    assert read(NAME).ids == read(NAME).ids == ("1", "10", "7", "2", "3")
    assert package.fetched == [(NAME, 0)]
    output = capsys.readouterr()
    assert output.out == ""  # the package prints to stdout, which belongs to results
    assert f"fetching genomic-benchmarks/{NAME} into" in output.err


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("version 1"), KeyError("version")])
def test_a_failed_download_leaves_nothing(package, error):
    package.fail = error
    message = rf"genomic-benchmarks/{NAME} could not be fetched: .*(no route|version).*; try again, or .* --data-dir"
    with pytest.raises(DownloadError, match=message):
        read(NAME)
    assert [path.name for path in (cache_folder() / "genomic-benchmarks").iterdir()] == [f".{NAME}.lock"]
    package.fail = None
    assert len(read(NAME)) == 5


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "genomic_benchmarks", None)
    message = (
        r"must be fetched\. Install the 'genomic-benchmarks' extra: pip install hyenadna\[genomic-benchmarks\]; or"
    )
    with pytest.raises(MissingExtra, match=message):
        read(NAME)


@pytest.mark.parametrize("between", ["", "GUE", "gue"])
def test_gue(tmp_path, between):
    task = tmp_path / between / "prom" / "core"
    task.mkdir(parents=True)
    for part, label in (("train", 0), ("dev", 1), ("test", 0)):
        (task / f"{part}.csv").write_text(f"sequence,label\nAC,{label}\n")
    for data in (read("prom/core", tmp_path, "gue/"), read_labelled(DataConfig(data=str(task)))):
        assert (data.parts, data.labels) == (("train", "valid", "test"), ("0", "1", "0"))
    with pytest.raises(InputError, match=r"--data-dir .* does not hold the task 'prom/all'; it holds .*prom/core"):
        read("prom/all", tmp_path, "gue/")


def test_gue_that_is_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"does not hold the task 'tf/0'; wanted is a folder GROUP/TASK with train\.csv"
    ):
        read("tf/0", tmp_path, "gue/")
    with pytest.raises(
        UsageError, match=r"gue/tf/0 is read from disk: fetch GUE from the DNABERT-2 repository, unpack"
    ):
        read("tf/0", None, "gue/")


def test_what_is_already_a_path_is_one(tmp_path, monkeypatch):
    write_set(tmp_path / "gue" / "mine")
    monkeypatch.chdir(tmp_path)
    assert len(read("mine", prefix="gue/")) == 5


KNOWN = {
    "human_enhancers_cohn": ({"train": 639, "test": 206}, 0),
    "human_enhancers_ensembl": ({"train": 4301, "test": 1014}, 471),
    "human_ocr_ensembl": ({"train": 3937, "test": 1031}, 0),
    "human_ensembl_regulatory": ({"train": 7484, "test": 1830}, 0),
    "prom/prom_core_tata": ({"train": 4904, "valid": 613, "test": 613}, 16),
    "mouse/0": ({"train": 6478, "valid": 810, "test": 810}, 0),
}
"""Rows, and test rows whose sequence is in train, as the data's own description has them."""


@pytest.mark.parametrize("name", KNOWN)
def test_real_sets(shared, name):
    if not (shared / "data" / "GUE").is_dir():
        pytest.skip("../shared/data/GUE is missing")
    prefix = gue.PREFIX if "/" in name else genomic_benchmarks.PREFIX
    data = read(name, shared / "data", prefix)
    rows, leaked = KNOWN[name]
    assert Counter(data.parts) == rows
    train = set(data.part("train").sequences)
    assert sum(sequence in train for sequence in data.part("test").sequences) == leaked
    assert (data.groups is None) == ("/" in name)
