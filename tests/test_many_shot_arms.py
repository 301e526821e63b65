"""What a probe shows and asks: splits, arms, nested prompts, and what a context holds."""

import numpy as np
import pytest
from planted import constant, oracle

from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.tokenizer import decode, encode
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.inference.many_shot_arms import Ended, examples_of, reinforced, right_answers, swept
from hyenadna.inference.many_shot_baselines import Baselines
from hyenadna.inference.many_shot_config import ProbeConfig
from hyenadna.inference.many_shot_prompt import prompt
from hyenadna.inference.many_shot_task import read_task, shots_of
from hyenadna.model.config import HyenaConfig

MODEL = HyenaConfig(d_model=8, d_inner=8, layers="H", filter_length=1026)


def table(path, rows):
    path.write_text("sequence,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return path


def rows_of(seed=0, train=40, test=12, classes="xyz", shortest=5, longest=20):
    random = np.random.default_rng(seed)
    rows = []
    for part, number in (("train", train), ("test", test)):
        for at in range(number):
            letters = random.choice(list("ACGT"), random.integers(shortest, longest + 1))
            rows.append(("".join(letters), classes[at % len(classes)], part))
    return rows


def task_of(tmp_path, rows=None, model=MODEL, **given):
    path = table(tmp_path / "data.csv", rows_of() if rows is None else rows)
    return read_task(ProbeConfig(data=str(path), **{"queries": 9, "calibration": 3, **given}), model)


def test_queries_are_never_shown(tmp_path):
    rows = rows_of(1, train=30, test=9, shortest=15)
    asked = [sequence for sequence, _, part in rows if part == "test"]
    rows += [(asked[0], "x", "train"), (reverse_complement(asked[1]), "y", "train"), (rows[0][0], "x", "train")]
    task = task_of(tmp_path, rows)
    assert sorted(task.queries) == sorted(asked)
    either = {*task.queries, *map(reverse_complement, task.queries)}
    assert not either & set(task.sequences) and len(set(task.sequences)) == len(task.sequences) == 30
    assert np.bincount(task.answers).tolist() == [3, 3, 3]
    assert task.notes == (
        "2 of 33 training rows are never shown: they are queries too, on either strand",
        "1 of 33 training rows are never shown: they stand there before, on either strand",
    )
    assert all(len(tokens) in map(len, task.queries) for tokens in task.contentless) and len(task.contentless) == 3


def test_prompts_of_a_seed_are_nested_and_balanced(tmp_path):
    task = task_of(tmp_path, rows_of(train=90))
    blocks = task.blocks((0, 1, 2, 4, 8), seed=3)
    assert [len(block) for block in blocks] == [0, 3, 3, 6, 12]
    for block in blocks[1:]:
        counts = np.bincount(task.labels[block])
        assert (counts == counts[0]).all()
    every = np.concatenate(blocks)
    assert len(set(every.tolist())) == len(every)
    np.testing.assert_array_equal(np.concatenate(task.blocks((0, 1, 2), seed=3)), every[:6])
    assert [*np.concatenate(task.blocks((1, 2, 4, 8), seed=4))] != [*every]
    # not in turns of the classes
    assert any(task.labels[block].tolist() != sorted(task.labels[block].tolist()) for block in blocks[3:])


def test_what_arms_say(tmp_path):
    task = task_of(tmp_path, rows_of(train=90))
    rows = task.blocks((8,), seed=0)[0]
    texts, labels = [task.sequences[row] for row in rows], task.labels[rows].tolist()
    said = {arm: examples_of(arm, task, rows, 0) for arm in ("true", "shuffled", "flipped", "unlabelled")}
    for arm, examples in said.items():
        assert [decode(example.tokens) for example in examples] == texts, arm
    assert [example.label for example in said["true"]] == labels
    assert [example.label for example in said["flipped"]] == [(label + 1) % 3 for label in labels]
    assert right_answers("flipped", np.array([0, 1, 2]), 3).tolist() == [1, 2, 0]
    dealt = [example.label for example in said["shuffled"]]
    assert dealt != labels and sorted(dealt) == sorted(labels)
    assert {example.label for example in said["unlabelled"]} == {None}
    copies = [(decode(tokens), label) for tokens, label in examples_of("reverse-complement", task, rows, 0)]
    pairs = list(zip(texts, labels, strict=True))
    assert sorted(copies) == sorted(pairs + [(reverse_complement(text), label) for text, label in pairs])


@pytest.mark.parametrize("arm", ["true", "unlabelled", "reverse-complement"])
def test_a_context_holds_what_fits(tmp_path, arm):
    task, seeds = task_of(tmp_path), (0, 1, 2)
    copies, labelled = {"true": (1, True), "unlabelled": (1, False), "reverse-complement": (2, True)}[arm]

    def longest(k):
        query = max(task.query_tokens, key=len)
        blocks = [task.blocks((k,), seed)[0] for seed in seeds]
        return max(len(prompt(examples_of(arm, task, rows, 0), query, task.layout).tokens) for rows in blocks)

    held = task.holds(longest(4), seeds, copies=copies, labelled=labelled)
    assert held == 4
    assert task.holds(longest(4) - 1, seeds, copies=copies, labelled=labelled) == 3
    assert task.holds(10**6, seeds, copies=copies, labelled=labelled) == task.most_shots == 13


def test_shots_of_each_arm(tmp_path, capsys):
    task = task_of(tmp_path)
    config = ProbeConfig(seeds=3)
    shots = shots_of(config, task, constant(np.zeros(16), context=400))
    held = task.holds(400, (0, 1, 2))
    assert 4 <= held < 8 and f"context of 400 tokens holds k = {held} of this data\n" in capsys.readouterr().err
    assert shots["true"] == shots["flipped"] == (0, 1, 2, 4)
    assert shots["reverse-complement"] == (0, 1, 2) and shots["unlabelled"] == (0, 1, 2, 4)
    assert shots_of(ProbeConfig(shots=(1, 3)), task, constant(np.zeros(16), context=400))["true"] == (1, 3)
    assert shots_of(config, task, constant(np.zeros(16)))["true"] == (0, 1, 2, 4, 8)
    assert "holds k = 13 of this data, or more: that is all there is" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"--shots 64: the rarest class of the data holds 13 examples of each class"):
        shots_of(ProbeConfig(shots=(64,)), task, constant(np.zeros(16)))
    with pytest.raises(UsageError, match=rf"--shots 8: the context of 400 tokens holds {held} examples"):
        shots_of(ProbeConfig(shots=(8,), seeds=3), task, constant(np.zeros(16), context=400))
    with pytest.raises(SequenceTooLong, match=r"an example of each of 3 classes and a query of up to .* --max-length"):
        shots_of(config, task, constant(np.zeros(16), context=60))


