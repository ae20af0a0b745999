"""What an evaluation shows in a terminal: on stderr while it runs, and its table when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gqa.eval.document import Document
from gqa.eval.processes import speaks
from gqa.eval.render import HEADINGS, table_cells
from gqa.eval.words import printable

if TYPE_CHECKING:
    from rich.table import Table

    from gqa.eval.measure import Progress


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator["Progress"]:
    """A bar with the time left on stderr, where a person watches and this process is the one to speak."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not (console.is_terminal and speaks())) as bar:
        task = bar.add_task("starting", total=None)
        current = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                current = what
                bar.reset(task, description=what)
            bar.update(task, completed=done, total=total or None)

        yield show


def print_table(document: Document, output: Path | None) -> None:
    """The table, the notes, and where the report is, on stdout."""
    console = Console()
    if not console.is_terminal:
        console.width = 240  # a file or a pipe has no edge to break lines at
    table = _table(document)
    wide = console.options.update(width=1000)
    if console.measure(table, options=wide).maximum > console.width:
        table = _table(document, narrow=True)
    console.print(table)
    for note in document.notes:
        console.print(f"Note: {printable(note)}", highlight=False, markup=False)
    if output is not None:
        console.print(f"Report: {output / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def _table(document: Document, *, narrow: bool = False) -> "Table":
    """The results; `narrow` gives headings and errors a second line, so that 80 columns are enough."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(HEADINGS):
        text = heading.replace(" ±", "\n±").replace("/", "/\n").replace("KV h", "KV\nh") if narrow else heading
        table.add_column(text, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for label, *cells in table_cells(document):
        table.add_row(Text(printable(label)), *(cell.replace(" ±", "\n±") if narrow else cell for cell in cells))
    return table
