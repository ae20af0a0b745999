"""`gqa-run`: reads the command line, runs the recipe, prints what came of it."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.recipes.ledger import StageName

if TYPE_CHECKING:
    from gqa.recipes.recipe import Recipe

app = command_app()


def _names() -> list[str]:
    from gqa.recipes.files import shipped_recipes

    return list(shipped_recipes())


@app.command(epilog=EXIT_CODES)
def run_command(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="NAME_OR_PATH", help="A shipped recipe's name, or a .toml file.", autocompletion=_names),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE.KEY=VALUE", help="Laid over the recipe, last word wins.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's directory.  [default: runs/NAME]")
    ] = None,
    until: Annotated[StageName, typer.Option(help="The last stage to do.")] = "eval",
    force: Annotated[bool, typer.Option("--force", help="Do every stage anew, finished or not.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and do nothing.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="Print the shipped recipes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Take a checkpoint through a recipe: convert, uptrain, evaluate, report.

    A stage whose output is there and was made from the same inputs and options is skipped; uptraining that was
    interrupted goes on where it was. An empty value (`uptrain.clip=`) brings back a key's default.

    \b
    Examples:
      gqa-run demo                                   # minutes on two CPU cores
      gqa-run demo convert.groups=4 uptrain.max_steps=400 -o runs/demo-g4
      gqa-run my.toml --dry-run                      # what would be done, with every default
      gqa-run paper checkpoint=./ckpt uptrain.data=text.jsonl eval.data=heldout.jsonl uptrain.pretraining_tokens=300e9

    \b
    On several GPUs the middle stage is launched by itself:
      gqa-run llama2-7b-gqa8 --until convert
      gqa-uptrain --recipe runs/llama2-7b-gqa8/recipe.toml --accelerate-config fsdp2
      gqa-run llama2-7b-gqa8
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        if list_recipes:
            _list(as_json=as_json)
            return
        if recipe is None:
            raise typer.BadParameter("name a recipe, or see the shipped ones with --list", param_hint="NAME_OR_PATH")
        from gqa.recipes.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [], output)
        if dry_run:
            _show(loaded, as_json=as_json)
        else:
            _run(loaded, until=until, force=force, as_json=as_json, quiet=quiet)


def _list(*, as_json: bool) -> None:
    from gqa.recipes.files import SHIPPED, descriptions

    described = descriptions()
    if as_json:
        typer.echo(json.dumps({"recipes": described, "folder": str(SHIPPED)}, indent=2))
        return
    width = max(map(len, described))
    for name, description in described.items():
        typer.echo(f"{name:{width}}  {description}")
    typer.echo(f"\nThey lie in {SHIPPED}.")


def _show(recipe: "Recipe", *, as_json: bool) -> None:
    from gqa.convert.tables import to_toml

    tables = recipe.tables()
    typer.echo(json.dumps(tables, indent=2) if as_json else to_toml(tables), nl=as_json)


def _run(recipe: "Recipe", *, until: StageName, force: bool, as_json: bool, quiet: bool) -> None:
    from rich.console import Console

    from gqa.convert.pretrained import quiet_transformers
    from gqa.recipes.run import run_recipe
    from gqa.recipes.view import read_report, results_table

    quiet_transformers()

    def say(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    carried_out = run_recipe(recipe, until=until, force=force, quiet=quiet, say=say)
    report = read_report(recipe.report) if until == "eval" else None
    if as_json:
        result = {"recipe": recipe.tables(), "carried_out": carried_out, "report": report}
        typer.echo(json.dumps(result, indent=2))
    elif quiet:
        return
    elif report is not None:
        console = Console()
        if not console.is_terminal:
            console.width = 240  # a file or a pipe has no edge to break lines at
        console.print(results_table(report))
        typer.echo(f"Report: {recipe.report / 'report.html'}, and report.md and report.json beside it")
    elif until == "convert":
        written = str(recipe.output / "recipe.toml")
        launch = shlex.join(["gqa-uptrain", "--recipe", written, "--accelerate-config", "fsdp2"])
        typer.echo(f"The next stage can run on several GPUs: {launch}", err=True)


def main() -> None:
    """Run the command line."""
    app(prog_name="gqa-run")