def test_a_sweep_of_an_arm(tmp_path):
    task, model = task_of(tmp_path), constant(np.zeros(16))
    steps = list(swept(model, task, "true", (0, 1, 2, 4), 0, {1, 4}, 1 << 13))
    assert [(step.arm, step.shots) for step in steps] == [("true", 1), ("true", 4)]
    whole = prompt(examples_of("true", task, np.concatenate(task.blocks((0, 1, 2, 4), 0)), 0), None, task.layout)
    assert steps[-1].answers.prompt_tokens == len(whole.tokens)
    assert sum(step.answers.tokens_read for step in steps) == model.read


def test_reinforced_examples_are_those_that_are_answered_right(tmp_path):
    task = task_of(tmp_path, rows_of(train=400, shortest=12))
    # right about every second sequence
    wrong = {row for row in range(len(task.sequences)) if row % 2}
    known = {
        encode(task.sequences[row]).tobytes(): (int(task.labels[row]) + (row in wrong)) % 3
        for row in range(len(task.sequences))
    }
    model = oracle(known, task.layout)
    seen = []
    extend = model.extend
    model.extend = lambda tokens, state=None, **how: seen.append(decode(tokens[0].numpy())) or extend(tokens, state)
    steps = list(reinforced(model, task, (1, 2), 0, 1 << 13))
    wanted = [("reinforced", 1), ("matched", 1), ("reinforced", 2), ("matched", 2)]
    assert [(step.arm, step.shots) for step in steps] == wanted
    for step, text in zip(steps, seen, strict=True):
        shown = [row for row, sequence in enumerate(task.sequences) if f"{sequence}CTAG" in text]
        assert len(shown) == 3
        if step.arm == "reinforced":
            assert not wrong & set(shown) and step.about["answered_right"] == 1
        for row in shown:  # both say the truth
            assert f"{task.sequences[row]}CTAG{task.layout.label_words[task.labels[row]]}CTAG" in text
    assert 0 < steps[0].about["asked_answered_right"] < 1
    assert all(abs(steps[at].about["confidence"] - steps[at + 1].about["confidence"]) < 0.01 for at in (0, 2))


