"""Turning TOML tables and command-line values into frozen option dataclasses, with errors that help."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar, get_args

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

    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known: {', '.join(known)}")
        _check_booleans(values[key], known[key], where)
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


def _check_booleans(value: Any, field: Field[Any], where: str, table: str = "") -> None:
    """Refuse true and false where a field is no boolean: pydantic takes them for 1 and 0."""
    kinds = set(_kinds(field.type))
    inner = next((kind for kind in kinds if is_dataclass(kind)), None)
    if inner and isinstance(value, Mapping):
        for each in fields(inner):
            _check_booleans(value.get(each.name), each, where, f"{table}{field.name}.")
    elif bool not in kinds and any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value])):
        raise UserError(f"{where}: {table}{field.name}: true and false say nothing here, got {value!r}")


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield hint
    for part in get_args(hint):
        yield from _kinds(part)
