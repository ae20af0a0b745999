"""`gqa`: the map of the commands, and one way into all of them: `gqa convert` is `gqa-convert`."""

import importlib
import json
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.convert.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Command:
    """A place on the map."""

    name: str
    """as typed: `gqa-convert`"""
    does: str
    example: str


COMMANDS = (
    Command(
        name="gqa-convert",
        does="Merge the K/V heads of a checkpoint into groups.",
        example="gqa-convert --groups 8 --method lowrank ./llama-2-7b",
    ),
    Command(
        name="gqa-uptrain",
        does="Train a converted checkpoint until it is good again.",
        example="gqa-uptrain ./llama-2-7b-gqa8 --data corpus.jsonl --max-tokens 100000000",
    ),
    Command(
        name="gqa-eval",
        does="Compare checkpoints: perplexity, KV cache, size.",
        example="gqa-eval ./llama-2-7b ./llama-2-7b-gqa8-uptrained --data heldout.jsonl",
    ),
    Command(
        name="gqa-export",
        does="Write a checkpoint as a GGUF file, for llama.cpp.",
        example="gqa-export gguf ./pythia-410m-gqa4 pythia-gqa4.gguf",
    ),
    Command(
        name="gqa-push",
        does="Publish a checkpoint on the Hub, with its model card.",
        example="gqa-push ./llama-2-7b-gqa8-uptrained me/llama-2-7b-gqa8 --dry-run",
    ),
    Command(
        name="gqa-run",
        does="Take a checkpoint through all of it, by a recipe.",
        example="gqa-run demo",
    ),
)
"""in the order in which a newcomer meets them"""

_PLACES = {
    "gqa-convert": "gqa.convert.cli",
    "gqa-uptrain": "gqa.uptrain.cli",
    "gqa-eval": "gqa.eval.cli",
    "gqa-export": "gqa.convert.export.cli",
    "gqa-push": "gqa.convert.push.cli",
    "gqa-run": "gqa.recipes.cli",
}
"""modules that have a command's `main`"""

_REPORTED = ("gqa", "torch", "transformers", "accelerate", "safetensors")

app = command_app()


def _words() -> list[str]:
    return [command.name.removeprefix("gqa-") for command in COMMANDS]


@app.command(
    epilog=EXIT_CODES,
    context_settings={"allow_interspersed_args": False, "allow_extra_args": True},
)
def map_command(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Argument(metavar="COMMAND", help="convert, uptrain, eval, export, push or run.", autocompletion=_words),
    ] = None,
    versions: Annotated[bool, typer.Option("--version", help="Print the versions that matter in a report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the map, or the versions, as JSON.")] = False,
) -> None:
    """Print the map of the commands, or go to one of them.

    \b
    Examples:
      gqa                         # the map
      gqa convert --help          # the same as gqa-convert --help
      gqa eval before=ckpt after=ckpt-gqa8 --data heldout.jsonl
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        if command is not None:
            _go_to(command, context.args)
        elif versions:
            found = {package: _version(package) for package in _REPORTED} | {"python": sys.version.split()[0]}
            typer.echo(json.dumps(found) if as_json else "\n".join(f"{name} {said}" for name, said in found.items()))
        elif as_json:
            typer.echo(json.dumps({"commands": [asdict(command) for command in COMMANDS]}))
        else:
            typer.echo(the_map())


def the_map() -> str:
    """What `gqa` prints."""
    lines = [
        "Multi-head checkpoints to grouped-query attention, their quality regained, and proof of both.",
        "",
        "  ckpt/ --gqa-convert--> ckpt-gqa8/ --gqa-uptrain--> ckpt-gqa8-uptrained/ --gqa-push--> Hub",
        "     `------------------------`----------- gqa-eval -----------'",
        "",
    ]
    width = max(len(command.name) for command in COMMANDS)
    for command in COMMANDS:
        lines += [f"  {command.name:{width}}  {command.does}", f"  {'':{width}}  $ {command.example}", ""]
    lines.append("Every command has --help, --json and --quiet; `gqa convert` is `gqa-convert`, and so on.")
    return "\n".join(lines)


def _go_to(word: str, arguments: list[str]) -> None:
    name = f"gqa-{word.removeprefix('gqa-')}"
    if name not in _PLACES:
        raise UserError(f"there is no command {word!r}{did_you_mean(word, _words())}; `gqa` prints the map of them")
    sys.argv = [name, *arguments]
    importlib.import_module(_PLACES[name]).main()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Run the command."""
    app(prog_name="gqa")


if __name__ == "__main__":
    main()
