"""The run's own checkpoints: `checkpoints/step-N`, whole or absent, whatever kills the process.

Each is written as `.step-N.partial`, gets its marker `complete.json` last, and is then renamed; older ones are deleted
only after that. Tensors are in torch's distributed-checkpoint format, under the names that parameters have in one
process: a run can be resumed by another number of processes. There is nothing else to save: data order, learning
rate and dropout are functions of the step.
"""

import errno
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gqa.convert.directory import sync_tree
from gqa.convert.errors import OwnError, UserError, first_line
from gqa.uptrain.zero import is_zero, restore, state_of

_MARKER = "complete.json"


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores the weights and the optimizer's state."""

    folder: Path
    keep: int
    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    groups: list[list[str]]
    """The names of the parameters in every group of the optimizer."""

    def save(self, step: int, best: int | None = None) -> Path:
        """Write the checkpoint of `step`, then delete all but the newest `keep` and that of the step `best`.

        All processes call it together.

        Raises:
            OwnError: the disk is full or fails; the checkpoints that stand stay, and the partial one is removed.
        """
        import torch.distributed.checkpoint as dcp

        target, partial = self.folder / f"step-{step}", self.folder / f".step-{step}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with without_warnings(), _whole_or_gone(step, partial):
            dcp.save(self._state(), checkpoint_id=partial)
            if self.accelerator.is_main_process:
                (partial / _MARKER).write_text(json.dumps({"step": step}) + "\n")
                sync_tree(partial)
                remove_checkpoint(target)
                partial.rename(target)
                sync_tree(self.folder)
        if self.accelerator.is_main_process:
            for number, old in complete_checkpoints(self.folder)[: -self.keep]:
                if number != best:
                    remove_checkpoint(old)
        self.accelerator.wait_for_everyone()
        return target

    def load(self, checkpoint: Path) -> None:
        """Restore weights and optimizer from a complete checkpoint. All processes call it together.

        Raises:
            UserError: it can't be read.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self._state()
        with without_warnings():
            try:
                dcp.load(state, checkpoint_id=checkpoint)
            except CheckpointException as error:  # what one process meets all are told
                causes = [cause for cause, _ in error.failures.values() if isinstance(cause, Exception)]
                if not causes:
                    raise  # it was interrupted
                raise UserError(
                    f"{checkpoint} is damaged ({first_line(causes[0])}); name another checkpoint of the run with "
                    "--resume, or begin anew with --resume never --overwrite"
                ) from None
            if is_zero(self.accelerator):
                restore(self.module, self.optimizer, state)
                return
            set_state_dict(
                self.module, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        with without_warnings():
            if is_zero(self.accelerator):
                return state_of(self.module, self.optimizer, self.groups)
            model, optimizer = get_state_dict(self.module, self.optimizer)
        return {"model": model, "optimizer": optimizer}


@contextmanager
def _whole_or_gone(step: int, partial: Path) -> Iterator[None]:
    """Remove what is partial on any exception, and say in a sentence that it could not be written."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = _disk_failure(error)
        if why is None:
            raise
        complete = complete_checkpoints(partial.parent)
        kept = f"that of step {complete[-1][0]} is kept" if complete else "there is no earlier one"
        raise OwnError(
            f"the checkpoint of step {step} could not be written into {partial.parent}: {why}; what there was of it is "
            f"removed, and {kept}: free some space and run again"
        ) from None


def _disk_failure(error: BaseException) -> str | None:
    """What the disk has done to a checkpoint, in words; None if it was not the disk.

    Torch reports the errors of all processes in one of its own; and what closes a file of tensors that could not be
    written raises in its turn, so that the disk's error is only the context of that, and of another process' not there.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    chain = [error] if isinstance(error, Exception) else list[BaseException]()
    if isinstance(error, CheckpointException):
        chain = [cause for cause, _ in error.failures.values()]
    for one in chain:  # grows as it is walked
        chain += [one.__context__] if one.__context__ is not None else []
    failure = next((one for one in chain if isinstance(one, OSError)), None)
    if failure is not None:
        return "the disk is full" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else str(failure)
    torn = ("unexpected pos", "PytorchStreamWriter failed")
    if any(isinstance(one, RuntimeError) and any(words in str(one) for words in torn) for one in chain):
        return "the disk is full, or fails"
    return None


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, if it is there, its marker first: a kill on the way leaves none that looks complete."""
    (checkpoint / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of the complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / _MARKER).is_file()]
    return sorted((step_of(path), path) for path in found)


def half_deleted(folder: Path) -> list[Path]:
    """What a kill has left in `folder` of checkpoints that were being deleted: directories without the marker."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink() and not (path / _MARKER).exists()]


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken.

    Raises:
        UserError: it is not a complete checkpoint of a run.
    """
    try:
        return int(json.loads((checkpoint / _MARKER).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{checkpoint} is not a complete checkpoint of a run (RUN/checkpoints/step-N)") from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Torch warns that one process is one process, and of its own deprecated calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
