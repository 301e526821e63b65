"""Predictions against a model that reads one window at a time in float64; and the files that hold them."""

import copy
import errno
import functools
import io
import json
import multiprocessing
import os
import random

import numpy as np
import pytest
import torch
from checkpoints import small_model
from embedding import ragged_sequences

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, UsageError, WriteError
from hyenadna.finetune import predict as module
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.predict import Predictor, predict
from hyenadna.finetune.prediction_file import PredictionLines
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task
from hyenadna.inference.line_file import LineFile
from hyenadna.inference.long_windows import long_windows

TASKS = {
    "binary": Task("binary", ("no", "yes")),
    "multiclass": Task("multiclass", ("ei", "ie", "n")),
    "multilabel": Task("multilabel", ("a", "b", "c")),
    "regression": Task("regression", ("expression",), 3.0, 2.0),
    "nucleotide": Task("nucleotide", ("E", "I")),
}
SEQUENCES = ragged_sequences(number=10, longest=110)
ABOUT = {"hyenadna": "0", "adapter": "run", "command": "hyena predict one.csv -m run"}


def model_of(kind, **fields):
    model = SequenceModel(small_model(), TASKS[kind], Adaptation(**{"method": "full", **fields}), seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("base."):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: model_of(kind) for kind in TASKS}


@pytest.fixture(scope="module")
def in_float64(models):
    return {kind: copy.deepcopy(model).double() for kind, model in models.items()}


def tokens_of(pairs):
    return [encode(sequence) for _, sequence in pairs]


@functools.cache
def probabilities(model, sequence):
    """Of one window, alone, in float64, from the equations of `Task`."""
    tokens = torch.from_numpy(encode(sequence))[None]
    with torch.no_grad():
        out = model(tokens, torch.tensor([len(sequence)]))[0].double().numpy()
    match model.task.kind:
        case "regression":
            return out * 2.0 + 3.0
        case "multilabel":
            return 1 / (1 + np.exp(-out))
    return np.exp(out) / np.exp(out).sum(-1, keepdims=True)


