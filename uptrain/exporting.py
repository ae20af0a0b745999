"""`gqa-uptrain export`: a Hugging Face checkpoint of what a run has saved, in one process, whoever trained it."""

import json
from pathlib import Path
from typing import Any

from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint
from gqa.convert.source import resolve_checkpoint
from gqa.eval.model import load_model
from gqa.uptrain.checkpoints import complete_checkpoints, step_of
from gqa.uptrain.export import plan_export
from gqa.uptrain.metrics import read_metrics
from gqa.uptrain.saved import SavedWeights
from gqa.uptrain.screen import Screen


def export_saved(
    saved: Path, output: Path | None, *, checkpoint: str | None = None, overwrite: bool = False, quiet: bool = False
) -> Path:
    """Make a checkpoint of a run's saved state.

    Args:
        saved: the run's directory, of which the newest checkpoint is taken, or one of its checkpoints.
        output: where it goes; None: beside the run, by its name and the step.
        checkpoint: what was trained, if it is not where the run found it any more.
        overwrite: replace what stands there.
        quiet: say nothing.

    Raises:
        UserError: nothing complete is saved there; what was trained is gone or another; or the output can't be made.
    """
    folder = _newest(saved)
    run, step = folder.parent.parent, step_of(folder)
    record = _record(run)
    source = _trained(run, record) if checkpoint is None else resolve_checkpoint(checkpoint)
    if fingerprint(source) != record["content"]["checkpoint"]:
        raise UserError(
            f"{source} is not what the run in {run} has trained, or it has changed since; name that with --checkpoint"
        )
    target = output or run.parent / f"{run.name.removesuffix('.run')}-step-{step}"
    check_output(target, [source, run], overwrite=overwrite)
    model = load_model(source, device="meta")
    export = plan_export(model, source, target, record["config"]["dtype"], overwrite=overwrite)
    export.write(model, SavedWeights(folder), facts_of(run, record, step))
    Screen(quiet=quiet).note(f"The checkpoint of step {step:,} is in {target}")
    return target


def facts_of(run: Path, record: dict[str, Any], step: int) -> dict[str, Any]:
    """What `gqa.json` says of the state after `step` of a run, beside what its `run.json` says of the whole of it."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= step]
    tokens = next((line["tokens"] for line in reversed(lines) if line["step"] == step), None)
    validation = [line for line in lines if "validation_loss" in line]
    return {"config": record["config"], **record["facts"], "steps": step, "tokens": tokens, "validation": validation}


def _newest(saved: Path) -> Path:
    """The checkpoint that is meant."""
    if not saved.is_dir():
        raise UserError(f"no such directory: {saved}; name a run's (OUTPUT.run), or one of its checkpoints")
    if not (saved / "run.json").is_file():
        step_of(saved)  # refuses what is no checkpoint
        return saved.resolve()
    complete = complete_checkpoints(saved / "checkpoints")
    if not complete:
        raise UserError(f"the run in {saved} has saved nothing yet; let it reach its first checkpoint")
    return complete[-1][1].resolve()


def _trained(run: Path, record: dict[str, Any]) -> Path:
    """What the run has trained, where its `run.json` says that it is."""
    try:
        return resolve_checkpoint(record.get("checkpoint", record["config"]["checkpoint"]))
    except UserError as error:
        raise UserError(
            f"what the run in {run} has trained is not where it was ({error}); name it with --checkpoint"
        ) from None


def _record(run: Path) -> dict[str, Any]:
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        _ = record["config"]["checkpoint"], record["config"]["dtype"], record["content"]["checkpoint"], record["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the run.json of {run} lacks something ({error!r}); restore it, or resume the run") from None
    return record
