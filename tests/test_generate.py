"""Generation: the same as recomputing everything for every base, alone as in a batch, and drawn as it should be."""

import itertools
import math
import re
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import small_model
from scipy.stats import chisquare

from hyenadna.errors import InputError, NotFiniteError, SequenceTooLong, UsageError
from hyenadna.inference.constraints import Constraints
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generate import generate, stream
from hyenadna.inference.likelihood import likelihoods

PROMPT = "ACGTTGCAAC"
PATTERNS = ["HH", "LL", "SS", "HSL"]


@pytest.fixture(scope="module")
def models():
    return {pattern: small_model(layers=pattern, n_token="n").double() for pattern in PATTERNS}


class MarkovModel:
    """The four bases by the one before, as a model: quick, and every probability is known."""

    config, device = SimpleNamespace(filter_length=1 << 20), torch.device("cpu")

    def __init__(self, seed=0, flat=False):
        self.p = np.full((4, 4), 0.25) if flat else np.random.default_rng(seed).dirichlet(np.ones(4) * 2, size=4)

    def extend(self, tokens, state=None, *, ahead=0):
        logits = torch.full((*tokens.shape, 16), 9.0, dtype=torch.float64)
        logits[..., 7:11] = torch.from_numpy(np.log(self.p))[tokens - 7]
        return logits, Rows(len(tokens), tokens.shape[1])


class Rows:
    """A state of a Markov model, which need not remember anything."""

    def __init__(self, rows, length):
        self.rows, self.length = rows, length

    def repeat(self, n):
        return Rows(self.rows * n, self.length)

    def select(self, rows):
        return Rows(len(rows), self.length)


def probabilities(model, text):
    """Of the next base, by reading all of the text again."""
    tokens = torch.tensor([["ACGT".index(base) + 7 for base in text]])
    with torch.no_grad():
        return model(tokens).logits[0, -1, 7:11].softmax(dim=-1).numpy()


def uniform(seed, row, prompt, n):
    """What a row draws by: numbers of its own behind every prompt."""
    return np.random.default_rng((seed, row, zlib.crc32(prompt.encode()))).random(n)


def recomputed(model, prompt, length, row, *, seed, decoded=lambda p: p):
    """A sequence of one row and its log-likelihood, without any state."""
    draws, text, nats = uniform(seed, row, prompt, length), prompt, 0.0
    for u in draws:
        p = probabilities(model, text) if text else np.full(4, 0.25)
        q = decoded(p) if text else p
        base = int(np.searchsorted(np.cumsum(q), u * q.sum(), side="right"))
        nats += math.log(p[base]) if text else 0.0
        text += "ACGT"[base]
    return text[len(prompt) :], nats