def oracle(model, sequence, *, stride=34, both=False, aggregate="mean"):
    windows = long_windows([len(sequence)], 68, stride)
    pieces = [sequence[window.start : window.end] for window in windows]
    of_windows = [probabilities(model, piece) for piece in pieces]
    if both:
        turn = slice(None, None, -1) if model.task.kind == "nucleotide" else slice(None)
        others = [probabilities(model, reverse_complement(piece))[turn] for piece in pieces]
        of_windows = [(one + other) / 2 for one, other in zip(of_windows, others, strict=True)]
    if model.task.kind == "nucleotide":
        at = [
            [of[base - window.start] for window, of in zip(windows, of_windows, strict=True)
             if window.start <= base < window.end]
            for base in range(len(sequence))
        ]  # fmt: skip
        return np.array([np.mean(values, axis=0) for values in at])
    if aggregate == "mean":
        return np.mean(of_windows, axis=0)
    largest = np.max(of_windows, axis=0)
    return np.array([1 - largest[1], largest[1]]) if model.task.kind == "binary" else largest


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {"both": True, "stride": 68}) for kind in TASKS]
    + [("multiclass", {}), ("nucleotide", {})]
    + [(kind, {"aggregate": "max", "stride": 50}) for kind in ("binary", "multilabel", "regression")],
    ids=str,
)
def test_predictions_are_those_of_each_window_alone(models, in_float64, kind, options):
    given = {{"both": "reverse_complement"}.get(name, name): value for name, value in options.items()}
    found = Predictor(models[kind], batch_tokens=200, **given)(tokens_of(SEQUENCES))
    for values, (_, sequence) in zip(found, SEQUENCES, strict=True):
        wanted = oracle(in_float64[kind], sequence, **options)
        assert values.shape == wanted.shape and values.dtype == np.float64
        assert np.abs(values - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


def test_order_and_neighbours_do_not_matter(models):
    predictor = Predictor(models["multiclass"], batch_tokens=200)
    tokens = tokens_of(SEQUENCES)
    together = predictor(tokens)
    order = random.Random(1).sample(range(len(tokens)), len(tokens))
    for row, values in zip(order, predictor([tokens[row] for row in order]), strict=True):
        assert np.abs(values - together[row]).max() < 1e-6
        assert np.abs(values - predictor([tokens[row]])[0]).max() < 1e-6


def test_a_prompt_leaves_shorter_windows():
    model = model_of("binary", method="soft-prompt", prompt_length=8)
    predictor = Predictor(model)
    assert (predictor.context, predictor.stride) == (60, 30)
    found = predictor([encode("ACGT" * 25)])[0]
    wanted = np.mean([probabilities(model, ("ACGT" * 25)[start : start + 60]) for start in (0, 30, 40)], axis=0)
    assert np.abs(found - wanted).max() < 1e-5


def test_settings_that_do_not_fit(models):
    with pytest.raises(UsageError, match="stride of 69 bases; allowed are 1 to the 68"):
        Predictor(models["binary"], stride=69)
    for kind in ("multiclass", "nucleotide"):
        with pytest.raises(UsageError, match=f"--aggregate max has no meaning for a {kind} task"):
            Predictor(models[kind], aggregate="max")


LINES = {
    "binary": ([0.25, 0.75], "x\tyes\t0.25\t0.75", {"prediction": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}),
    "multiclass": (
        [0.5, 0.125, 0.375],
        "x\tei\t0.5\t0.125\t0.375",
        {"prediction": "ei", "probabilities": {"ei": 0.5, "ie": 0.125, "n": 0.375}},
    ),
    "multilabel": (
        [0.5, 0.25, 0.75],
        "x\tc\t0.5\t0.25\t0.75",
        {"prediction": "c", "probabilities": {"a": 0.5, "b": 0.25, "c": 0.75}},
    ),
    "regression": ([1.23456789], "x\t1.23457", {"prediction": 1.23457}),
    "nucleotide": (
        [[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]],
        "x\tEEI\t0.75",
        {"prediction": "EEI", "mean_probability": 0.75},
    ),
}
COLUMNS = {
    "binary": "id\tprediction\tprobability_no\tprobability_yes",
    "regression": "id\tprediction",
    "nucleotide": "id\tprediction\tmean_probability",
}


@pytest.mark.parametrize("kind", TASKS)
def test_lines(kind):
    values, tsv, fields = LINES[kind]
    lines, in_json = PredictionLines(TASKS[kind]), PredictionLines(TASKS[kind], as_json=True)
    assert lines.line("x", np.array(values)) == tsv + "\n" and lines.name(tsv) == "x"
    row = in_json.line("x\t", np.array(values))
    assert json.loads(row) == {"id": "x\t"} | fields and in_json.name(row) == "x\t"
    about, columns, rest = lines.header({"a": "1\n2", "b": 3}).split("\n")
    assert about == "# a 1 2; b 3" and rest == "" and columns == COLUMNS.get(kind, columns)
    assert json.loads(in_json.header({"a": "1\n2"})) == {"a": "1\n2"}
    with pytest.raises(InputError, match=r"'x\\ty' holds a tab or the end of a line.*take --json"):
        lines.line("x\ty", np.array(values))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "bases_between_writes", lambda model, batch_tokens: 150)


def write(path, model, pairs=SEQUENCES, *, as_json=False, about=ABOUT, overwrite=False):
    lines = PredictionLines(model.task, as_json=as_json)
    return predict(Predictor(model), iter(pairs), LineFile(path, lines, about, overwrite=overwrite))


