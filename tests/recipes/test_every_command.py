"""What all commands have in common: --help, --json, --quiet, exit codes, and what goes to stdout and to stderr."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.utils import logging
from typer import Typer
from typer.testing import CliRunner, Result

from gqa.convert.cli import app as convert_app
from gqa.convert.export.cli import app as gguf_app
from gqa.convert.push.cli import app as push_app
from gqa.eval.cli import app as eval_app
from gqa.eval.compare_cli import app as compare_app
from gqa.recipes.cli import app as run_app
from gqa.recipes.map import app as map_app
from gqa.uptrain.cli import app as uptrain_app
from gqa.uptrain.cli import cache_app, export_app

WORKING: dict[str, Typer] = {
    "gqa-convert": convert_app,
    "gqa-eval": eval_app,
    "gqa-eval compare": compare_app,
    "gqa-uptrain": uptrain_app,
    "gqa-uptrain cache-teacher": cache_app,
    "gqa-uptrain export": export_app,
    "gqa-export": gguf_app,
    "gqa-push": push_app,
    "gqa-run": run_app,
}
ALL = {"gqa": map_app} | WORKING
Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def transformers_as_it_was():
    """Commands silence transformers for their whole process."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def words(
    checkpoint: Path, text: dict[str, Path], recipe_file: Path, finished_run: Path, tmp_path: Path
) -> Callable[[str], list[str]]:
    """The arguments of a short piece of real work for each command."""
    converted, data = finished_run / "converted", text["train"]
    training = (
        f"{converted} --data {data} --sequence-length 32 --batch-size 4 --max-steps 1 --validation-tokens 0 "
        f"--precision float32 --cache-dir {tmp_path / 'cache'} -o {tmp_path / 'out'}"
    )

    def of(command: str) -> list[str]:
        if command == "gqa-run":
            shutil.copytree(finished_run, tmp_path / "run")
        lines = {
            "gqa-convert": f"{checkpoint} -g 2 --method lowrank -o {tmp_path / 'out'}",
            "gqa-eval": f"{checkpoint} {converted} --data {text['heldout']} --window 32 -o {tmp_path / 'report'}",
            "gqa-eval compare": f"{finished_run / 'report'} {finished_run / 'report'} -o {tmp_path / 'report'}",
            "gqa-uptrain": training,
            "gqa-uptrain cache-teacher": training,
            "gqa-uptrain export": f"{finished_run / 'uptrained.run'} -o {tmp_path / 'out'}",
            "gqa-export": f"gguf {converted} {tmp_path / 'out.gguf'}",
            "gqa-push": f"{converted} me/model --license mit --dry-run",
            "gqa-run": f"{recipe_file} -o {tmp_path / 'run'}",
        }
        return lines[command].split()

    return of


@pytest.fixture
def call(words: Callable[[str], list[str]]) -> Call:
    """Do that work, with further flags."""

    def run(command: str, *flags: str) -> Result:
        result = CliRunner().invoke(WORKING[command], [*words(command), *flags])
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.mark.parametrize("command", ALL)
def test_help_has_two_examples_the_exit_codes_and_what_all_share(command: str):
    result = CliRunner().invoke(ALL[command], ["--help"], env={"COLUMNS": "100"})
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(re.findall(rf"^ +{command}\b", result.stdout, flags=re.MULTILINE)) >= 2
    assert "Exit codes: 0 done" in result.stdout
    shared = {"--json", "--install-completion"} | ({"--quiet"} if command in WORKING else set())
    assert shared <= set(re.findall(r"--[a-z-]+", result.stdout))
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("command", WORKING)
def test_json_is_one_document_and_all_there_is_on_stdout(command: str, call: Call):
    assert isinstance(json.loads(call(command, "--json").stdout), dict)


@pytest.mark.parametrize("command", WORKING)
def test_quiet_prints_nothing(command: str, call: Call):
    result = call(command, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("command", WORKING)
def test_quiet_leaves_what_json_was_asked_for(command: str, call: Call):
    result = call(command, "--quiet", "--json")
    assert json.loads(result.stdout)
    assert result.stderr == ""


@pytest.mark.parametrize("command", WORKING)
def test_no_colours_and_no_bars_where_nobody_watches(command: str, call: Call):
    result = call(command)
    for stream in (result.stdout, result.stderr):
        assert "\x1b" not in stream
        assert "\r" not in stream


@pytest.mark.parametrize("flags", [[], ["--json", "--quiet"]])
@pytest.mark.parametrize("command", WORKING)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    command: str, flags: list[str], words: Callable[[str], list[str]], tmp_path: Path
):
    given = [str(tmp_path / "nowhere.toml"), *words(command)[1:]]
    result = CliRunner().invoke(WORKING[command], [*given, *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / "nowhere.toml") in result.stderr


@pytest.mark.parametrize("command", ALL)
def test_an_unknown_option_names_the_command_that_helps(command: str):
    result = CliRunner().invoke(ALL[command], ["--no-such-option"], prog_name=command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Try '{command} --help' for help." in result.stderr


def test_an_evaluation_that_would_leave_nothing_is_refused(words: Callable[[str], list[str]]):
    result = CliRunner().invoke(eval_app, [*words("gqa-eval")[:-2], "--quiet"])
    assert result.exit_code == 2
    assert "add --output DIR, or --json" in result.stderr


def test_a_bar_is_drawn_on_stderr_and_only_for_a_person(words: Callable[[str], list[str]]):
    command = [sys.executable, "-m", "gqa.eval", *words("gqa-eval")]
    watching, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""
    while True:
        try:
            seen += os.read(watching, 65536)
        except OSError:  # how a terminal says that nobody writes any more
            break
    os.close(watching)
    stdout, _ = done.communicate(timeout=120)
    assert done.returncode == 0, seen
    assert b"\x1b" in seen
    assert b"\x1b" not in stdout
    assert b"perplexity" in stdout
