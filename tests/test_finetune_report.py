import csv
import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from hyenadna import files, plots
from hyenadna.data.labelled import LabelledSequences
from hyenadna.errors import InputError, ShapeError, WriteError
from hyenadna.finetune import comparison, metrics
from hyenadna.finetune.baselines import Baseline
from hyenadna.finetune.card import model_card
from hyenadna.finetune.comparison import MODEL, TestRun, compare
from hyenadna.finetune.report import FILES, Report
from hyenadna.finetune.task import Task

BINARY = Task("binary", ("no", "yes"))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(plots, "_DOTS_PER_INCH", 40)


def sequences(labels, first=0, groups=None):
    ids = tuple(f"r{first + row}" for row in range(len(labels)))
    return LabelledSequences(ids, ("ACGT",) * len(ids), tuple(map(str, labels)), groups=groups)


def two_columns(yes):
    return np.stack((1 - yes, yes), axis=1)


def said(truth, random, noise):
    return two_columns(np.clip(0.5 + 0.25 * (2 * truth - 1) + random.normal(scale=noise, size=len(truth)), 0, 1))


def run(truth, predictions, split=0, seed=0, first=0, duplicated=None, task=BINARY, groups=None):
    labels = [task.labels[number] for number in truth] if task.kind in ("binary", "multiclass") else [""] * len(truth)
    copies = np.zeros(len(truth), dtype=bool) if duplicated is None else duplicated
    return TestRun(split, seed, sequences(labels, first, groups), truth, predictions, copies)


def example(model_noise, baseline_noise, n=400):
    random = np.random.default_rng(0)
    truth = random.integers(2, size=n)
    model = run(truth, said(truth, random, model_noise))
    baseline = Baseline("k-mer logistic regression", said(truth, random, baseline_noise), 1.5, "k = 5")
    absent = Baseline("length alone", None, 0.0, "all training sequences have 4 bases")
    return Report(BINARY, [model], {0: [baseline, absent]}, {"data": "toy.csv"})


def table(path):
    with path.open() as file:
        return list(csv.reader(file, delimiter="\t"))


def test_verdicts():
    better = example(0.1, 0.6)
    assert better.verdict.outcome == "better" and better.verdict.baseline == "k-mer logistic regression"
    assert "beats the best baseline, k-mer logistic regression: auroc +0." in better.verdict.text
    worse = example(0.6, 0.1)
    assert worse.verdict.outcome == "worse"
    assert "A baseline is better than the language model, k-mer logistic regression: auroc -0." in worse.verdict.text
    alike = example(0.3, 0.3)
    assert alike.verdict.outcome == "as good"
    gap = alike.full.differences["k-mer logistic regression"]["auroc"]
    assert gap.low < 0 < gap.high
    shown = (
        f"auroc {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], model minus baseline; use it instead, it is smaller"
    )
    assert f"400 test rows tell, a baseline is as good as the language model, k-mer logistic regression: {shown}" in (
        alike.verdict.text
    )
    assert all("--seeds 5" in report.verdict.text for report in (better, worse, alike))
    assert alike.text().endswith(alike.verdict.text)


def test_nothing_to_judge():
    truth = np.ones(20, dtype=int)
    alone = run(truth, two_columns(np.linspace(0, 1, 20)))
    baseline = Baseline("majority class", two_columns(np.full(20, 0.5)), 0.0)
    assert "auroc is not defined on these test rows" in Report(BINARY, [alone], {0: [baseline]}).verdict.text
    assert "-  " in Report(BINARY, [alone], {0: [baseline]}).text()
    mixed = run(np.array([0, 1] * 10), two_columns(np.linspace(0, 1, 20)))
    assert Report(BINARY, [mixed]).verdict.text.startswith("No baseline was trained: auroc 0.550 stands alone.")
    with pytest.raises(InputError, match="no test prediction to report"):
        Report(BINARY, [])
    with pytest.raises(InputError, match="the test part is empty"):
        Report(BINARY, [run(truth[:0], np.zeros((0, 2)))]).full  # noqa: B018


