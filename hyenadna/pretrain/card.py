"""The model card of a pretrained model."""

from typing import Any

from hyenadna import __version__
from hyenadna.model.config import HyenaConfig
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.configured_folder import command
from hyenadna.pretrain.corpus import Corpus
from hyenadna.pretrain.estimate import parameters
from hyenadna.pretrain.run_folder import Best


def training_provenance(config: PretrainConfig, corpus: Corpus, best: Best, steps: int, threads: int) -> dict[str, Any]:
    """What config.json says of a model's training, under `training`."""
    return {
        "hyenadna": __version__,
        "command": command(config),
        "data": [
            {"source": genome.pack.source, "sequence_sha256": genome.pack.sequence_sha256, "weight": genome.weight}
            for genome in corpus.genomes
        ],
        "step": best.step,
        "steps": steps,
        "valid_bits_per_base": best.bits_per_base,
        "seed": config.seed,
        "threads": threads,
    }


def model_card(model: HyenaConfig, config: PretrainConfig, corpus: Corpus, best: Best, steps: int) -> str:
    """README.md of the model folder."""
    data = "\n".join(
        f"| {genome.pack.source} | `{genome.pack.sequence_sha256}` | {genome.split.bases('train'):,} "
        f"| {genome.split.bases('valid'):,} | {genome.split.bases('test'):,} |"
        for genome in corpus.genomes
    )
    return f"""# HyenaDNA {config.size}, {config.max_length:,} bases of context

A causal language model of DNA with one token a nucleotide: {model.n_layer} layers ({model.blocks}), width
{model.d_model}, {parameters(model):,} parameters. Pretrained with hyenadna {__version__}.

## Data

| genome | SHA-256 of the sequence | train, bases | valid, bases | test, bases |
|---|---|---|---|---|
{data}

Split: {corpus.genomes[0].split.rule}.
The intervals are in `split.json`; no weight has seen valid or test, but valid chose this checkpoint.

## Training

    {command(config)}

Step {best.step:,} of {steps:,}, the one with the best validation: {best.bits_per_base:.4f} bits per base on windows
of the valid part. Windows grew from {config.warmup_from:,} to {config.max_length:,} bases.

## Use

    hyena evaluate -m THIS_FOLDER --fasta GENOME

Measure it on the test part, beside Markov models, before relying on it. It knows the genomes above and nothing else;
its likelihoods say what is usual in them, not what is healthy or functional.

## Licence

The weights carry the licence of whoever trained them; the sequences keep that of their source.
"""
