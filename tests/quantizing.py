"""A small model and genome for the tests of quantisation."""

from pathlib import Path

import torch
from evaluating import random_dna

from hyenadna.data.intervals import Interval, kept_contigs
from hyenadna.data.packed import Pack, packed
from hyenadna.data.splits import contig_split, splits_to_json
from hyenadna.inference.quantization_cost import HeldOut
from hyenadna.model.config import HyenaConfig
from hyenadna.model.language_model import HyenaDNA

TEST = (Interval("c1", 0, 15_000), Interval("c1", 15_100, 24_000))


def dense_model(**fields: object) -> HyenaDNA:
    """Rows of 32 and 40 weights, large enough that quantising them shows."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_inner": 40, "layers": "HH", "filter_length": 66, "filter_order": 8}
    model = HyenaDNA(HyenaConfig(**(shape | fields)))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def genome(folder: Path) -> Pack:
    """Three contigs, the second one with N and lower case."""
    contigs = (random_dna(9000, 11), random_dna(24_000, 12, "ACGT" * 40 + "acgtN"), random_dna(1000, 13))
    (folder / "genome.fa").write_text("".join(f">c{i}\n{contig}\n" for i, contig in enumerate(contigs)))
    return packed(folder / "genome.fa")


def held_out(pack: Pack, tokens: int = 4096, length: int = 64) -> HeldOut:
    """The second contig, in two pieces."""
    return HeldOut(pack, TEST, length, tokens)


def save(model: HyenaDNA, pack: Pack, folder: Path) -> None:
    """The model's folder, with a split whose test part is the second contig."""
    split = contig_split(kept_contigs(pack.lengths, None).intervals, ("c2",), ("c1",), pack)
    model.save_pretrained(folder, extra={"split.json": splits_to_json([split])})
