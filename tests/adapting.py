"""Small adapted models, and batches for them."""

import torch
from checkpoints import small_model
from torch import Tensor

from hyenadna import HyenaDNA
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.sequence_model import SequenceModel
from hyenadna.finetune.task import Task

PAD = 4
BINARY = Task("binary", ("no", "yes"))
THREE = Task("multiclass", ("a", "b", "c"))
NUMBER = Task("regression", ("level",), mean=3.0, deviation=2.0)
BASES = Task("nucleotide", ("0", "1"))
LENGTHS = torch.tensor([20, 13, 1, 5])
METHODS = ("full", "head", "lora", "soft-prompt")


def small(**fields) -> HyenaDNA:
    return small_model(**{"layers": "HH", "filter_length": 64, "filter_order": 8} | fields)


def tokens(B: int, L: int, seed: int = 0) -> Tensor:
    return torch.randint(7, 12, (B, L), generator=torch.Generator().manual_seed(100 * L + seed))


def ragged(lengths: Tensor = LENGTHS, seed: int = 0) -> Tensor:
    batch = tokens(len(lengths), int(lengths.max()), seed)
    return batch.masked_fill(torch.arange(batch.shape[1]) >= lengths[:, None], PAD)


def adapted(method: str = "soft-prompt", task: Task = BINARY, *, base: HyenaDNA | None = None, **fields):
    """An adapted model of which nothing is zero any more, in eval mode."""
    adaptation = Adaptation(**{"method": method, "prompt_length": 6, "lora_rank": 2} | fields)
    model = SequenceModel(small() if base is None else base, task, adaptation, seed=3)
    generator = torch.Generator().manual_seed(4)
    if adaptation.frozen:
        for parameter in model.learnt().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def train(
    model: SequenceModel, batch: Tensor, lengths: Tensor, targets: Tensor, steps: int = 3, lr: float = 1e-2
) -> list[float]:
    """The loss before each step."""
    model.train()
    optimizer, losses = torch.optim.AdamW(model.learnt().values(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.task.loss(model(batch, lengths), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def answers(model: SequenceModel, batch: Tensor, lengths: Tensor) -> Tensor:
    with torch.no_grad():
        return model(batch, lengths)


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