def test_reinforced_sweeps_end_in_words(tmp_path):
    task = task_of(tmp_path, rows_of(train=90), calibration=0)
    biased = np.zeros(16)
    biased[7] = 5
    (ended,) = reinforced(constant(biased), task, (1, 2), 0, 1 << 13)
    assert ended == Ended(1, "of 8 sequences of class y, 0 were answered right; wanted were 1")
    (ended,) = reinforced(constant(biased), task, (32,), 0, 1 << 13)
    assert ended == Ended(32, "the data have no further sequences to ask")


def test_longer_sequences_are_cut_to_their_middle(tmp_path, capsys):
    rows = [("AC" * 10 + "GATTACA" + "TG" * 10, "x", "train"), *rows_of(shortest=6, longest=7)]
    task = task_of(tmp_path, rows, max_length=7)
    assert "GATTACA" in task.sequences and max(map(len, task.sequences)) == 7
    assert "1 of 41 sequences were cut to 7 bases around their middle" in capsys.readouterr().err


def test_data_without_parts_are_split(tmp_path):
    rows = rows_of(train=60, test=0, shortest=20, longest=30)
    path = tmp_path / "data.csv"
    path.write_text("sequence,label\n" + "".join(f"{sequence},{label}\n" for sequence, label, _ in rows))
    task = read_task(ProbeConfig(data=str(path), queries=6, test_share=0.3), MODEL)
    assert len(task.queries) == 6 and not set(task.queries) & set(task.sequences)
    assert len(task.sequences) == 42 and "clusters" in task.notes[0]


def test_baselines_learn_from_the_examples(tmp_path):
    random = np.random.default_rng(5)

    def made(letters, label, part):
        return "".join(random.choice(list(letters), 30)), label, part

    rows = [
        made(letters, label, part)
        for part, number in (("train", 16), ("test", 8))
        for letters, label in (("AAT", "x"), ("CCG", "y"))
        for _ in range(number)
    ]
    task = task_of(tmp_path, rows, queries=16)
    correct = Baselines(task).correct(task.blocks((4,), 0)[0])
    assert correct["5 nearest"].mean() == correct["k-mer regression"].mean() == 1
    assert correct["majority"].mean() == 0.5
    assert all(found.shape == (16,) for found in correct.values())


