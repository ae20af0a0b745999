"""Recipes checked against the option dataclasses, and completed for a run."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.convert.tables import to_toml
from gqa.eval.options import EvalOptions
from gqa.recipes.files import shipped_recipes
from gqa.recipes.recipe import Recipe, load_recipe
from gqa.uptrain.config import UptrainConfig

NEEDED = {
    "demo": [],
    "demo-fit": [],
    "llama2-7b-gqa8": [],
    "paper": ["checkpoint=c", "uptrain.data=t.jsonl", "eval.data=h.jsonl", "uptrain.pretraining_tokens=300e9"],
    "paper-t5": ["checkpoint=c", "uptrain.data=t.jsonl", "eval.data=h.jsonl"],
}


def test_a_fit_learns_from_the_recipes_own_corpus(tmp_path: Path):
    recipe = load_recipe("demo-fit", ["convert.fit.steps=7"], tmp_path / "run")
    assert recipe.convert.calibration is not None
    assert recipe.convert.calibration.data == recipe.uptrain.data == str(tmp_path / "run" / "corpus" / "train.jsonl")
    assert recipe.convert.fit is not None
    assert recipe.convert.fit.steps == 7


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_the_shipped_recipes_are_the_ones_tested_here():
    assert sorted(NEEDED) == sorted(shipped_recipes())


@pytest.mark.parametrize("name", NEEDED)
def test_a_shipped_recipe_is_valid_and_says_only_what_differs(name: str):
    recipe = load_recipe(name, NEEDED[name])
    assert recipe.output == Path("runs") / name
    written = tomllib.loads(shipped_recipes()[name].read_text())
    defaults = {
        "uptrain": {field.name: field.default for field in fields(UptrainConfig)},
        "eval": {field.name: field.default for field in fields(EvalOptions)},
    }
    if "extends" not in written:  # an heir may go back to a default that its base left
        for table, values in defaults.items():
            for key, value in written.get(table, {}).items():
                assert values[key] != value, f"{name}: {table}.{key} repeats the default"


def test_the_paper_recipe_is_the_papers():
    recipe = load_recipe("paper", NEEDED["paper"])
    assert (recipe.convert.groups, recipe.convert.method) == (8, "mean")
    assert (recipe.uptrain.alpha, recipe.uptrain.pretraining_tokens) == (0.05, 300_000_000_000)


def test_the_papers_t5_sees_its_own_batches_for_a_twentieth_of_its_million_steps():
    recipe = load_recipe("paper-t5", NEEDED["paper-t5"])
    uptrain, tokens = recipe.uptrain, 2048 * (512 + 114)  # of sources and targets in a step
    assert (uptrain.batch_size, uptrain.batch_tokens, uptrain.sequence_length) == (2048, None, 512)
    assert (uptrain.alpha, uptrain.pretraining_tokens) == (0.05, 1_000_000 * tokens)
    assert (recipe.convert.method, recipe.convert.groups, recipe.eval.window) == ("mean", 8, 512)


def test_llama2_inherits_the_papers_conversion_and_trains_a_billion_tokens():
    recipe = load_recipe("llama2-7b-gqa8")
    assert (recipe.convert.groups, recipe.convert.method) == (8, "mean")
    assert recipe.uptrain.alpha is not None
    assert recipe.uptrain.pretraining_tokens is not None
    assert recipe.uptrain.alpha * recipe.uptrain.pretraining_tokens == pytest.approx(1e9)


def test_a_budget_on_the_command_line_replaces_the_recipes_own():
    config = load_recipe("llama2-7b-gqa8", ["uptrain.max_steps=20"]).uptrain
    assert (config.max_steps, config.alpha, config.pretraining_tokens) == (20, None, None)


def test_the_stages_are_joined_by_the_runs_directory(tmp_path: Path):
    recipe = load_recipe("demo", output=tmp_path)
    assert recipe.uptrain.checkpoint == str(tmp_path / "converted")
    assert recipe.uptrain.output == tmp_path / "uptrained"
    assert recipe.uptrain.data == str(tmp_path / "corpus" / "train.jsonl")
    assert recipe.eval.data == str(tmp_path / "corpus" / "heldout.jsonl")


def test_data_that_a_recipe_names_wins_over_its_corpus():
    recipe = load_recipe("demo", ["uptrain.data=mine.jsonl", "eval.data=other.jsonl"])
    assert (recipe.uptrain.data, recipe.eval.data) == ("mine.jsonl", "other.jsonl")


@pytest.mark.parametrize("name", NEEDED)
def test_a_complete_recipe_written_as_toml_is_the_same_recipe(name: str, tmp_path: Path):
    recipe = load_recipe(name, NEEDED[name], tmp_path / "a run")
    again = load_recipe(write(tmp_path / f"{name}.toml", to_toml(recipe.tables())))
    assert again == recipe


def test_text_survives_toml(tmp_path: Path):
    odd = 'quote " backslash \\ tab \t delete \x7f newline \n ünïcode \U0001f600'
    path = write(tmp_path / "odd.toml", to_toml({"description": odd, "convert": {"list": [1, 2.5, True, odd]}}))
    assert tomllib.loads(Path(path).read_text()) == {"description": odd, "convert": {"list": [1, 2.5, True, odd]}}


def test_numbers_that_are_not_finite_survive_toml():
    text = to_toml({"a": {"spike_sigmas": float("inf"), "list": [1, float("-inf")], "nan": float("nan")}})
    assert text == "\n[a]\nspike_sigmas = inf\nlist = [1, -inf]\nnan = nan\n"
    assert tomllib.loads(text)["a"]["list"] == [1, float("-inf")]


def complete(**changed: str) -> dict[str, str]:
    """The lines of a complete recipe, some of them changed."""
    lines = {
        "checkpoint": 'checkpoint = "c"',
        "convert": "[convert]\ngroups = 2",
        "uptrain": '[uptrain]\ndata = "d"\nmax_steps = 2',
        "eval": '[eval]\ndata = "d"',
    }
    return lines | changed


def load(lines: dict[str, str], tmp_path: Path, *overrides: str) -> Recipe:
    return load_recipe(write(tmp_path / "r.toml", "\n".join(lines.values())), overrides)


def test_the_home_directory_is_spelt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load(complete(checkpoint='checkpoint = "~/tiny"\noutput = "~/runs/x"'), tmp_path)
    assert recipe.checkpoint == str(tmp_path / "tiny")
    assert recipe.converted == tmp_path / "runs" / "x" / "converted"
    assert load(complete(checkpoint='checkpoint = "./org/tiny"'), tmp_path).checkpoint == "./org/tiny"


def test_a_name_that_no_toml_file_can_hold_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"recipe r: 'data = .*caf\\udce9.jsonl\"' is not UTF-8.*rename the file"):
        load(complete(), tmp_path, "uptrain.data=caf\udce9.jsonl")


def test_a_time_may_be_a_number_of_seconds(tmp_path: Path):
    assert load(complete(), tmp_path, "uptrain.max_time=3600").uptrain.seconds == 3600


def test_a_complete_recipe_loads(tmp_path: Path):
    assert load(complete(), tmp_path).corpus is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"checkpoint": ""}, "recipe r names no checkpoint; add checkpoint="),
        ({"checkpoint": "checkpoint = 3"}, "recipe r: checkpoint must be text in quotes, got 3"),
        ({"checkpoint": 'checkpont = "c"'}, r"unknown table or key 'checkpont' \(did you mean 'checkpoint'\?\)"),
        ({"uptrain": "[uptran]\nmax_steps = 2"}, r"unknown table or key 'uptran' \(did you mean 'uptrain'\?\)"),
        ({"convert": "", "checkpoint": 'checkpoint = "c"\nconvert = 4'}, r"a table of options, \[convert\], not 4"),
        ({"convert": ""}, r"recipe r, \[convert\]: groups is needed and not given"),
        ({"convert": "[convert]\ngroup = 2"}, r"\[convert\]: unknown key 'group' \(did you mean 'groups'\?\)"),
        ({"convert": "[convert]\ngroups = 0"}, "groups is 0"),
        ({"convert": "[convert]\ngroups = 2\nmethod = 'meen'"}, r"'meen' \(did you mean 'mean'\?\)"),
        ({"uptrain": '[uptrain]\ndata = "d"'}, "no budget"),
        ({"uptrain": "[uptrain]\nmax_steps = 2"}, r"\[uptrain\]: data is needed and not given"),
        ({"uptrain": '[uptrain]\ndata = "d"\nmax_steps = "x"'}, "max_steps: .*valid integer.*'x'"),
        ({"uptrain": '[uptrain]\ndata = "d"\nmax_step = 2'}, r"unknown key 'max_step' \(did you mean 'max_steps'\?\)"),
        ({"uptrain": '[uptrain]\ndata = "d"\nmax_steps = 2\noutput = "o"'}, "output is runs/r/uptrained in a run"),
        ({"uptrain": '[uptrain]\ndata = "d"\nmax_steps = 2\ncheckpoint = "o"'}, "checkpoint is runs/r/converted"),
        ({"eval": "[eval]\nwindow = 32"}, r"\[eval\]: data is needed and not given"),
        ({"eval": '[eval]\ndata = "d"\nwindow = 1'}, "window is 1"),
        ({"corpus": "[corpus]\nsource = 'wikipedia'"}, r"\[corpus\]: source: .*'python-stdlib'"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused_with_the_place(changed: dict[str, str], said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        load(complete(**changed), tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("uptrain.max_step=3", "did you mean 'max_steps'"),
        ("uptrian.max_steps=3", "did you mean 'uptrain'"),
        ("max_steps=3", "unknown table or key 'max_steps'"),
        ("uptrain=3", r"uptrain is a table of options, \[uptrain\], not 3"),
        ("convert.groups=two", "groups: .*valid integer.*'two'"),
        ("uptrain.max_steps=true", r"\[uptrain\]: max_steps: true and false say nothing here, got True"),
        ("uptrain.alpha=false", "alpha: true and false say nothing here, got False"),
        ("uptrain.betas=[true, 0.9]", r"betas: true and false say nothing here, got \[True, 0.9\]"),
        ('convert.calibration={data = "d", tokens = true}', "calibration.tokens: true and false say nothing here"),
    ],
)
def test_a_bad_override_is_refused(override: str, said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        load(complete(), tmp_path, override)
