"""The packages as a program imports them: what they offer, and that it is what the commands do."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gqa.convert import (
    CalibrationOptions,
    UserError,
    convert_checkpoint,
    convert_to_latent,
    list_families,
    preview_checkpoint,
)
from gqa.convert.cli import app
from gqa.convert.listing import to_json
from gqa.eval import EvalOptions, evaluate_checkpoints

PACKAGES = ["gqa.convert", "gqa.convert.export", "gqa.convert.push", "gqa.eval", "gqa.recipes", "gqa.uptrain"]
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
OF_THE_COMMAND = {"checkpoint", "output", "overwrite"}
OF_THE_SCREEN = {"dry_run", "verbose", "list_families", "as_json", "quiet", "install_completion", "show_completion"}
OF_CALIBRATION = {"calibration_tokens", "text_column", "subset", "split", "sequence_length", "device", "compute_dtype"}
OF_FITS = {"fit_steps"}


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_what_a_package_offers_is_there_and_documented(package: str, name: str):
    offered = getattr(importlib.import_module(package), name)
    assert (inspect.getdoc(offered) or "").endswith((".", "`", "]"))
    if inspect.isfunction(offered):
        assert set(offered.__annotations__) == {*inspect.signature(offered).parameters, "return"}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_it_does_not_offer_is_an_error(package: str):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'convrt'"):
        getattr(importlib.import_module(package), "convrt")  # noqa: B009 - a plain one would be a type error


def test_importing_all_of_them_is_quick():
    code = f"import sys, {', '.join(PACKAGES)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_functions_have_every_option_of_the_command():
    options = {parameter.name for parameter in get_command(app).params} - OF_THE_SCREEN - OF_CALIBRATION - OF_FITS
    functions = (convert_checkpoint, convert_to_latent)
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    assert taken - {"advance", "progress"} == options - {"help", "to"}
    assert taken >= OF_THE_COMMAND


def test_converting_is_what_the_command_does(checkpoint: Path, tmp_path: Path):
    done = convert_checkpoint(checkpoint, tmp_path / "called", groups=2, method="lowrank")
    words = [checkpoint, "-g", 2, "--method", "lowrank", "-o", tmp_path / "commanded"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert done.output == tmp_path / "called"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (done.output / name).read_bytes() == (tmp_path / "commanded" / name).read_bytes()


def test_latent_attention_is_what_the_command_makes(checkpoint: Path, tmp_path: Path):
    done = convert_to_latent(checkpoint, tmp_path / "called", kv_budget=0.5)
    words = [str(checkpoint), "--to", "mla", "--kv-budget", "0.5", "-o", str(tmp_path / "commanded")]
    assert CliRunner().invoke(app, words).exit_code == 0
    for name in ("model.safetensors", "config.json"):
        assert (done.output / name).read_bytes() == (tmp_path / "commanded" / name).read_bytes()


def test_the_output_lies_beside_the_checkpoint_by_default(make_checkpoint):
    source = make_checkpoint()
    assert convert_checkpoint(str(source), groups=1).output == source.with_name(f"{source.name}-mqa")
    by_budget = convert_checkpoint(source, kv_budget=0.5)
    assert by_budget.output == source.with_name(f"{source.name}-gqa2")
    assert by_budget.record == {"kv_budget": 0.5}


def test_a_preview_is_what_a_dry_run_says(checkpoint: Path):
    words = [str(checkpoint), "--dry-run", "--json"]
    said = json.loads(CliRunner().invoke(app, words).stdout)
    seen = preview_checkpoint(checkpoint).to_json(str(checkpoint))
    assert said == json.loads(json.dumps(seen)) | {"output": None}


def test_families_are_those_that_the_command_lists():
    assert [family.model_type for family in list_families()] == [row["model_type"] for row in to_json()["families"]]


def test_bad_input_is_a_user_error(checkpoint: Path, tmp_path: Path):
    with pytest.raises(UserError, match="how many KV heads"):
        convert_checkpoint(checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="must be at least 1"):
        CalibrationOptions(data="text", tokens=0)
    assert not (tmp_path / "out").exists()


def test_evaluating_from_python(checkpoint: Path, text: dict[str, Path]):
    report = evaluate_checkpoints([checkpoint], EvalOptions(data=str(text["heldout"]), window=32))
    assert [row["label"] for row in report.to_dict()["checkpoints"]] == [checkpoint.name]
