"""How a checkpoint was made, for the report: what its gqa.json says, and the curve that its uptraining left."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gqa.convert.errors import UserError, first_line
from gqa.convert.provenance import FILE_NAME, read_stages
from gqa.eval.document import History, TrainingPoint

_STRETCHES = 200  # points of a curve: as many as a picture can show

Point = dict[str, Any]
"""`step`, `tokens` and `loss`, as in `gqa.eval.document.TrainingPoint`."""


def read_history(checkpoint: Path) -> dict[str, Any] | None:
    """The `gqa.eval.document.History` of a checkpoint; None for one that has no gqa.json.

    Raises:
        UserError: gqa.json is damaged, or of a newer format.
    """
    stages = read_stages(checkpoint)
    if not stages:
        return None
    try:
        return History.model_validate(_history(stages, checkpoint)).model_dump()
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        what = first_line(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{checkpoint / FILE_NAME} is damaged ({what}); remove it or restore it") from error


def _history(stages: Sequence[Mapping[str, Any]], checkpoint: Path) -> dict[str, Any]:
    merged = next((place for place, stage in enumerate(stages) if stage.get("stage") == "convert"), len(stages))
    return {
        "conversions": [_conversion(stage) for stage in stages if stage.get("stage") == "convert"],
        "trainings": [_training(stage, checkpoint) for stage in stages[merged:] if stage.get("stage") == "uptrain"],
    }


def _conversion(stage: Mapping[str, Any]) -> dict[str, Any]:
    predicted = [layer.get("predicted_damage") for layer in stage.get("layers") or []]
    known = bool(predicted) and all(predicted) and not any("site" in layer for layer in stage["layers"])
    damage = [sum(each["keys"]) + sum(each["values"]) for each in predicted] if known else []
    return {
        "method": stage.get("method"),
        "kv_heads_before": list(stage.get("kv_heads_before") or []),
        "kv_heads_after": list(stage.get("kv_heads_after") or []),
        "predicted_damage": damage if known and all(map(math.isfinite, damage)) else None,
    }


def _training(stage: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    teacher = stage.get("teacher") or {}
    return {
        "objective": stage.get("objective"),
        "steps": stage.get("steps"),
        "tokens": stage.get("tokens"),
        "teacher": Path(teacher["path"]).name if teacher.get("path") else None,
        "validation": _points(stage.get("validation") or [], "validation_loss"),
        "loss": _curve(stage, checkpoint),
    }


def _curve(stage: Mapping[str, Any], checkpoint: Path) -> list[Point]:
    """What the run's metrics.jsonl says, if it lies where the run left it and is of this run."""
    named = (stage.get("config") or {}).get("run_dir")
    path = (Path(named) if named else checkpoint.with_name(f"{checkpoint.name}.run")) / "metrics.jsonl"
    try:
        if not path.is_file():
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        same = [line for line in lines if "validation_loss" in line] == (stage.get("validation") or [])
        points = thinned(_points(lines, "loss")) if same else []
        return [TrainingPoint.model_validate(point).model_dump() for point in points]
    except (OSError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return []  # a curve is a bonus: what it can't be read from is no reason to refuse the evaluation


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    found = [{"step": line["step"], "tokens": line["tokens"], "loss": line[key]} for line in lines if key in line]
    return [point for point in found if math.isfinite(point["loss"])]


def thinned(points: Sequence[Point], most: int = _STRETCHES) -> list[Point]:
    """At most `most` points: the mean loss of stretches of equal length, each at its last step."""
    if len(points) <= most:
        return list(points)
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    stretches = [points[first:end] for first, end in pairwise(edges)]
    return [{**part[-1], "loss": math.fsum(point["loss"] for point in part) / len(part)} for part in stretches]
