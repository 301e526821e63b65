"""Tasks to learn in context: what is planted, programs by hand, rows that come once, and labels that tell nothing."""

import numpy as np
import pytest

from hyenadna.data.bit_programs import ALL, ANSWERS, BITS, CHANGES, program, run
from hyenadna.data.in_context_tasks import BitsTask, MotifTask, RowsTask, WordTask
from hyenadna.data.tokenizer import encode
from hyenadna.errors import UsageError

BY_HAND = {
    "identity": lambda s: s,
    "not": lambda s: "".join("10"[int(bit)] for bit in s),
    "reverse": lambda s: s[::-1],
    "shift left": lambda s: s[1:] + "0",
    "shift right": lambda s: "0" + s[:-1],
    "rotate left": lambda s: s[1:] + s[0],
    "rotate right": lambda s: s[-1] + s[:-1],
    "swap halves": lambda s: s[4:] + s[:4],
    "swap neighbours": lambda s: s[1] + s[0] + s[3] + s[2] + s[5] + s[4] + s[7] + s[6],
    "not at even places": lambda s: _xor(s, "10101010"),
    "not at odd places": lambda s: _xor(s, "01010101"),
    "not in the first half": lambda s: _xor(s, "11110000"),
    "xor with the next": lambda s: _xor(s, s[1:] + "0"),
    "and with the next": lambda s: "".join(str(int(a) & int(b)) for a, b in zip(s, s[1:] + "0", strict=True)),
    "or with the next": lambda s: "".join(str(int(a) | int(b)) for a, b in zip(s, s[1:] + "0", strict=True)),
    "xor with the mirror image": lambda s: _xor(s, s[::-1]),
    "parity so far": lambda s: "".join(str(s[: n + 1].count("1") % 2) for n in range(8)),
    "ones first": lambda s: "".join(sorted(s, reverse=True)),
}
ANSWERS_BY_HAND = {
    **{f"bit {n + 1}": lambda s, n=n: s[n] == "1" for n in range(8)},
    "parity": lambda s: s.count("1") % 2 == 1,
    "majority": lambda s: s.count("1") > s.count("0"),
    "ends alike": lambda s: s[0] == s[-1],
    "middle alike": lambda s: s[3] == s[4],
    "first half heavier": lambda s: s[:4].count("1") > s[4:].count("1"),
    "three ones in a row": lambda s: "111" in s,
}


def _xor(one: str, other: str) -> str:
    return "".join(str(int(a != b)) for a, b in zip(one, other, strict=True))


def test_every_primitive_is_what_its_name_says() -> None:
    strings = [f"{number:08b}" for number in range(256)]
    assert ["".join("01"[int(bit)] for bit in row) for row in ALL] == strings
    assert set(CHANGES) == set(BY_HAND) and set(ANSWERS) == set(ANSWERS_BY_HAND)
    for name, change in CHANGES.items():
        found = ["".join("01"[int(bit)] for bit in row) for row in change(ALL)]
        assert found == [BY_HAND[name](string) for string in strings], name
    for name in ANSWERS:
        assert run([name]).tolist() == [ANSWERS_BY_HAND[name](string) for string in strings], name
    two = run(["not", "rotate left", "bit 1"])
    assert two.tolist() == [string[1] == "0" for string in strings]


def test_programs_say_both_answers_often_enough() -> None:
    random = np.random.default_rng(0)
    drawn = [program(random) for _ in range(200)]
    assert {len(names) for names, _ in drawn} == {1, 2, 3}
    for names, answers in drawn:
        assert 0.2 <= answers.mean() <= 0.8
        np.testing.assert_array_equal(answers, run(names))
    assert len({names for names, _ in drawn}) > 100


