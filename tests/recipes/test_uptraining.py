"""When a run trains anew, when it goes on, and what it does not drop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gqa.convert.provenance import fingerprint
from gqa.recipes.uptraining import decisive

Run = Callable[..., Result]
NO_TIME = "uptrain.max_time=0.001s"  # over after the first step


def carried_out(result: Result) -> list[str]:
    """The stages that a `gqa-run --json` carried out."""
    assert result.exit_code == 0, result.stderr
    return [stage for stage, done in json.loads(result.stdout)["carried_out"].items() if done]


def forget_training(run: Path) -> None:
    """Let the run know nothing of its trained checkpoint, as if it were made by `gqa-uptrain`."""
    ledger = json.loads((run / "stages.json").read_text())
    del ledger["uptrain"]
    (run / "stages.json").write_text(json.dumps(ledger))


def test_other_data_are_trained_on(gqa_run: Run, recipe_file: Path, text: dict[str, Path], run: Path):
    data, watched = run.parent / "train.jsonl", run.parent / "watched.jsonl"
    shutil.copy(text["train"], data)
    shutil.copy(text["heldout"], watched)

    def stages() -> list[str]:
        named = (f"uptrain.data={data}", f"uptrain.validation_data={watched}")
        return carried_out(gqa_run(recipe_file, *named, "--output", run, "--json"))

    assert stages() == [], "the same text in another place is the same text"
    before = fingerprint(run / "uptrained")
    data.write_text("".join(data.read_text().splitlines(keepends=True)[20:]))
    assert stages() == ["uptrain", "eval"]
    assert fingerprint(run / "uptrained") != before
    assert stages() == []
    watched.write_text("".join(watched.read_text().splitlines(keepends=True)[2:]))
    assert "uptrain" in stages()


def test_what_was_trained_by_itself_on_other_data_is_not_taken_up(
    gqa_run: Run, recipe_file: Path, text: dict[str, Path], run: Path
):
    forget_training(run)
    other = shutil.copy(text["train"], run.parent / "other.jsonl")
    refused = gqa_run(recipe_file, f"uptrain.data={other}", "--output", run)
    assert refused.exit_code == 2
    assert "exists, and this run did not make it" in refused.stderr
    assert carried_out(gqa_run(recipe_file, "--output", run, "--json")) == []


@pytest.mark.parametrize("override", ["uptrain.clip=0.001", "uptrain.spike_sigmas=0"])
def test_what_decides_single_steps_is_trained_with(gqa_run: Run, recipe_file: Path, run: Path, override: str):
    before = fingerprint(run / "uptrained")
    assert "uptrain" in carried_out(gqa_run(recipe_file, override, "--output", run, "--json"))
    steps = [json.loads(line)["step"] for line in (run / "uptrained.run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 1, 2, 3, 4]
    if "clip" in override:
        assert fingerprint(run / "uptrained") != before


def test_another_type_is_written_without_training_again(gqa_run: Run, recipe_file: Path, run: Path):
    again = gqa_run(recipe_file, "uptrain.dtype=bfloat16", "--output", run, "--until", "uptrain")
    assert again.exit_code == 0, again.stderr
    assert "from step 4 to 4" in again.stderr


def test_validations_decide_where_patience_chooses_by_them():
    config: dict[str, Any] = {"eval_every": 4, "patience": None, "seed": 0}
    assert decisive(config) == decisive(config | {"eval_every": 8})
    patient = config | {"patience": 2}
    assert decisive(patient) != decisive(patient | {"eval_every": 8})


def test_a_teacher_that_changed_teaches_again(gqa_run: Run, recipe_file: Path, checkpoint: Path, run: Path):
    teacher = shutil.copytree(checkpoint, run.parent / "teacher")

    def stages() -> list[str]:
        arguments = (f"uptrain.teacher={teacher}", "--output", run, "--until", "uptrain", "--json")
        return carried_out(gqa_run(recipe_file, *arguments))

    assert stages() == ["uptrain"]
    assert stages() == []
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert stages() == ["uptrain"]


def test_a_training_that_did_not_end_is_not_dropped_for_other_options(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = (recipe_file, "--output", run, "--until", "uptrain")
    stopped = gqa_run(*arguments, NO_TIME)
    assert stopped.exit_code == 143
    assert "uptrain: stopped before its end; the stages after it were not done" in stopped.stderr
    refused = gqa_run(*arguments, "uptrain.max_steps=8")
    assert refused.exit_code == 2
    assert "it was started with max_steps = 4, now it is 8" in refused.stderr
    assert "has a training that did not end; uptrain.overwrite=true drops it" in refused.stderr
    again = gqa_run(*arguments)
    assert again.exit_code == 0, again.stderr
    assert "from step 1 to 4" in again.stderr


def test_an_earlier_result_outlives_a_training_that_did_not_end(gqa_run: Run, recipe_file: Path, run: Path):
    arguments = (recipe_file, "--output", run, "--json")
    before = fingerprint(run / "uptrained")
    assert gqa_run(*arguments, "uptrain.seed=1", NO_TIME).exit_code == 143
    assert carried_out(gqa_run(*arguments)) == [], "its result lies there"
    assert fingerprint(run / "uptrained") == before
    assert gqa_run(*arguments, "uptrain.seed=2").exit_code == 2
    dropped = gqa_run(*arguments, "uptrain.seed=2", "uptrain.overwrite=true")
    assert carried_out(dropped) == ["uptrain", "eval"]


def test_a_forced_training_that_was_stopped_goes_on_without_force(gqa_run: Run, recipe_file: Path, run: Path):
    stopped = gqa_run(recipe_file, "--output", run, "--force", NO_TIME)
    assert stopped.exit_code == 143
    assert "--force would begin anew: leave it out to go on" in stopped.stderr
    again = gqa_run(recipe_file, "--output", run, "--json")
    assert "uptrain" in carried_out(again)
    assert "from step 1 to 4" in again.stderr
