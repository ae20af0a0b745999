"""Options of how a run goes about it: none of them decides what a step learns (but for rounding)."""

from dataclasses import dataclass
from typing import Literal

Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """Validation, checkpoints, limits, and who is told."""

    eval_every: int | None = None
    """Steps between validations, besides those at the start and the end [default: a tenth of the run]."""

    patience: int | None = None
    """Stop after so many validations in a row without a new best; the finished checkpoint is then the best one's."""

    log_every: int = 10
    """Steps between looks at the device: progress bar, trackers, metrics.jsonl (which has a line for every step)."""

    save_every: int | None = None
    """Steps between checkpoints of the run [default: a tenth of the run]."""

    keep_checkpoints: int = 2
    """Checkpoints of the run that are kept; older ones are deleted after a new one is complete."""

    max_time: str | float | None = None
    """Save and stop after so long, with exit code 0, at the end of a step; the same command goes on. Seconds, or like
    90m, 12h, 1d12h; counted from the start of the command."""

    max_bad_steps: int = 10
    """Stop after so many steps in a row had to be left out; the last checkpoint stays."""

    find_batch: bool = False
    """Let as many sequences pass through a process at once as it has memory for, but no more than micro_batch_size. A
    GPU tries; a CPU takes the estimate that the run begins with, and memory_limit."""

    memory_limit: float | None = None
    """Memory of a process in GB (1e9 bytes) that find_batch may fill on a CPU [default: what is free]."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the finished checkpoint's weights. auto: as in the input."""

    trackers: tuple[Tracker, ...] = ()
    """Also log to tensorboard, wandb, trackio: one of them, or several."""

    quiet: bool = False
    """No progress bar and no notes."""
