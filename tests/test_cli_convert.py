import json
from pathlib import Path

import pytest
import safetensors.torch
from checkpoints import edit_json, same_weights, small_model
from typer.testing import CliRunner, Result

from hyenadna import HyenaDNA
from hyenadna.cli.main import app
from hyenadna.model import checkpoint

FIXTURE = Path(__file__).parent / "fixtures" / "tiny1k_jit" / "hf"
SHARED = Path(__file__).parents[1].parent / "shared" / "reference" / "tiny1k_jit"


def hyena(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def saved(tmp_path) -> Path:
    split = {
        "genomes": [
            {"source": "a.fa", "rule": "hashed blocks", "bases": {"train": 900, "test": 100}, "gc": {"train": 0.5}}
        ]
    }
    training = {"step": 7, "data": [{"source": "a.fa"}]}
    small_model(n_token="pad").save_pretrained(
        tmp_path / "model", card="# My card", training=training, extra={"split.json": split}
    )
    return tmp_path / "model"


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_there_and_back_keeps_every_bit(saved, tmp_path, layout):
    there = hyena("convert", saved, "-o", tmp_path / layout, "--to", layout)
    assert there.exit_code == 0 and there.stdout == ""
    digest = json.loads((saved / "config.json").read_text())["base_sha256"]
    assert f"wrote {tmp_path / layout} in the layout {layout}; base_sha256 {digest}" in there.stderr
    assert "# My card" in (tmp_path / layout / "README.md").read_text()
    back = hyena("convert", tmp_path / layout, "-o", tmp_path / "back")
    assert back.exit_code == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert HyenaDNA.from_pretrained(tmp_path / "back").config == HyenaDNA.from_pretrained(saved).config
    origin = json.loads((tmp_path / "back" / "config.json").read_text())["training"]["converted_from"]
    assert origin["layout"] == layout and len(origin["weights_sha256"]) == 64


def test_our_own_layout_keeps_card_training_and_split(saved, tmp_path):
    assert hyena("convert", saved, "-o", tmp_path / "copy").exit_code == 0
    for name in ("config.json", "README.md", "split.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes()


def test_a_published_model_asks_the_shift_question_once(tmp_path):
    asked = hyena("convert", FIXTURE, "-o", tmp_path / "a")
    assert asked.exit_code == 0
    questions = [line for line in asked.stderr.splitlines() if "shift" in line]
    assert len(questions) == 1 and "--filter-shift 0 " in questions[0]
    told = hyena("convert", FIXTURE, "-o", tmp_path / "b", "--filter-shift", "0")
    assert told.exit_code == 0 and "shift" not in told.stderr
    assert HyenaDNA.from_pretrained(tmp_path / "b").config.filter_shift == 0


def test_the_published_checkpoint_with_its_hyperparameters(tmp_path):
    if not (SHARED / "original" / "weights.ckpt").is_file():
        pytest.skip("shared/reference/tiny1k_jit/original is not beside this repository")
    assert hyena("convert", SHARED / "original", "-o", tmp_path / "m").exit_code == 0
    assert same_weights(HyenaDNA.from_pretrained(tmp_path / "m"), HyenaDNA.from_pretrained(FIXTURE))


def test_what_exists_is_replaced_only_on_request(saved, tmp_path):
    refused = hyena("convert", FIXTURE, "-o", saved)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "--overwrite" in refused.stderr
    assert hyena("convert", FIXTURE, "-o", saved, "--overwrite").exit_code == 0
    (saved / "thesis.tex").write_text("years of work")
    refused = hyena("convert", FIXTURE, "-o", saved, "--overwrite")
    assert refused.exit_code == 2 and "thesis.tex" in refused.stderr


def test_failures_are_one_line_and_their_exit_code(saved, tmp_path):
    for words, code, message in (
        (["convert", tmp_path / "no", "-o", tmp_path / "x"], 3, "there is no folder"),
        (["convert", saved, "-o", tmp_path / "x", "--filter-shift", "0"], 2, "records its own filter shift"),
        (["info", tmp_path], 3, "it has no config.json"),
    ):
        if words[-1] == tmp_path:
            saved.rename(tmp_path / "elsewhere")
        result = hyena(*words)
        assert result.exit_code == code and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_converting_a_damaged_model_of_ours_is_refused(saved, tmp_path):
    edit_json(saved / "config.json", filter_shift=0.5)
    result = hyena("convert", saved, "-o", tmp_path / "x", "--to", "hf")
    assert result.exit_code == 3 and "probe.json" in result.stderr


def test_info_shows_what_a_model_is(saved):
    result = hyena("info", saved)
    assert result.exit_code == 0
    shown = {line[:19].strip(): line[19:].strip() for line in result.stdout.splitlines()}
    model = HyenaDNA.from_pretrained(saved)
    assert shown["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert shown["context"] == "68 bases (filters of 70 taps)"
    assert shown["base_sha256"] == checkpoint.base_sha256(model.state_dict())
    assert shown["step"] == "7" and shown["data"] == '[{"source": "a.fa"}]'
    assert shown["probe"].startswith("passes")
    assert "a.fa: train 900 (50.0% GC), test 100 bases" in result.stdout


def test_info_as_json_counts_every_parameter(tmp_path):
    small_model(tie_head=False).save_pretrained(tmp_path / "m")
    facts = json.loads(hyena("info", tmp_path / "m", "--json").stdout)
    assert sum(facts["parameters_by_part"].values()) == facts["parameters"]
    assert facts["parameters_by_part"]["head"] == 16 * 16 == facts["parameters_by_part"]["embedding"]
    assert facts["probe"]["passes"] and facts["layout"] == "hyena" and facts["training"] is None


def test_info_of_a_published_model(tmp_path):
    result = hyena("info", FIXTURE)
    assert result.exit_code == 0
    assert "not recorded" in result.stdout and "436,096" in result.stdout and "none, as in all" in result.stdout


def test_info_shows_a_failing_probe_and_ends_with_3(saved):
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["backbone.ln_f.weight"] *= 2
    safetensors.torch.save_file(tensors, saved / "model.safetensors")
    result = hyena("info", saved, "--json")
    assert result.exit_code == 3 and "do not give the logits" in result.stderr
    assert json.loads(result.stdout)["probe"]["passes"] is False
