"""The commands that the documents show exist as they are shown."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from hyenadna.cli import main as cli

ROOT = Path(__file__).parents[1]
SHOWN = [
    (name, command)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    if (ROOT / name).exists()
    for block in re.findall(
        r"```(?:sh|bash|console)?\n(.*?)```|((?:^    .*\n)+)", (ROOT / name).read_text(), re.S | re.M
    )
    for command in re.findall(r"^\s*\$?\s*(hyena .*)$", "".join(block).replace("\\\n", " "), re.M)
]


def test_the_readme_shows_commands():
    assert any(name == "README.md" for name, _ in SHOWN)


@pytest.mark.parametrize(("name", "command"), SHOWN, ids=[command for _, command in SHOWN])
def test_shown_commands_exist(name, command):
    words = shlex.split(re.split(r"\s[|>&]|;", command)[0], comments=True)[1:]
    parser = typer.main.get_command(cli.app)
    while words and hasattr(parser, "get_command"):
        if words[0].startswith("-"):
            break
        found = parser.get_command(None, words[0])
        assert found is not None, f"{name} shows {command!r}: there is no {words[0]!r}"
        parser, words = found, words[1:]
    known = {flag for option in parser.params for flag in (*option.opts, *option.secondary_opts)} | {"-h", "--help"}
    shown = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
    assert shown <= known, f"{name} shows {command!r}"
