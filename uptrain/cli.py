"""The command `gqa-uptrain`: its options are the fields of UptrainConfig, its help their docstrings."""

import ast
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from gqa.convert.console import command_app, friendly_errors
from gqa.convert.options import build_options
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.recipe import overlay, read_table

_EXIT_CODES = (
    "Exit codes: 0 done, or saved and stopped by SIGTERM; 2 the input was wrong, as one sentence on stderr says; "
    "130 saved and stopped by Ctrl-C."
)
_SHORT = {"output": "-o", "quiet": "-q"}

app = command_app()
cache_app = command_app()


def uptrain_command(recipe: Path | None, as_json: bool, **given: Any) -> None:
    """Train a converted checkpoint until it is good again: on text, and from the model that it was converted from.

    `gqa-uptrain cache-teacher`, with the same options, runs that model once beforehand; --offline-teacher then trains
    without it.

    CHECKPOINT goes in unchanged; OUTPUT appears, whole, when the run is finished. Meanwhile OUTPUT.run/ holds
    run.json (the config), metrics.jsonl (a line for every step and validation) and checkpoints/step-N.
    The same command goes on where an interrupted run was: after a crash or a kill from the newest checkpoint; SIGTERM
    (exit code 0) and Ctrl-C (130) first save one at the end of the step, a second Ctrl-C stops at once.

    \b
    Examples:
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --max-tokens 100000000
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --alpha 0.05 --pretraining-tokens 300000000000 --teacher none
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --max-steps 1000 --teacher ckpt-70b --ce-weight 0.1
      gqa-uptrain t5-gqa2 --data pairs.jsonl --source-column article --target-column summary --max-steps 1000
      gqa-uptrain --recipe recipe.toml --learning-rate 5e-5
      accelerate launch -m gqa.uptrain --recipe recipe.toml
      ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m gqa.uptrain --recipe recipe.toml
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        _uptrain(_config(recipe, given), as_json=as_json)


def cache_teacher_command(recipe: Path | None, as_json: bool, **given: Any) -> None:
    """Run the teacher once over what a run will train on, and keep tokens drawn from it for --offline-teacher.

    The arguments are those of the run: its data, lengths, seed, batches and budget say where to draw.

    \b
    Examples:
      gqa-uptrain cache-teacher ckpt-gqa8 --data corpus.jsonl --max-tokens 100000000
      gqa-uptrain cache-teacher --recipe recipe.toml --teacher-draws 128
    """  # noqa: D301 - as above
    with friendly_errors():
        config = _config(recipe, given)
        from gqa.convert.pretrained import quiet_transformers
        from gqa.uptrain.cache_teacher import cache_teacher

        quiet_transformers()
        folder = cache_teacher(config)
        if as_json:
            typer.echo(json.dumps({"draws": str(folder)}))


def _config(recipe: Path | None, given: dict[str, Any]) -> UptrainConfig:
    flags = {key: value for key, value in given.items() if value not in (None, [], ())}
    if recipe is None:
        return build_options(UptrainConfig, flags, "options")
    return build_options(UptrainConfig, overlay(read_table(recipe), flags), f"recipe {recipe}, [uptrain]")


def _uptrain(config: UptrainConfig, *, as_json: bool) -> None:
    from gqa.convert.pretrained import quiet_transformers
    from gqa.eval.processes import leave_processes, speaks
    from gqa.uptrain.run import run

    quiet_transformers()
    try:
        result = run(config)
    finally:
        leave_processes()
    if as_json and speaks():
        typer.echo(json.dumps(asdict(result), default=str))


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, from its source."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    docs: dict[str, str] = {}
    for field, doc in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            docs[ast.unparse(field.target)] = inspect.cleandoc(str(doc.value.value))
    return docs


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a signature that typer can read: CHECKPOINT, --recipe, an option for every field, --json."""
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
    return (list[str] if Ellipsis in arguments else kind) | None


app.command(epilog=_EXIT_CODES)(_with_options(uptrain_command))
cache_app.command(epilog=_EXIT_CODES)(_with_options(cache_teacher_command))


def main() -> None:
    """Run the command, or the one that its first word names."""
    if sys.argv[1:2] == ["cache-teacher"]:
        cache_app(sys.argv[2:], prog_name="gqa-uptrain cache-teacher")
    else:
        app(prog_name="gqa-uptrain")
