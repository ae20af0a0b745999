"""`gqa-push`: reads the command line, publishes, prints what came of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors, progress_bar
from gqa.convert.options import COMMAND_LINE, build_options
from gqa.convert.push.options import CardChoice, PushOptions

app = command_app()


@app.command(epilog=EXIT_CODES)
def push_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An output of gqa-convert or gqa-uptrain.")],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where to publish it on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private; refuse one that is public.")
    ] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="The branch to commit to, made if need be.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Give the commit this name.")] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The licence, as the Hub spells it.  [default: what the original's card says]"),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="The original on the Hub, where DIR was made from a directory."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="report.json of gqa-eval, or its folder.  [default: one in DIR, or in report/ beside it]"),
    ] = None,
    card: Annotated[
        CardChoice,
        typer.Option(help="Whose card: made here, README.md as it is, the Hub's; auto keeps one that was edited."),
    ] = "auto",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Also send this file of DIR, which gqa did not write or you changed."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="For the Hub; others on the machine may see it here.  [default: HF_TOKEN, or `hf auth login`]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send and write nothing; print the files, their sizes, and the card.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Publish a finished checkpoint on the Hub, with a model card made from its gqa.json and the report of gqa-eval.

    Every file is read and compared with what gqa.json says was written. The card goes into DIR/README.md: edit it and
    push again, and it is sent as you wrote it. What is there already is not sent again, so a push that broke off goes
    on with the same command.

    \b
    Examples:
      gqa-push ckpt-gqa8-uptrained me/ckpt-gqa8 --dry-run    # see the files and the card
      gqa-push ckpt-gqa8-uptrained me/ckpt-gqa8 --private
      gqa-push ckpt-gqa8 me/ckpt-gqa8 --report report --license apache-2.0 --base-model org/ckpt
      gqa-push ckpt-gqa4 me/ckpt-gqa --revision gqa4 --tag v1
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        given = {
            "directory": directory,
            "repo_id": repo_id,
            "private": private,
            "revision": revision,
            "tag": tag,
            "license": license,
            "base_model": base_model,
            "report": report,
            "card": card,
            "include": tuple(include or ()),
        }
        options = build_options(PushOptions, given, COMMAND_LINE)
        _push(options, token, dry_run=dry_run, quiet=quiet or as_json, as_json=as_json)


def _push(options: PushOptions, token: str | None, *, dry_run: bool, quiet: bool, as_json: bool) -> None:
    from rich.console import Console

    from gqa.convert.push import view
    from gqa.convert.push.publish import find_token, pack, publish, read
    from gqa.convert.push.remote import quiet_hub

    console = Console(quiet=quiet)
    quiet_hub(bars=not quiet)
    parcel = pack(options)
    found = "" if dry_run else find_token(token)
    with progress_bar(f"Reading {options.directory.name}", parcel.folder.total_bytes, quiet=quiet) as advance:
        parcel = read(parcel, advance)
    if dry_run:
        said = view.parcel_json(parcel)
        view.show_parcel(parcel, console)
    else:
        published = publish(parcel, found, lambda line: typer.echo(line, err=True))
        said = view.published_json(published, parcel)
        view.show_published(published, parcel, console)
    if as_json:
        typer.echo(json.dumps(said))


def main() -> None:
    """Run the command."""
    app(prog_name="gqa-push")
