"""The command `gqa-eval`: parses, calls `evaluate`, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.convert.errors import UserError
from gqa.eval.options import Bos, Documents, Dtype, EvalOptions

if TYPE_CHECKING:
    from rich.table import Table

    from gqa.eval.report import Report

app = command_app()


@app.command(epilog=EXIT_CODES)
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT", help="Directories or Hub ids; label=directory names a row."),
    ],
    data: Annotated[
        str,
        typer.Option(help="A text, .jsonl or .parquet file, a folder of these, or a dataset on the Hub (org/name)."),
    ],
    text_column: Annotated[str, typer.Option(help="The key or column that holds the text.")] = "text",
    source_column: Annotated[
        str, typer.Option(help="For encoder-decoders: the column that holds the source ...")
    ] = "source",
    target_column: Annotated[
        str, typer.Option(help="... and the target; T5 also takes plain text, under span corruption.")
    ] = "target",
    subset: Annotated[str | None, typer.Option(help="A Hub dataset's subset.")] = None,
    split: Annotated[str, typer.Option(help="A Hub dataset's split.")] = "test",
    documents: Annotated[
        Documents, typer.Option(help="Join documents with end-of-text tokens, or keep each to itself.")
    ] = "joined",
    window: Annotated[int, typer.Option(help="Tokens the model sees at once; of a source, and of a target.")] = 1024,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next.", show_default="the window")
    ] = None,
    bos: Annotated[
        Bos,
        typer.Option(help="BOS before every window, before every sequence's first, never, or as the tokenizer does."),
    ] = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.", show_default="all")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per forward pass.", show_default="what fits 256 MiB of logits")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which spans are corrupted.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Precision to compute in; auto is the checkpoint's own.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Make this directory, with report.json and report.md.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only; with --output or --json.")] = False,
) -> None:
    """Compare checkpoints on the same data: perplexity, bits per byte, KV-cache bytes, parameters and size.

    The first checkpoint is the one that the others are compared with.

    \b
    Examples:
      gqa-eval ckpt ckpt-gqa8 --data heldout.jsonl
      gqa-eval before=ckpt after=ckpt-gqa8 --data book.txt --window 2048 --stride 512 -o report
      gqa-eval ckpt --data Salesforce/wikitext --subset wikitext-2-raw-v1 --max-tokens 100000
      gqa-eval t5 t5-gqa2 --data pairs.jsonl --source-column question --target-column answer --window 512
      torchrun --nproc_per_node 8 -m gqa.eval ckpt ckpt-gqa8 --data heldout.parquet

    \b
    The numbers of lm-evaluation-harness at its max_length L:
      gqa-eval ckpt --data docs.jsonl --documents separate --bos first --window L+1 --stride L
    """  # noqa: D301 - the backspace is typer's sign to keep the lines that follow as they are
    with friendly_errors():
        options = EvalOptions(
            data=data,
            text_column=text_column,
            subset=subset,
            source_column=source_column,
            target_column=target_column,
            seed=seed,
            split=split,
            documents=documents,
            window=window,
            stride=stride,
            bos=bos,
            max_tokens=max_tokens,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
        )
        if quiet and output is None and not as_json:
            raise UserError("--quiet leaves nothing of an evaluation that is not kept; add --output DIR, or --json")
        _evaluate(checkpoints, options, output, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _evaluate(
    checkpoints: list[str], options: EvalOptions, output: Path | None, *, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    from gqa.convert.pretrained import quiet_transformers
    from gqa.eval.evaluate import evaluate as run
    from gqa.eval.processes import leave_processes, speaks
    from gqa.eval.screen import progress_bar

    quiet_transformers()
    try:
        with progress_bar(quiet=quiet) as progress:
            report = run(checkpoints, options, output, overwrite=overwrite, progress=progress)
    finally:
        leave_processes()
    if not speaks():
        return
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif not quiet:
        _print_table(report, output)


def _print_table(report: "Report", output: Path | None) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 240  # a file or a pipe has no edge to break lines at
    table = _table(report)
    wide = console.options.update(width=1000)
    if console.measure(table, options=wide).maximum > console.width:
        table = _table(report, narrow=True)
    console.print(table)
    for note in report.notes():
        console.print(f"Note: {note}", highlight=False, markup=False)
    if output is not None:
        console.print(f"Report: {output / 'report.md'}", highlight=False, markup=False, soft_wrap=True)


def _table(report: "Report", *, narrow: bool = False) -> "Table":
    """The results; `narrow` gives headings and errors a second line, so that 80 columns are enough."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from gqa.eval.render import HEADINGS, table_cells

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(HEADINGS):
        text = heading.replace(" ±", "\n±").replace("/", "/\n") if narrow else heading
        table.add_column(text, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for label, *cells in table_cells(report):
        table.add_row(Text(label), *(cell.replace(" ±", "\n±") if narrow else cell for cell in cells))
    return table


def main() -> None:
    """Run the command."""
    app(prog_name="gqa-eval")
