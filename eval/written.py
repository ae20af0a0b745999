"""The files of a report: report.html and report.md for people, report.json for programs, pareto.png for cards."""

from pathlib import Path

from gqa.convert.directory import atomic_directory, disk_errors
from gqa.eval.document import Document
from gqa.eval.markdown import to_markdown
from gqa.eval.page.draw import picture
from gqa.eval.page.page import to_html
from gqa.eval.page.tradeoff import for_cards

PICTURE = "pareto.png"


def write_files(document: Document, as_json: str, output: Path, *, overwrite: bool = False) -> None:
    """Make the directory `output` with the files of a report; it appears whole or not at all.

    Args:
        document: what is shown.
        as_json: the text of report.json.
        output: the directory to make.
        overwrite: whether it may replace one that exists.
    """
    texts = {"report.json": as_json, "report.md": to_markdown(document), "report.html": to_html(document, as_json)}
    drawn = for_cards(document)
    with disk_errors(output), atomic_directory(output, overwrite=overwrite) as work:
        for name, text in texts.items():
            # A path that is no UTF-8 comes as lone surrogates, which no file can hold.
            (work / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        if drawn is not None:
            (work / PICTURE).write_bytes(picture(drawn))
