"""Dotted overrides from the command line: `uptrain.max_steps=200` laid over a recipe's tables.

A value is read as TOML (`200`, `1e-4`, `true`, `[1, 2]`, `"text"`); a word that is not TOML is a string, so paths and
names need no quotes. Nothing after the `=` drops the key, and its default counts again.
"""

import tomllib
from collections.abc import Iterable
from typing import Any

from gqa.convert.errors import UserError
from gqa.recipes.files import merge


def apply_overrides(recipe: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`recipe` with each `table.key=value` of `overrides` laid over it in turn.

    Raises:
        UserError: an override that is not of that form.
    """
    for override in overrides:
        path, value = _parse(override)
        recipe = _dropped(recipe, path) if value is None else merge(recipe, _nested(path, value))
    return recipe


def _parse(override: str) -> tuple[list[str], Any]:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"override {override!r}: write it as table.key=value, for example uptrain.max_steps=200")
    return path, _value(override, text.strip())


def _value(override: str, text: str) -> Any:
    """The value that `text` spells, None when it spells nothing."""
    if not text:
        return None
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[0] in "\"'[{":
            raise UserError(f"override {override!r}: the value is not TOML ({error}); close what it opens") from None
        return text
    value = document["value"]
    # A date or time is a word to us: no option takes one, and a file may be called 2024-01-01.
    return value if isinstance(value, str | int | float | list | dict) else text


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def _dropped(recipe: dict[str, Any], path: list[str]) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {key: value for key, value in recipe.items() if key != head}
    inner = recipe.get(head)
    return recipe | {head: _dropped(inner, rest)} if isinstance(inner, dict) else recipe
