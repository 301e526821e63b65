"""`hyena finetune --objective diversity`: contexts of a genome, what the model writes behind them, and a head.

The labels are the model's own. Of each context, M continuations of n bases are sampled; its diversity is 1 minus the
mean cosine of their 4-mer counts over all pairs. Why 4: shorter words tell little but the composition, and of longer
ones pieces of some 64 bases hold so few that they hardly share any. The command measures, on contexts held out, whether
the head says more than the entropy of the next base does, which costs nothing, and its report says so if not.
"""

import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenadna import __version__, plots
from hyenadna.data.genomes import ecoli
from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import Pack, packed
from hyenadna.data.splits import PARTS, Part, Split, hashed_split, matching_split, read_splits
from hyenadna.data.tokenizer import encode
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.finetune import diversity_head
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.continuations import diversity, sample
from hyenadna.finetune.diversity_evaluation import DiversityEvaluation, evaluate
from hyenadna.finetune.diversity_head import DiversityHead
from hyenadna.finetune.plots import target_and_prediction
from hyenadna.inference.generation_reference import random_windows
from hyenadna.machine import available_cpus, keep_freed_memory, torch_device
from hyenadna.model.folder import check_replaceable
from hyenadna.model.hub import find_model
from hyenadna.model.language_model import HyenaDNA
from hyenadna.pretrain.configured_folder import command
from hyenadna.progress import Job, duration, notice, progress

K = 4
"""Bases of the words by which continuations are compared."""
_SHORTEST_CONTEXT = 32
_ROWS = 512
"""Continuations that are written side by side."""
_EPOCHS, _PATIENCE, _BATCH_SIZE, _LR = 300, 40, 32, 1e-3
_FEWEST = 5
"""Contexts of a part; more make it mean something."""
_RANGE = (0.025, 0.975)


class Contexts(NamedTuple):
    """Labelled contexts of one part."""

    hidden: Tensor
    """(n, D) float32, on the CPU."""
    entropy: NDArray[np.float64]
    """(n,): of the next base, in nats."""
    diversity: NDArray[np.float64]
    """(n,): of what was sampled, 0 to 1."""


@dataclasses.dataclass(frozen=True)
class DiversityRun:
    """A finished command."""

    folder: Path
    evaluation: DiversityEvaluation
    description: dict[str, Any]

    def result(self) -> dict[str, Any]:
        """What was measured and where the head is; `text` is for a person."""
        text = (
            f"{self.evaluation.text()}\n\n"
            f"head      {self.folder}\nnext      hyena generate --dynamic diversity --diversity-head {self.folder}"
        )
        return {"text": text, "head": str(self.folder), **self.description}


def finetune(config: FinetuneConfig, *, overwrite: bool = False) -> DiversityRun:
    """Sample, train a head on most contexts, and measure it on others.

    Parameters
    ----------
    config : FinetuneConfig
        With objective diversity; `data` is a FASTA file or a pack.
    overwrite : bool
        Replace the head in `config.out`.

    Raises
    ------
    UsageError              the folder holds something
    InputError              no genome, one without windows of these lengths, or contexts that are all alike
    SequenceTooLong         context and continuation are more than the model takes
    """
    check_replaceable(config.out, overwrite=overwrite)
    counts = _counts(config)
    model, pack, split, origin = _inputs(config)
    total = sum(counts.values()) * config.continuations * config.continuation_length
    with progress("sampling continuations", total) as job:
        parts = {part: labelled(model, pack, split.part(part), counts[part], config, part, job) for part in PARTS}
    low, high = (float(edge) for edge in np.quantile(parts["train"].diversity, _RANGE))
    if high - low < 1e-6:
        raise InputError(
            f"the continuations of all contexts of {pack.source} differ alike ({low:.3f}): there is nothing to learn; "
            "take a model that is trained, or another genome"
        )
    head, epoch = train(parts["train"], parts["valid"], (low, high), config)
    with torch.no_grad():
        score = head(parts["test"].hidden).double().numpy()
    evaluation = evaluate(score, parts["test"].entropy, parts["test"].diversity, config.seed)
    description = {
        "hyenadna": __version__,
        "command": command(config),
        "base": config.model,
        "genome": pack.source,
        "sequence_sha256": pack.sequence_sha256,
        "split": f"{origin}: {split.rule}",
        "contexts": counts,
        "kmer": K,
        "diversity_at_0": low,
        "diversity_at_1": high,
        "epoch": epoch,
        "evaluation": dataclasses.asdict(evaluation),
        "beats_entropy": evaluation.beats_entropy,
    }
    _save(head, model, config, description, evaluation, (score, parts["test"]), overwrite)
    return DiversityRun(config.out, evaluation, description)


