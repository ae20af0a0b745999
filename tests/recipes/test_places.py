"""What a run does not write over, and what it leaves where nothing came about."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from gqa.convert.provenance import fingerprint

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "override", ["checkpoint={}/uptrained", "checkpoint={}/converted", "uptrain.teacher={}/converted"]
)
def test_what_goes_in_may_not_lie_where_the_run_writes(gqa_run: Run, recipe_file: Path, run: Path, override: str):
    before = fingerprint(run / "converted"), fingerprint(run / "uptrained")
    recipe = (run / "recipe.toml").read_text()
    refused = gqa_run(recipe_file, override.format(run), "convert.groups=1", "--output", run)
    assert refused.exit_code == 2
    assert "lies where the run writes its own" in refused.stderr
    assert (fingerprint(run / "converted"), fingerprint(run / "uptrained")) == before
    assert (run / "recipe.toml").read_text() == recipe
    assert not (run / "uptrained.previous").exists()


def test_a_recipe_of_ones_own_is_not_written_over(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    text = f'# mine\nextends = "{recipe_file}"\n'
    (own / "recipe.toml").write_text(text)
    refused = gqa_run(own / "recipe.toml", "--output", own)
    assert refused.exit_code == 2
    assert f"{own / 'recipe.toml'} is no recipe that a run wrote" in refused.stderr
    assert [path.name for path in own.iterdir()] == ["recipe.toml"]
    assert (own / "recipe.toml").read_text() == text


def test_the_recipe_that_a_run_wrote_may_be_run_again(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    for recipe in (recipe_file, run / "recipe.toml"):
        done = gqa_run(recipe, "--output", run, "--until", "convert")
        assert done.exit_code == 0, done.stderr
    assert "convert: skipped, up to date" in done.stderr


def test_a_run_that_is_refused_leaves_no_directory(gqa_run: Run, recipe_file: Path, tmp_path: Path):
    assert gqa_run(recipe_file, "convert.groups=3", "--output", tmp_path / "run").exit_code == 2
    assert not (tmp_path / "run").exists()


def test_what_is_put_where_a_refused_stage_would_write_is_not_the_runs_own(
    gqa_run: Run, recipe_file: Path, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    assert gqa_run(recipe_file, "convert.groups=3", "--output", run).exit_code == 2
    (run / "converted").mkdir()
    refused = gqa_run(recipe_file, "--output", run)
    assert refused.exit_code == 2
    assert "exists, and this run did not make it" in refused.stderr
