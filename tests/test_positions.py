"""Pool `positions`: weights of their own for each position, from training to prediction."""

import numpy as np
import pytest
import torch
from adapting import BINARY, adapted, answers, small, tokens
from finetuning import base, leave_out_the_slow, planted, write_table

from hyenadna.errors import SequenceTooLong, UsageError
from hyenadna.finetune import adapter
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.adapter_batch import AdapterBatch
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.plan import Plan, resolved
from hyenadna.finetune.predict import Predictor
from hyenadna.finetune.sequence_model import SequenceModel

FIELDS = {"pool": "positions", "positions": 12}


@pytest.mark.parametrize("method", ["full", "head", "lora", "soft-prompt"])
def test_the_answer_is_a_sum_over_positions_of_which_a_shorter_sequence_has_fewer(method):
    model = adapted(method, **FIELDS)
    batch, lengths = tokens(2, 12), torch.tensor([12, 7])
    with torch.no_grad():
        hidden = model.hidden(batch, lengths).double()
    weight = model.head.linear.weight.detach().double().view(2, 12, -1)
    # features of 12 positions are made smaller by the root of 12
    wanted = [torch.einsum("kpd,pd->k", weight[:, :n], hidden[row, :n]) / 12**0.5 for row, n in enumerate([12, 7])]
    torch.testing.assert_close(
        answers(model, batch, lengths).double(), torch.stack(wanted) + model.head.linear.bias.detach().double(),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    alone = answers(model, batch[1:, :7], lengths[1:])
    torch.testing.assert_close(alone, answers(model, batch, lengths)[1:], rtol=1e-5, atol=1e-5)


def test_longer_sequences_are_refused():
    model = adapted("head", **FIELDS)
    assert model.longest == 12
    with pytest.raises(SequenceTooLong, match="has 13 bases; this model takes up to 12"):
        model(tokens(1, 13), torch.tensor([13]))
    with pytest.raises(SequenceTooLong, match="a sequence has 13 bases; this adapter has weights for 12 positions"):
        Predictor(model)([tokens(1, 13)[0].numpy().astype(np.uint8)])


def test_an_adapter_keeps_its_positions(tmp_path):
    network = small()
    network.save_pretrained(tmp_path / "base")
    model = adapted("head", base=network, **FIELDS)
    model.head.standardise(torch.randn(5, 12 * network.config.d_model))
    adapter.save(model, tmp_path / "adapter", base="../base", card="", training={})
    loaded = adapter.load(tmp_path / "adapter")
    assert loaded.longest == 12 and loaded.adaptation.positions == 12
    batch, lengths = tokens(2, 11), torch.tensor([11, 4])
    torch.testing.assert_close(answers(loaded, batch, lengths), answers(model, batch, lengths))


def test_in_one_batch_with_adapters_that_take_longer_sequences():
    network = small()
    models = [adapted("head", base=network, **FIELDS), adapted("head", base=network, pool="mean")]
    batch, lengths = tokens(3, 20), torch.tensor([12, 20, 5])
    together = AdapterBatch(models)(batch, lengths, torch.tensor([0, 1, 0]))
    for row, number in enumerate([0, 1, 0]):
        n = lengths[row]
        alone = answers(models[number], batch[row : row + 1, :n], lengths[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(SequenceTooLong, match="takes up to 12"):
        AdapterBatch(models)(batch, lengths, torch.tensor([0, 0, 0]))


def test_positions_and_their_pool_go_together():
    for fields in ({"positions": 12}, {"positions": 0, "pool": "positions"}):
        with pytest.raises(UsageError, match=r"positions is \d+; it must be at least 1, and goes with pool positions"):
            FinetuneConfig(**fields)
    with pytest.raises(UsageError, match="pool positions needs the bases of the longest sequence"):
        SequenceModel(small(), BINARY, Adaptation(pool="positions"))


def test_a_run_takes_the_positions_of_its_longest_row(tmp_path, monkeypatch):
    leave_out_the_slow(monkeypatch)
    base().save_pretrained(tmp_path / "base")
    table = write_table(
        tmp_path / "a.csv", [(s[: 20 - row % 3], label) for row, (s, label) in enumerate(planted(30, 20))]
    )
    fields = {"data": str(table), "model": str(tmp_path / "base"), "pool": "positions", "device": "cpu", "threads": 1}
    plan = Plan.of(resolved(FinetuneConfig(**fields, split_by="row")))
    assert plan.config.positions == 20 and plan.trainer(0, 0).model.pool.features == 20 * 16
    with pytest.raises(SequenceTooLong, match="has 20 bases, more than --positions 19: leave the flag out, or shorten"):
        Plan.of(resolved(FinetuneConfig(**fields, split_by="row", positions=19)))
