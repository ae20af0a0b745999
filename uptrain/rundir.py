"""The run's directory: what it was started with, and where it goes on.

    OUTPUT.run/
      run.json        the config as given, the plan's numbers, hashes of the checkpoint and the data, where the
                      checkpoint is, and facts
      metrics.jsonl   a line for every step and every validation
      checkpoints/    step-N/: weights and optimizer after step N
      gqa-uptrain/    what trackers that write files have written

OUTPUT itself appears when the run is finished, whole.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gqa.convert.directory import write_atomically
from gqa.convert.errors import UserError
from gqa.eval.processes import speaks
from gqa.uptrain.checkpoints import complete_checkpoints, half_deleted, remove_checkpoint, step_of
from gqa.uptrain.config import FREE_ON_RESUME, NAMES_OF_CONTENT, UptrainConfig, as_json
from gqa.uptrain.plan import Plan

_FORMAT = 1


@dataclass(frozen=True)
class RunDir:
    """A run's directory and what belongs into its `run.json`."""

    path: Path
    config: UptrainConfig
    plan: Plan
    content: Mapping[str, str | None]
    """What the names in the config stand for: hashes of the checkpoint, of the data and of the validation data."""

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's own checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file with a line for every step."""
        return self.path / "metrics.jsonl"

    def resumed_from(self) -> Path | None:
        """The checkpoint to go on from, or None to start anew. Changes nothing on disk.

        Raises:
            UserError: there is a run here that can't be resumed with this config, or shall not be, and no `overwrite`.
        """
        resume = self.config.resume
        if resume not in ("auto", "never"):
            return self._named(Path(resume))
        if not (self.path / "run.json").is_file():
            return None
        difference = "resume is never" if resume == "never" else self._difference()
        if difference is None:
            complete = complete_checkpoints(self.checkpoints)
            return complete[-1][1] if complete else None
        if self.config.overwrite:
            return None
        raise UserError(
            f"{self.path} holds a run already, and {difference}; "
            "choose another output, or drop that run with --overwrite"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the directory for this run while the block lasts; one process of a run does it for all.

        Raises:
            UserError: another run is at work here.
        """
        if not speaks():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is at work on the run in {self.path}; let it end, or stop it"
                ) from None
            yield

    def begin(self, resumed: Path | None, checkpoint: Path, facts: Mapping[str, Any], teacher_is: str) -> None:
        """Make the directory ready for a run that goes on from `resumed`, or, when that is None, starts anew.

        `checkpoint` is what is trained, `facts` what a checkpoint made of the run will say of it, `teacher_is` what its
        report calls the teacher. Checkpoints of later steps are deleted: the run is about to make them again. So is
        what kills have left of others; nobody else may be writing here.
        """
        start = step_of(resumed) if resumed else 0
        for step, later in complete_checkpoints(self.checkpoints):
            if step > start:
                remove_checkpoint(later)
        for partial in [*self.checkpoints.glob(".step-*.partial"), *half_deleted(self.checkpoints)]:
            shutil.rmtree(partial)
        is_here = Path(self.config.checkpoint).is_dir()
        trained = str(checkpoint.resolve()) if is_here else self.config.checkpoint
        record = {**self.record(), "checkpoint": trained, "facts": dict(facts), "teacher_is": teacher_is}
        write_atomically(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def _named(self, checkpoint: Path) -> Path:
        step_of(checkpoint)
        if checkpoint.resolve().parent != self.checkpoints.resolve():
            raise UserError(f"{checkpoint} is not of the run in {self.path}; name its run with run_dir")
        difference = self._difference()
        if difference is not None:
            raise UserError(f"{checkpoint} can't be resumed: {difference}")
        return checkpoint

    def record(self) -> dict[str, Any]:
        """What `run.json` has to tell whether a run is the same."""
        numbers = {key: value if isinstance(value, int) else str(value) for key, value in asdict(self.plan).items()}
        return {"format": _FORMAT, "config": as_json(self.config), "plan": numbers, "content": dict(self.content)}

    def _difference(self) -> str | None:
        """What is not as it was when the run here was started; None if it would learn the same."""
        try:
            old = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            old_config, old_content = dict(old["config"]), dict(old["content"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its run.json can't be read ({error})"
        new = self.record()
        defaults = {field.name: field.default for field in fields(UptrainConfig)}
        for key, value in new["config"].items():
            before = old_config.get(key, defaults[key])
            if key not in FREE_ON_RESUME | NAMES_OF_CONTENT and value != before:
                return f"it was started with {key} = {before}, now it is {value}"
        for key, value in new["content"].items():
            if value != old_content.get(key):
                return f"it was started on another {key}: the content differs"
        return None
