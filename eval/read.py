"""Reading a report.json that somebody hands in: as it is, and typed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gqa.convert.errors import UserError, first_line
from gqa.eval.document import READABLE, Document

NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class Read:
    """A report and where it is from."""

    path: Path
    raw: dict[str, Any]
    document: Document


def read_report(given: Path) -> Read:
    """The report at `given`, a report.json or the directory that holds one.

    Raises:
        UserError: it is not there, not JSON, of another format, or lacks what a report has.
    """
    path = given / NAME if given.is_dir() else given
    raw = _json(path)
    if not isinstance(raw, dict) or "format" not in raw or "checkpoints" not in raw:
        raise UserError(f"{path} is not a report of gqa-eval; name a {NAME} that it wrote")
    if raw["format"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise UserError(f"{path} has format {raw['format']!r}; this version reads {known}: upgrade gqa")
    try:
        return Read(path=path, raw=raw, document=Document.model_validate(raw))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is a damaged report: {place}: {first['msg']}; make it again") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}; name a {NAME} of gqa-eval, or the directory that holds it") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); name a {NAME} of gqa-eval") from None