@pytest.mark.parametrize(
    ("rows", "given", "error", "said"),
    [
        ([("ACGT", "x", "train"), ("ACC", "x", "test")], {}, InputError, "all training rows are of class x"),
        (
            [("ACGT", "x", "train"), ("ACC", "y", "train"), ("AGG", "z", "test")],
            {},
            InputError,
            "class z is in the test",
        ),
        ([("ACGT", "x;y", "train"), ("ACC", "y", "train"), ("AGG", "y", "test")], {}, InputError, "are a multilabel"),
        (
            [("ACGT", "x", "train"), ("ACC", "y", "train"), ("ACC", "y", "test")],
            {},
            InputError,
            "class y is left to show",
        ),
        (None, {"label_words": ("A", "C")}, UsageError, "--label-words A C: 2 words for 3 classes"),
        (None, {"label_words": ("A", "C", "Q")}, UsageError, "'Q' is no word of the prompt"),
        (None, {"label_words": ("A", "C", "GG")}, UsageError, "all of one length"),
        (None, {"label_words": ("A", "C", "A")}, UsageError, "all different"),
        (None, {"separator": "cls"}, UsageError, "'cls' is no word"),
    ],
)
def test_data_and_layouts_that_cannot_be_probed(tmp_path, rows, given, error, said):
    with pytest.raises(error, match=said) as caught:
        task_of(tmp_path, rows, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shots": (4, 2)}, "--shots 4 2: give numbers from 0 that ascend"),
        ({"shots": (-1,)}, "--shots -1"),
        ({"arms": ("true", "true")}, "--arms true true; give some of true, shuffled"),
        ({"queries": 0}, "--queries is 0; it must be at least 1"),
        ({"test_share": 1.0}, "--test-share is 1.0"),
        ({"max_length": 0}, "--max-length is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(UsageError, match=said):
        ProbeConfig(**given)


def test_the_published_layout_warns(tmp_path, capsys):
    rows = [row for row in rows_of() if row[1] != "z"]
    task = task_of(tmp_path, rows, layout="published")
    assert task.layout.label_words == ("A", "N") and task.layout.separator == "sep"
    assert "this layout is for models that are tuned on it: [SEP] ends the records" in capsys.readouterr().err
    other = task_of(tmp_path, rows, layout="published", label_words=("C", "G"))
    assert other.layout.label_words == ("C", "G") and other.layout.separator == "sep"


def test_labels_of_each_block_are_dealt_out_by_themselves(tmp_path):
    """Of two classes and k = 1 and 2, both blocks would else be all true, or both all false."""
    task = task_of(tmp_path, [row for row in rows_of(train=90) if row[1] != "z"])
    alike = []
    for seed in range(40):
        true = []
        for rows in task.blocks((1, 2), seed):
            dealt = [example.label for example in examples_of("shuffled", task, rows, seed)]
            true.append(dealt == task.labels[rows].tolist())
        alike.append(true[0] == true[1])
    assert 0.25 < np.mean(alike) < 0.75


def test_nearly_queries_are_never_shown_but_where_rows_are_split(tmp_path):
    rows = rows_of(2, train=12, test=9, shortest=60, longest=60)
    asked = next(sequence for sequence, _, part in rows if part == "test")
    copy = reverse_complement(asked[:30] + ("A" if asked[30] != "A" else "C") + asked[31:])
    rows.append((copy, "x", "train"))
    task = task_of(tmp_path, rows)
    assert copy not in task.sequences and len(task.sequences) == 12
    assert task.notes == ("1 of 13 training rows are never shown: they are nearly queries, on either strand",)
    assert copy in task_of(tmp_path, rows, split_by="row").sequences


def test_reinforced_candidates_that_do_not_fit_are_not_asked(tmp_path):
    long = "ACGT" * 100
    rows = [
        (sequence + long * (part == "train" and at % 9 == 0), label, part)
        for at, (sequence, label, part) in enumerate(rows_of(train=90, shortest=12))
    ]
    task = task_of(tmp_path, rows)
    known = {encode(text).tobytes(): label for text, label in zip(task.sequences, task.labels.tolist(), strict=True)}
    lengths = np.array([len(sequence) for sequence in task.sequences])
    # as `shots_of` asks: the first of each class fits; and among those that the model is asked are longer ones
    seed = next(seed for seed in range(99) if all(lengths[rows[0]] < 30 for rows in task.order(seed)))
    assert any((lengths[rows[:8]] > 400).any() for rows in task.order(seed))
    steps = list(reinforced(oracle(known, task.layout, context=300), task, (1,), seed, 1 << 13))
    assert [step.arm for step in steps] == ["reinforced", "matched"]


def test_too_few_to_compare_reinforced_examples_with_are_told(tmp_path):
    rows = [row for row in rows_of(train=90, shortest=12) if row[2] == "test" or row[1] != "y"]
    rows += [row for row in rows_of(train=9, test=0, seed=7, shortest=12) if row[1] == "y"]
    task = task_of(tmp_path, rows)
    known = {encode(text).tobytes(): label for text, label in zip(task.sequences, task.labels.tolist(), strict=True)}
    (ended,) = reinforced(oracle(known, task.layout), task, (2,), 0, 1 << 13)
    assert ended == Ended(2, "class y has 1 further sequences to compare with; wanted were 2")
