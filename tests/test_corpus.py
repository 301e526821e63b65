from pathlib import Path

import numpy as np
import pytest
from pretraining import write_genome

from hyenadna.data.tokenizer import IGNORE
from hyenadna.errors import InputError, UsageError
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.corpus import Corpus, _path_and_weight


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genomes")
    write_genome(folder / "a.fa", 30_000)
    letters = (folder / "a.fa").read_text().split("\n")[1]
    (folder / "b.fa").write_text(
        f">1\n{letters[:9000]}\n>2\n{letters[:7000].lower()}\n>chrUn_3\n{letters[:5000]}\n>4\n{letters[:2000]}\n"
    )
    return folder


def corpus(fasta, *names, **fields):
    config = PretrainConfig(fasta=tuple(str(fasta / name) for name in names), max_length=64, **fields)
    return config, Corpus.of(config, 64)


def test_weights(fasta):
    _, plain = corpus(fasta, "a.fa", "b.fa")
    assert [genome.weight for genome in plain.genomes] == [genome.split.bases("train") for genome in plain.genomes]
    _, weighted = corpus(fasta, "a.fa:1", "b.fa:2.5")
    assert [genome.weight for genome in weighted.genomes] == [1, 2.5]
    with pytest.raises(UsageError, match="give all of them one, or none"):
        corpus(fasta, "a.fa:1", "b.fa")


def test_weights_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd:2").write_text(">a\nACGT\n")
    assert _path_and_weight("odd:2") == (Path("odd:2"), None)
    assert _path_and_weight("a.fa:2") == (Path("a.fa"), 2.0)
    assert _path_and_weight("C:a.fa") == (Path("C:a.fa"), None)
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(UsageError, match=f"--fasta a.fa:{weight}: the weight must be a positive number"):
            _path_and_weight(f"a.fa:{weight}")


def test_without_files_the_bundled_genome():
    made = Corpus.of(PretrainConfig(), 1024)
    assert "ecoli" in made.genomes[0].pack.source and sum(made.genomes[0].pack.lengths.values()) == 4_639_675


def test_contigs_that_are_left_out_are_named(fasta):
    _, some = corpus(fasta, "b.fa")
    assert some.genomes[0].left_out.keys() == {"chrUn_3"}
    assert "left out: chrUn_3 (unplaced); --contigs all uses every contig" in some.describe()
    _, everything = corpus(fasta, "b.fa", contigs="all")
    assert not everything.genomes[0].left_out and "left out" not in everything.describe()


def test_held_out_contigs(fasta):
    _, held = corpus(fasta, "b.fa", valid_contigs=("2",), test_contigs=("4",))
    split = held.genomes[0].split
    assert {interval.contig for interval in split.train} == {"1"} and {i.contig for i in split.valid} == {"2"}
    assert split.bases("train") == 9000 and split.bases("valid") == 7000


def test_held_out_by_bed(fasta, tmp_path):
    bed = tmp_path / "split.bed"
    bed.write_text("1\t0\t4000\ttrain\n1\t5000\t6000\tvalid\n2\t0\t500\ttest\n")
    _, held = corpus(fasta, "b.fa", split_bed=bed)
    assert [held.genomes[0].split.bases(part) for part in ("train", "valid", "test")] == [4000, 1000, 500]


def test_validation_is_the_same_at_every_call_and_of_the_valid_part(fasta):
    config, made = corpus(fasta, "a.fa", valid_tokens=640)
    one, same = made.validation(config, 64), made.validation(config, 64)
    assert np.array_equal(one.inputs, same.inputs) and np.array_equal(one.targets, same.targets)
    assert one.inputs.shape[1] == 64 and 1 <= len(one.inputs) <= 10
    pack, valid = made.genomes[0].pack, made.genomes[0].split.valid
    held_out = [pack.fetch(interval).tobytes().decode() for interval in valid]
    for row in one.inputs:
        text = "".join({7: "A", 8: "C", 9: "G", 10: "T", 11: "N"}[token] for token in row.tolist())
        assert any(text in part for part in held_out)


def test_a_valid_part_without_lettered_bases_is_refused(fasta):
    config, made = corpus(fasta, "b.fa", valid_contigs=("2",), test_contigs=("4",), soft_mask="ignore")
    with pytest.raises(InputError, match="no base of the valid part can be scored"):
        made.validation(config, 64)
    sampler = made.sampler(config)
    assert (sampler.windows(0, 0, 4, 64).targets != IGNORE).any()
