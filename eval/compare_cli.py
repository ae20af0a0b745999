"""The command `gqa-eval compare`: parses, calls `compare`, prints."""

from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.convert.errors import UserError

app = command_app()


@app.command(epilog=EXIT_CODES)
def compare_command(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT", help="report.json files of gqa-eval, or directories with one.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Make this directory, with report.html, report.md and report.json."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only; with --output or --json.")] = False,
) -> None:
    """Put reports of the same data together: all their checkpoints in one table, one page, one report.json.

    The first report's first checkpoint is the one that all others are compared with. A checkpoint that several reports
    measured with one result stands there once. What can't be compared is refused, or said in the notes. One report
    alone is drawn anew.

    \b
    Examples:
      gqa-eval compare mean/report.json lowrank/report.json
      gqa-eval compare mean lowrank fitted -o all
      gqa-eval compare old/report.json -o page
    """  # noqa: D301 - the backspace is typer's sign to keep the lines that follow as they are
    with friendly_errors():
        from gqa.eval.screen import print_table
        from gqa.eval.together import compare_reports

        if quiet and output is None and not as_json:
            raise UserError("--quiet leaves nothing of a comparison that is not kept; add --output DIR, or --json")
        compared = compare_reports(reports, output, overwrite=overwrite)
        if as_json:
            typer.echo(compared.text, nl=False)
        elif not quiet:
            print_table(compared.document, output)