def test_strings_of_bits_are_written_in_two_bases_and_equal_ones_have_equal_labels() -> None:
    random = np.random.default_rng(1)
    for _ in range(10):
        found = BitsTask().draw(200, random)
        assert {len(row) for row in found.sequences} == {BITS}
        assert len(np.unique(np.stack(found.sequences))) == 2
        by_string = {}
        for row, label in zip(found.sequences, found.labels.tolist(), strict=True):
            assert by_string.setdefault(row.tobytes(), label) == label
        assert 0.35 < found.labels.mean() < 0.65


def test_programs_can_be_as_simple_as_one_bit() -> None:
    random = np.random.default_rng(3)
    assert {program(random, 1, ("bit 7", "bit 8"))[0] for _ in range(30)} == {("bit 7",), ("bit 8",)}
    for _ in range(10):
        found = BitsTask(primitives=1, answers=("bit 8",)).draw(50, random)
        last = np.stack(found.sequences)[:, -1]
        assert len(np.unique(last[found.labels == 0])) == len(np.unique(last[found.labels == 1])) == 1
        assert len(np.unique(last)) == 2


def test_motifs_are_planted_and_differ_between_classes_and_prompts() -> None:
    random, consensus = np.random.default_rng(2), set()
    for _ in range(20):
        found = MotifTask(classes=3, motif=5, length=9, substituted=0.0).draw(60, random)
        for label in range(3):
            rows = [
                "".join("ACGT"[base - 7] for base in found.sequences[row])
                for row in np.flatnonzero(found.labels == label)
            ]
            common = set.intersection(*({row[at : at + 5] for at in range(5)} for row in rows))
            assert common
            consensus |= common
    assert len(consensus) > 55


def test_substitutions_come_as_often_as_asked_for() -> None:
    found = MotifTask(motif=8, length=8, substituted=0.25).draw(4000, np.random.default_rng(3))
    rows = np.stack(found.sequences)[found.labels == 0]
    commonest = np.array([np.bincount(column).argmax() for column in rows.T])
    assert (rows != commonest).mean() == pytest.approx(0.25, abs=0.02)


def test_words_have_one_meaning_within_a_prompt_and_another_in_the_next() -> None:
    random, meanings = np.random.default_rng(4), set()
    for _ in range(20):
        found = WordTask(length=1).draw(50, random)
        meaning = {int(row[0]): label for row, label in zip(found.sequences, found.labels.tolist(), strict=True)}
        assert [meaning[int(row[0])] for row in found.sequences] == found.labels.tolist()
        assert sum(meaning.values()) == 2
        meanings.add(tuple(sorted(meaning.items())))
    assert len(meanings) == 6


def test_rows_come_once_and_classes_evenly_until_one_is_used_up() -> None:
    rows = [encode(f"{'ACGT'[n % 4]}{'ACGT'[n // 4]}") for n in range(12)]
    task = RowsTask("rows", rows, np.array([0] * 9 + [1] * 3), 2)
    assert task.fewest == (1, 3) and task.longest == 2
    random, first = np.random.default_rng(5), []
    for _ in range(200):
        found = task.draw(12, random)
        assert len({row.tobytes() for row in found.sequences}) == 12 and sorted(found.labels) == [0] * 9 + [1] * 3
        first.append(found.labels[0])
    assert 0.4 < np.mean(first) < 0.6
    with pytest.raises(UsageError, match="13 examples were asked for; rows has 12 rows"):
        task.draw(13, random)


def test_the_same_seed_draws_the_same() -> None:
    for task in (MotifTask(), BitsTask(), WordTask()):
        one, other = (task.draw(9, np.random.default_rng(6)) for _ in range(2))
        assert (np.stack(one.sequences) == np.stack(other.sequences)).all() and (one.labels == other.labels).all()


def test_motifs_that_do_not_fit_are_refused() -> None:
    for fields in ({"motif": 7}, {"classes": 1}, {"classes": 5, "motif": 1}, {"substituted": 1.5}):
        with pytest.raises(UsageError, match="a motif has 1 base to as many as its sequence"):
            MotifTask(**fields)
    with pytest.raises(UsageError, match="allowed is 1 and more"):
        WordTask(length=0)
