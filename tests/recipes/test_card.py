"""The card of a run's result: its figures are those of the run's report, and its recipe can be run."""

import json
from pathlib import Path

from gqa.convert.push.options import PushOptions
from gqa.convert.push.publish import pack
from gqa.recipes.recipe import load_recipe


def test_the_card_of_a_run_has_its_figures_and_its_recipe(run: Path, recipe_file: Path, tmp_path: Path):
    parcel = pack(PushOptions(directory=run / "uptrained", repo_id="me/tiny", license="mit"))
    rows = json.loads((run / "report" / "report.json").read_text())["checkpoints"]
    assert parcel.results
    assert [measured.name for measured in parcel.results.rows] == ["original", "converted only", "**this checkpoint**"]
    for row in rows:
        assert f"| {row['num_kv_heads']} | {row['perplexity']:.4g} |" in parcel.card
    block = parcel.card.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "again.toml").write_text(block)
    again, recipe = load_recipe(str(tmp_path / "again.toml")), load_recipe(str(recipe_file))
    assert again.checkpoint == recipe.checkpoint
    assert (again.convert.groups, again.convert.method) == (recipe.convert.groups, recipe.convert.method)
    learnt = ("data", "validation_data", "max_steps", "sequence_length", "batch_size", "learning_rate", "seed")
    assert all(getattr(again.uptrain, name) == getattr(recipe.uptrain, name) for name in learnt)
    assert again.eval == recipe.eval
