"""`hyena generate` as users call it."""

import json
import math
import re

import pytest
import torch
from checkpoints import small_model
from typer.testing import CliRunner

from hyenadna import HyenaDNA
from hyenadna.cli import main as cli
from hyenadna.finetune.diversity_head import DiversityHead, save
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generate import generate

HEADER = re.compile(
    r">(\S+) seed=(\d+) row=(\d+) nats=(\S+) scored=(\d+) bits_per_base=(\S+) method=(\S+) stopped=(length|stop)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model(layers="HS", filter_length=130).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return HyenaDNA.from_pretrained(folder)


def run(*arguments, text=None):
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.app, ["generate", *given, "--threads", "1"], input=text, terminal_width=120)


def records(text):
    return [
        (HEADER.fullmatch(">" + record.split("\n")[0]).groups(), "".join(record.split("\n")[1:]))
        for record in text.split(">")[1:]
    ]


def test_a_prompt_longer_than_a_file_name_may_be(tmp_path):
    small_model(layers="HS", filter_length=402).save_pretrained(tmp_path / "model")
    (tmp_path / "there.fa").write_text("")
    prompt = "ACGT" * 75
    given = ("-m", tmp_path / "model", "--prompt", prompt, "--length", 4)
    to_stdout = run(*given)
    assert to_stdout.exit_code == 0, to_stdout.output
    to_file = run(*given, "-o", tmp_path / "there.fa", "--overwrite")
    assert to_file.exit_code == 0, to_file.output
    assert records((tmp_path / "there.fa").read_text()) == records(to_stdout.stdout)


def test_from_nothing_to_stdout(folder, model):
    ended = run("-m", folder, "--length", 100, "--count", 3, "--seed", 5)
    assert ended.exit_code == 0, ended.output
    assert max(map(len, ended.stdout.split("\n")[1:3])) == 80 and ended.stdout.endswith("\n")
    wanted = generate(model, length=100, count=3, seed=5)
    for row, (one, (facts, sequence)) in enumerate(zip(wanted, records(ended.stdout), strict=True)):
        assert sequence == one.sequence
        assert facts[:3] == (f"generated_{row + 1}", "5", str(row)) and facts[4] == "99"
        assert float(facts[3]) == pytest.approx(one.nats, abs=1e-4)
        assert float(facts[5]) == pytest.approx(-one.nats / 99 / math.log(2), abs=1e-5)
        assert facts[6:] == ("ancestral", "length")
    mean = -sum(one.nats for one in wanted) / 297 / math.log(2)
    assert f"3 sequences, 300 bases of {mean:.4f} bits per base; " in ended.stderr


def test_behind_the_prompts_of_a_file(folder, model, tmp_path):
    prompts = tmp_path / "in.fa"
    prompts.write_text(">one first\nACGTTA\nAC\n>two\nGGCAT\n")
    out = tmp_path / "out.fa"
    options = ("--length", 12, "--count", 3, "--side-by-side", 2, "--top-p", 0.9, "--repetition-penalty", 1)
    ended = run("-m", folder, "--prompt", prompts, *options, "-o", out)
    assert ended.exit_code == 0, ended.output
    assert re.fullmatch(r"\S+out\.fa: 6 sequences, 72 bases of \d\.\d{4} bits per base; \d+ s, .*nt/s\n", ended.stdout)
    found, decoding = records(out.read_text()), Decoding(top_p=0.9, repetition_penalty=1)
    assert [facts[0] for facts, _ in found] == ["one_1", "one_2", "one_3", "two_1", "two_2", "two_3"]
    wanted = [
        one.sequence
        for prompt in ("ACGTTAAC", "GGCAT")
        for one in generate(model, prompt, length=12, count=3, decoding=decoding)
    ]
    assert [sequence for _, sequence in found] == wanted
    assert {facts[6] for facts, _ in found} == {"top_p:0.9,repetition_penalty:1.0"}
    refused = run("-m", folder, "--length", 5, "-o", out)
    assert refused.exit_code == 2 and "exists; give another name, or --overwrite to replace it" in refused.stderr
    assert run("-m", folder, "--length", 5, "-o", out, "--overwrite").exit_code == 0
    own = run("-m", folder, "--length", 5, "--prompt", out, "-o", out, "--overwrite")
    assert own.exit_code == 2 and "is an input itself; give another name" in own.stderr
    assert len(records(out.read_text())) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["in.fa", "out.fa"]
    from_pipe = run("-m", folder, "--prompt", "-", *options, text=prompts.read_text())
    assert [sequence for _, sequence in records(from_pipe.stdout)] == wanted


