"""Putting reports together: the checkpoints of several, side by side, as far as they can be compared.

Reports of other data or another protocol are refused. The first checkpoint of the first report is what all others are
compared with. A report whose own first is the same checkpoint brings its comparisons along, errors and all; of others
the differences are formed anew from the means, without an error, since the tokens' own losses are not in a report.
What was measured twice is one row if both results are the same, but for rounding.
"""

import math
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
_AGAINST_FIRST = (
    "layers",
    "divergence",
    "perplexity_ratio",
    "perplexity_ratio_interval",
    "nll_above_first",
    "nll_above_first_standard_error",
)
"""What holds a checkpoint against the first of its report ..."""
_ABOVE_FIRST = ("nll_above_first", "nll_above_first_standard_error")
"""... and in every entry of its `contexts` and `positions`."""
_NOT_OF_THE_FIRST = ("divergence", "perplexity_ratio_interval")
"""What the first checkpoint has none of: it would be held against itself."""
_ROUNDING = 1e-3
"""Share of an NLL by which machines differ, at most."""
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
    notes += _option_notes(reports, "tasks", "task_limit") + _option_notes(reports, "continuations", "new_tokens")
    return {
        **{key: first.raw[key] for key in ("machine", "options")},
        "hub_data": first.document.hub_data,
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
    baseline, notes = incoming[0], list[str]()
    merged: list[tuple[Checkpoint, dict[str, Any]]] = []
    for each in incoming:
        said: list[str] = []
        row = each.row if each.read is baseline.read else _against(baseline, each, said)
        alike = [(known, other) for known, other in merged if _key(known) == _key(each.typed)]
        twin = next((other for known, other in alike if _agree(known, each.typed)), None)
        if twin is not None:  # measured twice: what the earlier report has not is taken from the later one
            kept = _NOT_OF_THE_FIRST if twin is merged[0][1] else ()
            twin |= {name: value for name, value in row.items() if twin.get(name) in _NOT_MEASURED and name not in kept}
            continue
        label = _free(each, [other["label"] for _, other in merged], notes)
        if alike:
            notes.append(f"{label} has the fingerprint of {alike[0][1]['label']}, and another NLL: both are kept.")
        merged.append((each.typed, row | {"label": label}))
        notes += said
    return [row for _, row in merged], notes


def _key(row: Checkpoint) -> tuple[str, str]:
    return row.fingerprint, row.dtype


def _agree(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two results can be of one checkpoint, on two machines perhaps."""
    return math.isclose(one.nll, other.nll, rel_tol=_ROUNDING)


def _against(baseline: _Incoming, each: _Incoming, notes: list[str]) -> dict[str, Any]:
    """A row of another report, compared with the first checkpoint of all."""
    own_first = each.read.document.first
    label, first = each.typed.label, baseline.typed
    if (own_first.fingerprint, own_first.dtype, own_first.nll) == (first.fingerprint, first.dtype, first.nll):
        own = each.row.get("divergence")
        return {**each.row, "divergence": own and {**own, "against": first.label}}
    row: dict[str, Any] = {**each.row, **dict.fromkeys(_AGAINST_FIRST)}
    for name in ("contexts", "positions"):
        places = each.row.get(name) or []
        row[name] = [place | {key: None for key in _ABOVE_FIRST if key in place} for place in places] or None
    if (each.typed.sample.tokens, each.typed.sample.bytes) != (first.sample.tokens, first.sample.bytes):
        notes.append(f"{label} splits the text into other tokens than {first.label}: compare bits per byte.")
        return row
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
    ratio = perplexity_of(above)
    return row | {"perplexity_ratio": ratio if math.isfinite(ratio) else None, "nll_above_first": above}


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


def _option_notes(reports: Sequence[Read], block: str, option: str) -> list[str]:
    """Where an option that decides what is in a block was another than in the first report that has the block."""
    measured = [each for each in reports if any(getattr(row, block) for row in each.document.checkpoints)]
    asked = ["all" if (value := each.document.options.get(option)) is None else value for each in measured]
    return [
        f"The {block} in {other.path} were measured with {option} {another}, in {measured[0].path} with {asked[0]}: "
        "they differ for that alone."
        for other, another in zip(measured, asked, strict=True)
        if another != asked[0]
    ]


def _chosen(setup: SpeedSetup | None) -> dict[str, Any]:
    return {} if setup is None else setup.model_dump(exclude=set(_TIMED))


def _source(read: Read) -> dict[str, Any]:
    return {
        "path": str(read.path),
        **{key: read.raw[key] for key in ("created", "command", "versions", "machine")},
        "labels": [row.label for row in read.document.checkpoints],
    }
