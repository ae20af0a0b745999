"""report.html: one file that holds everything it shows, opens from disk, and asks nothing of any network."""

import json
from pathlib import Path

from gqa.eval.document import Document
from gqa.eval.page import palette, view
from gqa.eval.render import HEADINGS, measured_how, table_cells
from gqa.eval.tables import Table, tables
from gqa.eval.words import printable

# No script, no network, no frame, no form: whatever a checkpoint has its texts say, nothing can run or be fetched.
# The one image is the empty icon, without which browsers ask for one.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_HERE = Path(__file__).parent


def to_html(document: Document, as_json: str) -> str:
    """The text of report.html.

    Args:
        document: what it shows.
        as_json: the text of report.json, which the page carries inside.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["inline_code"] = inline_code
    main = Table(name="results", title="Results", headings=HEADINGS, rows=tuple(table_cells(document)))
    return environment.get_template("page.html.j2").render(
        document=document,
        policy=POLICY,
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        variables=palette.variables(),
        series=len(palette.SERIES),
        shape=lambda index: palette.SHAPES[palette.look(index).marker],
        cards=view.cards(document),
        main=main,
        tables=tables(document),
        figures=view.figures(document),
        prompts=view.prompts(document),
        how=measured_how(document),
        embedded=embedded(as_json),
    )


def embedded(as_json: str) -> str:
    """JSON as it may stand in a `<script>`: the same value, without what HTML takes for an end or a comment."""
    text = json.dumps(json.loads(as_json), indent=1, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def inline_code(sentence: str) -> list[tuple[bool, str]]:
    """A sentence of Markdown in pieces, each with whether it is code; an odd backtick is a backtick."""
    parts = printable(sentence).split("`")
    if len(parts) % 2 == 0:
        return [(False, printable(sentence))]
    return [(bool(number % 2), part) for number, part in enumerate(parts) if part]


def _finalize(value: object) -> object:
    """Everything the template prints, so that what a page can't hold is held off in one place."""
    return printable(value) if type(value) is str else value
