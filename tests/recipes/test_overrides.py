"""Overrides from the command line."""

from typing import Any

import pytest

from gqa.convert.errors import UserError
from gqa.recipes.overrides import apply_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200", 200),
        ("1_000", 1000),
        ("2e-4", 2e-4),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"200"', "200"),
        ("'a b'", "a b"),
        ("wsd", "wsd"),
        ("./text.jsonl", "./text.jsonl"),
        ("org/name", "org/name"),
        ("a=b", "a=b"),
        ("2024-01-01", "2024-01-01"),
        (" 3 ", 3),
    ],
)
def test_values_are_toml_and_plain_words_are_strings(text: str, value: Any):
    changed = apply_overrides({}, [f"uptrain.key={text}"])
    assert changed == {"uptrain": {"key": value}}
    assert type(changed["uptrain"]["key"]) is type(value)


def test_the_last_word_wins_and_the_rest_stays():
    recipe = {"checkpoint": "a", "convert": {"groups": 8, "seed": 1}}
    changed = apply_overrides(recipe, ["convert.groups=4", "checkpoint=b", "convert.groups=2"])
    assert changed == {"checkpoint": "b", "convert": {"groups": 2, "seed": 1}}
    assert recipe == {"checkpoint": "a", "convert": {"groups": 8, "seed": 1}}


def test_an_empty_value_drops_the_key():
    recipe = {"checkpoint": "a", "convert": {"groups": 8, "seed": 1}}
    assert apply_overrides(recipe, ["convert.seed=", "checkpoint="]) == {"convert": {"groups": 8}}
    assert apply_overrides(recipe, ["uptrain.seed=", "convert.other="]) == recipe


@pytest.mark.parametrize("override", ["max_steps", "=3", "uptrain.=3", ".max_steps=3", "uptrain..max_steps=3"])
def test_what_is_no_override_is_refused(override: str):
    with pytest.raises(UserError, match=r"write it as table\.key=value"):
        apply_overrides({}, [override])


@pytest.mark.parametrize("value", ["[1, 2", '"open', "{a = 1"])
def test_half_a_toml_value_is_refused(value: str):
    with pytest.raises(UserError, match="the value is not TOML"):
        apply_overrides({}, [f"uptrain.betas={value}"])
