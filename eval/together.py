"""Reports read from disk, put together, and written as one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gqa.convert.directory import check_output
from gqa.convert.names import check_names
from gqa.eval.compare import compare
from gqa.eval.document import Document
from gqa.eval.read import read_report
from gqa.eval.written import write_files


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Several reports as one."""

    document: Document
    text: str
    """the document as its report.json has it"""


def compare_reports(paths: Sequence[Path], output: Path | None = None, *, overwrite: bool = False) -> Compared:
    """Put reports of the same data together, as `gqa-eval compare` does.

    Args:
        paths: report.json files, or directories with one; the first has the checkpoint that others are compared with.
        output: a directory to make for report.html, report.md and report.json.
        overwrite: whether it may replace one that exists.

    Raises:
        UserError: they can't be compared, one can't be read, or there is no place for the output.
    """
    check_names(*paths)
    if output is not None:
        check_output(output, list(paths), overwrite=overwrite)
    merged = compare([read_report(path) for path in paths])
    compared = Compared(
        document=Document.model_validate(merged), text=json.dumps(merged, indent=2, allow_nan=False) + "\n"
    )
    if output is not None:
        write_files(compared.document, compared.text, output, overwrite=overwrite)
    return compared