def dry_run(config: FinetuneConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Check the inputs, label a few contexts, and say what the whole run will take."""
    check_replaceable(config.out, overwrite=overwrite)
    _counts(config)
    model, pack, split, _ = _inputs(config)
    few = max(2, _ROWS // config.continuations // 4)
    start = time.monotonic()
    with progress("sampling continuations", 0) as job:
        labelled(model, pack, split.train, few, config, "train", job)
    seconds = (time.monotonic() - start) * config.contexts / few
    return {"text": f"{config.contexts:,} contexts: about {duration(seconds)}", "seconds": seconds}


def labelled(
    model: HyenaDNA,
    pack: Pack,
    intervals: Sequence[Interval],
    count: int,
    config: FinetuneConfig,
    part: Part,
    job: Job,
) -> Contexts:
    """Random contexts of a part, of several lengths, with the diversity of what the model writes behind them."""
    M, n = config.continuations, config.continuation_length
    lengths = [config.context_length]
    while lengths[-1] // 2 >= _SHORTEST_CONTEXT:
        lengths.append(lengths[-1] // 2)
    hidden, entropy, labels = [], [], []
    for number, length in enumerate(lengths):
        random = np.random.default_rng((config.seed, PARTS.index(part), length))
        of_length = count // len(lengths) + (number < count % len(lengths))
        windows = random_windows(pack, intervals, [length] * of_length, random)
        tokens = [encode(window, model.config.n_token) for window in windows]
        step = max(1, _ROWS // M)
        for first in range(0, of_length, step):
            batch = np.stack(tokens[first : first + step])
            found = sample(model, batch, random.random((len(batch), M, n)))
            hidden.append(found.hidden.float().cpu())
            entropy.append(found.entropy)
            labels.append(diversity(found.continuations, K))
            job.advance(found.continuations.size)
    return Contexts(torch.cat(hidden), np.concatenate(entropy), np.concatenate(labels))


def train(
    train: Contexts, valid: Contexts, edges: tuple[float, float], config: FinetuneConfig
) -> tuple[DiversityHead, int]:
    """The head of the epoch with the least squared error on the validation contexts, and that epoch.

    Parameters
    ----------
    train, valid : Contexts
    edges : two floats
        The diversities that are 0 and 1 to the head; what lies outside is taken as these.
    config : FinetuneConfig
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        head = DiversityHead(train.hidden.shape[1])
    head.standardise(train.hidden)
    targets, expected = (_scaled(part.diversity, edges) for part in (train, valid))
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.head_lr or _LR, weight_decay=config.weight_decay)
    best, best_epoch, best_state = float("inf"), 0, copy.deepcopy(head.state_dict())
    for epoch in range(1, (config.epochs or _EPOCHS) + 1):
        for rows in torch.randperm(len(targets), generator=generator).split(config.batch_size or _BATCH_SIZE):
            loss = (head(train.hidden[rows]) - targets[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            error = float((head(valid.hidden) - expected).square().mean())
        if error < best:
            best, best_epoch, best_state = error, epoch, copy.deepcopy(head.state_dict())
        elif epoch - best_epoch >= (config.patience or _PATIENCE):
            break
    head.load_state_dict(best_state)
    return head.eval(), best_epoch


def _scaled(values: NDArray[np.float64], edges: tuple[float, float]) -> Tensor:
    low, high = edges
    return torch.from_numpy(np.clip((values - low) / (high - low), 0, 1)).float()


def _counts(config: FinetuneConfig) -> dict[Part, int]:
    """Contexts of each part."""
    shares = {"valid": config.valid_share, "test": config.test_share}
    counts = {part: round(config.contexts * shares.get(part, 1 - sum(shares.values()))) for part in PARTS}
    if min(counts.values()) < _FEWEST:
        named = ", ".join(f"{count} {part}" for part, count in counts.items())
        raise UsageError(
            f"--contexts {config.contexts:,} are {named} by --valid-share and --test-share; each part needs {_FEWEST}"
        )
    return counts


def _inputs(config: FinetuneConfig) -> tuple[HyenaDNA, Pack, Split, str]:
    """The model, the genome and its parts."""
    torch.set_num_threads(config.threads or available_cpus())
    keep_freed_memory()
    pack = packed(ecoli() if config.data is None else Path(config.data))
    model = HyenaDNA.from_pretrained(config.model, device=torch_device(config.device))
    longest = config.context_length + config.continuation_length
    if longest > model.config.filter_length:
        raise SequenceTooLong(
            f"--context-length {config.context_length:,} and --continuation-length {config.continuation_length:,} are "
            f"{longest:,} together; {config.model} takes up to {model.config.filter_length:,}"
        )
    stored = find_model(config.model) / "split.json"
    split = matching_split(read_splits(stored), pack) if stored.exists() else None
    if split is not None:
        return model, pack, split, "stored with the model"
    notice(f"{config.model} stores no split of {pack.source}, and may have been trained on any of it: it is split anew")
    made = hashed_split(kept_contigs(pack.lengths, None).intervals, pack, config.context_length)
    return model, pack, made, "made for this head"


def _save(
    head: DiversityHead,
    model: HyenaDNA,
    config: FinetuneConfig,
    description: dict[str, Any],
    evaluation: DiversityEvaluation,
    tested: tuple[NDArray[np.float64], Contexts],
    overwrite: bool,
) -> None:
    score, test = tested
    drawn, ax = plots.figure(height=5.0)
    edges = description["diversity_at_0"], description["diversity_at_1"]
    target_and_prediction(ax, _scaled(test.diversity, edges).double().numpy(), score, "diversity score")
    lines = ["entropy_nats\tdiversity\tscore"]
    lines += [f"{h:.6g}\t{y:.6g}\t{s:.6g}" for h, y, s in zip(test.entropy, test.diversity, score, strict=True)]
    card = f"""# Diversity head for {config.model}

    {description["command"]}

Scores from 0 to 1 how differently the model goes on from a context: 1 minus the mean cosine of the {K}-mer counts of
{config.continuations} continuations of {config.continuation_length} bases, scaled so that {edges[0]:.3f} is 0 and \
{edges[1]:.3f} is 1.
Genome: {description["genome"]} (SHA-256 {description["sequence_sha256"]}); split {description["split"]}.

```
{evaluation.text()}
```
"""
    files = {"diversity.png": plots.png(drawn), "diversity.tsv": ("\n".join(lines) + "\n").encode()}
    diversity_head.save(
        head, config.out, base=model, description=description, card=card, further=files, overwrite=overwrite
    )
