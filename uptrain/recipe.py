"""The table `[uptrain]` of one TOML file. Recipes that extend others are put together on the floor above."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError

RIVALS = (
    ({"max_tokens"}, {"max_steps"}, {"alpha", "pretraining_tokens"}),
    ({"batch_size"}, {"batch_tokens"}),
)
"""Options that say one thing in different ways: of each group only one way may be used."""


def read_table(path: Path) -> dict[str, Any]:
    """The options in the table `[uptrain]` of a TOML file.

    Raises:
        UserError: it can't be read, is not TOML, has no such table, or extends another file.
    """
    try:
        with path.open("rb") as file:
            recipe = tomllib.load(file)
    except OSError as error:
        raise UserError(f"the recipe {path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not TOML: {error}") from None
    if "extends" in recipe:
        raise UserError(
            f"the recipe {path} extends {recipe['extends']!r}, which only gqa-run puts together; "
            f"`gqa-run {path} --until convert` writes the whole of it into its run's recipe.toml: name that"
        )
    if not isinstance(recipe.get("uptrain"), dict):
        raise UserError(f"the recipe {path} has no table [uptrain]; it has: {', '.join(recipe) or 'nothing'}")
    return recipe["uptrain"]


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the options of `over` laid over it; those push out their rivals, so a new budget replaces the old."""
    gone = rivals_of(over)
    return {key: value for key, value in base.items() if key not in gone} | dict(over)


def rivals_of(options: Iterable[str]) -> set[str]:
    """The options that say in another way what some of `options` say."""
    given, gone = set(options), set[str]()
    for ways in RIVALS:
        used = [way for way in ways if way & given]
        if used:
            gone |= set().union(*ways) - set().union(*used)
    return gone