def sharper_and_cut(p):
    """Temperature 0.7, then the likeliest that have 0.8 together."""
    q = p ** (1 / 0.7) / (p ** (1 / 0.7)).sum()
    order = np.argsort(-q)
    number = 1 + int((np.cumsum(q[order]) < 0.8).sum())
    return np.where(np.isin(np.arange(4), order[:number]), q, 0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_as_recomputing_everything(models, pattern):
    model, cut = models[pattern], Decoding(temperature=0.7, top_p=0.8)
    for prompt, decoding, decoded in (("", Decoding(), lambda p: p), (PROMPT, cut, sharper_and_cut)):
        found = generate(model, prompt, length=11, count=2, decoding=decoding, seed=7)
        for row, one in enumerate(found):
            sequence, nats = recomputed(model, prompt, 11, row, seed=7, decoded=decoded)
            assert one.sequence == sequence and one.nats == pytest.approx(nats, rel=1e-9)
            assert (one.scored, one.seed, one.stopped) == (11 if prompt else 10, 7, "length")


def test_typical_blocks_are_those_of_enumeration(models):
    model, k, mass = models["HSL"], 2, 0.6
    found = generate(model, PROMPT, length=7, decoding=Decoding(typical_p=mass, typical_kmer=k), seed=3)
    for row, one in enumerate(found):
        text, draws = PROMPT, iter(uniform(3, row, PROMPT, 7))
        while len(text) < len(PROMPT) + 7:
            size = min(k, len(PROMPT) + 7 - len(text))
            blocks = ["".join(block) for block in itertools.product("ACGT", repeat=size)]
            p = probabilities(model, text)
            if size == 2:
                p = np.concatenate([p[base] * probabilities(model, text + "ACGT"[base]) for base in range(4)])
            distance = np.abs(-np.log(p) - (-(p * np.log(p)).sum()))
            order = np.argsort(distance)
            number = 1 + int((np.cumsum(p[order]) < mass).sum())
            q = np.where(np.isin(np.arange(len(p)), order[:number]), p, 0)
            text += blocks[int(np.searchsorted(np.cumsum(q), next(draws) * q.sum(), side="right"))]
        assert one.sequence == text[len(PROMPT) :]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_alone_as_in_a_batch(models, pattern):
    given = {"length": 12, "seed": 11, "stop": ("TT",), "constraints": Constraints(require=("GC",))}
    blocks = Decoding(typical_p=0.9, typical_kmer=3, repetition_penalty=1.0, repetition_kmer=3)
    for decoding in (Decoding(), blocks) if pattern == "HSL" else (Decoding(),):
        together = generate(models[pattern], PROMPT, count=4, decoding=decoding, **given)
        assert len({one.sequence for one in together}) == 4
        for row in range(4):
            alone = stream(models[pattern], PROMPT, first_row=row, decoding=decoding, **given)
            pieces = list(alone)
            assert "".join(piece.base for piece in pieces) == alone.sequences[0].sequence == together[row].sequence
            assert alone.sequences[0].nats == pytest.approx(together[row].nats, rel=1e-9)
            assert sum(piece.nats for piece in pieces) == pytest.approx(together[row].nats, rel=1e-12)


def test_the_likelihood_is_that_of_likelihoods(models):
    model = models["HSL"]
    for one in generate(model, length=20, count=2, decoding=Decoding(top_k=2)):
        scored = likelihoods(model, [one.sequence], dtype=torch.float64)[0]
        assert (one.nats, one.scored) == (pytest.approx(scored.nats, rel=1e-9), scored.scored)
    for one in generate(model, PROMPT, length=20, decoding=Decoding(temperature=0)):
        both, before = likelihoods(model, [PROMPT + one.sequence, PROMPT], dtype=torch.float64)
        assert one.nats == pytest.approx(both.nats - before.nats, rel=1e-9)


def test_without_a_prompt_the_first_base_is_any():
    found = generate(MarkovModel(), length=1, count=400, decoding=Decoding(temperature=0))
    assert chisquare(list(Counter(one.sequence for one in found).values())).pvalue > 1e-3
    assert {(one.nats, one.scored) for one in found} == {(0.0, 0)}


def test_draws_behind_one_prompt_say_nothing_of_those_behind_another():
    model = MarkovModel(flat=True)
    texts = [generate(model, prompt, length=2000)[0].sequence for prompt in ("A", "C", "AC", "")]
    for one, other in itertools.combinations(texts, 2):
        # of equal bases 500 are expected, and the deviation is 19.4
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 600
    assert texts[0] == generate(model, "a", length=2000, count=2)[0].sequence


@pytest.mark.parametrize("k", [1, 3])
def test_sequences_come_as_often_as_the_model_says(k):
    model, n = MarkovModel(), 3000
    decoding = Decoding() if k == 1 else Decoding(typical_p=1 - 1e-9, typical_kmer=k)
    counts = Counter(one.sequence for one in generate(model, "G", length=3, count=n, decoding=decoding, seed=1))
    wanted = {}
    for block in itertools.product(range(4), repeat=3):
        wanted["".join("ACGT"[b] for b in block)] = n * math.prod(model.p[a, b] for a, b in zip((2, *block), block))  # noqa: B905
    assert min(wanted.values()) > 1
    assert chisquare([counts[text] for text in wanted], list(wanted.values())).pvalue > 1e-3


def test_typical_samples_are_as_surprising_as_the_model_expects():
    model = MarkovModel()
    entropy = -(model.p * np.log(model.p)).sum(axis=1)

    def gap(**decoding):
        """Mean surprisal of what is written less the entropy of what it was drawn from, in nats."""
        found = generate(model, "A", length=40, count=100, decoding=Decoding(**decoding))
        contexts = ["ACGT".index(base) for one in found for base in "A" + one.sequence[:-1]]
        return -sum(one.nats for one in found) / len(contexts) - entropy[contexts].mean()

    for mass in (0.2, 0.5):
        assert gap(top_p=mass) < gap(typical_p=mass) - 0.05 < 0
    assert abs(gap(typical_p=0.5, typical_kmer=3)) < abs(gap(typical_p=0.5)) / 2
    # so much of four bases is mostly the same ones by either rule
    assert gap(top_p=0.9) == gap(typical_p=0.9)


def test_required_motifs_may_come_to_stand_anywhere():
    found = generate(MarkovModel(flat=True), length=30, count=600, constraints=Constraints(require=("GATTACA",)))
    starts = [one.sequence.index("GATTACA") for one in found]
    assert chisquare(np.bincount(starts, minlength=24)).pvalue > 1e-3


def test_constraints_hold_under_every_decoding():
    constraints = Constraints(require=("GAATTC", "CCNNGG"), forbid=("TA", "GGG"), gc=(0.45, 0.55), both_strands=True)
    for decoding in (
        Decoding(), Decoding(temperature=0), Decoding(top_p=0.3), Decoding(typical_p=0.2),
        Decoding(typical_p=0.5, typical_kmer=4), Decoding(repetition_penalty=9.0, repetition_kmer=2),
        Decoding(dynamic="entropy"),
    ):  # fmt: skip
        found = generate(MarkovModel(), "TTTAG", length=41, count=3, decoding=decoding, constraints=constraints)
        for text in (one.sequence for one in found):
            behind = "G" + text  # what begins in the prompt counts
            assert "GAATTC" in behind and re.search("CC..GG", behind) and not re.search("TA|GGG|CCC", behind)
            assert 0.45 <= sum(base in "GC" for base in text) / len(text) <= 0.55
            assert len(text) == 41


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(typical_p=0.9, typical_kmer=3)])
def test_a_stop_motif_ends_a_sequence(decoding):
    whole = generate(MarkovModel(), "TG", length=40, count=8, decoding=decoding)
    cut = generate(MarkovModel(), "TG", length=40, count=8, decoding=decoding, stop=("GAC", "CCY"))
    for one, full in zip(cut, whole, strict=True):
        text = "TG" + full.sequence
        ends = [found.end(1) for found in re.finditer("(?=(GAC|CC[CT]))", text)]
        assert one.sequence == text[2 : ends[0] if ends else None]
        assert one.stopped == ("stop" if ends else "length") and one.scored == len(one.sequence)
    assert {one.stopped for one in cut} == {"stop", "length"} or all(one.stopped == "stop" for one in cut)


