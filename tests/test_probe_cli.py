"""`hyena probe` as users call it."""

import json

import numpy as np
import pytest
from checkpoints import small_model
from planted import constant, oracle
from typer.testing import CliRunner

from hyenadna import HyenaDNA, plots
from hyenadna.cli import main as cli
from hyenadna.data.tokenizer import encode
from hyenadna.inference.many_shot_prompt import Layout

CLASSES = "xyz"


def write_table(path, train=60, test=18, seed=0, length=14):
    random = np.random.default_rng(seed)
    lines, label_of = ["sequence,label,split"], {}
    for part, number in (("train", train), ("test", test)):
        for at in range(number):
            sequence = "".join(random.choice(list("ACGT"), length + at % 5))
            lines.append(f"{sequence},{CLASSES[at % 3]},{part}")
            label_of[sequence] = at % 3
    path.write_text("\n".join(lines) + "\n")
    return label_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model(layers="HS", d_model=8, filter_order=8, filter_length=290).save_pretrained(folder)
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """Plots take most of the time of a small probe."""
    monkeypatch.setattr(plots, "write_png", lambda drawn, path: path.write_bytes(b""))


@pytest.fixture
def data(tmp_path):
    write_table(tmp_path / "data.csv")
    return tmp_path / "data.csv"


def run(*arguments):
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.app, ["probe", *given, "--threads", "1"], terminal_width=120)


def small(data, out, *more):
    return run(data, "-o", out, "--queries", 9, "--seeds", 2, "--calibration", 3, *more)