def test_one_run_is_measured_as_metrics_measure_it():
    report = example(0.3, 0.4)
    tested = report.runs[0]
    measured = metrics.measure(BINARY, tested.targets, tested.predictions)
    gap = metrics.paired(
        BINARY, "auroc", tested.targets, tested.predictions, report.baselines[0][0].predictions, seed=1
    )
    ours = report.full.models[MODEL]
    assert tuple(report.full.models) == (MODEL, "k-mer logistic regression")
    for name, estimate in measured.items():
        assert ours[name].value == pytest.approx(estimate.value)
        assert ours[name].low == pytest.approx(estimate.low, abs=0.005)
        assert ours[name].high == pytest.approx(estimate.high, abs=0.005)
    difference = report.full.differences["k-mer logistic regression"]["auroc"]
    assert difference.value == pytest.approx(gap.value) and difference.low == pytest.approx(gap.low, abs=0.01)


def test_rows_with_a_copy_in_train_are_left_out():
    """The model remembers the copies: better on all rows, worse without them, and the verdict says so."""
    random = np.random.default_rng(0)
    truth = random.integers(2, size=600)
    copies = np.arange(600) < 400
    model = said(truth, random, 0.8)
    model[copies] = np.eye(2)[truth[copies]]
    baseline = Baseline("GC + CpG", said(truth, random, 0.3), 0.1)
    report = Report(BINARY, [run(truth, model, duplicated=copies)], {0: [baseline]})
    assert report.full.differences["GC + CpG"]["auroc"].low > 0
    kept = metrics.point(BINARY, truth[400:], model[400:])["auroc"]
    assert report.deduplicated.models[MODEL]["auroc"].value == pytest.approx(kept) and report.deduplicated.rows == 200
    assert report.verdict.outcome == "worse" and "with them it reads: The language model beats" in report.verdict.text
    assert "600 rows, of which 400 (66.7%) have a copy in train" in report.text()
    assert "rows without a copy in train" in report.text()
    every = Report(BINARY, [run(truth, model, duplicated=np.ones(600, dtype=bool))], {0: [baseline]})
    assert every.deduplicated is None and "Every test row has a copy in train" in every.text()
    assert every.verdict.outcome == "unknown" and every.to_json()["tests"]["deduplicated"] is None


@pytest.mark.parametrize(
    ("splits", "seeds", "rows", "of_split", "of_seed"),
    [(8, 3, 60, 0.08, 0.06), (1, 12, 40, 0, 0.06), (10, 1, 100, 0.08, 0), (5, 1, 50, 0, 0), (6, 4, 50, 0, 0.1)],
)
def test_spread_over_splits_seeds_and_rows(splits, seeds, rows, of_split, of_seed):
    """Accuracies with known variance components: the bootstrap's spread is that of experiments done anew.

    A split has its own rate, a seed its own, a row is right with their sum. Rows are new in each split.
    """
    random = np.random.default_rng(1)

    def experiment():
        runs = []
        for split in range(splits):
            rate, easy = 0.7 + random.normal(scale=of_split), random.random(rows)
            for seed in range(seeds):
                right = easy < rate + random.normal(scale=of_seed)
                runs.append(run(np.ones(rows, dtype=int), two_columns(right.astype(float)), split, seed, split * rows))
        return runs

    found = [compare(BINARY, experiment(), {}).models[MODEL]["accuracy"] for _ in range(12)]
    variances = [((one.high - one.low) / 3.92) ** 2 for one in found]
    # all seeds of a split see the same rows: more seeds do not make the rows more
    expected = of_split**2 / splits + of_seed**2 / (splits * seeds) + 0.21 / (splits * rows)
    # where there is no effect, half of its estimates are above 0 and the others cannot be below
    widest = 1.15 if of_split or splits == 1 else 1.3
    assert 0.85 < np.sqrt(np.mean(variances) / expected) < widest


