"""Whole runs on a tiny checkpoint: what is made, what is skipped, what is done again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gqa.convert import fit
from gqa.convert.provenance import fingerprint, read_stages
from gqa.recipes.recipe import load_recipe

Run = Callable[..., Result]


def carried_out(result: Result) -> list[str]:
    """The stages that a `gqa-run --json` carried out."""
    assert result.exit_code == 0, result.stderr
    return [stage for stage, done in json.loads(result.stdout)["carried_out"].items() if done]


def test_a_run_leaves_checkpoints_and_a_report(finished_run: Path, recipe_file: Path):
    report = json.loads((finished_run / "report" / "report.json").read_text())
    rows = {row["label"]: row for row in report["checkpoints"]}
    assert list(rows) == ["before", "converted", "uptrained"]
    # 2 layers, K and V, heads of 8 in fp32
    expected = [2 * 2 * kv_heads * 8 * 4 for kv_heads in (4, 2, 2)]
    assert [row["kv_cache"]["bytes_per_token"] for row in rows.values()] == expected
    assert rows["uptrained"]["perplexity"] < rows["converted"]["perplexity"]
    files = sorted(path.name for path in (finished_run / "report").iterdir())
    assert files == ["pareto.png", "report.html", "report.json", "report.md"]
    (training,) = rows["uptrained"]["history"]["trainings"]
    assert [point["step"] for point in training["validation"]] == [0, 4]
    assert [point["step"] for point in training["loss"]] == [1, 2, 3, 4]
    assert "Uptraining</h3>" in (finished_run / "report" / "report.html").read_text()
    assert [stage["stage"] for stage in read_stages(finished_run / "uptrained")] == ["convert", "uptrain"]
    resolved = load_recipe(str(finished_run / "recipe.toml")).tables()
    assert resolved == load_recipe(str(recipe_file), output=finished_run).tables()


def test_the_finished_checkpoint_loads_with_its_tokenizer_and_generates(finished_run: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = finished_run / "uptrained"
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_key_value_heads == 2
    inputs = AutoTokenizer.from_pretrained(path)("def self", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 4


def test_a_second_run_skips_everything_and_shows_the_same_table(gqa_run: Run, recipe_file: Path, run: Path):
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for folder in run.iterdir() for path in folder.rglob("*")}

    before = written()
    result = gqa_run(recipe_file, "--output", run)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines() == [f"{stage}: skipped, up to date" for stage in ("convert", "uptrain", "eval")]
    for label, kv_heads, kv_bytes in (("before", 4, 512), ("converted", 2, 256), ("uptrained", 2, 256)):
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"| {label} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[1], cells[4]) == (str(kv_heads), str(kv_bytes))
    assert f"Report: {run / 'report' / 'report.html'}" in result.stdout
    assert written() == before


def test_only_what_an_override_touches_is_done_again(gqa_run: Run, recipe_file: Path, run: Path):
    def stages(*overrides: str) -> list[str]:
        return carried_out(gqa_run(recipe_file, *overrides, "--output", run, "--json"))

    assert stages("uptrain.log_every=1", "uptrain.quiet=true") == [], "what does not decide the weights decides nothing"
    assert stages("eval.window=16") == ["eval"]
    assert stages("eval.window=16") == []
    assert stages("eval.window=16", "uptrain.seed=1") == ["uptrain", "eval"]
    assert (run / "uptrained.previous" / "config.json").is_file()
    method = ("eval.window=16", "uptrain.seed=1", "convert.method=first")
    assert stages(*method) == ["convert", "uptrain", "eval"]
    shutil.rmtree(run / "report")
    assert stages(*method) == ["eval"]


def test_an_input_that_changed_is_noticed(gqa_run: Run, recipe_file: Path, text: dict[str, Path], run: Path):
    data = run.parent / "heldout.jsonl"
    shutil.copy(text["heldout"], data)
    arguments = (recipe_file, f"eval.data={data}", "--output", run, "--json")
    assert carried_out(gqa_run(*arguments)) == [], "the same text in another place is the same text"
    data.write_text(data.read_text() + data.read_text())
    assert carried_out(gqa_run(*arguments)) == ["eval"]


def test_an_output_that_was_tampered_with_is_made_again(gqa_run: Run, recipe_file: Path, run: Path):
    config = run / "converted" / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"num_key_value_heads": 2', '"num_key_value_heads": 3'))
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == ["convert"]
    assert config.read_text() == whole


def test_force_does_everything_again_even_with_a_damaged_ledger(gqa_run: Run, recipe_file: Path, run: Path):
    (run / "stages.json").write_text("{")
    refused = gqa_run(recipe_file, "--output", run)
    assert refused.exit_code == 2
    assert "is damaged; run again with --force" in refused.stderr
    forced = gqa_run(recipe_file, "--output", run, "--force", "--json")
    assert carried_out(forced) == ["convert", "uptrain", "eval"]


def test_a_run_stops_where_it_is_told_to_and_takes_up_what_was_trained_by_itself(
    gqa_run: Run, recipe_file: Path, tmp_path: Path
):
    from typer.testing import CliRunner

    from gqa.uptrain.cli import app

    run = tmp_path / "run"
    first = gqa_run(recipe_file, "--output", run, "--until", "convert", "--json")
    assert json.loads(first.stdout)["report"] is None
    assert carried_out(first) == ["convert"]
    assert not (run / "uptrained").exists()
    launched = CliRunner().invoke(app, ["--recipe", str(run / "recipe.toml")])
    assert launched.exit_code == 0, launched.stderr
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == ["eval"]


def test_what_was_trained_by_itself_with_other_settings_is_neither_taken_up_nor_replaced(
    gqa_run: Run, recipe_file: Path, run: Path
):
    ledger = json.loads((run / "stages.json").read_text())
    del ledger["uptrain"]
    (run / "stages.json").write_text(json.dumps(ledger))
    before = fingerprint(run / "uptrained")
    refused = gqa_run(recipe_file, "uptrain.seed=1", "--output", run)
    assert refused.exit_code == 2
    assert "exists, and this run did not make it" in refused.stderr
    assert fingerprint(run / "uptrained") == before
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == []


def test_a_stage_that_fails_leaves_the_finished_ones(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    broken = gqa_run(recipe_file, "eval.window=4096", "--output", run)
    assert broken.exit_code == 2
    assert broken.stderr.splitlines()[-1].startswith("Error: ")
    assert not (run / "uptrained").exists(), "what evaluation refuses is said before the training, not after"
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == ["uptrain", "eval"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_is_resumed(
    gqa_run: Run, recipe_file: Path, tmp_path: Path, sent: signal.Signals, code: int
):
    run = tmp_path / "run"
    steps = ("uptrain.max_steps=100", "uptrain.save_every=10", "uptrain.eval_every=100")
    arguments = (str(recipe_file), "--output", str(run), *steps)
    command = [sys.executable, "-m", "gqa.recipes", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        while started.poll() is None and not list(run.glob("uptrained.run/checkpoints/step-*")):
            time.sleep(0.05)
        started.send_signal(sent)
        said = started.communicate(timeout=120)[1]
    assert started.returncode == code, said
    assert "uptrain: stopped before its end; the stages after it were not done" in said
    assert "Traceback" not in said
    assert not (run / "uptrained").exists(), "it was interrupted before its end"
    again = gqa_run(*arguments, "--until", "uptrain")
    assert again.exit_code == 0, again.stderr
    assert "convert: skipped, up to date" in again.stderr
    assert "Resuming" in again.stderr
    assert (run / "uptrained" / "config.json").is_file()


def test_a_fit_that_is_broken_off_keeps_its_layers(
    gqa_run: Run, recipe_file: Path, text: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, fitted = tmp_path / "run", fit.fit_layer
    sizes = ("tokens=64", "held_out_tokens=32", "sequence_length=32")
    asked = ["convert.method=lowrank", "convert.fit.steps=2", f"convert.calibration.data={text['train']}"]
    asked += [f"convert.calibration.{size}" for size in sizes]

    def stopped(*given: Any, **more: Any) -> Any:
        if list(run.glob("converted.layers-*/layer-*")):
            raise KeyboardInterrupt
        return fitted(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(fit, "fit_layer", stopped)
        assert gqa_run(recipe_file, *asked, "--output", run, "--until", "convert").exit_code == 130
    (kept,) = run.glob("converted.layers-*/layer-*")
    before = kept.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        seen = []
        patched.setattr(
            fit, "fit_layer", lambda *given, **more: seen.append(kept.stat().st_mtime_ns) or fitted(*given, **more)
        )
        assert gqa_run(recipe_file, *asked, "--output", run, "--until", "convert").exit_code == 0
    assert seen == [before]  # the other layer alone


def test_a_training_that_can_not_begin_leaves_the_earlier_one(gqa_run: Run, recipe_file: Path, run: Path):
    before = fingerprint(run / "uptrained")
    assert gqa_run(recipe_file, "uptrain.sequence_length=4096", "--output", run).exit_code == 2
    assert fingerprint(run / "uptrained") == before
    assert not (run / "uptrained.previous").exists()
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == []


def test_a_launcher_of_several_processes_is_told_what_to_launch(
    gqa_run: Run, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = gqa_run(recipe_file, "--output", tmp_path / "run")
    assert refused.exit_code == 2
    assert "launch `-m gqa.uptrain --recipe RUN/recipe.toml` on all processes" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_what_the_run_did_not_make_is_not_replaced(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    mine = run / "converted" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused = gqa_run(recipe_file, "--output", run)
    assert refused.exit_code == 2
    assert "exists, and this run did not make it; choose another --output, or replace it with --force" in refused.stderr
    assert mine.read_text() == "mine"
    forced = gqa_run(recipe_file, "--output", run, "--force", "--until", "convert", "--json")
    assert carried_out(forced) == ["convert"]
    assert not mine.exists()


def test_the_run_can_not_lie_inside_its_checkpoint(gqa_run: Run, recipe_file: Path, checkpoint: Path):
    names = {path.name for path in checkpoint.iterdir()}
    for inside in (checkpoint, checkpoint / "run"):
        refused = gqa_run(recipe_file, "--output", inside)
        assert refused.exit_code == 2
        assert "is the checkpoint" in refused.stderr
    assert {path.name for path in checkpoint.iterdir()} == names


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("checkpoint=gone", "no such directory: gone"),
        ("checkpoint=embedded:dmo", "no checkpoint 'embedded:dmo' in the package (did you mean 'embedded:demo'?)"),
        ("convert.groups=3", "3"),
        ("convert.groups=4", "4"),
        ("uptrain.data=gone.jsonl", "gone.jsonl"),
        ("uptrain.sequence_length=4096", "sequence_length 4096"),
        ("eval.data=gone.jsonl", "gone.jsonl"),
    ],
)
def test_a_stage_that_refuses_does_so_in_a_sentence(
    gqa_run: Run, recipe_file: Path, override: str, said: str, tmp_path: Path
):
    before = fingerprint(Path(load_recipe(str(recipe_file)).checkpoint))
    refused = gqa_run(recipe_file, override, "--output", tmp_path / "run")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert said in last
    assert fingerprint(Path(load_recipe(str(recipe_file)).checkpoint)) == before
