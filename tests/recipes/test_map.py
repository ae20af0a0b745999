"""`gqa`: every command is on the map, and is reached from it."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gqa.recipes.map import COMMANDS, app

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
NAMES = [command.name for command in COMMANDS]


def gqa(*words: str):
    return CliRunner().invoke(app, words)


def test_every_command_is_on_the_map():
    assert sorted(NAMES) == sorted(set(SCRIPTS) - {"gqa"})
    result = gqa()
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command.does in result.stdout
        assert f"$ {command.example}" in result.stdout
    assert result.stdout.isascii()


def test_the_map_as_json():
    listed = json.loads(gqa("--json").stdout)["commands"]
    assert [command["name"] for command in listed] == NAMES


def test_versions():
    assert f"gqa {version('gqa')}" in gqa("--version").stdout.splitlines()
    assert json.loads(gqa("--version", "--json").stdout)["torch"] == version("torch")


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_reached_from_the_map(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["gqa"])
    result = gqa(name.removeprefix("gqa-"), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: {name} ")


def test_an_unknown_command_is_one_sentence():
    result = gqa("convrt", "--groups", "8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: there is no command 'convrt' (did you mean 'convert'?); `gqa` prints the map of them\n"
    )


COMPLETIONS = {
    "gqa con": ("gqa.recipes.map", {"convert"}),
    "gqa-convert --method l": ("gqa.convert", {"lowrank"}),
    "gqa-eval --dtype f": ("gqa.eval", {"float16", "float32"}),
    "gqa-uptrain --div": ("gqa.uptrain", {"--divergence"}),
    "gqa-export --dtype bf": ("gqa.convert.export", {"bfloat16"}),
    "gqa-push --rev": ("gqa.convert.push", {"--revision"}),
    "gqa-run demo": ("gqa.recipes", {"demo", "demo-fit"}),
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_a_shell_completes(line: str):
    module, wanted = COMPLETIONS[line]
    variable = f"_{line.split()[0].replace('-', '_').upper()}_COMPLETE"
    asked = {variable: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, timeout=60, env=os.environ | asked
    )
    assert set(done.stdout.split()) == wanted, done.stderr
