"""Genomes in memory, and what whole passes over whole windows say of a variant."""

import numpy as np
import torch

from hyenadna.data.alphabet import BASES, reverse_complement
from hyenadna.data.tokenizer import encode


class FakeGenome:
    """A source of bases that refuses to go off its contigs."""

    def __init__(self, **contigs: str) -> None:
        self.contigs = contigs
        self.lengths = {name: len(sequence) for name, sequence in contigs.items()}

    def fetch(self, contig: str, start: int, end: int) -> str:
        assert 0 <= start <= end <= self.lengths[contig], (contig, start, end)
        return self.contigs[contig][start:end]


def random_bases(n: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(BASES), n))


def haplotype_pair(genome, variant, window, sign):
    """Both haplotypes as they are read, from the window's start on, and how many bases stand before the variant.

    The window is searched for: on '-' among those that start, read backwards, where one of '+' ends.
    """
    sequence, (_, start, ref, alt) = genome.contigs[variant.contig], variant
    L, quarter = len(sequence), window // 4
    boundaries = [k * quarter for k in range(-8, L // quarter + 9)]
    if sign == "-":
        sequence, start = reverse_complement(sequence), L - start - len(ref)
        ref, alt = reverse_complement(ref), reverse_complement(alt)
        boundaries = [L - boundary for boundary in boundaries]
    (first,) = [b for b in boundaries if window // 2 <= start - b < 3 * quarter]
    whole = [sequence[:start] + allele + sequence[start + len(variant.ref) :] for allele in (ref, alt)]
    n = quarter + max(len(ref), len(alt))
    first = max(first, start + n - window, 0)
    n = min(n, *(len(haplotype) - start for haplotype in whole))
    return [haplotype[first : start + n] for haplotype in whole], start - first


def whole_passes(model, genome, variant, window, sign):
    """The log-likelihood ratio by one pass over each haplotype, base by base."""
    haplotypes, offset = haplotype_pair(genome, variant, window, sign)
    places = [i for i in range(max(1, offset), len(haplotypes[0])) if {h[i] for h in haplotypes} <= set(BASES)]
    sums = []
    for haplotype in haplotypes:
        tokens = encode(haplotype, model.config.n_token)
        with torch.inference_mode():
            logits = model(torch.from_numpy(tokens)[None]).logits[0, :, 7:11].double()
        nats = logits.log_softmax(-1)
        sums.append(sum(float(nats[i - 1, BASES.index(haplotype[i])]) for i in places))
    return sums[1] - sums[0]
