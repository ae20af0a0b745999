"""What gqa-eval measured of a checkpoint and of what it was made from: finding the report, and reading it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint

PICTURE = "pareto.png"
"""what gqa-eval lays beside report.json for cards, and what it is called beside a card"""
_FORMATS = (1, 2)
_NAME = "report.json"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A checkpoint of the lineage in a report."""

    name: str
    """what it is to the checkpoint that is published"""
    row: Mapping[str, Any]
    """what report.json says of it"""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A report, as far as it is about the lineage of one checkpoint."""

    report: Mapping[str, Any]
    rows: tuple[Measured, ...]
    """in the order in which they were made, the checkpoint that is published last"""
    picture: bytes | None = None
    """a PNG of quality against cost, where the report has one"""

    @property
    def own(self) -> Mapping[str, Any]:
        """What was measured of the checkpoint itself."""
        return self.rows[-1].row

    def ratio(self, row: Mapping[str, Any]) -> float | None:
        """A row's perplexity over the first row's; None where tokens differ or something was not finite."""
        first = self.rows[0].row
        comparable = row.get("perplexity_ratio") is not None and first.get("perplexity_ratio") is not None
        return row["perplexity"] / first["perplexity"] if comparable and row["perplexity"] is not None else None


def find_results(directory: Path, stages: Sequence[Mapping[str, Any]], given: Path | None) -> Results | None:
    """The results for the checkpoint in `directory`: of the report that was named, or of one that lies near.

    Raises:
        UserError: the report that was named is none, or did not measure this checkpoint.
    """
    own = fingerprint(directory)
    if given is not None:
        path = given / _NAME if given.is_dir() else given
        results = _about(path, own, stages)
        if results is None:
            raise UserError(
                f"{path} did not measure {directory} as it is now: no row has its fingerprint; "
                f"run gqa-eval ORIGINAL {shlex.quote(str(directory))} --data TEXT -o REPORT"
            )
        return results
    near = (directory / _NAME, directory.absolute().parent / "report" / _NAME)
    return next((results for path in near if path.is_file() and (results := _about(path, own, stages))), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] not in _FORMATS:
            known = " and ".join(map(str, _FORMATS))
            raise UserError(f"{path} has format {report['format']}; this version reads {known}: upgrade gqa")
        _ = report["options"]["data"], [row["fingerprint"] for row in report["checkpoints"]]
    except OSError as error:
        raise UserError(f"the report {path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a report of gqa-eval ({error!r}); make it again, or move it away") from None
    return report


def _about(path: Path, own: str, stages: Sequence[Mapping[str, Any]]) -> Results | None:
    """What a report says of the checkpoint with the fingerprint `own` and of those that went into its stages."""
    report = _read(path)
    row_of = {row["fingerprint"]: row for row in report["checkpoints"]}
    if own not in row_of:
        return None
    sources = [(_name(number, stages), stage["source"]["fingerprint"]) for number, stage in enumerate(stages)]
    earlier = [Measured(name=name, row=row_of[source]) for name, source in sources if source in row_of]
    rows = (*earlier, Measured(name="**this checkpoint**", row=row_of[own]))
    return Results(report=report, rows=rows, picture=_picture(path.with_name(PICTURE)))


def _picture(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the report's picture {path} can't be read: {error.strerror}") from None
    if not data.startswith(_PNG):
        raise UserError(f"the report's picture {path} is not a PNG; make the report again, or move the picture away")
    return data


def _name(number: int, stages: Sequence[Mapping[str, Any]]) -> str:
    """What the checkpoint that went into a stage is to the one that came out of the last."""
    if number == 0:
        return "original"
    return {"convert": "converted", "uptrain": "uptrained"}.get(stages[number - 1]["stage"], "before") + " only"
