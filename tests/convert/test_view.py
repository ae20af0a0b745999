"""What gqa-convert prints is what it means, and commands can be copied, whatever checkpoints and outputs are called."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gqa.convert.cli import app

NAMES = ["runs[best]", "ü b", "it's", "-ck", ":x:", "[bold]loud"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def commands(said: str) -> dict[str, list[str]]:
    """The words after each command that is suggested, as a shell splits them."""
    lines = (shlex.split(line) for line in said.splitlines() if line.startswith("  gqa-"))
    return {command: words for command, *words in lines}


@pytest.fixture
def named(request, make_checkpoint, tmp_path, monkeypatch):
    """A checkpoint in the working directory, called by its name alone."""
    monkeypatch.chdir(tmp_path)
    return make_checkpoint().rename(tmp_path / request.param).name


@pytest.mark.parametrize("named", NAMES, indirect=True)
def test_next_steps_are_commands(named):
    said = run("-g", 2, "--method", "random", "--", named)
    assert f"Wrote {named}-gqa2 in " in said
    found = commands(said)
    before, after, *rest = found["gqa-eval"]
    assert [Path(before), Path(after), *rest] == [Path(named), Path(f"{named}-gqa2"), "--data", "TEXT"]
    assert not any(word.startswith("-") for word in (before, after, found["gqa-uptrain"][0]))
    assert Path(found["gqa-uptrain"][0]) == Path(f"{named}-gqa2")
    run(*found["gqa-convert"])  # the hint's
    assert json.loads(Path(f"{named}-gqa2-lowrank/gqa.json").read_text())["stages"][-1]["method"] == "lowrank"


@pytest.mark.parametrize("named", ["runs[best]", "-ck", ":x:"], indirect=True)
def test_what_a_dry_run_recommends_is_a_command(named):
    said = run("-g", 2, "--dry-run", "--", named)
    assert said.splitlines()[0].rstrip() == f"{named}: llama, method mean"
    (words,) = commands(said).values()
    report = json.loads(run("-g", 2, "--dry-run", "--json", "--", named))
    assert shlex.split(report["recommended"]["command"]) == ["gqa-convert", *words]
    run(*words)
    assert Path(f"{named}-gqa2").is_dir()


@pytest.mark.parametrize("named", ["ck"], indirect=True)
@pytest.mark.parametrize("sizes", [["-g", 2], ["--to", "mla", "--kv-budget", 0.5]])
def test_an_output_that_looks_like_markup_in_a_terminal(named, sizes, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a bar is drawn, with the name in it
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, [*map(str, sizes), named, "-o", "out[/x]"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Writing x]" in result.stderr
    assert Path("out[/x]/gqa.json").is_file()


@pytest.mark.parametrize("named", ["in [1]"], indirect=True)
def test_a_latent_for_engines_is_exported_by_a_command(named):
    text = ["--calibration", "self", "--calibration-tokens", 256, "--sequence-length", 32, "--device", "cpu"]
    said = run("--to", "mla", "--model-type", "deepseek_v3", "--kv-budget", 0.5, *text, named, "-o", "-out [1]")
    assert "gqa-export gguf './-out [1]' './-out [1].gguf'" in said
    assert commands(said)["gqa-eval"] == ["in [1]", "./-out [1]", "--data", "TEXT"]
