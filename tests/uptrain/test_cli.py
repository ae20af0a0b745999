"""The command: its options are the config's fields, a recipe is their base, and --json is for machines."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from clock import without_clock
from typer.testing import CliRunner

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.uptrain import uptrain
from gqa.uptrain.cli import app
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.flags import field_docs


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch):
    """The config that a command line makes, without running it."""

    def build(words: list[str]) -> UptrainConfig:
        caught: list[UptrainConfig] = []
        monkeypatch.setattr("gqa.uptrain.cli._uptrain", lambda config, **_: caught.append(config))
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return caught[0]

    return build


def test_help_shows_every_option_with_its_docstring_and_default():
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for field in fields(UptrainConfig):
        if field.name != "checkpoint":
            assert f"--{field.name.replace('_', '-')}" in shown
        assert " ".join(field_docs(UptrainConfig)[field.name].split()) in shown
    for default in ("[default: 0.0001]", "[default: 0.9 0.95]", "[default: 0]", "[default: auto]"):
        assert default in shown


def test_every_kind_of_option(config_of):
    words = "ckpt --data text.jsonl --max-steps 3 --betas 0.8 0.9 --compile --no-overwrite -o out --schedule wsd"
    config = config_of([*words.split(), "--trackers", "wandb", "--trackers", "tensorboard", "-q"])
    assert config == UptrainConfig(
        checkpoint="ckpt",
        data="text.jsonl",
        max_steps=3,
        betas=(0.8, 0.9),
        compile=True,
        output=Path("out"),
        schedule="wsd",
        trackers=("wandb", "tensorboard"),
        quiet=True,
    )


def test_flags_override_the_recipe(config_of, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[convert]\ngroups = 2\n[uptrain]\ncheckpoint = "a"\ndata = "text"\nalpha = 0.05\npretraining_tokens = 3e9\n'
        'output = "out"\ncompile = true\nbetas = [0.5, 0.6]\ntrackers = ["wandb"]\n'
    )
    assert config_of(["--recipe", str(recipe)]).pretraining_tokens == 3_000_000_000
    config = config_of(["b", "--recipe", str(recipe), "--max-steps", "3", "--no-compile", "--seed", "0"])
    assert config == UptrainConfig(
        checkpoint="b", data="text", output=Path("out"), max_steps=3, betas=(0.5, 0.6), trackers=("wandb",)
    )


def test_json_is_all_there_is_on_stdout(flags: list[str], tmp_path: Path):
    result = CliRunner().invoke(app, [*flags, "--json"])
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["output"] == str(tmp_path / "out")
    assert (said["steps"], said["tokens"]) == (6, 768)
    assert [line["step"] for line in said["validation"]] == [0, 3, 6]
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Estimated: ")
    assert lines[1].startswith("Training ")
    assert "step 6/6  validation loss" in result.stderr
    assert lines[-1] == f"The trained checkpoint is in {tmp_path / 'out'}"


def test_quiet_is_quiet(flags: list[str]):
    result = CliRunner().invoke(app, [*flags, "--quiet"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_the_default_output_lies_beside_the_checkpoint(make_checkpoint, configured):
    source = make_checkpoint()
    result = uptrain(configured(checkpoint=str(source), output=None, max_steps=1))
    assert result.output == source.with_name("tiny-uptrained")
    assert result.run_dir == source.with_name("tiny-uptrained.run")
    assert sorted(path.name for path in source.parent.iterdir()) == ["tiny", "tiny-uptrained", "tiny-uptrained.run"]


def test_a_tracker_gets_every_line(configured, metrics_of, monkeypatch):
    """Whether the tracker's package is here or not: what accelerate does with a line is its own affair."""
    started, logged = [], []

    class Recording(Accelerator):
        def __init__(self, log_with: list[str], **options: Any) -> None:
            assert log_with == ["tensorboard"]
            super().__init__(**options)

        def init_trackers(self, *arguments: Any, **_: Any) -> None:
            started.append(arguments[1])

        def log(self, *arguments: Any, **options: Any) -> None:
            logged.append({"step": options["step"]} | arguments[0])

    monkeypatch.setattr("gqa.uptrain.prepare.find_spec", str)
    monkeypatch.setattr("gqa.uptrain.run.Accelerator", Recording)
    result = uptrain(configured(trackers=("tensorboard",)))
    assert [without_clock(line) for line in logged] == metrics_of(result.run_dir)
    assert started[0]["learning_rate"] == 1e-2
    assert {type(value) for value in started[0].values()} <= {bool, int, float, str}


def test_what_comes_next_names_what_was_converted(configured, flags: list[str], tmp_path: Path):
    """Not what that had been trained from, long before."""
    trained = uptrain(configured(max_steps=1, output=tmp_path / "trained")).output
    convert(trained, tmp_path / "child", ConvertOptions(groups=1))
    words = [str(tmp_path / "child"), *flags[1:], "--max-steps", "1", "--output", str(tmp_path / "again")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"gqa-eval {trained} {tmp_path / 'again'} " in result.stderr


@pytest.mark.parametrize(("output", "word"), [("a b", "'a b'"), ("-out", "./-out")])
def test_what_comes_next_can_be_given_to_a_shell(
    output: str, word: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*flags, "--max-steps", "1", "--output", output])
    assert result.exit_code == 0, result.output
    assert f"gqa-eval {flags[0]} {word} --data TEXT -o report\n" in result.stderr
    assert f"gqa-push {word} ORG/NAME --dry-run\n" in result.stderr


def test_a_time_in_a_recipe_may_be_a_number(config_of, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[uptrain]\ncheckpoint = "a"\ndata = "text"\nmax_steps = 3\nmax_time = 3600\n')
    assert config_of(["--recipe", str(recipe)]).seconds == 3600
    assert config_of(["--recipe", str(recipe), "--max-time", "90m"]).seconds == 5400
    assert config_of(["--recipe", str(recipe), "--max-time", "90"]).seconds == 90
