"""The command `gqa-run`: what it prints where, and how it refuses."""

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]


def test_list_names_every_recipe_with_its_line(gqa_run: Run):
    result = gqa_run("--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["demo", "demo-fit", "llama2-7b-gqa8", "paper", "paper-t5"]
    as_json = json.loads(gqa_run("--list", "--json").stdout)
    assert list(as_json["recipes"]) == ["demo", "demo-fit", "llama2-7b-gqa8", "paper", "paper-t5"]
    assert Path(as_json["folder"], "paper.toml").is_file()


def test_dry_run_prints_the_complete_recipe_and_makes_nothing(
    gqa_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = gqa_run("demo", "--dry-run", "uptrain.max_steps=7")
    assert result.exit_code == 0
    tables = tomllib.loads(result.stdout)
    assert tables["uptrain"]["max_steps"] == 7
    assert tables["uptrain"]["checkpoint"] == "runs/demo/converted"
    assert json.loads(gqa_run("demo", "--dry-run", "--json", "uptrain.max_steps=7").stdout) == tables
    assert list(tmp_path.iterdir()) == []


def test_what_to_type_next_can_be_typed(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    run = tmp_path / "my run"
    done = gqa_run(recipe_file, "--output", run, "--until", "convert")
    assert done.exit_code == 0, done.stderr
    command = done.stderr.splitlines()[-1].partition(": ")[2]
    assert shlex.split(command) == ["gqa-uptrain", "--recipe", str(run / "recipe.toml"), "--accelerate-config", "fsdp2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a recipe"),
        (["dmeo"], "no recipe 'dmeo' (did you mean 'demo'?); shipped: demo, demo-fit, llama2-7b-gqa8, paper, paper-t5"),
        (["gone.toml"], "no recipe file gone.toml"),
        (["./gone"], "no recipe file gone"),
        (["demo", "uptrain.max_stepz=3"], "unknown key 'max_stepz' (did you mean 'max_steps'?)"),
        (["demo", "uptrain"], "write it as table.key=value"),
        (["demo", "uptrain.betas=[1"], "the value is not TOML"),
        (["demo", "uptrain.max_steps=0"], "max_steps must be above 0, got 0"),
        (["demo", "uptrain.output=3"], "uptrain.output is runs/demo/uptrained in a run"),
        (["llama2-7b-gqa8", "--until", "corpus"], "has no [corpus] to stop after"),
        (["paper"], "names no checkpoint"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    gqa_run: Run, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = gqa_run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
