import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from hyenadna.cli.config_flags import ManyValues, parse, takes_config
from hyenadna.errors import UsageError
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.configured_folder import read_yaml, to_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    """A small configuration."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    heat: float = 180.0
    """Degrees,
    of Celsius."""
    breads: tuple[str, ...] = ()
    """What goes in."""
    mode: Literal["top", "fan"] = "fan"
    """Where the heat comes from."""
    minutes: int | None = None
    """Time (default: until done)."""
    light: bool = True
    """Light inside."""

    def __post_init__(self) -> None:
        if self.heat < 0:
            raise UsageError(f"--heat is {self.heat}; it must be at least 0")


@pytest.fixture
def oven(monkeypatch):
    """Runs the command; returns the configuration and the function's own flag."""
    for name in ("HEAT", "BREADS", "MODE", "MINUTES", "LIGHT"):
        monkeypatch.delenv(f"HYENA_{name}", raising=False)
    got = {}

    @takes_config(Oven)
    def bake(config: Oven, *, twice: Annotated[bool, typer.Option("--twice", help="Again.")] = False) -> None:
        """Bake."""
        got.update(config=config, twice=twice)

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=ManyValues)(bake)

    def run(*arguments):
        got.clear()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return got["config"] if got else result

    run.got = got
    return run


def test_defaults_then_yaml_then_environment_then_flags(oven, tmp_path, monkeypatch):
    file = tmp_path / "oven.yaml"
    assert oven() == Oven()
    file.write_text("heat: 200\nminutes: 5\nmode: top\n")
    assert oven("--config", file) == Oven(heat=200, minutes=5, mode="top")
    monkeypatch.setenv("HYENA_HEAT", "210")
    monkeypatch.setenv("HYENA_MINUTES", "6")
    assert oven("--config", file) == Oven(heat=210, minutes=6, mode="top")
    assert oven("--config", file, "--heat", "220") == Oven(heat=220, minutes=6, mode="top")
    assert oven("--config", file, "--heat", "180").heat == 180  # a flag that equals the default is a flag


def test_many_values_after_one_flag(oven, tmp_path, monkeypatch):
    assert oven("--breads", "rye", "oat", "--heat", "1", "--breads", "-").breads == ("rye", "oat", "-")
    file = tmp_path / "oven.yaml"
    file.write_text("breads: [rye, oat]\n")
    assert oven("--config", file).breads == ("rye", "oat")
    assert oven("--config", file, "--breads", "bun").breads == ("bun",)
    monkeypatch.setenv("HYENA_BREADS", "rye bun")
    assert oven("--config", file).breads == ("rye", "bun")


def test_switches_and_own_flags(oven):
    assert oven("--no-light", "--twice") == Oven(light=False) and oven.got["twice"]
    assert oven("--light") == Oven()


def test_help_is_the_docstrings(oven):
    text = " ".join(oven("--help").stdout.split())
    assert "Degrees, of Celsius. [default: 180.0]" in text and "top|fan" in text
    assert "--breads VALUE... What goes in." in text and "--no-light" in text
    assert "Time (default: until done)." in text


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("heet: 3", "heet: .*; known are breads, heat, light, minutes, mode$"),
        ("heat: hot", "heat is 'hot': Input should be a valid number"),
        ("mode: grill", "mode is 'grill': Input should be 'top' or 'fan'"),
        ("breads: rye", "breads is 'rye': Input should be a valid tuple"),
        ("heat: -3", "--heat is -3.0; it must be at least 0"),
        ("- 1", "must hold names and values, like `lr: 0.001`"),
        ("a: [", "cannot be read: while parsing"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_files_in_one_line(oven, tmp_path, yaml, said):
    file = tmp_path / "oven.yaml"
    file.write_bytes(yaml.encode("latin-1"))
    with pytest.raises(UsageError, match=said) as told:
        oven("--config", file)
    assert "\n" not in str(told.value)


def test_a_missing_or_an_empty_file(oven, tmp_path):
    with pytest.raises(UsageError, match=r"--config none\.yaml cannot be read: .*No such file"):
        oven("--config", "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert oven("--config", tmp_path / "empty.yaml") == Oven()


@pytest.mark.parametrize("arguments", [("--mode", "grill"), ("--heat", "hot"), ("--heet", "3"), ("rye",)])
def test_bad_flags_end_with_2(oven, arguments):
    assert oven(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "config",
    [
        PretrainConfig(),
        PretrainConfig(
            fasta=("a.fa:2", "b.fa"),
            out=Path("x y"),
            size="large-1m",
            steps=3,
            betas=(0.8, 0.9),
            valid_contigs=("1",),
            test_contigs=("2",),
            checkpoint_activations=False,
            lr=1e-4,
            contigs="chr[0-9]+",
            soft_mask="ignore",
            seed=2**62,
        ),
    ],
)
def test_a_configuration_survives_yaml(tmp_path, config):
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert read_yaml(tmp_path / "a.yaml", PretrainConfig) == config == parse(PretrainConfig, tmp_path / "a.yaml", {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 3, "tokens": 1e6}, "both --steps and --tokens"),
        ({"warmup_share": 0.1, "warmup_steps": 3}, "both --warmup-share and --warmup-steps"),
        (
            {"split_bed": Path("a.bed"), "test_contigs": ("1",), "valid_contigs": ("2",)},
            "both --split-bed and held-out",
        ),
        ({"devices": 0}, "--devices is 0; it must be at least 1"),
        ({"tokens": 0.5}, "--tokens is 0.5; it must be at least 1"),
        ({"dropout": 1.0}, "--dropout is 1.0; it must be at least 0 and below 1"),
        ({"max_n_share": float("nan")}, "--max-n-share is nan"),
        ({"max_length": 1}, "--max-length is 1; it must be at least 2 bases"),
        ({"lr": float("nan")}, "--lr is nan; it must be a finite number"),
        ({"clip": float("inf")}, "--clip is inf"),
        ({"tokens": float("inf")}, "--tokens is inf"),
        ({"lr": 0.0}, "--lr is 0.0; it must be a finite number above 0"),
        ({"betas": (0.9, 1.0)}, r"--betas are \(0.9, 1.0\)"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_pretraining_refuses(fields, said):
    with pytest.raises(UsageError, match=said):
        PretrainConfig(**fields)
