"""Whole runs on a tiny checkpoint: what is made, what is skipped, what is done again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gqa.convert.provenance import fingerprint, read_stages
from gqa.recipes.recipe import load_recipe
from gqa.recipes.run import run_recipe

Run = Callable[..., Result]


def ok(result: Result) -> dict[str, bool]:
    """Which stages a `gqa-run --json` carried out."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["carried_out"]


def test_a_run_leaves_checkpoints_and_a_report(gqa_run: Run, recipe_file: Path, checkpoint: Path, tmp_path: Path):
    before = fingerprint(checkpoint)
    result = gqa_run(recipe_file)
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "run"
    for label, kv_heads in (("before", 4), ("converted", 2), ("uptrained", 2)):
        (line,) = [line for line in result.stdout.splitlines() if f" {label} " in line]
        assert f" {kv_heads} " in line
    assert f"Report: {run / 'report' / 'report.md'}" in result.stdout
    report = json.loads((run / "report" / "report.json").read_text())
    rows = {row["label"]: row for row in report["checkpoints"]}
    assert list(rows) == ["before", "converted", "uptrained"]
    # 2 layers, K and V, heads of 8 in fp32
    assert [row["kv_cache"]["bytes_per_token"] for row in rows.values()] == [
        2 * 2 * heads * 8 * 4 for heads in (4, 2, 2)
    ]
    assert rows["uptrained"]["perplexity"] < rows["converted"]["perplexity"]
    assert [stage["stage"] for stage in read_stages(run / "uptrained")] == ["convert", "uptrain"]
    assert load_recipe(str(run / "recipe.toml")).tables() == load_recipe(str(recipe_file)).tables()
    assert fingerprint(checkpoint) == before


def test_the_finished_checkpoint_loads_with_its_tokenizer_and_generates(recipe_file: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_recipe(load_recipe(str(recipe_file)), until="uptrain", say=[].append)
    path = tmp_path / "run" / "uptrained"
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_key_value_heads == 2
    inputs = AutoTokenizer.from_pretrained(path)("def self", return_tensors="pt")
    assert (
        model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0).shape[1]
        > inputs["input_ids"].shape[1]
    )


def test_only_what_an_override_touches_is_done_again(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    def run(*arguments: str) -> list[str]:
        carried_out = ok(gqa_run(recipe_file, *arguments, "--json"))
        assert list(carried_out) == ["convert", "uptrain", "eval"]
        return [stage for stage, done in carried_out.items() if done]

    def touched() -> dict[str, int]:
        places = ("converted/config.json", "uptrained/config.json", "report/report.json")
        return {place: (tmp_path / "run" / place).stat().st_mtime_ns for place in places}

    assert run() == ["convert", "uptrain", "eval"]
    written = touched()
    assert run() == []
    assert touched() == written
    assert run("uptrain.log_every=1", "uptrain.quiet=true") == [], "what does not decide the weights decides nothing"
    assert run("eval.window=16") == ["eval"]
    assert run("eval.window=16") == []
    assert run("eval.window=16", "uptrain.seed=1") == ["uptrain", "eval"]
    assert (tmp_path / "run" / "uptrained.previous" / "config.json").is_file()
    assert run("eval.window=16", "uptrain.seed=1", "convert.method=first") == ["convert", "uptrain", "eval"]
    shutil.rmtree(tmp_path / "run" / "report")
    assert run("eval.window=16", "uptrain.seed=1", "convert.method=first") == ["eval"]


def test_an_input_that_changed_is_noticed(gqa_run: Run, recipe_file: Path, text: dict[str, Path], tmp_path: Path):
    data = tmp_path / "heldout.jsonl"
    shutil.copy(text["heldout"], data)
    arguments = (recipe_file, f"eval.data={data}", "--json")
    ok(gqa_run(*arguments))
    data.write_text(data.read_text() + data.read_text())
    assert ok(gqa_run(*arguments)) == {"convert": False, "uptrain": False, "eval": True}


def test_force_does_everything_again(gqa_run: Run, recipe_file: Path):
    ok(gqa_run(recipe_file, "--json"))
    assert ok(gqa_run(recipe_file, "--force", "--json")) == {"convert": True, "uptrain": True, "eval": True}


def test_a_run_stops_where_it_is_told_to_and_goes_on_from_there(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    result = gqa_run(recipe_file, "--until", "convert", "--json")
    assert json.loads(result.stdout)["report"] is None
    assert ok(result) == {"convert": True}
    assert not (tmp_path / "run" / "uptrained").exists()
    assert ok(gqa_run(recipe_file, "--json")) == {"convert": False, "uptrain": True, "eval": True}


def test_uptraining_launched_by_itself_from_the_runs_recipe_is_taken_up(
    gqa_run: Run, recipe_file: Path, tmp_path: Path
):
    from typer.testing import CliRunner

    from gqa.uptrain.cli import app

    ok(gqa_run(recipe_file, "--until", "convert", "--json"))
    launched = CliRunner().invoke(app, ["--recipe", str(tmp_path / "run" / "recipe.toml")])
    assert launched.exit_code == 0, launched.stderr
    assert ok(gqa_run(recipe_file, "--json")) == {"convert": False, "uptrain": False, "eval": True}
    assert ok(gqa_run(recipe_file, "uptrain.seed=1", "--json")) == {"convert": False, "uptrain": True, "eval": True}


def test_a_stage_that_fails_leaves_the_finished_ones(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    broken = gqa_run(recipe_file, "eval.window=4096")
    assert broken.exit_code == 2
    assert broken.stderr.splitlines()[-1].startswith("Error: ")
    assert (tmp_path / "run" / "converted" / "config.json").is_file()
    assert ok(gqa_run(recipe_file, "--json"))["convert"] is False


def test_what_the_run_did_not_make_is_not_replaced(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    mine = tmp_path / "run" / "converted" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused = gqa_run(recipe_file)
    assert refused.exit_code == 2
    assert "exists, and this run did not make it; choose another --output, or replace it with --force" in refused.stderr
    assert mine.read_text() == "mine"
    ok(gqa_run(recipe_file, "--force", "--until", "convert", "--json"))
    assert not mine.exists()


def test_the_run_can_not_lie_inside_its_checkpoint(gqa_run: Run, recipe_file: Path, checkpoint: Path):
    names = {path.name for path in checkpoint.iterdir()}
    for inside in (checkpoint, checkpoint / "run"):
        refused = gqa_run(recipe_file, "--output", inside)
        assert refused.exit_code == 2
        assert "is the checkpoint" in refused.stderr
    assert {path.name for path in checkpoint.iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["checkpoint=gone"], "no such directory: gone"),
        (["convert.groups=3"], "3"),
        (["convert.groups=4"], "4"),
        (["uptrain.data=gone.jsonl"], "gone.jsonl"),
        (["uptrain.sequence_length=4096"], "sequence_length 4096"),
        (["eval.data=gone.jsonl"], "gone.jsonl"),
    ],
)
def test_a_stage_that_refuses_does_so_in_a_sentence(gqa_run: Run, recipe_file: Path, arguments: list[str], said: str):
    refused = gqa_run(recipe_file, *arguments)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert said in last
    assert "Traceback" not in refused.stderr
