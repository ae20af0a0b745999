"""Turning TOML tables and command-line values into frozen option dataclasses, with errors that help."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from gqa.convert.errors import UserError, did_you_mean

Options = TypeVar("Options")

COMMAND_LINE = "options"
"""where values came from that were flags"""


def build_options(kind: type[Options], values: Mapping[str, Any], where: str) -> Options:
    """An instance of the dataclass `kind` made from `values`, every value checked against its field's type.

    Args:
        kind: a frozen dataclass; its own `__post_init__` may refuse with `UserError`.
        values: field name to value.
        where: what the values came from, for the message: "recipe demo.toml, [uptrain]".

    Raises:
        UserError: an unknown key (with a did-you-mean), a missing one, a wrong type or value.
    """
    from pydantic import TypeAdapter, ValidationError  # as slow to import as all else that a `--help` needs

    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        key = ".".join(str(part) for part in first["loc"])
        if isinstance(cause, UserError):
            said = str(cause)
        elif first["type"].startswith("missing"):
            said = f"{key} is needed and not given" + ("; see --help" if where == COMMAND_LINE else "")
        else:
            said = f"{key}: {first['msg']}, got {first['input']!r}"
        raise UserError(f"{where}: {said}") from None
