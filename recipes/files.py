"""Recipe files: finding one by name or path, and reading it with what it inherits.

`extends = "paper"` names a shipped recipe, `extends = "base.toml"` a file beside the one that says it. Tables are
merged key by key, the heir's word last; whatever is not a table is replaced.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError, did_you_mean
from gqa.uptrain.recipe import overlay

SHIPPED = Path(__file__).parent


def shipped_recipes() -> dict[str, Path]:
    """Name to file of every recipe that comes with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"), key=lambda path: path.stem)}


def descriptions() -> dict[str, str]:
    """Name to one line of every shipped recipe."""
    return {name: read_recipe(path)["description"] for name, path in shipped_recipes().items()}


def find_recipe(name: str, relative_to: Path = Path()) -> Path:
    """The file of the recipe called `name`: a path when it ends in `.toml` or has a slash, else a shipped one.

    Raises:
        UserError: there is none, with the closest name.
    """
    if name.endswith(".toml") or "/" in name:
        path = relative_to / Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"no recipe file {path}; `gqa-run --list` shows the recipes that can be named without a path"
            )
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        guess = did_you_mean(name, shipped)
        raise UserError(f"no recipe {name!r}{guess}; shipped: {', '.join(shipped)}; or give the path of a .toml file")
    return shipped[name]


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of the recipe at `path` merged over those of its bases; `extends` is gone from the result.

    Raises:
        UserError: a file is missing or not TOML, `extends` is not a string, or the bases go round in a circle.
    """
    layers: list[dict[str, Any]] = []
    seen: list[Path] = []
    next_path: Path | None = path
    while next_path is not None:
        if next_path.resolve() in seen:
            circle = " -> ".join(item.name for item in [*seen, next_path])
            raise UserError(f"{path} extends itself in a circle: {circle}; remove one `extends`")
        seen.append(next_path.resolve())
        layer = _read_toml(next_path)
        base = layer.pop("extends", None)
        layers.append(layer)
        next_path = _base_of(next_path, base)
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = merge(merged, layer)
    return merged


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid over it, tables key by key.

    Keys of `over` push out those that say the same in another way, so that `uptrain.max_steps=200` needs no second
    word to be rid of an inherited `alpha`.
    """
    tables = {key for key in over if isinstance(over[key], Mapping) and isinstance(base.get(key), Mapping)}
    return overlay(base, over) | {key: merge(base[key], over[key]) for key in tables}


def _base_of(path: Path, base: object) -> Path | None:
    if base is None:
        return None
    if not isinstance(base, str):
        raise UserError(f"{path}: extends must be one name or path in quotes, got {base!r}")
    try:
        return find_recipe(base, relative_to=path.parent)
    except UserError as error:
        raise UserError(f"{path}: extends {base!r}: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