def test_constraints_stop_motifs_and_json(folder):
    ended = run(
        "-m", folder, "--prompt", "acgtac", "--length", 60, "--count", 4, "--require", "GAATTC", "TGCA",
        "--forbid", "TATA", "--gc", "0.4", "0.6", "--both-strands", "--stop", "AA", "CC",
        "--typical-p", 0.9, "--typical-kmer", 2, "--json",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    result = json.loads(ended.stdout)
    assert len(result["sequences"]) == 4 and result["nt_per_s"] > 0 and len(result["base_sha256"]) == 64
    for number, one in enumerate(result["sequences"]):
        text = one["sequence"]
        assert "GAATTC" in text and "TGCA" in text and "TATA" not in text
        assert 0.4 <= sum(base in "GC" for base in text) / len(text) <= 0.6
        assert (one["stopped"], one["scored"]) == ("length" if len(text) == 60 else "stop", len(text))
        assert one["stopped"] == "length" or text[-2:] in ("AA", "CC")
        assert (one["id"], one["row"]) == (f"generated_{number + 1}", number)


def test_a_budget_for_the_cache(folder):
    given = ("-m", folder, "--prompt", "ACGT" * 10, "--length", 40)
    whole = run(*given)
    assert records(run(*given, "--cache-tokens", 100).stdout) == records(whole.stdout)
    cut = run(*given, "--cache-tokens", 8, "--cache-window", 4)
    assert cut.exit_code == 0 and len(records(cut.stdout)[0][1]) == 40


def test_a_diversity_head(folder, model, tmp_path):
    torch.manual_seed(0)
    head = DiversityHead(model.config.d_model)
    save(head, tmp_path / "head", base=model, description={}, card="", further={}, overwrite=False)
    ended = run("-m", folder, "--length", 20, "--dynamic", "diversity", "--diversity-head", tmp_path / "head")
    assert ended.exit_code == 0, ended.output
    facts, sequence = records(ended.stdout)[0]
    wanted = generate(model, length=20, decoding=Decoding(dynamic="diversity"), diversity=head)
    assert (facts[6], sequence) == ("dynamic:diversity", wanted[0].sequence)


def test_dry_run(folder, tmp_path):
    ended = run("-m", folder, "--length", 20, "--count", 5, "-o", tmp_path / "a.fa", "--dry-run", "--json")
    assert ended.exit_code == 0, ended.output
    plan = json.loads(ended.stdout)
    assert (plan["sequences"], plan["bases"]) == (5, 100) and plan["nt_per_s"] > 0
    assert plan["text"].startswith("5 sequences, 100 bases at most. At ")
    assert list(tmp_path.iterdir()) == []


def test_a_report(folder, tmp_path):
    given = ("-m", folder, "--count", 2, "--report", tmp_path / "report", "--json")
    ended = run(*given, "--length", 30)
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["report"]["generated"]["lengths"] == [30, 30]
    assert (tmp_path / "report" / "generation.json").is_file()
    again = run(*given, "--length", 1)
    assert again.exit_code == 2 and "report holds a report already (generation.json); --overwrite" in again.stderr
    again = run(*given, "--length", 1, "--overwrite")
    assert again.exit_code == 0 and json.loads(again.stdout)["sequences"][0]["bits_per_base"] is None


def test_a_reference_is_looked_at_before_anything_is_written(folder, tmp_path):
    (tmp_path / "small.fa").write_text(">chr1\n" + "ACGTTGCA" * 20 + "\n")
    given = ("-m", folder, "--length", 120, "--report", tmp_path / "report", "--reference")
    for reference, said in (("none.fa", "none.fa cannot be read"), ("small.fa", "small.fa")):
        ended = run(*given, tmp_path / reference)
        assert ended.exit_code == 3 and said in ended.stderr and ended.stdout == ""


def test_threads_are_the_cpus_of_the_process_unless_told_otherwise(folder, monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("hyenadna.machine.available_cpus", lambda: 7)
    for arguments in ((), ("--threads", "3")):
        assert CliRunner().invoke(cli.app, ["generate", "-m", str(folder), "--length", "9", *arguments]).exit_code == 0
    assert given == [7, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompt", "ACGNA"], 3, "the prompt has 'N' at position 4; a sequence goes on from A, C, G and T alone"),
        (["--prompt", "none.fa"], 3, "--prompt none.fa: there is no such file, and it is no sequence of nucleotides"),
        (["--prompt", "ACGT" * 30], 3, "a prompt of 120 bases and 200 more are 320; this model takes up to 128"),
        (["--length", "129"], 3, "129 bases were asked for; this model takes up to 128"),
        (["--length", "0"], 2, "length is 0; allowed is at least 1"),
        (["--seed", "-1"], 2, "seed is -1; allowed is at least 0"),
        (["--temperature", "-1"], 2, "temperature is -1.0; allowed are 0 to 100"),
        (["--top-k", "0"], 2, "top_k is 0; allowed are 1 to 4"),
        (["--length", "9", "--require", "GAATTC", "--forbid", "AATT"], 2, "of 9 bases holds GAATTC and lacks AATT;"),
        (["--length", "9", "--gc", "0.6", "0.4"], 2, "gc is 0.6 to 0.4; allowed are 0 to 1, the lower one first"),
        (["--length", "9", "--stop", "GAX"], 2, "stop 'GAX': a motif is made of IUPAC codes"),
        (["--length", "9", "--dynamic", "entropy", "--temperature", "0.5"], 2, "temperature 0.5 is fixed and dynamic"),
        (["--length", "9", "--dynamic", "diversity"], 2, "a head and dynamic 'diversity' need each other: give both"),
        (["--length", "9", "--diversity-head", "x"], 2, "dynamic is None and diversity_head x; a head and dynamic"),
        (["--length", "9", "--dynamic", "diversity", "--diversity-head", "x"], 3, "x is no diversity head: it has no"),
        (["--length", "9", "--cache-tokens", "0"], 2, "cache_tokens is 0; allowed is at least 1"),
        (["--length", "9", "--cache-bits", "4"], 2, "cache_bits 4 does nothing without cache_tokens; give that"),
        (["--length", "9", "--mapping", "exponential"], 2, "mapping exponential does nothing without dynamic;"),
        (["--length", "9", "--both-strands"], 2, "both_strands does nothing without require or forbid; give a motif"),
        (["--length", "9", "--out", ".", "--overwrite"], 2, "-o . is a folder; name a file in it"),
        (["--length", "9", "--reference", "a.fa"], 2, "reference a.fa is for the report; name its folder by --report"),
    ],
)  # fmt: skip
def test_bad_input_in_one_line(folder, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    ended = run("-m", folder, "-o", "a.fa", *arguments)
    assert ended.exit_code == code and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_of_a_file_that_cannot_be_gone_on_with(folder, tmp_path):
    prompts = tmp_path / "in.fa"
    prompts.write_text(">good\nACGT\n>bad\nACGTNN\n")
    ended = run("-m", folder, "--prompt", prompts, "--length", 5)
    assert ended.exit_code == 3 and "bad: the prompt has 'N' at position 5;" in ended.stderr and ended.stdout == ""


def test_a_cache_budget_without_softmax_layers():
    ended = run("--length", 5, "--cache-tokens", 64)
    assert ended.exit_code == 2 and "a cache budget is for softmax layers, and this model's are HH" in ended.stderr
