"""Recipe files: names, paths, inheritance."""

from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.recipes.files import descriptions, find_recipe, merge, read_recipe, shipped_recipes


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_shipped_recipes_are_described_in_a_line():
    described = descriptions()
    assert list(described) == ["demo", "demo-fit", "llama2-7b-gqa8", "paper", "paper-t5"]
    assert all(0 < len(line) <= 100 and "\n" not in line for line in described.values())


def test_a_recipe_is_found_by_name_or_by_path(tmp_path: Path):
    path = write(tmp_path / "mine.toml", "")
    assert find_recipe("demo") == shipped_recipes()["demo"]
    assert find_recipe(str(path)) == path
    assert find_recipe("mine.toml", relative_to=tmp_path) == path


def test_an_heir_changes_only_what_it_says(tmp_path: Path):
    write(tmp_path / "base.toml", 'checkpoint = "a"\n[convert]\ngroups = 8\nmethod = "first"\n[eval]\nwindow = 32')
    write(tmp_path / "middle.toml", 'extends = "base.toml"\n[convert]\ngroups = 4\n[uptrain]\nseed = 3')
    heir = write(tmp_path / "heir.toml", 'extends = "middle.toml"\ncheckpoint = "b"\n[uptrain]\nseed = 5')
    assert read_recipe(heir) == {
        "checkpoint": "b",
        "convert": {"groups": 4, "method": "first"},
        "eval": {"window": 32},
        "uptrain": {"seed": 5},
    }


def test_a_base_may_be_a_shipped_recipe(tmp_path: Path):
    heir = write(tmp_path / "heir.toml", 'extends = "paper"\n[convert]\ngroups = 4')
    expected = read_recipe(find_recipe("paper"))
    expected["convert"]["groups"] = 4
    assert read_recipe(heir) == expected


def test_a_base_is_found_beside_its_heir_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.toml", "[convert]\ngroups = 8")
    heir = write(tmp_path / "deep" / "heir.toml", 'extends = "../base.toml"')
    monkeypatch.chdir("/")
    assert read_recipe(heir) == {"convert": {"groups": 8}}


@pytest.mark.parametrize(
    ("over", "left"),
    [
        ({"max_steps": 5}, {"max_steps": 5, "batch_tokens": 64}),
        ({"max_tokens": 5}, {"max_tokens": 5, "batch_tokens": 64}),
        ({"pretraining_tokens": 9}, {"alpha": 0.05, "pretraining_tokens": 9, "batch_tokens": 64}),
        ({"batch_size": 2}, {"alpha": 0.05, "batch_size": 2}),
        ({"seed": 2}, {"alpha": 0.05, "batch_tokens": 64, "seed": 2}),
    ],
)
def test_one_budget_and_one_batch_size_push_out_an_inherited_other(over: dict[str, int], left: dict[str, float]):
    assert merge({"uptrain": {"alpha": 0.05, "batch_tokens": 64}}, {"uptrain": over}) == {"uptrain": left}


def test_two_budgets_in_one_place_both_stay_for_the_options_to_refuse():
    over = {"uptrain": {"max_steps": 1, "max_tokens": 2}}
    assert merge({"uptrain": {"alpha": 0.05}}, over) == over


def test_a_circle_of_bases_is_named(tmp_path: Path):
    write(tmp_path / "a.toml", 'extends = "b.toml"')
    write(tmp_path / "b.toml", 'extends = "a.toml"')
    with pytest.raises(UserError, match=r"circle: a\.toml -> b\.toml -> a\.toml"):
        read_recipe(tmp_path / "a.toml")


def test_a_recipe_that_extends_itself_is_a_circle(tmp_path: Path):
    path = write(tmp_path / "a.toml", 'extends = "a.toml"')
    with pytest.raises(UserError, match=r"circle: a\.toml -> a\.toml"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "gone.toml"', r"extends 'gone\.toml': no recipe file .*gone\.toml"),
        ('extends = "papper"', r"extends 'papper': no recipe 'papper' \(did you mean 'paper'\?\)"),
        ("extends = 3", "extends must be one name or path in quotes, got 3"),
        ("checkpoint = ", "is not TOML"),
    ],
)
def test_a_broken_recipe_says_what_is_wrong(tmp_path: Path, text: str, said: str):
    with pytest.raises(UserError, match=said):
        read_recipe(write(tmp_path / "heir.toml", text))


def test_bytes_that_are_no_text_are_not_toml(tmp_path: Path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        read_recipe(tmp_path / "a.toml")