def _predict_and_die(path, model, as_json, after):
    def mortal():
        for number, pair in enumerate(SEQUENCES):
            if number == after:
                os.kill(os.getpid(), 9)
            yield pair

    write(path, model, mortal(), as_json=as_json)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_killed_and_continued_it_is_the_same_file(models, tmp_path, small_chunks, as_json, torn):
    model = models["multiclass"]
    assert write(tmp_path / "whole.tsv", model, as_json=as_json) == len(SEQUENCES)
    whole = (tmp_path / "whole.tsv").read_bytes()
    path, partial = tmp_path / "a.tsv", tmp_path / "a.tsv.partial"
    process = multiprocessing.get_context("fork").Process(
        target=_predict_and_die, args=(path, model, as_json, len(SEQUENCES) - 1)
    )
    process.start()
    process.join()
    assert process.exitcode == -9 and not path.exists()
    left = partial.read_bytes()
    assert whole.startswith(left) and left.count(b"\n") > 4
    if torn:
        partial.write_bytes(left[: len(left) * 2 // 3])
    write(path, model, as_json=as_json)
    assert path.read_bytes() == whole and not partial.exists()
    names = [
        PredictionLines(model.task, as_json=as_json).name(line) for line in whole.decode().splitlines()[2 - as_json :]
    ]
    assert names == [name for name, _ in SEQUENCES]


def failing(after=8):
    for number, pair in enumerate(SEQUENCES):
        yield pair if number < after else 1 / 0


def test_only_the_same_job_is_continued(models, tmp_path, small_chunks):
    model, path, partial = models["binary"], tmp_path / "new" / "a.tsv", tmp_path / "new" / "a.tsv.partial"
    with pytest.raises(ZeroDivisionError):
        write(path, model, failing())
    left = partial.read_bytes()
    for about, as_json in ((ABOUT | {"adapter": "another"}, False), (ABOUT, True)):
        with pytest.raises(UsageError, match=r"a\.tsv\.partial was begun by another job \(# hyenadna 0; adapter run"):
            write(path, model, about=about, as_json=as_json)
    with pytest.raises(InputError, match=r"partial holds 's1' in row 2, where the input has 's2'"):
        write(path, model, [SEQUENCES[0], *SEQUENCES[2:]])
    with pytest.raises(InputError, match="partial holds more than the 3 rows that the input gives"):
        write(path, model, [*SEQUENCES[:2], ("s2", "ACG" * 100)])
    assert partial.read_bytes() == left
    assert write(path, model, about=ABOUT | {"command": "hyena predict --threads 7"}) == len(SEQUENCES)
    with pytest.raises(UsageError, match=r"-o .*a\.tsv exists; give another name, or --overwrite"):
        write(path, model)
    whole = path.read_text()
    write(path, model, SEQUENCES[:2], overwrite=True)
    again = [line.split("\t")[:2] for line in path.read_text().splitlines()[2:]]
    assert again == [line.split("\t")[:2] for line in whole.splitlines()[2:4]]


def test_nobody_else_writes_it_meanwhile(models, tmp_path):
    first = LineFile(tmp_path / "a.tsv", PredictionLines(TASKS["binary"]), ABOUT)
    with first, pytest.raises(UsageError, match=r"a\.tsv\.partial is being written by another process"):
        write(tmp_path / "a.tsv", models["binary"], overwrite=True)
    write(tmp_path / "a.tsv", models["binary"])


def test_a_full_disk(models, tmp_path, small_chunks, monkeypatch):
    path, model = tmp_path / "a.tsv", models["binary"]
    file, written = LineFile(path, PredictionLines(model.task), ABOUT), []

    class Full(io.BytesIO):
        def write(self, text):
            written.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "_file", Full())
    monkeypatch.setattr(file, "_reading", False)
    with pytest.raises(
        WriteError, match=r"a\.tsv\.partial could not be written: No space left on device; what was wri"
    ):
        predict(Predictor(model), iter(SEQUENCES), file)
    assert written and not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"could not be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "a.tsv", model)


def test_stdout_takes_lines_as_they_come(models, capsys, small_chunks):
    with pytest.raises(ZeroDivisionError):
        write(None, models["binary"], failing())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# hyenadna 0; adapter run; command hyena predict")
    assert [line.split("\t")[0] for line in lines[2:6]] == [name for name, _ in SEQUENCES[:4]]


def test_a_full_disk_behind_stdout(models, monkeypatch):
    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout.write", full)
    with pytest.raises(WriteError, match="could not be written to stdout: No space left"):
        write(None, models["binary"])


def test_a_closed_pipe_is_not_an_error_of_ours(models, monkeypatch):
    def closed(text):
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdout.write", closed)
    with pytest.raises(BrokenPipeError):  # which ends the command quietly
        write(None, models["binary"])
