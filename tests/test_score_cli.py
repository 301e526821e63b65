"""`hyena score` as users call it, with a small model of random weights."""

import gzip
import json
import os
import re

import numpy as np
import pytest
from checkpoints import small_model
from scoring import HEADER, bases, line, records, write_fasta, write_vcf
from typer.testing import CliRunner

from hyenadna import HyenaDNA
from hyenadna.cli import main as cli
from hyenadna.cli.score import performance
from hyenadna.data.alleles import Variant
from hyenadna.data.reference_check import Genome
from hyenadna.data.vcf import open_vcf
from hyenadna.errors import UsageError
from hyenadna.inference import score_vcf, trinucleotides, variant_background, variant_markov
from hyenadna.inference.score_config import ScoreConfig
from hyenadna.inference.variant_scores import VariantScorer
from hyenadna.model import checkpoint
from hyenadna.model.hub import STARTER, find_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model(layers="HH", d_inner=16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(variant_background, "PER_CLASS", 2)
    for module in (trinucleotides, variant_background):
        monkeypatch.setattr(module, "LEAST", 2)
    write_fasta(tmp_path / "ref.fa")
    write_vcf(tmp_path / "in.vcf", records(40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model, *arguments, text=None, window=32, fasta="ref.fa"):
    given = [*map(str, arguments), "-m", str(model), "--threads", "1", "--device", "cpu"]
    given += ["--window", str(window)] if window else []
    given += ["--fasta", fasta] if fasta else []
    return CliRunner().invoke(cli.app, ["score", *given], input=text, terminal_width=120)


def values(path):
    """LLR of each allele by place and alternative."""
    with open_vcf(str(path)) as vcf:
        for record in vcf.records:
            info = dict(pair.split("=") for pair in record.line.decode().split("\t")[7].split(";"))
            for alt, *texts in zip(record.alts, *(info[f"HYENA_{key}"].split(",") for key in KEYS), strict=True):
                yield record, alt, texts


def names(folder):
    """All files but the genome's."""
    return sorted(path.name for path in folder.iterdir() if "ref.fa" not in path.name)


KEYS = ("LLR", "LLR_MARKOV", "PCT", "FLAG")


def test_a_vcf_file(model, folder, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HYENA_CACHE", str(tmp_path_factory.mktemp("cache")))
    ended = run(model, "in.vcf", "-o", "out.vcf.gz", "--json")
    assert ended.exit_code == 0, ended.output
    result = json.loads(ended.stdout)
    assert (result["records"], result["alleles"], result["scored"], result["earlier"]) == (40, 47, 47, 0)
    assert result["flags"]["INDEL"] == 6 and result["performance"] == "not measured" and result["variants_per_s"] > 0
    assert "small on variants: not measured" in ended.stderr
    assert re.search(r"[\d,]+ SNVs of the whole genome are scored for percentiles first, which the cac", ended.stderr)
    network = HyenaDNA.from_pretrained(model).double()
    scorer = VariantScorer(network, Genome(folder / "ref.fa"), window=32, batch_tokens=256)
    seen = 0
    for record, alt, (llr, markov, percentile, flag) in values("out.vcf.gz"):
        wanted = scorer.score([Variant("1", record.start, record.ref, alt)])[0]
        assert float(llr) == pytest.approx(wanted.llr, abs=1e-4)
        assert np.isfinite(float(markov)) and (percentile == ".") == ("INDEL" in flag)
        seen += 1
    assert seen == 47
    text = gzip.decompress((folder / "out.vcf.gz").read_bytes()).decode()
    head = re.search(r"##hyenaModel=<ID=small,sha256=([0-9a-f]{64}),window=32,strand=both,dtype=float32,(.*)>\n", text)
    assert head[1] == result["sha256"] and head[2].startswith('genome=ref.fa,background="')
    assert re.search(
        r"background=\"[\d,]+ SNVs of the whole genome, .*,performance=\"not measured\",hyenadna=", head[2]
    )
    assert re.search(r"##hyenaCommand=hyena score in.vcf --fasta ref.fa --model small --window 32\n", text)
    assert [name for name in names(folder) if ".tbi" not in name] == ["in.vcf", "out.vcf.gz"]
    refused = run(model, "in.vcf", "-o", "out.vcf.gz")
    assert refused.exit_code == 2 and "-o out.vcf.gz exists; give another name, or --overwrite" in refused.stderr


def test_an_index_where_pysam_is(model, folder):
    pysam = pytest.importorskip("pysam")
    assert run(model, "in.vcf", "-o", "out.vcf.gz", "--no-percentiles").exit_code == 0
    with pysam.VariantFile("out.vcf.gz") as file:
        (record, *_) = file.fetch("1", 0, 30)
        assert isinstance(record.info["HYENA_LLR"][0], float) and "HYENA_PCT" not in record.info
    os.utime("out.vcf.gz.tbi", ns=(0, 0))
    ended = run(model, "out.vcf.gz", "--no-percentiles", "--region", "1:1-200")
    assert ended.exit_code == 0 and ended.stderr.count("out.vcf.gz.tbi is older than the file") == 1


def test_pipes_and_tables(model, folder):
    whole = run(model, "in.vcf", "--no-percentiles")
    assert whole.exit_code == 0 and "40 records, 47 of 47 alleles scored; INDEL 6" in whole.stderr
    piped = run(model, "-", "--no-percentiles", text=(folder / "in.vcf").read_text())
    assert piped.exit_code == 0 and "standard input cannot be read again: a run that is stopped starts" in piped.stderr
    assert piped.stdout.replace("hyena score -", "hyena score in.vcf") == whole.stdout
    assert run(model, "in.vcf", "-o", "a.tsv", "--strand", "forward", "--no-percentiles").exit_code == 0
    head, columns, *rows = (folder / "a.tsv").read_text().splitlines()
    assert (
        "strand forward" in head and head.endswith("--window 32 --strand forward --no-percentiles") and len(rows) == 47
    )
    assert all(len(row.split("\t")) == len(columns.split("\t")) and row.split("\t")[7] == "." for row in rows)
    both = run(model, "in.vcf", "-o", "a.tsv", "--json")
    assert both.exit_code == 2 and "-o a.tsv exists" in both.stderr
    both = run(model, "in.vcf", "--json")
    assert both.exit_code == 2 and "would both go to stdout; name a file" in both.stderr


def test_the_parts_of_a_real_scorer_add_up(model, folder):
    middle = int(records(40)[17].split("\t")[1])
    texts = [
        run(model, "in.vcf", "--no-percentiles", "--quiet", *region).stdout.partition("\tone\n")[2]
        for region in ([], ["--region", f"1:1-{middle - 1}"], ["--region", f"1:{middle}-3000"])
    ]
    cli.set_quiet(False)
    assert texts[1] and texts[2] and texts[0] == texts[1] + texts[2]


def test_a_run_that_was_stopped_goes_on(model, folder, monkeypatch):
    monkeypatch.setattr(score_vcf, "BATCH_RECORDS", 8)
    arguments = ("in.vcf", "-o", "out.vcf", "--no-percentiles")
    assert run(model, *arguments[:2], "whole.vcf", "--no-percentiles").exit_code == 0
    real, calls = VariantScorer.score, []

    def dies(self, variants):
        calls.append(len(variants))
        if len(calls) > 3:
            raise MemoryError
        return real(self, variants)

    with monkeypatch.context() as during:
        during.setattr(VariantScorer, "score", dies)
        ended = run(model, *arguments)
    assert ended.exit_code == 137 and not (folder / "out.vcf").exists() and (folder / ".out.vcf.journal").is_dir()
    with monkeypatch.context() as during:  # told before anything is prepared that takes a while
        during.setattr(variant_markov, "fitted", None)
        other = run(model, *arguments, "--strand", "reverse")
    assert other.exit_code == 2 and "a stopped run with strand 'both', and this is 'reverse'" in other.stderr
    other = run(model, *arguments, "--region", "1:1-99")
    assert other.exit_code == 2 and "with region None, and this is '1:1-99'" in other.stderr
    ended = run(model, *arguments)
    assert ended.exit_code == 0 and "24 records by an earlier run" in ended.stdout
    assert (folder / "out.vcf").read_bytes() == (folder / "whole.vcf").read_bytes()
    with monkeypatch.context() as during:
        calls.clear()
        during.setattr(VariantScorer, "score", dies)
        assert run(model, *arguments, "--overwrite").exit_code == 137
    (folder / "ref.fa").write_text((folder / "ref.fa").read_text().replace("N" * 20, "A" * 20))
    (folder / "ref.fa.fai").unlink()
    ended = run(model, *arguments, "--overwrite")
    assert ended.exit_code == 0 and "by an earlier run" not in ended.stdout


def test_dry_run(model, folder):
    ended = run(model, "in.vcf", "-o", "out.vcf", "--dry-run", "--json")
    assert ended.exit_code == 0, ended.output
    plan = json.loads(ended.stdout)
    assert (plan["records"], plan["alleles"], plan["variants"]) == (40, 47, 47) and plan["variants_per_s"] > 0
    assert plan["seconds_percentiles"] > plan["seconds"] and not (folder / "out.vcf").exists()
    assert re.match(
        r"40 records, 47 of 47 alleles can be scored\. At .*variants/s: .* for percentiles if", plan["text"]
    )


def test_substitutions_of_a_region(model, folder):
    (folder / "a.bed").write_text("1\t100\t110\texon\n")
    ended = run(model, "--bed", "a.bed", "-o", "a.tsv")
    assert ended.exit_code == 0, ended.output
    assert "a.tsv: 1 regions, 30 substitutions" in ended.stdout
    table = (folder / "a.tsv").read_text()
    write_vcf(
        folder / "b.vcf",
        [line(place, base) for place in range(101, 111) for base in "ACGT" if base != bases()["1"][place - 1]],
    )
    assert run(model, "b.vcf", "-o", "b.vcf.gz").exit_code == 0
    for record, alt, (llr, *_) in values("b.vcf.gz"):
        assert re.search(rf"\b{record.start + 1}\t.*{record.ref}\t{alt}\t{re.escape(llr)}\t", table)
    ended = run(model, "--bed", "a.bed", "--dry-run")
    assert ended.exit_code == 0 and "1 regions, at most 30 substitutions. At " in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "how", "code", "said"),
    [
        (["in.vcf"], {"fasta": None}, 2, "--fasta is missing: it names the genome that in.vcf is of"),
        ([], {}, 2, "nothing to score was given; give a VCF"),
        (["in.vcf", "--bed", "a.bed"], {}, 2, "both a VCF and --bed was given"),
        (["a.bed"], {}, 2, "a.bed is a BED file by its name; --bed a.bed scores"),
        (["none.vcf"], {}, 3, "there is no file none.vcf"),
        (["in.vcf"], {"fasta": "none.fa"}, 3, "none.fa cannot be read"),
        (["a.csv"], {}, 3, "a.csv has no VCF header: its first line begins with 'chrom,pos,re'"),
        (["in.vcf", "-o", "."], {}, 2, "-o . is a folder; name a file in it"),
        (["in.vcf", "-o", "in.vcf", "--overwrite"], {}, 2, "-o in.vcf is an input itself; give another name"),
        (["in.vcf", "-o", "ref.fa", "--overwrite"], {}, 2, "-o ref.fa is an input itself; give another name"),
        (["in.vcf", "-o", "a.bcf"], {}, 2, "BCF is not written; name a .vcf.gz"),
        (["in.vcf"], {"window": 72}, 2, "this model reads up to 68: the largest window is 68"),
        (["in.vcf"], {"window": 30}, 2, "--window 30: allowed are multiples of 4 from 8 on"),
        (["in.vcf", "--region", "1:9-4"], {}, 2, "'1:9-4' begins at 9 and ends at 4"),
        (["in.vcf", "--plot", "a.png"], {}, 2, "--plot a.png is of --bed; give that, too"),
        (["--bed", "a.bed", "--region", "1"], {}, 2, "--region 1 is for a VCF; leave it out with --bed"),
        (["-", "--state", "s"], {}, 2, "standard input cannot be read again"),
        (["-", "--dry-run"], {}, 2, "--dry-run reads the input twice"),
        (["cut.vcf.gz"], {}, 3, "cut.vcf.gz is truncated"),
        (["last.vcf"], {}, 3, "last.vcf, line 46 has 3 columns of 10"),
        (["other.vcf"], {}, 3, "the genome build is probably another"),
    ],
)  # fmt: skip
def test_bad_input_in_one_line(model, folder, arguments, how, code, said):
    (folder / "a.csv").write_text("chrom,pos,ref,alt\n")
    (folder / "a.bed").write_text("1\t5\t10\n")
    (folder / "cut.vcf.gz").write_bytes(gzip.compress((folder / "in.vcf").read_bytes())[:-30])
    write_vcf(folder / "last.vcf", [*records(40), "1\t2990\trs"])
    write_vcf(folder / "other.vcf", records(40), HEADER.replace("length=3000", "length=2999"))
    before = names(folder)
    ended = run(model, *arguments, **how)
    assert ended.exit_code == code and said in ended.stderr.splitlines()[-1], ended.output
    assert ended.stderr.splitlines()[-1].startswith("hyena: ") and ended.stdout == ""
    assert names(folder) == before


def test_chr_and_a_measured_model(model, folder, tmp_path_factory):
    measured = tmp_path_factory.mktemp("models") / "measured"
    small_model(layers="HH", d_inner=16).save_pretrained(measured)
    assert performance(measured) == "not measured"
    (measured / "variants.json").write_text('{"performance": "AUROC 0.5, \\"poor\\""}')
    text = (folder / "in.vcf").read_text().replace("ID=1,", "ID=chr1,").replace("\n1\t", "\nchr1\t")
    (folder / "in.vcf").write_text(text)
    ended = run(measured, "in.vcf", "--no-percentiles")
    assert ended.exit_code == 0, ended.output
    assert "the contig chr1 of the VCF is 1 in the FASTA" in ended.stderr
    assert 'measured on variants: AUROC 0.5, "poor"' in ended.stderr
    assert 'performance="AUROC 0.5, \\"poor\\"",' in ended.stdout and "\nchr1\t20\t" in ended.stdout


def test_the_starter_says_what_its_own_weights_were_measured_to_do():
    folder = find_model(STARTER)
    card = json.loads((folder / "variants.json").read_text())
    assert card["model_sha256"] == checkpoint.read(folder).base_sha256
    assert performance(folder).startswith("AUROC of the LLR, 0.5 is chance: BRCA1 saturation editing")


def test_where_the_genome_has_n(model, folder):
    write_vcf(folder / "in.vcf", [line(510, "C", "A", "2"), line(530, contig="2"), line(1, contig="2")])
    ended = run(model, "in.vcf", "--no-percentiles", "--format", "tsv")
    assert ended.exit_code == 0, ended.output
    flags = [row.split("\t")[-1] for row in ended.stdout.splitlines()[2:]]
    assert flags == ["HAS_N", "HAS_N", "NEAR_EDGE"]


def test_the_command_names_no_folder(tmp_path):
    config = ScoreConfig(
        data=str(tmp_path / "a b.vcf"), fasta=tmp_path / "ref.fa", model=str(tmp_path), out="/x/y.vcf",
        state=tmp_path / "s", region="1:5-9", ref_mismatch="skip",
    )  # fmt: skip
    assert config.command == (
        f"hyena score 'a b.vcf' --fasta ref.fa --model {tmp_path.name} --region 1:5-9 --ref-mismatch skip"
    )
    with pytest.raises(UsageError, match="nothing to score was given"):
        ScoreConfig()


def test_a_file_of_settings(model, folder):
    (folder / "score.yaml").write_text("data: in.vcf\nwindow: 32\npercentiles: false\nfasta: ref.fa\n")
    ended = run(model, "--config", "score.yaml", window=None, fasta=None)
    assert ended.exit_code == 0 and ended.stdout == run(model, "in.vcf", "--no-percentiles").stdout
