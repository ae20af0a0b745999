"""TOML text for tables of options: what recipes, and the cards that show one, are written with."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML for top-level values and for tables; what a table holds in tables of its own gets dotted keys."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for key, table in tables.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_toml_value(value)}" for name, value in _dotted(table))]
    return "\n".join(lines) + "\n"


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as TOML and JSON know values: paths as text, tuples as lists, None left out."""
    given = {key: plain_options(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return json.loads(json.dumps({key: value for key, value in given.items() if value is not None}, default=str))


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _toml_value(value: Any) -> str:
    """JSON's spelling is TOML's too, but for numbers that are not finite and the delete character."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf, nan
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
