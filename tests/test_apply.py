import numpy as np
import pytest
import torch
from torch import nn

from hyenadna.data.tokenizer import PAD, encode, reverse_complement_tokens
from hyenadna.errors import NotFiniteError
from hyenadna.finetune.apply import apply
from hyenadna.finetune.task import Task

RANDOM = np.random.default_rng(0)
SEQUENCES = [encode("".join(RANDOM.choice(list("ACGT"), length))) for length in (7, 1, 30, 7, 64, 2, 13)]


class Counts(nn.Module):
    """Outputs known by hand: the number of each base, with a weight for its place, or the running numbers."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.one = task, nn.Parameter(torch.ones(()))
        self.batches: list[tuple[int, int]] = []

    def forward(self, tokens, lengths):
        assert not torch.is_grad_enabled() and not self.training
        assert torch.equal((tokens != PAD).sum(dim=1), lengths)
        self.batches.append(tuple(tokens.shape))
        place = torch.arange(1, tokens.shape[1] + 1) / 100
        hot = torch.stack([(tokens == base) * place for base in (7, 8)], dim=2) * self.one
        return hot.cumsum(dim=1) if self.task.kind == "nucleotide" else hot.sum(dim=1)


def by_hand(model, tokens):
    return model.task.predictions(model.forward(torch.from_numpy(tokens.copy())[None], torch.tensor([len(tokens)])))[0]


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batches_give_what_each_row_gives_alone_in_the_given_order(kind, batch_tokens):
    model = Counts(Task(kind, ("a", "b"))).eval()
    found = apply(model, SEQUENCES, batch_tokens=batch_tokens, reverse_complement=False)
    assert found.dtype == np.float64 and found.shape == (7, 2)
    assert all(rows == 1 or rows * longest <= batch_tokens for rows, longest in model.batches)
    with torch.no_grad():
        np.testing.assert_allclose(found, np.stack([by_hand(model, tokens) for tokens in SEQUENCES]), rtol=1e-6)


def test_both_strands_are_averaged_as_probabilities():
    model = Counts(Task("binary", ("a", "b"))).eval()
    found = apply(model, SEQUENCES, batch_tokens=100, reverse_complement=True)
    with torch.no_grad():
        strands = [[by_hand(model, t), by_hand(model, reverse_complement_tokens(t))] for t in SEQUENCES]
    np.testing.assert_allclose(found, np.stack([(one + two).numpy() / 2 for one, two in strands]), rtol=1e-6)
    flipped = [reverse_complement_tokens(tokens) for tokens in SEQUENCES]
    np.testing.assert_allclose(apply(model, flipped, batch_tokens=9, reverse_complement=True), found, rtol=1e-6)


def test_predictions_of_bases_meet_at_their_base():
    model = Counts(Task("nucleotide", ("a", "b"))).eval()
    found = apply(model, SEQUENCES, batch_tokens=100, reverse_complement=True)
    assert found.shape == (7, 64, 2)
    for values, tokens in zip(found, SEQUENCES, strict=True):
        with torch.no_grad():
            one, two = by_hand(model, tokens), by_hand(model, reverse_complement_tokens(tokens))
        np.testing.assert_allclose(values[: len(tokens)], (one + two.flip(0)) / 2, rtol=1e-6)
        assert np.isnan(values[len(tokens) :]).all()


def test_numbers_come_in_their_own_unit_and_no_rows_are_no_predictions():
    class First(Counts):
        def forward(self, tokens, lengths):
            return super().forward(tokens, lengths)[:, :1]

    model = First(Task("regression", ("dose",), 100.0, 2.0)).eval()
    found = apply(model, [encode("CCA"), encode("A")], batch_tokens=100, reverse_complement=False)
    np.testing.assert_allclose(found, [[100.06], [100.02]], rtol=1e-6)
    assert apply(model, [], batch_tokens=100, reverse_complement=True).shape == (0, 1)


def test_the_mode_is_given_back():
    model = Counts(Task("binary", ("a", "b"))).train()
    apply(model, SEQUENCES, batch_tokens=100, reverse_complement=False)
    assert model.training
    nn.init.constant_(model.one, float("nan"))
    with pytest.raises(NotFiniteError, match="the model's prediction of sequence 2 is not a number"):
        apply(model, SEQUENCES, batch_tokens=1, reverse_complement=False)
    assert model.training
