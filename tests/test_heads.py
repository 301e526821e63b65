"""Pooling knows the lengths; heads begin alike for all classes."""

import copy

import numpy as np
import pytest
import torch
from adapting import LENGTHS
from scipy.special import softmax

from hyenadna.errors import InputError
from hyenadna.finetune.heads import LABEL_TOKENS, LinearHead, Pool, label_tokens, last

POOLINGS = ("mean", "max", "last", "attention", "positions")
POSITIONS = 24
D = 16


def states(B=4, L=20, dtype=torch.float64):
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(B + L), dtype=dtype)


def pool_of(pooling, dtype=torch.float64):
    pool = Pool(pooling, D, POSITIONS if pooling == "positions" else None).to(dtype)
    if pool.query is not None:
        pool.query.data.copy_(torch.randn(D, generator=torch.Generator().manual_seed(1)))
    return pool


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_numpys_over_each_sequences_own_positions(pooling):
    hidden, pool = states(), pool_of(pooling)
    pooled = pool(hidden, LENGTHS).detach().numpy()
    for row, length in enumerate(LENGTHS.tolist()):
        own = hidden[row, :length].numpy()
        match pooling:
            case "mean":
                expected = own.mean(0)
            case "max":
                expected = own.max(0)
            case "last":
                expected = own[-1]
            case "positions":
                expected = np.concatenate([own, np.zeros((POSITIONS - length, D))]).ravel()
            case _:
                expected = softmax(own @ pool.query.detach().numpy() / D**0.5) @ own
        assert abs(pooled[row] - expected).max() < 1e-12


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_stands_in_the_pads_never_matters(pooling):
    hidden, pool = states(dtype=torch.float32), pool_of(pooling, torch.float32)
    inside = torch.arange(20) < LENGTHS[:, None]
    other = torch.where(inside[..., None], hidden, 1e4)
    assert torch.equal(pool(hidden, LENGTHS), pool(other, LENGTHS))
    wider = torch.nn.functional.pad(other, (0, 0, 0, 13), value=-7.0)
    torch.testing.assert_close(pool(wider, LENGTHS), pool(hidden, LENGTHS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_gradient_reaches_the_pads(pooling):
    hidden = states().requires_grad_()
    pool_of(pooling)(hidden, LENGTHS).square().sum().backward()
    inside = torch.arange(20) < LENGTHS[:, None]
    assert not hidden.grad[~inside].any()
    assert torch.isfinite(hidden.grad).all() and hidden.grad[inside].any()


def test_gradcheck_of_attention():
    pool, hidden = pool_of("attention"), states(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, q: pool(x, torch.tensor([4, 2])), (hidden, pool.query))


def test_attention_begins_as_the_mean():
    torch.testing.assert_close(Pool("attention", D).double()(states(), LENGTHS), Pool("mean", D)(states(), LENGTHS))


def test_the_last_token_is_each_sequences_own():
    hidden = torch.arange(20.0).expand(4, 20)[..., None]
    assert last(hidden, LENGTHS)[:, 0].tolist() == [19, 12, 0, 4]


class TestLinearHead:
    def test_it_begins_small_and_without_bias(self):
        torch.manual_seed(0)
        head = LinearHead(512, 8)
        assert abs(head.linear.weight.detach().std() / 0.02 - 1) < 0.05 and not head.linear.bias.any()

    def test_standardised_features_have_mean_0_and_deviation_1(self):
        features = 5 + 0.01 * states(1, 50)[0]
        features[:, 3] = 2.0  # a feature that is the same everywhere
        head = LinearHead(D, 2).double()
        weight, center, deviation = head.linear.weight.detach(), features.mean(0), features.std(0)
        head.standardise(features)
        standard = (features - center) / deviation.clamp(min=1e-6)
        torch.testing.assert_close(head(features).detach(), standard @ weight.T)
        assert torch.isfinite(head(features)).all()

    def test_features_are_taken_as_they_are_before(self):
        head, features = LinearHead(D, 2).double(), states()
        torch.testing.assert_close(head(features), features @ head.linear.weight.T)

    def test_dropout_acts_in_training_alone(self):
        head = LinearHead(D, 2, dropout=0.5)
        features = states(dtype=torch.float32)
        assert torch.equal(head.eval()(features), head(features))
        head.train()
        assert not torch.equal(head(features), head(features))

    def test_the_standardisation_is_saved_with_the_weights(self):
        head = LinearHead(D, 2).double()
        head.standardise(states()[0])
        other = LinearHead(D, 2).double()
        other.load_state_dict(copy.deepcopy(head.state_dict()))
        assert torch.equal(other(states()), head(states()))


def test_label_tokens_are_distinct_nucleotides():
    assert LABEL_TOKENS[2] == (7, 11) and LABEL_TOKENS[3] == (7, 9, 11)  # A N, A G N: as the paper's code
    for classes, chosen in LABEL_TOKENS.items():
        assert len(set(chosen)) == classes and set(chosen) <= set(range(7, 12))


@pytest.mark.parametrize(
    ("kind", "classes"), [("multiclass", 6), ("multilabel", 2), ("regression", 1), ("nucleotide", 2)]
)
def test_other_tasks_have_no_label_tokens(kind, classes):
    with pytest.raises(InputError, match=f"2 to 5 classes of sequences; this task is {kind} with {classes} outputs"):
        label_tokens(kind, classes)