def test_a_row_of_several_splits_is_drawn_once():
    random = np.random.default_rng(0)
    truth = random.integers(2, size=100)
    predictions = said(truth, random, 0.4)
    once = compare(BINARY, [run(truth, predictions)], {})
    four = compare(BINARY, [run(truth, predictions, split) for split in range(4)], {})
    apart = compare(BINARY, [run(truth, predictions, split, first=100 * split) for split in range(4)], {})
    width = [one.models[MODEL]["accuracy"].high - one.models[MODEL]["accuracy"].low for one in (once, four, apart)]
    assert width[1] == pytest.approx(width[0], rel=0.1) and width[2] == pytest.approx(width[0] / 2, rel=0.1)
    assert (once.rows, four.rows, apart.rows) == (100, 100, 400)


def test_baselines_are_paired_by_split():
    """A split that is hard is hard for both: the interval of the difference does not hold the spread of the splits."""
    random = np.random.default_rng(0)
    runs, baselines = [], {}
    for split in range(6):
        truth, noise = random.integers(2, size=200), 0.1 + 0.15 * split
        model = said(truth, random, noise)
        weaker = two_columns(np.clip(model[:, 1] + random.normal(scale=0.05, size=200), 0, 1))
        runs.append(run(truth, model, split, first=200 * split))
        baselines[split] = [Baseline("a", weaker, 0.0), Baseline("b", model if split else None, 0.0, "no reason")]
    found = compare(BINARY, runs, baselines)
    of_model, gap = found.models[MODEL]["auroc"], found.differences["a"]["auroc"]
    assert gap.high - gap.low < 0.3 * (of_model.high - of_model.low)
    assert of_model.value == pytest.approx(np.mean([roc_auc_score(one.targets, one.predictions[:, 1]) for one in runs]))
    # what does not apply in one split cannot be compared
    assert "b" not in found.models and comparison.applicable(baselines, set(range(6))) == ["a"]


