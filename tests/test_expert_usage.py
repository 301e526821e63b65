"""Experts by k-mer and by annotation, of a model whose routers were made by hand."""

import csv
import functools

import numpy as np
import pytest
import torch
from evaluating import random_dna
from pretraining import hyena
from torch import nn

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import packed
from hyenadna.data.tokenizer import A
from hyenadna.errors import SequenceTooLong, UsageError
from hyenadna.inference import markov
from hyenadna.inference.expert_usage import expert_usage, kmer_numbers, kmers

REGION = (100, 180)


@pytest.fixture(scope="module")
def model():
    """Expert 1 of the only block is on for the token A, expert 2 for C and G, expert 3 never."""
    torch.manual_seed(0)
    made = HyenaDNA(
        HyenaConfig(
            d_model=16, d_inner=8, layers="H", filter_length=66, filter_order=8, feed_forward="remoe", experts=3,
            embed_dropout=0.0,
        )
    ).eval()  # fmt: skip
    block = made.backbone.layers[0]
    nn.init.zeros_(block.mixer.out_proj.weight)  # what the router sees is the token itself
    with torch.no_grad():
        made.embedding.weight.copy_(torch.eye(16))
        router = torch.full((3, 16), -1.0)
        router[0, A], router[1, A + 1], router[1, A + 2] = 1.0, 1.0, 1.0
        block.mlp.router.weight.copy_(router)
    return made


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    text = random_dna(400, 1)
    text = text[:50] + "NN" + text[52:120] + text[120:160].lower() + text[160:]
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(f">c\n{text}\n")
    return path, text


def test_hand_made_router(model, genome):
    path, text = genome
    usage = expert_usage(
        model, packed(path), [Interval("c", 0, 400)], length=32, k=2, regions={"exon": [Interval("c", *REGION)]}
    )
    assert usage.on.shape == (1, 1 + 16 + 4, 3) and usage.without.shape == (1, 21)
    both = {"+": text.upper(), "-": text.upper()[::-1].translate(str.maketrans("ACGT", "TGCA"))}
    tokens = [  # every base of a strand but the first half window
        (strand, place if strand == "+" else 399 - place, read[place - 1 : place + 1])
        for strand, read in both.items()
        for place in range(16, 400)
    ]
    assert dict(zip(usage.classes, usage.tokens.tolist(), strict=True))["all", "all"] == len(tokens)
    for i, (kind, name) in enumerate(usage.classes):
        wanted = {
            "all": lambda at, pair: True,
            "k-mer": lambda at, pair, name=name: pair == name,
            "region": lambda at, pair, name=name: (
                REGION[0] <= at < REGION[1] if "exon" in name else text[at].islower()
            ) != name.startswith("not "),
        }[kind]  # fmt: skip
        chosen = [pair[1] for _, at, pair in tokens if wanted(at, pair)]
        on = [chosen.count("A"), chosen.count("C") + chosen.count("G"), 0]
        assert usage.tokens[i] == len(chosen) and usage.on[0, i].tolist() == on, name
        assert usage.without[0, i] == len(chosen) - sum(on)
    header, rows = usage.table()
    assert header[:6] == ("layer", "kind", "class", "tokens", "without_expert", "experts_on")
    by_class = {row[2]: row for row in rows}
    assert by_class["CA"][4:] == (0.0, 1.0, 1.0, 0.0, 0.0) and by_class["AT"][4:] == (1.0, 0.0, 0.0, 0.0, 0.0)


def test_batches_and_padding_change_nothing(model, genome):
    pack = packed(genome[0])
    found = [
        expert_usage(model, pack, [Interval("c", 3, 400)], length=32, k=3, batch_tokens=tokens).table()
        for tokens in (1, 100, 1 << 15)
    ]
    assert found[0] == found[1] == found[2]


def test_kmers():
    letters = np.frombuffer(b"ACGNTTa", dtype=np.uint8)
    named = [kmers(2)[number] if number >= 0 else "-" for number in kmer_numbers(letters, 2)]
    assert named == ["-", "AC", "CG", "-", "-", "TT", "TA"]
    assert kmer_numbers(letters[:1], 3).tolist() == [-1] and len(set(kmers(3))) == 64


def test_what_is_refused(model, genome):
    pack, everything = packed(genome[0]), [Interval("c", 0, 400)]
    plain = HyenaDNA(HyenaConfig(d_model=8, d_inner=8, layers="H", filter_length=66, filter_order=8))
    with pytest.raises(UsageError, match="the model has no experts; those pretrained with --feed-forward remoe"):
        expert_usage(plain, pack, everything, length=32)
    with pytest.raises(UsageError, match="k-mers of 9 were asked for; allowed are 1 to 8"):
        expert_usage(model, pack, everything, length=32, k=9)
    with pytest.raises(SequenceTooLong, match="windows of 67 bases; this model takes up to 66"):
        expert_usage(model, pack, everything, length=67)


def test_command(model, tmp_path, monkeypatch):
    monkeypatch.setattr(markov, "fit", functools.partial(markov.fit, order=2))
    long = tmp_path / "long.fa"
    long.write_text(f">c\n{random_dna(20_000, 2)}\n")
    (tmp_path / "exon.bed").write_text("c\t0\t10000\n")
    model.save_pretrained(tmp_path / "model")
    command = ("evaluate", "-m", tmp_path / "model", "--fasta", long, "--split", "all", "--max-bases", "600")
    command += ("--threads", "1", "--device", "cpu", "--experts", "1")
    code, _, err = hyena(*command)
    assert code == 2 and "--experts writes a table; say by -o into which folder" in err
    code, _, err = hyena(*command[:-1], "3", "--length", "4", "-o", tmp_path / "out")
    assert code == 2 and "k-mers of 3 were asked for; allowed are 1 to 2" in err and not (tmp_path / "out").exists()
    code, _, err = hyena(*command, "--regions", f"exon={tmp_path / 'exon.bed'}", "-o", tmp_path / "out")
    assert code == 0, err
    with (tmp_path / "out" / "experts.tsv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert float(rows["A"]["expert_1"]) == 1.0 and float(rows["T"]["without_expert"]) == 1.0
    assert int(rows["exon"]["tokens"]) + int(rows["not exon"]["tokens"]) == int(rows["all"]["tokens"])
