"""Putting reports together: the checkpoints of several, side by side, as far as they can be compared.

Reports of other data or another protocol are refused. The first checkpoint of the first report is what all others are
compared with. A report whose own first is the same checkpoint brings its comparisons along, errors and all; of others
the differences are formed anew from the means, without an error, since the tokens' own losses are not in a report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.provenance import command_line, versions
from gqa.eval.document import FORMAT, Checkpoint, Document, SpeedSetup
from gqa.eval.estimate import perplexity_of
from gqa.eval.read import Read

_SAME = ("window", "stride", "documents", "bos", "max_tokens", "seed")
"""Options that decide what a perplexity means; data are known by their hash."""
_AGAINST_FIRST = ("layers", "divergence")
"""Blocks that hold a checkpoint against the first of its report."""
_NOT_MEASURED: tuple[Any, ...] = (None, [], {})
_TIMED = ("bandwidth_bytes_per_second", "words")
"""Of the setup of speed, what is found out, not chosen."""


@dataclass(frozen=True, kw_only=True)
class _Incoming:
    """A checkpoint that comes from a report."""

    row: dict[str, Any]
    typed: Checkpoint
    read: Read


def compare(reports: Sequence[Read]) -> dict[str, Any]:
    """The object of a report.json that holds the checkpoints of all `reports`; that of one alone is its own.

    Raises:
        UserError: two are of other data, or measured by another protocol.
    """
    first, *others = reports
    if not others:
        return dict(first.raw)
    for other in others:
        _check_same(first, other)
    merged, notes = _merged_rows(reports)
    notes += _speed_notes(reports)
    return {
        **{key: first.raw[key] for key in ("machine", "options")},
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
        "method": first.document.method,
        "notes": list(dict.fromkeys([*(note for each in reports for note in each.document.notes), *notes])),
        "checkpoints": merged,
        "speed": next((each.raw["speed"] for each in reports if each.raw.get("speed")), None),
        "merged_from": [_source(each) for each in reports],
    }


def _check_same(first: Read, other: Read) -> None:
    mine, theirs = first.document.first.sample, other.document.first.sample
    if mine.text_sha256 != theirs.text_sha256:
        raise UserError(
            f"{other.path} is of other data than {first.path} (SHA-256 {theirs.text_sha256[:16]} and "
            f"{mine.text_sha256[:16]}): run gqa-eval on the same data"
        )
    for name in _SAME:
        one, another = _option(first.document, name), _option(other.document, name)
        if one != another:
            raise UserError(
                f"{other.path} was measured with {name} {another}, {first.path} with {one}, so their perplexities "
                "can't be compared: run gqa-eval with the same"
            )


def _option(document: Document, name: str) -> Any:
    value = document.options.get(name)
    return document.options.get("window") if name == "stride" and value is None else value


def _merged_rows(reports: Sequence[Read]) -> tuple[list[dict[str, Any]], list[str]]:
    """The checkpoints of all reports, each once, and what a reader must know of them."""
    incoming = [
        _Incoming(row=row, typed=typed, read=read)
        for read in reports
        for row, typed in zip(read.raw["checkpoints"], read.document.checkpoints, strict=True)
    ]
    baseline, merged, notes = incoming[0], dict[tuple[str, str], dict[str, Any]](), list[str]()
    for each in incoming:
        key = (each.typed.fingerprint, each.typed.dtype)
        said: list[str] = []
        row = each.row if each.read is baseline.read else _against(baseline, each, said)
        if key in merged:  # measured twice: what the earlier report has not is taken from the later one
            merged[key] |= {name: value for name, value in row.items() if merged[key].get(name) in _NOT_MEASURED}
        else:
            merged[key] = row | {"label": _free(each, [other["label"] for other in merged.values()], notes)}
            notes += said
    return list(merged.values()), notes


def _against(baseline: _Incoming, each: _Incoming, notes: list[str]) -> dict[str, Any]:
    """A row of another report, compared with the first checkpoint of all."""
    own_first = each.read.document.first
    label, first = each.typed.label, baseline.typed
    if (own_first.fingerprint, own_first.dtype, own_first.nll) == (first.fingerprint, first.dtype, first.nll):
        own = each.row.get("divergence")
        return {**each.row, "divergence": own and {**own, "against": first.label}}
    row: dict[str, Any] = {**each.row, **dict.fromkeys(_AGAINST_FIRST)}
    if (each.typed.sample.tokens, each.typed.sample.bytes) != (first.sample.tokens, first.sample.bytes):
        notes.append(f"{label} splits the text into other tokens than {first.label}: compare bits per byte.")
        return row | {"perplexity_ratio": None, "nll_above_first": None, "nll_above_first_standard_error": None}
    notes.append(
        f"{label} was not measured in one run with {first.label}: its ratio has no standard error, and what was "
        f"measured against {own_first.label} is left out."
    )
    counted, first_counted = (row.kv_cache.dtype or row.dtype for row in (each.typed, first))
    if counted != first_counted:
        notes.append(f"{label} is in {counted}, {first.label} in {first_counted}: KV bytes differ for that alone.")
    if each.typed.dtype != first.dtype:
        notes.append(f"{label} was computed in {each.typed.dtype}, {first.label} in {first.dtype}.")
    above = each.typed.nll - first.nll
    row["positions"] = [{**place, "nll_above_first": None} for place in each.row.get("positions") or []] or None
    row["contexts"] = [{**place, "nll_above_first": None} for place in each.row.get("contexts") or []] or None
    return row | {
        "perplexity_ratio": perplexity_of(above),
        "nll_above_first": above,
        "nll_above_first_standard_error": None,
    }


def _free(each: _Incoming, taken: list[str], notes: list[str]) -> str:
    """The row's label, or one with a number where another checkpoint has it."""
    label, number = each.typed.label, 2
    while label in taken:
        label, number = f"{each.typed.label} ({number})", number + 1
    if label != each.typed.label:
        notes.append(f"{label} is what {each.read.path} calls {each.typed.label}.")
    return label


def _speed_notes(reports: Sequence[Read]) -> list[str]:
    timed = [each for each in reports if any(row.speed for row in each.document.checkpoints)]
    if len(timed) < 2:
        return []
    first, notes = timed[0], []
    for other in timed[1:]:
        if other.document.machine != first.document.machine:
            notes.append(
                f"Speed in {other.path} was measured on another machine than in {first.path}, or with other threads: "
                "compare times within one report only."
            )
        if _chosen(other.document.speed) != _chosen(first.document.speed):
            notes.append(
                f"Speed in {other.path} was measured with another dtype, attention or compilation than in "
                f"{first.path}: compare times within one report only."
            )
    return notes


def _chosen(setup: SpeedSetup | None) -> dict[str, Any]:
    return {} if setup is None else setup.model_dump(exclude=set(_TIMED))


def _source(read: Read) -> dict[str, Any]:
    return {
        "path": str(read.path),
        **{key: read.raw[key] for key in ("created", "command", "versions", "machine")},
        "labels": [row.label for row in read.document.checkpoints],
    }