def test_groups_are_drawn_when_there_are_enough():
    truth = np.tile([0, 1], 60)
    predictions = said(truth, np.random.default_rng(0), 0.3)
    many, few = (
        compare(BINARY, [run(truth, predictions, groups=tuple(str(i // n) for i in range(120)))], {}) for n in (6, 40)
    )
    assert (many.drawn, few.drawn) == ("20 groups", "120 rows") and many.rows == few.rows == 120
    with pytest.raises(ShapeError, match="runs of split 0 have different test rows"):
        compare(BINARY, [run(truth, predictions), run(truth, predictions, first=1)], {})


def test_files_of_a_binary_task(tmp_path):
    random = np.random.default_rng(0)
    truth = random.integers(2, size=80)
    copies = random.random(80) < 0.2
    runs = [run(truth, said(truth, random, 0.5), seed=seed, duplicated=copies) for seed in range(2)]
    report = Report(BINARY, runs, {0: [Baseline("GC + CpG", said(truth, random, 0.4), 0.1)]}, {"command": "hyena"})
    (tmp_path / "scatter.png").write_text("of an earlier regression")
    report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"scatter.png", "scatter.tsv"}
    header, *rows = table(tmp_path / "predictions.tsv")
    assert header == ["split", "seed", "id", "label", "prediction", "p_no", "p_yes", "duplicated"] and len(rows) == 160
    again = np.array([[row[5], row[6]] for row in rows[80:]], dtype=float)
    assert np.allclose(again, runs[1].predictions, atol=1e-5) and rows[80][:3] == ["0", "1", "r0"]
    assert [row[4] for row in rows[80:]] == [BINARY.labels[number] for number in runs[1].predictions.argmax(axis=1)]
    assert [row[7] == "1" for row in rows[:80]] == copies.tolist()
    counts = np.array([row[1:] for row in table(tmp_path / "confusion.tsv")[1:]], dtype=int)
    assert np.array_equal(counts, sum(confusion_matrix(truth, one.predictions.argmax(axis=1)) for one in runs))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["tests"]["full"]["models"][MODEL]["auroc"]["value"] == report.full.models[MODEL]["auroc"].value
    assert stored["verdict"]["outcome"] == report.verdict.outcome and stored["main_metric"] == "auroc"
    assert (tmp_path / "report.txt").read_text() == report.text() + "\n"
    curves = {(row[0], row[1]) for row in table(tmp_path / "curves.tsv")[1:]}
    names = {"GC + CpG, split 0", "language model, split 0, seed 0", "language model, split 0, seed 1"}
    assert curves == {(name, kind) for name in names for kind in ("roc", "precision-recall")}


def test_files_of_the_other_kinds(tmp_path):
    random = np.random.default_rng(0)
    three = Task("multiclass", ("a", "b", "c"))
    truth = random.integers(3, size=60)
    raw = random.random((60, 3)) + np.eye(3)[truth]
    Report(three, [run(truth, raw / raw.sum(axis=1, keepdims=True), task=three)]).write(tmp_path / "three")
    assert {row[0] for row in table(tmp_path / "three" / "curves.tsv")[1:]} == {"a", "b", "c"}

    number = Task("regression", ("expression",), 5.0, 2.0)
    values = random.normal(5, 2, size=60)
    Report(number, [run(values, values[:, None] + 0.5, task=number)]).write(tmp_path / "number")
    header, *rows = table(tmp_path / "number" / "scatter.tsv")
    assert np.allclose([float(row[4]) - float(row[3]) for row in rows], 0.5) and header[3:] == ["target", "prediction"]
    assert not (tmp_path / "number" / "confusion.png").exists()

    labels = Task("multilabel", ("x", "y", "z"))
    yes = (random.random((60, 3)) < [0.5, 0.5, 0]).astype(float)
    Report(labels, [run(yes, np.clip(yes, 0.1, 0.9), task=labels)]).write(tmp_path / "labels")
    assert {row[0] for row in table(tmp_path / "labels" / "curves.tsv")[1:]} == {"x", "y"}
    prediction = {row[4] for row in table(tmp_path / "labels" / "predictions.tsv")[1:]}
    assert prediction == {"", "x", "y", "x;y"}

    bases = Task("nucleotide", ("c", "n"))
    truth = np.array([[0, 1, 1, 0], [1, 1, 0, -100]])
    shares = np.eye(2)[np.maximum(truth, 0)]
    shares[1, 3] = np.nan
    test = LabelledSequences(("a", "b"), ("ACGT", "ACG"), ("cnnc", "nnc"))
    report = Report(bases, [TestRun(0, 0, test, truth, shares, np.zeros(2, dtype=bool))])
    report.write(tmp_path / "bases")
    assert [row[4] for row in table(tmp_path / "bases" / "predictions.tsv")[1:]] == ["cnnc", "nnc"]
    assert table(tmp_path / "bases" / "confusion.tsv")[1:] == [["c", "3", "0"], ["n", "0", "4"]]
    assert not (tmp_path / "bases" / "curves.png").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WriteError, match=r"report\.json could not be written: No space left"):
        example(0.3, 0.3).write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_model_card():
    report = example(0.3, 0.3)
    card = model_card(
        report,
        method="lora, rank 8",
        base="starter, pretrained weights ab12",
        data="toy.csv",
        rows_sha256="cd34",
        split_rule="by sequence cluster",
        command="hyena finetune toy.csv --method lora",
        rows={"train": 1000, "valid": 100, "test": 400},
    )
    assert card.startswith("# Tells no, yes from DNA\n") and report.verdict.text in card
    for part in (
        "starter, pretrained weights ab12. Method: lora, rank 8.\nThe adapter belongs to this model and to",
        "`cd34`",
        "train 1,000, valid 100, test 400",
        "Split: by sequence cluster.",
        "--method lora",
    ):
        assert part in card
    auroc = report.full.models[MODEL]["auroc"]
    assert f"| {auroc} |" in card and "| k-mer logistic regression |" in card and "nan" not in card
    assert "No test row has a copy in train." in card and "look it up before" in card
