"""hyena quantize: what it writes, what it refuses, and that nothing is left half-written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from quantizing import dense_model, genome, save
from typer.testing import CliRunner

from hyenadna.cli.main import app
from hyenadna.errors import WriteError
from hyenadna.inference import quantization_report
from hyenadna.inference.quantize import quantize
from hyenadna.model import checkpoint
from hyenadna.model.config import Quantization
from hyenadna.model.language_model import HyenaDNA

SMALL = ("--fasta", "genome.fa", "--group", "16", "--tokens", "256", "--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genome, and a model that stores its split."""
    folder = tmp_path_factory.mktemp("quantize")
    save(dense_model(), genome(folder), folder / "model")
    return folder


@pytest.fixture(autouse=True)
def workplace(small: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    # half a second each; `small` is drawn
    monkeypatch.setattr(quantization_report, "picture", lambda report: b"\x89PNG")
    return made


def hyena(*arguments: object, verb: str = "quantize") -> Any:
    return CliRunner().invoke(app, [verb, *map(str, arguments)])


@pytest.fixture(scope="module")
def small(made: Path) -> Path:
    """The model in 4 bits."""
    old = Path.cwd()
    os.chdir(made)
    try:
        ended = hyena("model", *SMALL, "--bits", 4, "-o", "small")
    finally:
        os.chdir(old)
    assert ended.exit_code == 0, ended.stderr
    assert "4b g16 *" in ended.stdout and "wrote small" in ended.stderr
    return made / "small"


def test_what_is_written_loads_and_says_what_it_is(small, made):
    model = HyenaDNA.from_pretrained(small)
    assert model.quantization == Quantization(4, 16, 8)
    wanted = quantize(HyenaDNA.from_pretrained(made / "model"), bits=4, group=16)
    tokens = torch.randint(7, 11, (1, 40))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, wanted(tokens).logits)
    found = checkpoint.read(small)
    assert found.description["extra"] == ["quantization.json", "quantization.png", "split.json"]
    assert found.json("split.json") == checkpoint.read(made / "model").json("split.json")
    report = found.json("quantization.json")
    assert report["setting"] == {"bits": 4, "group": 16, "meta_bits": 8} and report["split"].startswith(
        "test part, sto"
    )
    assert [one["setting"]["bits"] for one in report["settings"]] == [8, 4, 3, 2]
    tensors = safetensors.torch.load_file(small / "model.safetensors").values()
    assert report["bytes_after"] == sum(tensor.nbytes for tensor in tensors)
    assert "## Quantised" in found.card and "4b g16 *" in found.card
    assert (small / "quantization.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_convert_keeps_the_report(small):
    assert hyena("small", "-o", "copy", verb="convert").exit_code == 0
    for name in ("quantization.json", "quantization.png"):
        assert (Path("copy") / name).read_bytes() == (small / name).read_bytes()
    (small / "quantization.png").rename("aside")
    ended = hyena("small", "-o", "copy", "--overwrite", verb="convert")
    Path("aside").rename(small / "quantization.png")
    assert ended.exit_code == 3 and "quantization.png could not be read" in ended.stderr


def test_json_without_out_writes_nothing(made):
    before = sorted(made.iterdir())
    ended = hyena("model", *SMALL, "--bits", 1, "--json", "--quiet")
    report = json.loads(ended.stdout)
    assert ended.exit_code == 0 and ended.stderr == "" and sorted(made.iterdir()) == before
    assert [one["setting"]["bits"] for one in report["settings"]] == [8, 4, 3, 2, 1]


def test_overwrite_replaces_the_model(small):
    Path("other").mkdir()
    for file in small.iterdir():
        (Path("other") / file.name).write_bytes(file.read_bytes())
    refused = hyena("model", *SMALL, "-o", "other")
    assert refused.exit_code == 2 and "other is not empty" in refused.stderr
    assert hyena("model", *SMALL, "--bits", 2, "-o", "other", "--overwrite").exit_code == 0
    assert HyenaDNA.from_pretrained("other").quantization.bits == 2


LOSSES = {8: 0.0001, 4: 0.004, 3: 0.02, 2: 0.3}
"""In bits per base; what the tests let each setting lose, and a fifth less in shorter groups."""


@pytest.fixture
def losing(monkeypatch):
    """Settings that lose what the test says."""
    from hyenadna.inference import quantization_cost
    from hyenadna.inference.bootstrap import Estimate

    real = quantization_cost._cost

    def cost(dense, model, *rest):
        found = real(dense, model, *rest)
        loss = LOSSES[found.setting.bits] * (1 if found.setting.group == 32 else 0.8)
        return type(found)(**{**vars(found), "loss": Estimate(loss, loss / 2, 2 * loss)})

    monkeypatch.setattr(quantization_cost, "_cost", cost)


def test_a_loss_that_is_too_large_is_refused_with_advice(losing, monkeypatch):
    wide = [*SMALL, "--group", "32"]
    ended = hyena("model", *wide, "--bits", 3, "--max-loss", 0.017, "-o", "never")
    assert ended.exit_code == 1 and not Path("never").exists()
    assert "3b g32 *" in ended.stdout
    assert ended.stderr.splitlines()[-1].startswith(
        "hyena: 3 bits in groups of 32 lose 0.0200 [0.0100, 0.0400] bits per base, --max-loss allows 0.017: nothing "
        "was written; --bits 3 --group 16 loses +0.0160 at 4."
    )
    # the advice is never a coarser setting, though one may lose less by chance
    monkeypatch.setitem(LOSSES, 2, 0.0)
    finer = hyena("model", *wide, "--bits", 8, "--max-loss", 0.00009, "--json")
    assert finer.exit_code == 1 and "; --bits 8 --group 16 loses +0.0001 at 9." in finer.stderr
    assert json.loads(finer.stdout)["suggested"] == {"bits": 8, "group": 16, "meta_bits": 8}
    none = hyena("model", *wide, "--bits", 8, "--max-loss", 0, "-o", "never")
    assert none.exit_code == 1 and "no setting of more bits, up to 8, loses so little" in none.stderr


def test_auto_takes_the_smallest_that_passes(losing):
    ended = hyena("model", *SMALL, "--group", "32", "--auto", "-o", "auto", "--json")
    assert ended.exit_code == 0
    assert json.loads(ended.stdout)["setting"] == {"bits": 4, "group": 32, "meta_bits": 8}
    assert HyenaDNA.from_pretrained("auto").quantization == Quantization(4, 32, 8)
    ended = hyena("model", *SMALL, "--group", "32", "--auto", "--max-loss", 0.017, "--json")
    assert json.loads(ended.stdout)["setting"] == {"bits": 3, "group": 16, "meta_bits": 8}
    assert json.loads(ended.stdout)["max_loss"] == 0.017


def test_dry_run_says_what_it_takes(made):
    before = sorted(made.iterdir())
    ended = hyena("model", *SMALL, "--dry-run", "-o", "dry")
    assert ended.exit_code == 0 and "4 settings and the model as it is read 2,560 tokens" in ended.stdout
    facts = json.loads(hyena("model", *SMALL, "--dry-run", "--json").stdout)
    assert facts["tokens"] == 2560 and facts["seconds"] > 0 and sorted(made.iterdir()) == before


def test_a_genome_that_the_model_does_not_know_is_said(made):
    (made / "other.fa").write_text(">x\n" + (made / "genome.fa").read_text().splitlines()[3][:20_000] + "\n")
    ended = hyena("model", *SMALL[2:], "--fasta", "other.fa", "--json")
    assert ended.exit_code == 0 and "model stores no split of other.fa" in ended.stderr
    assert json.loads(ended.stdout)["split"].startswith("test part, made for this report")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere",), 3, "there is no folder nowhere"),
        (("genome.fa",), 3, "genome.fa is a file; a model is a folder"),
        (("small",), 2, "the model is quantised already, to 4 bits; take its parent"),
        (("model", "--bits", "5"), 2, "bits is 5; allowed are 1, 2, 3, 4, 8"),
        (("model", "--group", "8"), 2, "group is 8; allowed are 16 to 128"),
        (("model", "--meta-bits", "4"), 2, "meta_bits is 4; allowed are 8, 16"),
        (("model", "--group", "64"), 2, "groups of 64 weights do not fit into backbone.layers.0.mixer.in_proj, whose"),
        (("model", "--max-loss", "-0.1"), 2, "--max-loss -0.1: it takes bits per base, 0 or more"),
        (("model", "--max-loss", "nan"), 2, "--max-loss nan: it takes bits per base, 0 or more"),
        (("model", "--auto", "--bits", "4"), 2, "--auto finds the bits itself: leave out --bits 4, or --auto"),
        (("model", "-o", "model"), 2, "model is not empty"),
        (("model", "-o", "genome.fa"), 2, "genome.fa is a file; name a folder for the model"),
        (("model", "--length", "100"), 3, "--length 100 is more than the 66 bases that model takes"),
        (("model", "--fasta", "no.fa"), 3, "no.fa"),
        (("model", "--device", "tpu"), 2, "--device tpu: allowed are auto, cpu"),
    ],
)
def test_bad_input_is_one_line(small, arguments, code, said):
    ended = hyena(*arguments[:1], *SMALL, *arguments[1:])
    assert ended.exit_code == code and said in ended.stderr, ended.stderr
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""


def test_a_full_disk_leaves_nothing(made, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(made.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    ended = hyena("model", *SMALL, "-o", "lost")
    assert ended.exit_code == WriteError.exit_code and "lost could not be written: No space left" in ended.stderr
    assert sorted(made.iterdir()) == before
