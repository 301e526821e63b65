"""The small convolutional network that GenomicBenchmarks publishes beside its data sets, as a baseline.

Gresova et al. 2023: an embedding of 100 numbers a letter, three convolutions of width 8 to 16, 8 and 4 channels, each
with batch norm, ReLU and a max pool over 2, then linear layers to 512 and to the outputs; Adam with its default rate.

Departs from it: (1) outputs and loss are those of the task, not of two classes alone; (2) the epoch with the least loss
on held-out rows is kept, at most 40 epochs, where the original takes the last of a fixed number; (3) the embedding and
the first convolution, which nothing separates, are computed as one convolution over one-hot letters: the same function
of the same parameters in a tenth of the time. As in the original, short sequences are padded and the pads are visible:
this network sees the length.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hyenadna.finetune.composition import codes
from hyenadna.finetune.task import Task

SHORTEST = 57
"""Bases to which shorter sequences are padded, so that three convolutions and pools leave something."""
LONGEST = 4096
"""Bases; the first linear layer grows with the length, and longer sequences are cut to their first ones."""
BASES_AN_EPOCH = 3_000_000
"""Rows of longer trainings are drawn at random once; more would take longer than the model that is to be judged."""
_EPOCHS, _PATIENCE, _BATCH, _RATE = 40, 5, 64, 1e-3
_LETTERS, _PAD = 6, 5


class BenchmarkCNN(nn.Module):
    """The network for sequences of one length.

    Parameters
    ----------
    length : int
        Bases of every (padded) sequence.
    outputs : int
        K, as `Task.outputs`.
    """

    def __init__(self, length: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_LETTERS, 100)
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, 8) for i, o in ((100, 16), (16, 8), (8, 4)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for channels in (16, 8, 4))
        left = length
        for _ in range(3):
            left = (left - 7) // 2
        self.wide, self.out = nn.Linear(4 * left, 512), nn.Linear(512, outputs)

    def forward(self, letters: Tensor) -> Tensor:
        """Outputs (B, K) of letters (B, L), int64."""
        first: Any = self.convolutions[0]
        kernel = torch.einsum("odk,vd->ovk", first.weight, self.embedding.weight)
        x = F.conv1d(F.one_hot(letters, _LETTERS).transpose(1, 2).to(kernel.dtype), kernel, first.bias)
        x = F.max_pool1d(F.relu(self.norms[0](x)), 2)
        for convolution, norm in zip(list(self.convolutions)[1:], list(self.norms)[1:], strict=True):
            x = F.max_pool1d(F.relu(norm(convolution(x))), 2)
        out: Tensor = self.out(self.wide(x.flatten(1)))
        return out


def train_cnn(
    task: Task,
    sequences: Sequence[str],
    targets: NDArray[Any],
    held_out: tuple[Sequence[str], NDArray[Any]],
    *,
    longest: int,
    seed: int,
) -> tuple[BenchmarkCNN, int]:
    """The network of the best epoch and that epoch's number, counted from 1.

    Parameters
    ----------
    task : Task
        Of whole sequences.
    sequences, targets
        To train on; at least two.
    held_out : sequences and targets
        To choose the epoch by.
    longest : int
        Bases that sequences are padded or cut to.
    seed : int
        Of the initial weights and the order of the rows; the state of torch's generator is restored.
    """
    letters, truth = as_letters(sequences, longest), torch.from_numpy(targets)
    checked, checked_truth = as_letters(held_out[0], longest), torch.from_numpy(held_out[1])
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BenchmarkCNN(letters.shape[1], task.outputs)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    best, best_loss, best_epoch = copy.deepcopy(network.state_dict()), float("inf"), 0
    for epoch in range(1, _EPOCHS + 1):
        network.train()
        for rows in torch.from_numpy(order.permutation(len(letters))).split(_BATCH):
            if len(rows) < 2:  # batch norm has no variance of one row
                continue
            optimizer.zero_grad()
            task.loss(network(letters[rows].long()), truth[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(task.loss(_outputs(network, checked), checked_truth))
        if loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(network.state_dict()), loss, epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    network.load_state_dict(best)
    return network, best_epoch


def cnn_predictions(task: Task, network: BenchmarkCNN, sequences: Sequence[str], longest: int) -> NDArray[np.float64]:
    """Predictions (n, K) as `Task.predictions` gives them."""
    with torch.no_grad():
        return np.asarray(task.predictions(_outputs(network, as_letters(sequences, longest))).numpy())


def as_letters(sequences: Sequence[str], longest: int) -> Tensor:
    """uint8 (n, longest): numbers of the letters, padded behind and cut to `longest`."""
    table = torch.full((len(sequences), max(longest, SHORTEST)), _PAD, dtype=torch.uint8)
    for row, sequence in enumerate(sequences):
        known = torch.from_numpy(codes(sequence[:longest]))
        table[row, : len(known)] = known
    return table


def _outputs(network: BenchmarkCNN, letters: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network(batch.long()) for batch in letters.split(1024)])
