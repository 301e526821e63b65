"""Prompts of labelled examples: where labels stand, and which layouts there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyenadna.data.tokenizer import PAD, SEP, decode, encode
from hyenadna.errors import InputError, UsageError
from hyenadna.inference.many_shot_prompt import Episode, Example, Layout, prompt

sequences = st.text("ACGT", min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sequences, st.integers(0, 2) | st.none()), max_size=6), sequences | st.none(), st.data())
def test_labels_stand_where_the_positions_say(shown, query, data):
    layout = data.draw(
        st.sampled_from([Layout(("A", "G", "N")), Layout(("AA", "CT", "TT"), "CTAG"), Layout(("A", "T", "C"), None)])
    )
    if not shown and query is None:
        return
    examples = [Example(encode(sequence), label) for sequence, label in shown]
    found = prompt(examples, None if query is None else encode(query), layout)
    # the whole prompt spelt by hand
    gap = {"sep": "[SEP]", None: ""}.get(layout.separator, layout.separator)
    text = ""
    for sequence, label in shown:
        text += sequence + gap + ("" if label is None else layout.label_words[label] + gap)
    text += "" if query is None else query + gap
    assert decode(found.tokens) == text and found.tokens.dtype == np.uint8
    wanted = [label for _, label in shown if label is not None]
    assert len(found.label_positions) == len(wanted) + (query is not None)
    for position, label in zip(found.label_positions, wanted, strict=False):
        assert decode(found.tokens[position : position + layout.width]) == layout.label_words[label]
    if query is not None:
        assert found.label_positions[-1] == len(found.tokens)


def test_published_positions():
    # m + 1, then every m + 3, of sequences of m tokens: the reference's arithmetic
    m, layout = 9, Layout.published(2)
    examples = [Example(encode("ACGTACGTA"), label) for label in (0, 1, 1)]
    found = prompt(examples, encode("A" * m), layout)
    assert found.label_positions.tolist() == [m + 1 + shot * (m + 3) for shot in range(4)]
    assert found.tokens[found.label_positions[:3]].tolist() == [7, 11, 11]
    assert found.tokens[[m, m + 2, -1]].tolist() == [SEP] * 3


def test_suited_layouts():
    assert Layout.suited(2) == Layout(("A", "T"), "CTAG")
    assert Layout.suited(4).label_words == ("A", "T", "C", "G")
    assert Layout.suited(5).width == 2 and Layout.suited(16).width == 2 and Layout.suited(17).width == 3
    assert Layout.suited(2).never_an_input == ""
    foreign = Layout.suited(3, "pad")
    # what stands for N in the published weights' input
    assert foreign.separator_tokens.tolist() == [PAD] and foreign.never_an_input == ""
    assert "[SEP]" in Layout.published(3).never_an_input and "N is never" in Layout.published(2).never_an_input


@pytest.mark.parametrize(
    ("words", "separator", "said"),
    [
        (("A",), "CTAG", "the label words are A; there must be one a class, two or more"),
        (("A", "A"), "CTAG", "all different"),
        (("A", "TT"), "CTAG", "all of one length"),
        (("A", "X"), "CTAG", "'X' is no word of the prompt"),
        (("A", "t"), "CTAG", "upper case"),
        (("A", ""), "CTAG", "'' is no word"),
        (("A", "T"), "SEP", "'SEP' is no word of the prompt.*may be 'sep'"),
    ],
)
def test_layouts_that_cannot_be(words, separator, said):
    with pytest.raises(UsageError, match=said):
        Layout(words, separator)


def test_what_a_prompt_refuses():
    with pytest.raises(UsageError, match="words for 2 or 3 classes; the data have 4"):
        Layout.published(4)
    with pytest.raises(UsageError, match="label 2; the layout has words for 2"):
        prompt([(encode("A"), 2)], None, Layout.suited(2))
    with pytest.raises(InputError, match="an example or a query"):
        prompt([], None, Layout.suited(2))
    assert Episode((), (), np.zeros(0, dtype=np.int64)).examples == ()
