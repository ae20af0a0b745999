"""The run's own checkpoints: `checkpoints/step-N`, whole or absent, whatever kills the process.

Each is written as `.step-N.partial`, gets its marker `complete.json` last, and is then renamed; older ones are deleted
only after that. Tensors are in torch's distributed-checkpoint format, under the names that parameters have in one
process: a run can be resumed by another number of processes. There is nothing else to save: data order, learning
rate and dropout are functions of the step.
"""

import json
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

from gqa.convert.directory import disk_errors, sync_tree
from gqa.convert.errors import UserError
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
            UserError: the disk is full or fails; the checkpoints that stand stay, and the partial one is removed.
        """
        import torch.distributed.checkpoint as dcp

        target, partial = self.folder / f"step-{step}", self.folder / f".step-{step}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with without_warnings(), _disk_errors(partial):
            dcp.save(self._state(), checkpoint_id=partial)
        if self.accelerator.is_main_process:
            (partial / _MARKER).write_text(json.dumps({"step": step}) + "\n")
            sync_tree(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync_tree(self.folder)
            for number, old in complete_checkpoints(self.folder)[: -self.keep]:
                if number != best:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return target

    def load(self, checkpoint: Path) -> None:
        """Restore weights and optimizer from a complete checkpoint."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self._state()
        with without_warnings():
            dcp.load(state, checkpoint_id=checkpoint)
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
def _disk_errors(partial: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full, which torch reports as the cause of an error of its own."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with disk_errors(partial.parent):
            try:
                yield
            except CheckpointException as error:
                causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
                raise (causes or [error])[0] from None
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of the complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / _MARKER).is_file()]
    return sorted((step_of(path), path) for path in found)


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
