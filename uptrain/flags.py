"""Options of a dataclass as flags of a command: its fields are the flags, its docstrings their help."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from gqa.uptrain.config import UptrainConfig

_SHORT = {"output": "-o", "quiet": "-q"}


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those it is made of, from their source, in their order."""
    docs: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        docs |= _own_docs(part)
    return docs


def _own_docs(kind: type) -> dict[str, str]:
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    docs: dict[str, str] = {}
    for field, doc in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            docs[ast.unparse(field.target)] = inspect.cleandoc(str(doc.value.value))
    return docs


def with_options(command: Callable[..., None], more: Mapping[str, Any] | None = None) -> Callable[..., None]:
    """`command` with a signature that typer can read: CHECKPOINT, --recipe, an option for every field, --json.

    `more` are annotated options that the command has of its own, by name; each may be absent.
    """
    types, docs = get_type_hints(UptrainConfig), field_docs(UptrainConfig)
    checkpoint = typer.Argument(metavar="CHECKPOINT", help=docs["checkpoint"], show_default=False)
    recipe = typer.Option(metavar="FILE", help="TOML file whose table [uptrain] holds options; flags override them.")
    options: dict[str, Any] = {
        "checkpoint": Annotated[str | None, checkpoint],
        "recipe": Annotated[Path | None, recipe],
    }
    for field in fields(UptrainConfig):
        if field.name != "checkpoint":
            options[field.name] = Annotated[_flag_type(types[field.name]), _option(field, docs[field.name])]
    options |= more or {}
    options["as_json"] = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
    defaults = dict.fromkeys(options, None) | {"as_json": False}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
        for name, annotation in options.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = options
    return command


def _option(field: "Field[Any]", doc: str) -> Any:
    """A field's flag. It has no default of its own: what is not given is left to the recipe, then to the dataclass."""
    flag = "--" + field.name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}" if field.type is bool else flag]
    names += [_SHORT[field.name]] if field.name in _SHORT else []
    if field.default not in (None, MISSING, ()) and field.default is not False:
        values = field.default if isinstance(field.default, tuple) else (field.default,)
        doc += f"  [default: {' '.join(str(value) for value in values)}]"
    return typer.Option(*names, help=doc, show_default=False)


def _flag_type(kind: Any) -> Any:
    """The type of a field as a flag's: repeatable flags are lists of words, and every flag may be absent."""
    arguments = getattr(kind, "__args__", ())
    repeatable = Ellipsis in arguments or any(Ellipsis in get_args(part) for part in arguments)
    if {str, float} <= set(arguments):
        return str | None  # a number is a word, too
    return (list[str] if repeatable else kind) | None


def values_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as the fields want it: one word where several may stand is that word, numbers may have commas."""
    types = get_type_hints(UptrainConfig)
    values = {key: value for key, value in given.items() if value not in (None, [], ())}
    for key, value in values.items():
        if isinstance(value, list) and float in get_args(types[key]):
            values[key] = [part for word in value for part in word.split(",")]
        elif isinstance(value, list) and len(value) == 1 and str in get_args(types[key]):
            (values[key],) = value
    return values
