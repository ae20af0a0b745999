"""A run's uptraining by the files it left: what decides its weights, what has ended, and what is still under way."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gqa.convert.provenance import fingerprint, read_stages
from gqa.convert.source import resolve_checkpoint
from gqa.uptrain.config import FREE_ON_RESUME, UptrainConfig

UNDECISIVE = (FREE_ON_RESUME - {"dtype", "clip", "spike_sigmas"}) | {"checkpoint", "data", "validation_data"}
"""Fields of UptrainConfig that don't decide the finished checkpoint, or that the stage's inputs stand for."""


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an uptraining's config that decide the trained weights, as JSON would give them back."""
    chosen_by = {"eval_every"} if config.get("patience") else set()  # the best validation's weights are kept
    found = {key: value for key, value in config.items() if key not in UNDECISIVE - chosen_by}
    return json.loads(json.dumps(found, default=str))


def named_teacher(config: UptrainConfig) -> str | None:
    """The teacher's name, where it is not left to the checkpoint to say who that is."""
    return None if config.teacher in ("auto", "none") else config.teacher


def teacher_key(config: UptrainConfig) -> str | None:
    """The fingerprint of a teacher that is named.

    Raises:
        UserError: there is no such checkpoint.
    """
    name = named_teacher(config)
    return fingerprint(resolve_checkpoint(name)) if name else None


def is_made_by(config: UptrainConfig, source: str, checkpoint: Path) -> bool:
    """Whether `checkpoint` says that it was trained as in `config`, from what has the fingerprint `source`.

    It says what its data are called, and not what they held.
    """
    last = _last_stage(checkpoint)
    if last.get("stage") != "uptrain" or last["source"]["fingerprint"] != source:
        return False
    taught_by = (last.get("teacher") or {}).get("fingerprint")
    if named_teacher(config) and taught_by != teacher_key(config):
        return False
    return decisive(last["config"]) == decisive(asdict(config)) and _data(last["config"]) == _data(asdict(config))


def is_under_way(run_dir: Path, checkpoint: Path) -> bool:
    """Whether `run_dir` has saved a training that did not end in `checkpoint`: dropped, it would be lost."""
    from gqa.uptrain.checkpoints import complete_checkpoints  # imports torch

    saved, last = dict(complete_checkpoints(run_dir / "checkpoints")), _last_stage(checkpoint)
    return bool(saved) and not (last.get("steps") in saved and last.get("config") == _begun(run_dir))


def learns_otherwise(config: UptrainConfig, run_dir: Path) -> bool:
    """Whether `run_dir` was begun with other options that decide what is learnt."""
    begun, other_type = _begun(run_dir), {"dtype": None}  # in which weights that were learnt are written
    return begun is not None and decisive(begun) | other_type != decisive(asdict(config)) | other_type


def _last_stage(checkpoint: Path) -> dict[str, Any]:
    return (read_stages(checkpoint) or [{}])[-1]


def _data(config: Mapping[str, Any]) -> list[Any]:
    """What the data are called, one or several."""
    data = config["data"]
    return [[data] if isinstance(data, str) else list(data), config.get("validation_data")]


def _begun(run_dir: Path) -> dict[str, Any] | None:
    """The config that a run was begun with; None where no run.json says it."""
    try:
        return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