def comparable(out):
    found = json.loads((out / "report.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "cells_of_earlier_runs")}


def test_a_probe_of_a_model(folder, data, tmp_path):
    ended = small(data, tmp_path / "out", "-m", folder)
    assert ended.exit_code == 0, ended.output
    assert "this model's context of 288 tokens holds k = 3 of this data\n" in ended.stderr
    assert "words x A, y T, z C; separator CTAG; a guess is right in 0.333" in ended.stdout
    assert "5 nearest" in ended.stdout and "tokens read; prompts read anew" in ended.stdout
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    keys = {(cell["arm"], cell["seed"], cell["shots"]) for cell in found["cells"]}
    static = ("true", "shuffled", "flipped", "unlabelled")
    assert {key for key in keys if key[0] in static} == {(arm, s, k) for arm in static for s in (0, 1) for k in (1, 2)}
    assert ("none", 0, 0) in keys and ("reverse-complement", 1, 1) in keys and ("reverse-complement", 1, 2) not in keys
    for cell in found["cells"]:
        assert cell["low_calibrated"] <= cell["accuracy_calibrated"] <= cell["high_calibrated"]
        # the words' share of all tokens is what the answers are renormalised by
        assert 0 < cell["words_mass"] < 1 and cell["nll_word"] > cell["nll_raw"] > 0
    of_true = {row["shots"]: row for row in found["accuracy"] if row["arm"] == "true"}
    for k in (1, 2):
        cells = [cell for cell in found["cells"] if (cell["arm"], cell["shots"]) == ("true", k)]
        mean = np.mean([cell["accuracy_calibrated"] for cell in cells])
        assert of_true[k]["accuracy"]["value"] == pytest.approx(mean, abs=1e-5)
    pairs = {(row["arm"], row["minus"]) for row in found["differences"]}
    assert {("true", "shuffled"), ("true", "flipped"), ("true", "k-mer regression")} <= pairs
    assert {"all arms", "true labels"} == set(found["likelihood_and_accuracy"])
    assert found["tokens_read"] < found["tokens_of_whole_prompts"]
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    header, *lines = (tmp_path / "out" / "cells.tsv").read_text().splitlines()
    assert header.startswith("arm\tseed\tshots\tqueries\taccuracy_calibrated") and len(lines) == len(found["cells"])


def test_a_stopped_probe_goes_on(no_plots, folder, data, tmp_path):
    whole, stopped, arms = tmp_path / "whole", tmp_path / "stopped", ("--arms", "true", "reinforced")
    assert small(data, whole, "-m", folder, *arms).exit_code == 0
    lines = (whole / "cells.jsonl").read_text().splitlines(keepends=True)
    # killed while it wrote its third cell, of fewer seeds
    stopped.mkdir()
    (stopped / "cells.jsonl").write_text("".join(lines[:3]) + lines[3][:100])
    ended = small(data, stopped, "-m", folder, *arms)
    assert ended.exit_code == 0, ended.output
    one, other = comparable(whole), comparable(stopped)
    # the prompt was read again for the cell that was lost
    assert {name for name in one if one[name] != other[name]} <= {"cells", "tokens_read"}
    for name in one["cells"][0]:
        if name != "tokens_read":
            assert [cell[name] for cell in one["cells"]] == [cell[name] for cell in other["cells"]], name
    again = small(data, stopped, "-m", folder, *arms, "--json")
    assert json.loads(again.stdout)["cells_of_earlier_runs"] == len(one["cells"])
    assert comparable(stopped) == other


def test_another_probe_does_not_go_there(no_plots, folder, data, tmp_path):
    out = tmp_path / "out"
    assert small(data, out, "-m", folder, "--arms", "true").exit_code == 0
    ended = small(data, out, "-m", folder, "--arms", "true", "--label-words", "C", "G", "A")
    assert ended.exit_code == 2
    assert "holds a probe with another layout; name another folder by -o, or give --overwrite" in ended.stderr
    assert (
        small(data, out, "-m", folder, "--arms", "true", "--label-words", "C", "G", "A", "--overwrite").exit_code == 0
    )
    (out / "cells.jsonl").write_text("what is this\n")
    ended = small(data, out, "-m", folder, "--arms", "true")
    assert ended.exit_code == 3 and "is no file of a probe" in ended.stderr
    ended = small(data, data, "-m", folder)
    assert ended.exit_code == 2 and "is a file; give a folder" in ended.stderr


def test_dry_run(no_plots, folder, data, tmp_path):
    ended = small(data, tmp_path / "out", "-m", folder, "--dry-run", "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found["shots"]["true"] == [0, 1, 2] and found["tokens_per_s"] > 0
    assert "9 queries of 3 classes, 2 seeds, 6 arms of up to 2 examples a class" in found["text"]
    assert not (tmp_path / "out").exists()
    small(data, tmp_path / "out", "-m", folder, "--arms", "true", "flipped")
    found = json.loads(
        small(data, tmp_path / "none", "-m", folder, "--arms", "true", "flipped", "--dry-run", "--json").stdout
    )
    read = json.loads((tmp_path / "out" / "report.json").read_text())["tokens_read"]
    assert found["tokens"] == pytest.approx(read, rel=0.1)


def planted(monkeypatch, model):
    monkeypatch.setattr(HyenaDNA, "from_pretrained", lambda source, **options: model)


def accuracies(out, arm):
    rows = json.loads((out / "report.json").read_text())["accuracy"]
    return {row["shots"]: row["accuracy"]["value"] for row in rows if row["arm"] == arm}


def test_an_oracle_is_right_in_every_arm_but_where_labels_are_flipped(monkeypatch, tmp_path):
    label_of = write_table(tmp_path / "data.csv")
    known = {encode(sequence).tobytes(): label for sequence, label in label_of.items()}
    planted(monkeypatch, oracle(known, Layout.suited(3)))
    ended = small(tmp_path / "data.csv", tmp_path / "out", "--shots", 0, 1, 4)
    assert ended.exit_code == 0, ended.output
    for arm in ("true", "shuffled", "unlabelled", "reverse-complement", "reinforced", "matched"):
        assert set(accuracies(tmp_path / "out", arm).values()) == {1.0}, arm
    assert set(accuracies(tmp_path / "out", "flipped").values()) == {0.0}
    assert "true - shuffled at k = 4: +0.000 [+0.000, +0.000]" in ended.stdout


def test_a_biased_model_is_at_chance(no_plots, monkeypatch, tmp_path):
    write_table(tmp_path / "data.csv")
    logits = np.zeros(16)
    logits[10] = 25.1234567  # the others' share is 1e-11
    planted(monkeypatch, constant(logits))
    ended = small(tmp_path / "data.csv", tmp_path / "out", "--shots", 0, 1, 2, 4)
    assert ended.exit_code == 0, ended.output
    for arm in ("true", "flipped", "unlabelled"):
        found = accuracies(tmp_path / "out", arm)
        assert found == pytest.approx(dict.fromkeys(found, 1 / 3), abs=1e-6) and len(found) > 2
    for cell in json.loads((tmp_path / "out" / "report.json").read_text())["cells"]:
        # not one class instead of another: all are as likely as each other
        assert cell["nll_calibrated"] == pytest.approx(np.log(3), abs=1e-6)
    assert "reinforced examples end before k = 1: of 8 sequences of class x" in ended.stderr
    assert "too few different cells for a rank correlation" in ended.stdout


@pytest.mark.parametrize("arms", [("true", "flipped"), ("flipped",)], ids=str)
def test_a_probe_without_examples(monkeypatch, tmp_path, arms):
    write_table(tmp_path / "data.csv")
    planted(monkeypatch, constant(np.zeros(16)))
    ended = small(tmp_path / "data.csv", tmp_path / "out", "--shots", 0, "--arms", *arms)
    assert ended.exit_code == 0, ended.output
    assert accuracies(tmp_path / "out", "true") == ({0: pytest.approx(1 / 3)} if "true" in arms else {})
    assert accuracies(tmp_path / "out", "flipped") == {}


def test_an_arm_of_which_nothing_fits_is_left_out(no_plots, monkeypatch, tmp_path):
    write_table(tmp_path / "data.csv")
    planted(monkeypatch, constant(np.zeros(16), context=120))
    given = (tmp_path / "data.csv", tmp_path / "out", "--shots", 1, "--arms", "true", "reverse-complement")
    ended = small(*given)
    assert ended.exit_code == 0, ended.output
    assert set(accuracies(tmp_path / "out", "true")) == {1}
    assert accuracies(tmp_path / "out", "reverse-complement") == {}
    assert "2 arms of up to 1 examples a class" in small(*given, "--dry-run").stdout
    alone = small(*given[:-2], "reverse-complement", "--dry-run")
    assert alone.exit_code == 3 and "an example of each of 3 classes on both strands" in alone.stderr, alone.output


def test_bad_input_is_told_in_one_line(folder, data, tmp_path):
    def refused(code, said, *arguments):
        ended = run(*arguments, "-o", tmp_path / "out", "-m", folder)
        assert ended.exit_code == code and said in ended.stderr, ended.output
        # after what was found in the table
        assert ended.stderr.splitlines()[-1].startswith("hyena: ")
        assert not (tmp_path / "out").exists()

    lines = data.read_text().splitlines()
    one = tmp_path / "one.csv"
    one.write_text("\n".join([lines[0], *(line for line in lines if ",x," in line)]) + "\n")
    refused(3, "all training rows are of class x; a probe needs two classes or more", one)
    long = tmp_path / "long.csv"
    write_table(long, length=100)
    refused(3, "do not fit into this model's context of 288: cut the sequences by --max-length", long)
    refused(2, "--shots 8: the context of 288 tokens holds 3 examples of each class", data, "--shots", 8)
    refused(2, "'B' is no word of the prompt", data, "--label-words", "A", "B", "C")
    refused(2, "arms.0: Input should be 'true', 'shuffled'", data, "--arms", "none")
