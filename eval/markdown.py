"""report.md: the results as Markdown, short enough for a pull request."""

from collections.abc import Iterable, Sequence

from gqa.eval.document import Document
from gqa.eval.render import HEADINGS, measured_how, table_cells
from gqa.eval.tables import Table, tables
from gqa.eval.words import printable


def to_markdown(document: Document) -> str:
    """The text of report.md."""
    lines = [f"# Evaluation on {_flat(document.data)}", "", *_table(HEADINGS, table_cells(document))]
    for table in tables(document):
        lines += ["", f"## {_flat(table.title)}", "", *_with_words(table)]
    lines += _continuations(document)
    if document.notes:
        lines += ["", "## Notes", "", *(f"- {_flat(note)}" for note in document.notes)]
    lines += ["", "## How it was measured", "", *(f"- {_line(sentence)}" for sentence in measured_how(document))]
    return "\n".join(lines) + "\n"


def _with_words(table: Table) -> list[str]:
    words = [line for sentence in table.words for line in (_flat(sentence), "")]
    return [*words, *_table(table.headings, table.rows)]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    aligned = ["---", *("---:" for _ in headings[1:])]
    return [f"| {' | '.join(_cell(cell) for cell in cells)} |" for cells in (headings, aligned, *rows)]


def _continuations(document: Document) -> list[str]:
    """Every prompt with what each checkpoint makes of it, as indented code: nothing in it is taken for Markdown."""
    lines: list[str] = []
    for row in document.checkpoints:
        for continuation in row.continuations or []:
            lines += ["", f"{_flat(row.label)}, after {_quoted(continuation.prompt)}", ""]
            lines += [f"    {line}" for line in printable(continuation.text).splitlines()] or ["    (nothing)"]
    return ["", "## Continuations", *lines] if lines else []


def _cell(text: str) -> str:
    return _flat(text).replace("|", "\\|")


def _flat(text: str) -> str:
    """One line, in which no tag is one."""
    return _line(text).replace("<", "&lt;")


def _line(text: str) -> str:
    return " ".join(printable(text).split())


def _quoted(text: str) -> str:
    return "`" + _line(text).replace("`", "'") + "`"