def test_repetition_is_held_down():
    found = generate(
        MarkovModel(flat=True), "AAAAAA", length=60, decoding=Decoding(repetition_penalty=50, repetition_kmer=4)
    )
    text = "AAAAAA" + found[0].sequence
    kmers = Counter(text[start : start + 4] for start in range(len(text) - 3))
    assert kmers.pop("AAAA") == 3 and max(kmers.values()) == 1


def test_a_diversity_head_of_one_score_is_a_fixed_temperature(models):
    heads = []

    def head(hidden):
        heads.append(tuple(hidden.shape))
        return torch.full((len(hidden),), 0.25)

    model, T = models["HSL"], 0.5 + (1.3 - 0.5) * 0.25
    dynamic = generate(model, PROMPT, length=12, count=2, decoding=Decoding(dynamic="diversity"), diversity=head)
    assert dynamic == generate(model, PROMPT, length=12, count=2, decoding=Decoding(temperature=T))
    assert set(heads) == {(1, 16), (2, 16)}


def test_from_the_model_itself(models):
    assert models["HH"].generate(PROMPT, length=5, seed=2) == generate(models["HH"], PROMPT, length=5, seed=2)


def test_prompts_are_read_as_they_are_written(models):
    wanted = generate(models["HH"], "ACGTT", length=5)
    assert generate(models["HH"], " acguU\n", length=5) == wanted


@pytest.mark.parametrize(
    ("given", "failure", "said"),
    [
        ({"prompt": "ACGNA"}, InputError, "the prompt has 'N' at position 4; a sequence goes on from A, C, G and T"),
        ({"prompt": "ACG-A"}, InputError, "the prompt has '-' at position 4"),
        ({"prompt": "A" * 60, "length": 9}, SequenceTooLong, "a prompt of 60 bases and 9 more are 69; this"),
        ({"length": 1000}, SequenceTooLong, "1,000 bases were asked for; this model takes up to 68"),
        ({"length": 0}, UsageError, "1 sequences of 0 bases by the seed 0; allowed are a count and a length of 1"),
        ({"count": 0}, UsageError, "0 sequences of 5 bases by the seed 0; allowed are"),
        ({"seed": -1}, UsageError, "by the seed -1; allowed are"),
        ({"decoding": Decoding(dynamic="diversity")}, UsageError, "a diversity head and dynamic 'diversity' need each"),
        ({"diversity": len}, UsageError, "a diversity head and dynamic 'diversity' need each other"),
        ({"stop": ("GAX",)}, UsageError, "stop 'GAX': a motif is made of IUPAC codes"),
        ({"constraints": Constraints(require=("GATTACA",))}, UsageError, "no sequence of 5 bases holds GATTACA"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_at_once(models, given, failure, said):
    with pytest.raises(failure, match=re.escape(said)):
        stream(models["HH"], **{"length": 5, **given})


def test_probabilities_that_are_not_numbers(models):
    broken = MarkovModel()
    broken.p[1] = math.nan
    with pytest.raises(NotFiniteError, match="probabilities that are not numbers in a sequence of 1 bases"):
        generate(broken, "C", length=5)
