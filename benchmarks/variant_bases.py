"""The parts of the variant benchmark that need no labels: what per-base likelihoods alone say of biology.

A gene is read in threes, so the likelihood of its bases rises and falls with a period of 3 where a model knows anything
of codons. The genome of the phage lambda is like none that the starter model has seen. Beside the models stand Markov
models of human DNA, which is what the starter model was trained on, and of E. coli, the host of the phage.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starter import TEST
from variant_contenders import ORDER
from variant_parts import HUMAN, MARKOV, Work, plain
from variant_reading_frames import LEAST, ReadingFrame, reading_frames
from variant_sets import CHR20, ECOLI, LAMBDA, Floats, Sequences
from variant_statistics import block_means, rhythms

from hyenadna.data.alphabet import COMPLEMENT
from hyenadna.data.fasta import read_records
from hyenadna.inference.markov import MarkovModels, count_both_strands
from hyenadna.progress import notice

HOST = f"{MARKOV}, E. coli"
WINDOW = 1024
"""Bases that are read for 900 of a reading frame: those before serve as context."""
FOLD = 100_000
"""Bases of the blocks of E. coli, of which every second one counts for the other ones."""
BLOCK = 1_000
"""Bases of lambda that are drawn together."""
PIECE, PIECES = 4_850, 10
"""Bases and number of the held-out pieces of human sequence: together as long as lambda."""
_LN2 = float(np.log(2))


def of_periodicity(work: Work) -> dict[str, Any]:
    """The power at a period of 3 of per-base likelihoods in open reading frames of E. coli, over that around it."""
    genome = Sequences(work.data / ECOLI)
    letters = genome.letters[genome.only]
    before = WINDOW - LEAST
    frames = [
        frame
        for frame in reading_frames(letters)
        if frame.start // FOLD == (frame.end - 1) // FOLD and frame.letters(letters, before) is not None
    ]
    frames = [frames[row] for row in work.some(len(frames))]
    windows = np.stack([_window(frame, letters, before) for frame in frames])
    nats: dict[str, Floats] = {}
    for contender in work.contenders:
        texts = [window.tobytes().decode("ascii") for window in windows]
        nats[contender.name] = np.stack(work.scores.of_bases(contender, texts))[:, before:]
    human, host = work.scores.human_markov(work.data), _cross_fitted(letters)
    nats[HUMAN] = -_LN2 * np.stack([human.bits(window, before)[-1] for window in windows])
    fold = [frame.start // FOLD % 2 for frame in frames]
    nats[HOST] = -_LN2 * np.stack([host[own].bits(w, before)[-1] for own, w in zip(fold, windows, strict=True)])
    whole = np.isfinite(np.stack(list(nats.values()))).all(axis=(0, 2))
    nats = {name: values[whole] for name, values in nats.items()}
    others = [HUMAN, HOST, *(c.name for c in work.contenders if c.random)]
    pairs = [(name, other) for name in work.trained for other in others]
    shuffled = {f"{name}, shuffled": np.random.default_rng(0).permuted(values, axis=1) for name, values in nats.items()}
    return {
        "reading_frames": len(frames),
        "bases_of_each": LEAST,
        "bases_before": before,
        "chosen": f"ATG to stop, at least {LEAST} bases, the longest of those that overlap",
        "power_at_3_over_around": plain(rhythms(nats | shuffled, pairs)),
        "differences_are_of": "the natural logarithms of the ratios",
        "drawn_together": "the bases of a reading frame",
        "bits_by_codon_position": {
            name: [float(-values[:, place::3].mean() / _LN2) for place in range(3)] for name, values in nats.items()
        },
        "bits_per_base": {name: float(-values.mean() / _LN2) for name, values in nats.items()},
    }


def of_lambda(work: Work) -> dict[str, Any]:
    """Bits per base of the phage lambda, both strands, beside those of held-out human sequence."""
    genome, ecoli = Sequences(work.data / LAMBDA), Sequences(work.data / ECOLI)
    markov = {
        HUMAN: work.scores.human_markov(work.data),
        HOST: MarkovModels(count_both_strands(ecoli.letters.values(), ORDER)),
    }
    sets = {"lambda": [genome.letters[genome.only]], "human, held out from the starter model": _held_out(work.data)}
    report: dict[str, Any] = {"drawn_together": f"{BLOCK:,} bases", "markov_order": ORDER, "sets": {}}
    for name, sequences in sets.items():
        if work.limit is not None:
            sequences = [letters[: 40 * work.limit] for letters in sequences]
        if not sequences:
            notice(f"{CHR20.name} ends before the pieces that are held out from the starter model: left out")
            continue
        bits: dict[str, list[Floats]] = {model: _both_strands(own, sequences) for model, own in markov.items()}
        for contender in work.contenders:
            texts = [letters.tobytes().decode("ascii") for letters in sequences]
            bits[contender.name] = [-nats / _LN2 for nats in work.scores.of_bases(contender, texts, "both")]
        pairs = [(model, other) for model in work.trained for other in (*markov, *_randoms(work))]
        # the ends, which one strand alone scores, are left out
        columns = {model: np.concatenate([own[1:-1] for own in values]) for model, values in bits.items()}
        scored = np.isfinite(np.stack(list(columns.values()))).all(axis=0)
        columns = {model: values[scored] for model, values in columns.items()}
        found = plain(block_means(columns, BLOCK, pairs))
        report["sets"][name] = {"bases": int(scored.sum()), "bits_per_base": found}
    return report


def _randoms(work: Work) -> list[str]:
    return [contender.name for contender in work.contenders if contender.random]


def _window(frame: ReadingFrame, letters: NDArray[np.uint8], before: int) -> NDArray[np.uint8]:
    window = frame.letters(letters, before)
    assert window is not None
    return window[:WINDOW]


def _cross_fitted(letters: NDArray[np.uint8]) -> tuple[MarkovModels, MarkovModels]:
    """The model for the even blocks, counted on the odd ones, and the other way round."""
    blocks = [letters[start : start + FOLD] for start in range(0, len(letters), FOLD)]
    odd, even = (MarkovModels(count_both_strands(blocks[first::2], ORDER)) for first in (1, 0))
    return odd, even


def _held_out(data: Path) -> list[NDArray[np.uint8]]:
    """Evenly spread pieces of chr20 that the starter model has not seen, none with an N."""
    (record,) = read_records(data / CHR20)
    each = PIECES // len(TEST)
    starts = [start + (2 * i + 1) * (end - start) // (2 * each) for start, end in TEST for i in range(each)]
    pieces = [record.sequence[start : start + PIECE] for start in starts if start + PIECE <= len(record.sequence)]
    return [piece for piece in pieces if np.isin(piece, np.frombuffer(b"ACGT", dtype=np.uint8)).all()]


def _both_strands(model: MarkovModels, sequences: Iterable[NDArray[np.uint8]]) -> list[Floats]:
    """Bits of every base, the mean of both strands."""
    return [(model.bits(letters)[-1] + model.bits(COMPLEMENT[letters[::-1]])[-1][::-1]) / 2 for letters in sequences]
