"""The command `gqa-eval compare`: parses, calls `compare`, prints."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors

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
) -> None:
    """Put reports of the same data together: all their checkpoints in one table, one page, one report.json.

    The first report's first checkpoint is the one that all others are compared with. A checkpoint that several reports
    measured stands there once. What can't be compared is refused, or said in the notes.

    \b
    Examples:
      gqa-eval compare mean/report.json lowrank/report.json
      gqa-eval compare mean lowrank fitted -o all
    """  # noqa: D301 - the backspace is typer's sign to keep the lines that follow as they are
    with friendly_errors():
        _compare(reports, output, overwrite=overwrite, as_json=as_json)


def _compare(paths: list[Path], output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from gqa.convert.directory import check_output
    from gqa.eval.compare import compare
    from gqa.eval.document import Document
    from gqa.eval.read import read_report
    from gqa.eval.screen import print_table
    from gqa.eval.written import write_files

    if output is not None:
        check_output(output, paths, overwrite=overwrite)
    merged = compare([read_report(path) for path in paths])
    text = json.dumps(merged, indent=2, allow_nan=False) + "\n"
    document = Document.model_validate(merged)
    if output is not None:
        write_files(document, text, output, overwrite=overwrite)
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_table(document, output)
